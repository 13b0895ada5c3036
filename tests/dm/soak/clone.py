"""The soak's driver of the clone target."""

import errno
import itertools
import time

from hypothesis import strategies as st

import model
from engine import IDLE, Driver, event
from lib import dm, metadata, wait

MIB = 2
REGIONS = 8, 32, 128, 1024
# Sectors less than the disks have: the last region is short, or just not.
SHORT = 0, 1, 27, 1000
THRESHOLDS = 1, 0, 5, 64, 4294967295
BATCHES = 1, 0, 4, 64, 4294967295
LAYERS = "source", "dest", "meta"
THREADS = 12

MESSAGES = {  # words: errno
    "enable_hydration": 0, "disable_hydration": 0, "ENABLE_hydration and more": 0, "hydration_threshold 16": 0,
    "hydration_threshold 0": 0, "hydration_threshold 4294967295": 0, "hydration_batch_size 8": 0,
    "statistics": 0, "hydrate_range 100 900": 0, "max_failures 0": 0, "hydrate_range 0": errno.EINVAL,
    "hydrate_range 4000 1000": errno.EINVAL, "hydration_batch_size 0": 0, "Hydration_Batch_Size +3": 0, "hydration_threshold": errno.EINVAL,
    "hydration_threshold x": errno.EINVAL, "hydration_threshold 4294967296": errno.EINVAL,
    "hydration_batch_size -1": errno.EINVAL, "hydration_batch_size 1 2": errno.EINVAL, "nonsense": errno.EINVAL,
    "nonsense 1": errno.EINVAL,
}
BAD_LINES = {  # what replaces what is behind the devices: errno
    "": errno.EINVAL, "7": errno.EINVAL, "12": errno.EINVAL, "4194304": errno.EINVAL, "{region} 3 a b c": errno.EINVAL,
    "{region} 1 hydrate": errno.EINVAL, "{region} 0 1 hydration_threshold": errno.EINVAL,
    "{region} 0 2 hydration_threshold -1": errno.EINVAL, "{region} 0 2 speed 1": errno.EINVAL,
    "{other}": errno.EINVAL,  # another region size than the metadata's
}

# Anywhere, or where the sweep begins and others are too.
SECTOR = st.integers(0, MIB * 2048 - 1) | st.integers(0, 300)
FLAG = st.booleans()
SMALL = st.integers(0, 20)
WAIT = st.sampled_from([True, True, True, False])
RARELY = st.sampled_from([False] * 5 + [True])
OPTIONS = dict(hydration=FLAG, passdown=FLAG, on_read=RARELY, zero=RARELY, threshold=st.integers(0, len(THRESHOLDS) - 1),
               batch=st.integers(0, len(BATCHES) - 1))


class Fault:
    """Sectors of a layer that fail."""

    def __init__(self, layer, kind, ranges):
        self.layer, self.kind, self.ranges = layer, kind, ranges
        self.reads = kind in ("error", "error_reads")
        self.writes = kind in ("error", "error_writes")

    def meets(self, start, end):
        return any(start < b and a < end for a, b in self.ranges)


class Clone(Driver):
    """One clone over three disks, each behind a layer that can fail or hold.

    I/O that cannot end before something is let go (the device is suspended, or a layer held) goes to a thread. An I/O
    may fail only for a reason: a fault in its way while it was, a mode that a fault has led to, or the error table.
    """

    TARGET = "clone"
    SETUP = dict(region=st.integers(0, len(REGIONS) - 1), short=st.integers(0, len(SHORT) - 1), cache=FLAG) | OPTIONS

    def __init__(self, box, setup, tally):
        super().__init__(box, setup, tally)
        self.region = REGIONS[setup["region"]]
        self.trio = box.trio(mib=MIB, cache=setup["cache"], sectors=MIB * 2048 - SHORT[setup["short"]])
        self.trio.layered(*LAYERS)
        self.sectors = self.trio.sectors
        self.model = model.Model(bytes(self.trio.expected))
        self.serial = itertools.count(1)
        self.threads = []
        self.stopping = False
        self.faults = {}  # layer: Fault
        self.lingering = []  # healed, but a copy that they failed may not have been heard of yet
        self.held = set()
        self.known = set()  # regions that are hydrated for sure
        self.safe = set()  # and on disk
        self.make(self._options(setup))

    # The device

    @staticmethod
    def _options(arguments):
        return dict(hydration=arguments["hydration"], passdown=arguments["passdown"], on_read=arguments["on_read"],
                    zero=arguments["zero"],
                    threshold=THRESHOLDS[arguments["threshold"]], batch=BATCHES[arguments["batch"]])

    def words(self, options):
        """The words of a table line behind the devices."""
        features = [] if options["hydration"] else ["no_hydration"]
        features += [] if options["passdown"] else ["no_discard_passdown"]
        features += ["hydrate_on_read"] * options["on_read"] + ["zero_discards"] * options["zero"]
        return " ".join([str(self.region), str(len(features)), *features, "4", "hydration_threshold",
                         str(options["threshold"]), "hydration_batch_size", str(options["batch"])])

    def line(self, words):
        trio = self.trio
        return f"0 {self.sectors} clone {trio.meta.dev} {trio.dest.dev} {trio.source.dev} {words}"

    def make(self, options):
        """Creates the device, a new lifetime of its metadata in core."""
        trio = self.trio
        self.clone = self.box.clone(trio.meta, trio.dest, trio.source, self.region, start=False, length=self.sectors)
        self.pending = None
        try:
            self.clone.load(self.line(self.words(options)))
            self.clone.resume()
        except OSError as error:
            assert error.errno == errno.EIO and "meta" in self.faults, f"created with {self.faults}: {error}"
            self.heal()
            self.clone.load(self.line(self.words(options)))
            self.clone.resume()
        self.suspended = False
        self.fresh = False
        self.error_table = False
        self.least = 0
        self.events = self.clone.event
        self.mode = "rw"
        self.trouble = self.unflushable = self.unreadable = False
        self.go_live(options)
        self._new_faults()

    def go_live(self, options):
        """A table is live: what it says is in force, and in the status."""
        self.live, self.given = dict(options), self.words(options)
        self.limits_unsure = "dest" in self.faults

    # Faults, and what they excuse

    def _new_faults(self):
        """Notes what the faults of this moment can do: to the mode, and to I/O on its way."""
        fault = self.faults.get("dest")
        if fault and fault.writes:
            self.trouble = self.unflushable = True
        if fault:
            self.limits_unsure = True
        fault = self.faults.get("meta")
        if fault:
            self.trouble = True
            self.unreadable |= fault.reads
        with self.model.lock:
            for op in self.model.active:
                self._expose(op)

    def _expose(self, op):
        """An I/O on its way meets the present faults."""
        op.faults += [fault for fault in [*self.faults.values(), *self.lingering] if fault not in op.faults]
        op.trouble |= self.trouble
        op.unreadable |= self.unreadable
        op.anything |= self.error_table

    def begin(self, *parts):
        op = self.model.begin(*parts)
        op.faults, op.trouble, op.unreadable, op.anything = [], False, False, False
        with self.model.lock:
            self._expose(op)
            self.tally[f"{op.kind} I/O", "done"] += 1
        return op

    def excused(self, op):
        if op.anything or op.unreadable:
            return True
        if op.kind == "read":
            return any(f.reads and f.layer != "meta" and f.meets(op.start, op.end) for f in op.faults)
        if op.trouble:
            return True
        first, last = op.start // self.region * self.region, -(-op.end // self.region) * self.region
        for fault in op.faults:
            if fault.layer == "source" and fault.reads and fault.meets(first, last):
                return True
            if fault.layer == "dest" and (fault.meets(first, last) or op.kind in ("flush", "discard")):
                return True
        return False

    def failed(self, op, error):
        allowed = (errno.EIO, errno.EOPNOTSUPP) if op.kind == "discard" else (errno.EIO,)
        self.model.gave_up(op)
        assert error.errno in allowed, f"{op}: {error}"
        assert self.excused(op), f"{op} failed without a reason"
        with self.model.lock:
            self.tally[f"{op.kind} I/O", "failed"] += 1
            self.tally[f"{op.kind} I/O", "done"] -= 1
        return "failed"

    # I/O

    def io(self, now, call, *args):
        """Carries out an I/O: at once, or in a thread if it is to, or must, end later."""
        if now and not self.suspended and not self.held:
            return call(*args)
        self.spawn(call, *args)
        return "in background"

    def spawn(self, call, *args):
        if len(self.threads) >= THREADS:
            self.join()
        self.threads.append(self.box.background(call, *args))

    def extent(self, start, count):
        start %= self.sectors
        return start, max(1, min(count, self.sectors - start))

    def do_read(self, start, count):
        op = self.begin("read", start, count)
        try:
            got = self.clone.read(start, count)
        except OSError as error:
            return self.failed(op, error)
        bad = self.model.saw(op, got)
        assert not bad, f"{op}: {len(bad)} sectors are wrong: " + ", ".join(self.name(*pair) for pair in bad[:6])

    def name(self, sector, value):
        """Words for what a sector holds."""
        at = sector * 512
        if not any(value):
            what = "zeros"
        elif value == self.trio.data[at:at + 512]:
            what = "source data"
        elif value == self.trio.stale[at:at + 512]:
            what = "what the destination held before"
        elif value.startswith(b"write"):
            what = value.split(b" ")[0].decode()
        else:
            what = "something else"
        wanted = self.model.now[sector]
        if isinstance(wanted, bytes) and wanted.startswith(b"write"):
            what += " instead of " + wanted.split(b" ")[0].decode()
        return f"{sector}: {what}"

    def do_write(self, start, count, fua=False):
        data = model.content(next(self.serial), start, count)
        op = self.begin("write", start, count, data)
        try:
            self.clone.write(start, data, fua)
        except OSError as error:
            return self.failed(op, error)
        self.wrote(op, fua)

    def wrote(self, op, durable=False):
        regions = range(op.start // self.region, (op.end - 1) // self.region + 1)
        self.known.update(regions)
        if durable:
            self.safe.update(regions)
        self.model.wrote(op, durable)

    def do_flush(self):
        known = set(self.known)
        op = self.begin("flush")
        try:
            self.clone.flush()
        except OSError as error:
            return self.failed(op, error)
        if op.anything:  # the error table takes no flush, and dm acknowledges one that no target takes
            self.model.gave_up(op)
            return "flushed nothing"
        self.safe |= known
        self.model.flushed(op)

    def do_zero(self, start, count):
        op = self.begin("zero", start, count, bytes(count * 512))
        try:
            self.clone.zero(start, count)
        except OSError as error:
            return self.failed(op, error)
        self.wrote(op)

    def do_discard(self, start, count):
        disk = self.trio.dest_disk
        op = self.begin("discard", start, count, bytes(count * 512), disk.read(start, count))
        try:
            self.clone.discard(start, count)
        except OSError as error:
            return self.failed(op, error)
        # Without pass-down, a hydrated region stays and any other becomes what is below. Read-only, nothing happens.
        below = disk.read(start, count)
        certain = not op.trouble and not op.anything
        if certain:
            end = op.end if op.end < self.sectors else op.end + self.region - 1
            self.known.update(range(-(-op.start // self.region), end // self.region))
            passed = self.live["passdown"] and not self.live["zero"]
            if passed and not self.limits_unsure and not op.faults and not op.clashes:
                first, last = -(-start // self.region) * self.region, op.end // self.region * self.region
                assert not any(below[max(0, first - start) * 512:max(0, last - start) * 512]), f"{op} left data behind"
        self.model.discarded(op, self.region, certain, below)

    def do_stream(self, start, step, turns):
        """Writes and reads back, a sector here and a few there, until too much of it has failed."""
        failures = 0
        for turn in range(turns):
            if self.stopping or failures > 4:
                return
            at, count = self.extent(start + turn * step, 1 + turn % 3)
            failures += self.do_write(at, count, turn % 7 == 6) == "failed"
            failures += self.do_read(at, count) == "failed"

    @event(8, start=SECTOR, count=st.sampled_from([1, 2, 8, 40, 300, 1500]), now=WAIT)
    def read(self, start, count, now):
        return self.io(now, self.do_read, *self.extent(start, count))

    @event(10, start=SECTOR, count=st.sampled_from([1, 1, 3, 8, 40, 300, 1500]), fua=RARELY, now=WAIT)
    def write(self, start, count, fua, now):
        return self.io(now, self.do_write, *self.extent(start, count), fua)

    @event(6, region=SECTOR, count=st.sampled_from([1, 1, 2, 5, 20]), fua=RARELY, now=WAIT)
    def write_regions(self, region, count, fua, now):
        start = region * self.region % self.sectors // self.region * self.region
        count = min(max(1, count) * self.region, 2048 // self.region * self.region)
        return self.io(now, self.do_write, *self.extent(start, count), fua)

    @event(3, now=WAIT)
    def flush(self, now):
        return self.io(now, self.do_flush)

    @event(5, start=SECTOR, count=st.sampled_from([8, 33, 128, 700, 4096]), now=WAIT)
    def discard(self, start, count, now):
        return self.io(now, self.do_discard, *self.extent(start, count))

    @event(2, start=SECTOR, count=st.sampled_from([1, 8, 33, 300]), now=WAIT)
    def zero_out(self, start, count, now):
        return self.io(now, self.do_zero, *self.extent(start, count))

    @event(4, start=SECTOR, step=st.integers(0, 300), turns=SMALL)
    def stream(self, start, step, turns):
        self.spawn(self.do_stream, start, step, turns)

    @event(2)
    def join(self):
        """Lets everything go on, and waits for the I/O on its way."""
        if not self.threads:
            return IDLE
        self.run()
        try:
            self.stopping = True
            for thread in self.threads:
                thread.result()
        finally:
            self.stopping = False
        self.threads.clear()

    # Messages and status

    @event(8, words=st.sampled_from(list(MESSAGES)))
    def message(self, words):
        try:
            self.clone.message(*words.split())
        except OSError as error:
            assert error.errno == MESSAGES[words], f"message {words}: {error}"
            return "refused"
        assert not MESSAGES[words], f"message {words} was accepted"
        name, _, value = words.lower().partition(" ")
        if name.endswith("able_hydration"):
            self.live["hydration"] = name == "enable_hydration"
        elif name.startswith("hydration_"):
            self.live["threshold" if "threshold" in name else "batch"] = int(value)

    @event(3, noflush=FLAG)
    def status(self, noflush):
        if self.held:
            return IDLE  # it may wait for a commit, which waits for the layer
        status = self.look(noflush)
        if status and not noflush and status.mode == "rw" and not self.suspended:
            return "committed"

    @event(2, inactive=FLAG)
    def table(self, inactive):
        if inactive:
            rows = self.clone.specs(table=True, inactive=True)
            want = [] if self.pending is None else [self.words(self.pending)]
            assert [row[3].split(" ", 3)[3] for row in rows] == want
            return None if want else "none loaded"
        assert self.clone.table() == self.line(self.given).split(" ", 3)[3]

    def look(self, noflush=True):
        """The status, compared with all that is known."""
        known = len(self.known)  # before: threads go on meanwhile
        text = self.clone.status(noflush)
        if text == "Error":  # between the failure of a commit and the change of the mode
            assert self.unreadable, "the metadata could always be read"
            text = wait.until(lambda: (now := self.clone.status()) != "Error" and now, "the mode follows an error")
        if text == "Fail":
            assert self.unreadable, "failed, while the metadata could always be read"
            status, mode = None, "Fail"
        else:
            status = dm.Status(text)
            mode = status.mode
            assert mode == "rw" or self.trouble, f"read-only without a reason: {text}"
            assert status.region == self.region and status.regions == self.clone.regions, text
            assert max(self.least, known) <= status.hydrated <= status.regions, \
                f"{text}: at least {self.least} before, {known} written"
            self.least = status.hydrated
            assert not self.suspended or not status.hydrating, f"a copy runs while suspended: {text}"
            live = self.live
            assert (status.threshold, status.batch) == (live["threshold"], live["batch"]), f"{text}: not {live}"
            assert ("no_hydration" in status.features) != live["hydration"], f"{text}: not {live}"
            if "no_discard_passdown" not in status.features:
                assert live["passdown"], f"{text}: not {live}"
            else:
                assert not live["passdown"] or self.limits_unsure, f"{text}: not {live}"
            if not status.hydrating:
                self.lingering.clear()
        if mode != self.mode and not self.fresh_mode:
            wait.until(lambda: self.clone.event > self.events, f"an event, since {self.mode} became {mode}")
        self.events, self.mode, self.fresh_mode = self.clone.event, mode, False
        return status

    fresh_mode = False  # a resume may change the mode without an event

    def check(self):
        for thread in [thread for thread in self.threads if thread.done]:
            self.threads.remove(thread)
            thread.result()
        if not self.held:
            self.look()

    # Suspend, resume, tables

    def patiently(self, call, *args):
        """For what may wait until I/O has ended: held layers are let go when it has been asked for."""
        if not self.held:
            return call(*args)
        thread = self.box.background(call, *args)
        time.sleep(0.01)
        self.release()
        return thread.result()

    @event(5, noflush=FLAG, lockfs=FLAG)
    def suspend(self, noflush, lockfs):
        again = self.suspended
        self.patiently(self.clone.suspend, noflush, lockfs)
        self.suspended = True
        status = self.look()
        self.lingering.clear()
        if status and status.mode == "rw":
            self.calm()  # it has just been able to commit, or had nothing to
        return "again" if again else None

    def calm(self):
        """Nothing that went wrong before can change the mode any more."""
        if not {"dest", "meta"} & set(self.faults):
            self.trouble = self.unreadable = False

    @event(8)
    def resume(self):
        if not self.suspended and self.pending is None:
            self.clone.resume()
            return "again"
        if self.pending is not None:
            self.go_live(self.pending)
            self.pending = None
            self.fresh = True
        self.fresh_mode = True
        bad = "meta" in self.faults
        try:
            self.patiently(self.clone.resume)
        except OSError as error:
            # A new table opens failed metadata again, which fails again; then the device stays suspended.
            assert self.fresh and bad and self.trouble, f"resume: {error}"
            self.suspended = True
            assert self.clone.suspended
            self.unreadable = True
            return "failed"
        self.suspended = False
        if self.fresh and not bad:
            self.fresh = False
            status = self.look()
            assert self.unflushable or status and status.mode == "rw", "a new table did not recover the metadata"
            if status and status.mode == "rw":
                self.calm()
        self.fresh = False

    @event(4, **OPTIONS)
    def load(self, **options):
        self.pending = self._options(options)
        self.clone.load(self.line(self.words(self.pending)))

    @event(2, words=st.sampled_from(list(BAD_LINES)))
    def load_bad(self, words):
        """A line that is refused: nothing changes, neither the live table nor one that waits."""
        other = 16 if self.region != 16 else 32
        before = self.clone.specs(table=True, inactive=True)
        try:
            self.clone.load(self.line(words.format(region=self.region, other=other)))
        except OSError as error:
            assert error.errno == BAD_LINES[words], f"table line {words!r}: {error}"
        else:
            raise AssertionError(f"table line {words!r} was accepted")
        assert self.clone.specs(table=True, inactive=True) == before

    @event(2)
    def clear(self):
        self.clone.clear()
        if self.pending is None:
            return IDLE
        self.pending = None

    @event(4, noflush=FLAG, **OPTIONS)
    def swap(self, noflush, **options):
        """As the documentation says: suspend, load, resume."""
        self.suspend(noflush, False)
        self.load(**options)
        return self.resume()

    # Removal

    def run(self):
        """Nothing is held and nothing is suspended any more; metadata that keeps it from that is healed."""
        self.release()
        if self.suspended and self.resume() == "failed":
            self.heal()
            assert self.resume() != "failed"

    @event(1)
    def remove_open(self):
        """An open device cannot be removed."""
        self.clone._fd()
        try:
            dm._ioctl(dm._REMOVE, self.clone.name)
        except OSError as error:
            assert error.errno == errno.EBUSY, f"remove: {error}"
        else:
            raise AssertionError("an open device was removed")

    @event(3, suspended=FLAG, **OPTIONS)
    def recreate(self, suspended, **options):
        """Removes the device, live or suspended, and creates it over what is on disk."""
        self.release()
        self.join()
        if suspended or self.trouble:
            self.suspend(False, False)
        lost = self.mode != "rw"
        self.clone.remove()
        return self.reopen(lost, options)

    @event(4, **OPTIONS)
    def start_over(self, **options):
        """Removes the device and gives its metadata up: a new clone of the source."""
        self.release()
        self.join()
        self.clone.remove()
        self.heal()
        self.trio.meta.fill(bytes(4096))
        self.trio.meta.close()
        self.model.restart(self.trio.data[:self.sectors * 512])
        self.known, self.safe = set(), set()
        self.make(self._options(options))

    @event(1, **OPTIONS)
    def remove_deferred(self, **options):
        """Asked to go while open, the device works on until it is closed."""
        self.join()
        self.run()
        if self.trouble:
            self.suspend(True, False)  # shows whether it is over
            self.run()
        self.do_read(0, 1)
        self.clone.remove_deferred()
        assert dm.Mapped.exists(self.clone.name), "it did not wait"
        self.do_write(0, 1)
        lost = self.trouble
        self.clone.close()
        wait.until(lambda: not dm.Mapped.exists(self.clone.name), "removed with its last user")
        self.clone.gone = True
        wait.until(lambda: not self.trio.meta.info().opens, "its table is gone too")
        return self.reopen(lost, options)

    @event(2, now=FLAG, **OPTIONS)
    def remove_force(self, now, **options):
        """What dmsetup remove --force does: a table that fails everything, under what I/O there is, then removal."""
        if now:
            self.spawn(self.do_stream, 3, 77, 40)
        self.clone.load(f"0 {self.sectors} error")
        self.error_table = True
        with self.model.lock:
            for op in self.model.active:
                self._expose(op)
        lost = self.trouble
        self.patiently(self.clone.resume)
        assert self.clone.specs()[0][2] == "error"
        self.suspended, self.pending = False, None
        self.stopping = True
        for thread in self.threads:
            thread.result()
        self.threads.clear()
        self.stopping = False
        self.clone.remove()
        return self.reopen(lost, options)

    def reopen(self, lost, options):
        """The device is gone: its metadata is in order, and goes on. If a commit failed, what it was to make durable is
        lost or not; otherwise everything is there."""
        try:
            image = metadata.read(self.trio.meta_disk)
        except metadata.Damaged as damage:
            raise AssertionError(f"metadata on disk: {damage}") from damage
        found = image.hydrated()
        if lost:
            self.model.lose()
            self.known = set(self.safe)
        else:
            self.model.keep()
            assert len(found) >= self.least, f"{len(found)} regions on disk, {self.least} were hydrated"
        assert self.known <= found, f"not on disk: regions {sorted(self.known - found)[:9]}"
        self.safe = set(self.known)
        self.make(self._options(options))
        return "with loss" if lost else None

    # Devices that fail

    def disturb(self, layer, fault):
        """The layer gets a new fault, or none."""
        self.held.discard(layer)
        if fault:
            self.faults[layer] = fault
            self._new_faults()
        getattr(self.trio, layer).release()
        if not fault:
            getattr(self.trio, layer).heal()
            if layer in self.faults:
                self.lingering.append(self.faults.pop(layer))
        else:
            device = getattr(self.trio, layer)
            everything = fault.ranges == [(0, device.length)]
            getattr(device, fault.kind)(*([] if everything else fault.ranges))

    @event(5, layer=st.sampled_from(LAYERS), kind=st.sampled_from(["error", "error_reads", "error_writes"]),
           start=SECTOR, count=st.sampled_from([8, 40, 500, 0]))
    def fault(self, layer, kind, start, count):
        """Sectors of a layer fail from now on; with count 0, all."""
        device = getattr(self.trio, layer)
        if not count:
            ranges = [(0, device.length)]
        else:
            # Whole blocks: a block of the metadata that is written in half is beyond repair, for C too. Few are in use.
            start = start % (160 if layer == "meta" else device.length) // 8 * 8
            ranges = [(start, min(start + -(-count // 8) * 8, device.length))]
        self.disturb(layer, Fault(layer, kind, ranges))

    @event(6)
    def heal(self):
        """Everything works again."""
        if not self.faults:
            return IDLE
        for layer in list(self.faults):
            self.disturb(layer, None)

    @event(6, layer=st.sampled_from(["source", "dest"]), copies=FLAG)
    def hold(self, layer, copies):
        """What arrives at the layer waits; if wanted and possible, with copies of the sweep on their way to it."""
        if layer in self.held:
            return IDLE
        self.held.add(layer)
        getattr(self.trio, layer).hold()
        if copies and not self.faults and not self.trouble and not self.suspended:
            self.live |= dict(hydration=True, threshold=16, batch=4)
            self.clone.hydrate(16, 4)
            status = wait.until(lambda: (now := self.look()) and (now.hydrating or now.full) and now, "a copy")
            return "with copies" if status.hydrating else None

    @event(2)
    def release(self):
        if not self.held:
            return IDLE
        for layer in self.held:
            getattr(self.trio, layer).release()
        self.held.clear()

    @event(2)
    def hydrate(self):
        """All is copied, as fast as it goes, if nothing is in the way."""
        if self.faults or self.trouble or self.held or self.suspended:
            return IDLE
        self.full()

    def full(self):
        self.live |= dict(hydration=True, threshold=max(256, self.clone.regions), batch=64)
        self.clone.hydrate()
        self.clone.wait_full()

    def finish(self):
        """All devices work: nothing that was acknowledged is missing, and in the end the destination has it all."""
        self.heal()
        self.release()
        self.join()
        self.run()
        self.recreate(suspended=False, **{key: self.setup[key] for key in OPTIONS})
        status = self.look()
        assert status and status.mode == "rw"
        self.read_all()
        self.full()
        self.clone.to_linear()
        self.read_all()
        assert metadata.read(self.trio.meta_disk).count == self.clone.regions
        self.trio.check_source()

    def read_all(self):
        for start in range(0, self.sectors, 1024):
            assert self.do_read(*self.extent(start, 1024)) is None, "the device fails although no other does"


DRIVER = Clone
