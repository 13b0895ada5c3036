"""The soak driver of the clone target."""

import errno

from hypothesis import strategies as st

from engine import IDLE, event
from layers import FAULT, FLAG, RARELY, Layers
from lib import dm, metadata, wait

MIB = 2
REGIONS = 8, 32, 128, 1024
# Sectors less than the disks have: the last region is short, or just full.
SHORT = 0, 1, 27, 1000
THRESHOLDS = 1, 0, 5, 64, 4294967295
BATCHES = 1, 0, 4, 64, 4294967295
LAYERS = "source", "dest", "meta"

MESSAGES = {  # words: errno
    "enable_hydration": 0,
    "disable_hydration": 0,
    "ENABLE_hydration and more": 0,
    "hydration_threshold 16": 0,
    "hydration_threshold 0": 0,
    "hydration_threshold 4294967295": 0,
    "hydration_batch_size 8": 0,
    "statistics": 0,
    "hydrate_range 100 900": 0,
    "max_failures 0": 0,
    "hydrate_range 0": errno.EINVAL,
    "hydrate_range 4000 1000": errno.EINVAL,
    "hydration_batch_size 0": 0,
    "Hydration_Batch_Size +3": 0,
    "hydration_threshold": errno.EINVAL,
    "hydration_threshold x": errno.EINVAL,
    "hydration_threshold 4294967296": errno.EINVAL,
    "hydration_batch_size -1": errno.EINVAL,
    "hydration_batch_size 1 2": errno.EINVAL,
    "nonsense": errno.EINVAL,
    "nonsense 1": errno.EINVAL,
}
BAD_LINES = {  # what replaces the arguments after the devices: errno
    "": errno.EINVAL,
    "7": errno.EINVAL,
    "12": errno.EINVAL,
    "4194304": errno.EINVAL,
    "{region} 3 a b c": errno.EINVAL,
    "{region} 1 hydrate": errno.EINVAL,
    "{region} 0 1 hydration_threshold": errno.EINVAL,
    "{region} 0 2 hydration_threshold -1": errno.EINVAL,
    "{region} 0 2 speed 1": errno.EINVAL,
    "{other}": errno.EINVAL,  # a region size unlike that of the metadata
}

OPTIONS = dict(
    hydration=FLAG,
    passdown=FLAG,
    on_read=RARELY,
    zero=RARELY,
    threshold=st.integers(0, len(THRESHOLDS) - 1),
    batch=st.integers(0, len(BATCHES) - 1),
)


class Clone(Layers):
    """A clone over three disks, each behind a layer that can fail or hold.

    I/O may fail only for a reason: a fault that it met while in flight, a mode that a fault has led
    to, or the error table.
    """

    TARGET = "clone"
    BAD_LINES = BAD_LINES
    SETUP = (
        dict(
            region=st.integers(0, len(REGIONS) - 1),
            short=st.integers(0, len(SHORT) - 1),
            cache=FLAG,
        )
        | OPTIONS
    )

    def __init__(self, box, setup, tally):
        self.trio = box.trio(
            mib=MIB, cache=setup["cache"], sectors=MIB * 2048 - SHORT[setup["short"]]
        )
        self.trio.layered(*LAYERS)
        super().__init__(box, setup, tally, self.trio, bytes(self.trio.expected))
        self.region = REGIONS[setup["region"]]
        self.sectors = self.trio.sectors
        self.known = set()  # regions that are certainly hydrated
        self.safe = set()  # and on disk
        self.make(self._options(setup))

    # The device

    @staticmethod
    def _options(arguments):
        return dict(
            hydration=arguments["hydration"],
            passdown=arguments["passdown"],
            on_read=arguments["on_read"],
            zero=arguments["zero"],
            threshold=THRESHOLDS[arguments["threshold"]],
            batch=BATCHES[arguments["batch"]],
        )

    def words(self, options):
        """The arguments of a table line after the devices."""
        features = [] if options["hydration"] else ["no_hydration"]
        features += [] if options["passdown"] else ["no_discard_passdown"]
        features += ["hydrate_on_read"] * options["on_read"] + ["zero_discards"] * options["zero"]
        return " ".join(
            [
                str(self.region),
                str(len(features)),
                *features,
                "4",
                "hydration_threshold",
                str(options["threshold"]),
                "hydration_batch_size",
                str(options["batch"]),
            ]
        )

    def line(self, words):
        trio = self.trio
        return f"0 {self.sectors} clone {trio.meta.dev} {trio.dest.dev} {trio.source.dev} {words}"

    def make(self, options):
        """Creates the device: its metadata is loaded into memory again."""
        trio = self.trio
        self.clone = self.device = self.box.clone(
            trio.meta, trio.dest, trio.source, self.region, start=False, length=self.sectors
        )
        self.pending = None
        try:
            self.clone.load(self.line(self.words(options)))
            self.clone.resume()
        except OSError as error:
            assert (
                error.errno == errno.EIO and "meta" in self.faults
            ), f"created with {self.faults}: {error}"
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
        self.new_faults()

    def go_live(self, options):
        """A table is live: its arguments are in force, and in the status."""
        self.live, self.given = dict(options), self.words(options)
        self.limits_unsure = "dest" in self.faults

    # Faults, and what they excuse

    def noted(self, fault):
        """What a fault can do to the mode."""
        if fault.layer == "dest":
            self.limits_unsure = True
            if fault.writes:
                self.trouble = self.unflushable = True
        elif fault.layer == "meta":
            self.trouble = True
            self.unreadable |= fault.reads

    def prepare(self, op):
        op.trouble, op.unreadable = False, False
        super().prepare(op)

    def expose(self, op):
        super().expose(op)
        op.trouble |= self.trouble
        op.unreadable |= self.unreadable

    def excused(self, op):
        if op.anything or op.unreadable:
            return True
        if op.kind == "read":
            return any(
                f.reads and f.layer != "meta" and f.meets(op.start, op.end) for f in op.faults
            )
        if op.trouble:
            return True
        first, last = op.start // self.region * self.region, -(-op.end // self.region) * self.region
        for fault in op.faults:
            if fault.layer == "source" and fault.reads and fault.meets(first, last):
                return True
            if fault.layer == "dest" and (
                fault.meets(first, last) or op.kind in ("flush", "discard")
            ):
                return True
        return False

    # I/O

    def origin_of(self, sector, value):
        at = sector * 512
        if value == self.trio.data[at : at + 512]:
            return "source data"
        if value == self.trio.stale[at : at + 512]:
            return "what the destination held before"
        return super().origin_of(sector, value)

    def wrote(self, op, durable=False):
        regions = range(op.start // self.region, (op.end - 1) // self.region + 1)
        self.known.update(regions)
        if durable:
            self.safe.update(regions)
        self.model.wrote(op, durable)

    def do_flush(self):
        known = set(self.known)
        op = self.model.begin("flush")
        try:
            self.clone.flush()
        except OSError as error:
            return self.failed(op, error)
        if (
            op.anything
        ):  # the error table takes no flush, and dm acknowledges one that no target takes
            self.model.gave_up(op)
            return "flushed nothing"
        self.safe |= known
        self.model.flushed(op)

    def do_discard(self, start, count):
        disk = self.trio.dest_disk
        op = self.model.begin("discard", start, count, bytes(count * 512), disk.read(start, count))
        try:
            self.clone.discard(start, count)
        except OSError as error:
            return self.failed(op, error)
        # Without passdown, a hydrated region keeps its content, and any other becomes what the
        # destination holds. In read-only mode nothing happens.
        below = disk.read(start, count)
        certain = not op.trouble and not op.anything
        if certain:
            end = op.end if op.end < self.sectors else op.end + self.region - 1
            self.known.update(range(-(-op.start // self.region), end // self.region))
            passed = self.live["passdown"] and not self.live["zero"]
            if passed and not self.limits_unsure and not op.faults and not op.clashes:
                first, last = (
                    -(-start // self.region) * self.region,
                    op.end // self.region * self.region,
                )
                assert not any(
                    below[max(0, first - start) * 512 : max(0, last - start) * 512]
                ), f"{op} left data behind"
        self.model.discarded(op, self.region, certain, below)

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
        """Compares the status with all that is known."""
        known = len(self.known)  # before the status: other threads continue meanwhile
        text = self.clone.status(noflush)
        if text == "Error":  # between the failure of a commit and the change of the mode
            assert self.unreadable, "the metadata could always be read"
            text = wait.until(
                lambda: (now := self.clone.status()) != "Error" and now, "the mode follows an error"
            )
        if text == "Fail":
            assert self.unreadable, "failed, while the metadata could always be read"
            status, mode = None, "Fail"
        else:
            status = dm.Status(text)
            mode = status.mode
            assert mode == "rw" or self.trouble, f"read-only without a reason: {text}"
            assert status.region == self.region and status.regions == self.clone.regions, text
            assert (
                max(self.least, known) <= status.hydrated <= status.regions
            ), f"{text}: at least {self.least} before, {known} written"
            self.least = status.hydrated
            assert (
                not self.suspended or not status.hydrating
            ), f"a copy runs while suspended: {text}"
            live = self.live
            assert (status.threshold, status.batch) == (
                live["threshold"],
                live["batch"],
            ), f"{text}: not {live}"
            assert ("no_hydration" in status.features) != live["hydration"], f"{text}: not {live}"
            if "no_discard_passdown" not in status.features:
                assert live["passdown"], f"{text}: not {live}"
            else:
                assert not live["passdown"] or self.limits_unsure, f"{text}: not {live}"
            if not status.hydrating:
                self.lingering.clear()
        if mode != self.mode and not self.fresh_mode:
            wait.until(
                lambda: self.clone.event > self.events, f"an event, since {self.mode} became {mode}"
            )
        self.events, self.mode, self.fresh_mode = self.clone.event, mode, False
        return status

    fresh_mode = False  # a resume may change the mode without an event

    def check(self):
        self.reap()
        if not self.held:
            self.look()

    # Suspend, resume, tables

    @event(5, noflush=FLAG, lockfs=FLAG)
    def suspend(self, noflush, lockfs):
        again = self.suspended
        self.patiently(self.clone.suspend, noflush, lockfs)
        self.suspended = True
        status = self.look()
        self.lingering.clear()
        if status and status.mode == "rw":
            self.calm()  # it has just committed, or had nothing to commit
        return "again" if again else None

    def calm(self):
        """Earlier failures can no longer change the mode."""
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
            # A new table reads failed metadata again, which fails again; then the device stays
            # suspended.
            assert self.fresh and bad and self.trouble, f"resume: {error}"
            self.suspended = True
            assert self.clone.suspended
            self.unreadable = True
            return "failed"
        self.suspended = False
        if self.fresh and not bad:
            self.fresh = False
            status = self.look()
            assert (
                self.unflushable or status and status.mode == "rw"
            ), "a new table did not recover the metadata"
            if status and status.mode == "rw":
                self.calm()
        self.fresh = False

    @event(4, **OPTIONS)
    def load(self, **options):
        self.pending = self._options(options)
        self.clone.load(self.line(self.words(self.pending)))

    @event(2, words=st.sampled_from(list(BAD_LINES)))
    def load_bad(self, words):
        self.refused(words)

    def bad_line(self, words):
        return self.line(words.format(region=self.region, other=16 if self.region != 16 else 32))

    @event(4, noflush=FLAG, **OPTIONS)
    def swap(self, noflush, **options):
        """Suspend, load, resume, as the documentation says."""
        self.suspend(noflush, False)
        self.load(**options)
        return self.resume()

    # Removal

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
        """Removes the device and zeroes its metadata: a new clone of the source."""
        self.release()
        self.join()
        self.clone.remove()
        self.heal()
        self.trio.meta.fill(bytes(4096))
        self.trio.meta.close()
        self.model.restart(self.trio.data[: self.sectors * 512])
        self.known, self.safe = set(), set()
        self.make(self._options(options))

    @event(1, **OPTIONS)
    def remove_deferred(self, **options):
        """A device that is removed deferred while open works until it is closed."""
        self.join()
        self.run()
        if self.trouble:
            self.suspend(True, False)  # shows whether it has ended
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
        """What dmsetup remove --force does: loads a table that fails everything under the present
        I/O, then removes the device.
        """
        lost = self.trouble
        self.fail_everything(now)
        self.clone.remove()
        return self.reopen(lost, options)

    def reopen(self, lost, options):
        """The device is gone: its metadata is in order, and a new device continues. If a commit
        failed, what it was to make durable may be lost; everything else is there.
        """
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
            assert (
                len(found) >= self.least
            ), f"{len(found)} regions on disk, {self.least} were hydrated"
        assert self.known <= found, f"not on disk: regions {sorted(self.known - found)[:9]}"
        self.safe = set(self.known)
        self.make(self._options(options))
        return "with loss" if lost else None

    # Failing devices

    @event(5, layer=st.sampled_from(LAYERS), **FAULT)
    def fault(self, layer, kind, start, count):
        self.break_layer(layer, kind, start, count)

    @event(6, layer=st.sampled_from(["source", "dest"]), copies=FLAG)
    def hold(self, layer, copies):
        """I/O that arrives at the layer waits; optionally with background copies in flight."""
        if layer in self.held:
            return IDLE
        self.hold_layer(layer)
        if copies and not self.faults and not self.trouble and not self.suspended:
            self.live |= dict(hydration=True, threshold=16, batch=4)
            self.clone.hydrate(16, 4)
            status = wait.until(
                lambda: (now := self.look()) and (now.hydrating or now.full) and now, "a copy"
            )
            return "with copies" if status.hydrating else None

    @event(2)
    def hydrate(self):
        """Copies everything, as fast as possible, unless a layer is held or fails."""
        if self.faults or self.trouble or self.held or self.suspended:
            return IDLE
        self.full()

    def full(self):
        self.live |= dict(hydration=True, threshold=max(256, self.clone.regions), batch=64)
        self.clone.hydrate()
        self.clone.wait_full()

    def finish(self):
        """All devices work: nothing is missing that was acknowledged, and in the end the
        destination holds everything.
        """
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


DRIVER = Clone
