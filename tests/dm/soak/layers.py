"""What drivers share whose device lies over disks: I/O in the caller or in threads, and layers that
fail or hold.

I/O that cannot end before something is released (the device is suspended, or a layer is held) runs
in a thread.
"""

import errno
import itertools
import time

from hypothesis import strategies as st

import model
from engine import IDLE, Driver, event
from lib import dm

THREADS = 12

# Anywhere, or at the start, where other I/O is too.
SECTOR = st.integers(0, 16383) | st.integers(0, 300)
FLAG = st.booleans()
SMALL = st.integers(0, 20)
WAIT = st.sampled_from([True, True, True, False])
RARELY = st.sampled_from([False] * 5 + [True])
FAULT = dict(
    kind=st.sampled_from(["error", "error_reads", "error_writes"]),
    start=SECTOR,
    count=st.sampled_from([8, 40, 500, 0]),
)


class Fault:
    """Sectors of a layer that fail."""

    def __init__(self, layer, kind, ranges):
        self.layer, self.kind, self.ranges = layer, kind, ranges
        self.reads = kind in ("error", "error_reads")
        self.writes = kind in ("error", "error_writes")

    def meets(self, start, end):
        return any(start < b and a < end for a, b in self.ranges)


class Layers(Driver):
    """A device over `parts`, which are behind layers. A driver defines:

    device          the mapped device, once it exists
    sectors         its size
    region          the sectors that belong together
    excused(op)     whether an I/O may fail
    wrote(op, durable)  a write was acknowledged
    do_flush(), do_discard(start, count)
    look()          reads the status, and compares it with what is known
    resume()        an event; "failed" if it stays suspended
    bad_line(words) a table line that must be refused
    noted(fault)    a layer has begun to fail
    """

    BAD_LINES = {}

    def __init__(self, box, setup, tally, parts, data):
        super().__init__(box, setup, tally)
        self.parts = parts
        self.model = model.Model(data, self.prepare)
        self.serial = itertools.count(1)
        self.threads = []
        self.stopping = False
        self.faults = {}  # layer: Fault
        self.lingering = []  # healed, but their failures may not be known yet
        self.held = set()
        self.pending = None
        self.suspended = False
        self.trouble = False  # the metadata may not work
        self.error_table = False

    def noted(self, fault):
        pass

    def new_faults(self):
        """The present faults meet the I/O in flight."""
        for fault in self.faults.values():
            self.noted(fault)
        self.expose_all()

    def expose_all(self):
        with self.model.lock:
            for op in self.model.active:
                self.expose(op)

    def expose(self, op):
        """An I/O in flight meets the present faults."""
        op.faults += [
            fault for fault in [*self.faults.values(), *self.lingering] if fault not in op.faults
        ]
        op.anything |= self.error_table

    def prepare(self, op):
        """An I/O begins."""
        op.faults, op.anything, op.flushes = [], False, None
        self.expose(op)
        self.tally[f"{op.kind} I/O", "done"] += 1

    # I/O

    def failed(self, op, error):
        allowed = (errno.EIO, errno.EOPNOTSUPP) if op.kind == "discard" else (errno.EIO,)
        self.model.gave_up(op)
        assert error.errno in allowed, f"{op}: {error}"
        assert self.excused(op), f"{op} failed without a reason"
        with self.model.lock:
            self.tally[f"{op.kind} I/O", "failed"] += 1
            self.tally[f"{op.kind} I/O", "done"] -= 1
        return "failed"

    def io(self, now, call, *args):
        """Carries out an I/O: in the caller, or in a thread if it may or must end later."""
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
        op = self.model.begin("read", start, count)
        try:
            got = self.device.read(start, count)
        except OSError as error:
            return self.failed(op, error)
        bad = self.model.saw(op, got)
        assert not bad, f"{op}: {len(bad)} sectors are wrong: " + ", ".join(
            self.name(*pair) for pair in bad[:6]
        )

    def name(self, sector, value):
        """A description of what a sector holds."""
        if not any(value):
            what = "zeros"
        elif value.startswith(b"write"):
            what = value.split(b" ")[0].decode()
        else:
            what = self.origin_of(sector, value)
        wanted = self.model.now[sector]
        if isinstance(wanted, bytes) and wanted.startswith(b"write"):
            what += " instead of " + wanted.split(b" ")[0].decode()
        return f"{sector}: {what}"

    def origin_of(self, sector, value):
        return "something else"

    def do_write(self, start, count, fua=False):
        data = model.content(next(self.serial), start, count)
        op = self.model.begin("write", start, count, data)
        op.flushes = fua  # the kernel sends a flush after it, before the call ends
        try:
            self.device.write(start, data, fua)
        except OSError as error:
            return self.failed(op, error)
        self.wrote(op, fua)

    def do_zero(self, start, count):
        op = self.model.begin("zero", start, count, bytes(count * 512))
        op.flushes = False
        try:
            self.device.zero(start, count)
        except OSError as error:
            return self.failed(op, error)
        self.wrote(op)

    def do_stream(self, start, step, turns):
        """Writes and reads back, a sector here and a few there, until too many operations have
        failed.
        """
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

    @event(
        10, start=SECTOR, count=st.sampled_from([1, 1, 3, 8, 40, 300, 1500]), fua=RARELY, now=WAIT
    )
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
        """Releases everything, and waits for the I/O in flight."""
        if not self.threads:
            return IDLE
        self.run()
        self.finish_threads()

    def finish_threads(self):
        try:
            self.stopping = True
            for thread in self.threads:
                thread.result()
        finally:
            self.stopping = False
        self.threads.clear()

    def reap(self):
        """Raises what failed in threads that have ended."""
        for thread in [thread for thread in self.threads if thread.done]:
            self.threads.remove(thread)
            thread.result()

    # Tables

    def patiently(self, call, *args):
        """Makes a call that may wait for I/O: held layers are released after it was made."""
        if not self.held:
            return call(*args)
        thread = self.box.background(call, *args)
        time.sleep(0.01)
        self.release()
        return thread.result()

    def refused(self, words):
        """Loads a line that must be refused; neither the live table nor a loaded one changes."""
        before = self.device.specs(table=True, inactive=True)
        try:
            self.device.load(self.bad_line(words))
        except OSError as error:
            assert error.errno == self.BAD_LINES[words], f"table line {words!r}: {error}"
        else:
            raise AssertionError(f"table line {words!r} was accepted")
        assert self.device.specs(table=True, inactive=True) == before

    @event(2)
    def clear(self):
        self.device.clear()
        if self.pending is None:
            return IDLE
        self.pending = None

    def run(self):
        """Nothing is held or suspended any more; metadata that would prevent it is healed."""
        self.release()
        if self.suspended and self.resume() == "failed":
            self.heal()
            assert self.resume() != "failed"

    @event(1)
    def remove_open(self):
        """An open device cannot be removed."""
        self.device._fd()
        try:
            dm._ioctl(dm._REMOVE, self.device.name)
        except OSError as error:
            assert error.errno == errno.EBUSY, f"remove: {error}"
        else:
            raise AssertionError("an open device was removed")

    def fail_everything(self, now):
        """A table that fails everything goes live under the present I/O."""
        if now:
            self.spawn(self.do_stream, 3, 77, 40)
        self.device.load(f"0 {self.sectors} error")
        self.error_table = True
        self.expose_all()
        self.patiently(self.device.resume)
        assert self.device.specs()[0][2] == "error"
        self.suspended, self.pending = False, None
        self.finish_threads()

    # Failing devices

    def disturb(self, layer, fault):
        """Gives the layer a new fault, or none."""
        self.held.discard(layer)
        if fault:
            self.faults[layer] = fault
            self.new_faults()
        getattr(self.parts, layer).release()
        if not fault:
            getattr(self.parts, layer).heal()
            if layer in self.faults:
                self.lingering.append(self.faults.pop(layer))
        else:
            device = getattr(self.parts, layer)
            everything = fault.ranges == [(0, device.length)]
            getattr(device, fault.kind)(*([] if everything else fault.ranges))

    def break_layer(self, layer, kind, start, count):
        """Sectors of a layer fail from now on; with count 0, all."""
        device = getattr(self.parts, layer)
        if not count:
            ranges = [(0, device.length)]
        else:
            # Whole blocks: a block of the metadata that is half written is beyond repair, for C
            # too. Few are in use.
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

    @event(2)
    def release(self):
        if not self.held:
            return IDLE
        for layer in self.held:
            getattr(self.parts, layer).release()
        self.held.clear()

    def hold_layer(self, layer):
        """I/O that arrives at the layer waits."""
        self.held.add(layer)
        getattr(self.parts, layer).hold()

    def read_all(self):
        for start in range(0, self.sectors, 1024):
            assert (
                self.do_read(*self.extent(start, 1024)) is None
            ), "the device fails although no other does"
