"""The soak's driver of the snapshot target: an origin and up to three snapshots, which come and go."""

import errno
import time
from types import SimpleNamespace

from hypothesis import strategies as st

import model
from engine import IDLE, event
from layers import FAULT, FLAG, SMALL, Layers
from lib import cow, snaps, wait
from lib.box import pattern

MIB = 4
SLOTS = 3
KINDS = "P", "PO", "N"
SIZES = 8, 1, 16, 64, 256
ROOMS = None, 34, 300, 3  # chunks of the COW device, or as many as there is room for
FEATURES = "", "1 discard_zeroes_cow", "2 discard_zeroes_cow discard_passdown_origin"
FORMS = len(KINDS) * len(SIZES) * len(ROOMS) * len(FEATURES)
BAD_LINES = {  # what replaces what is behind the devices: errno
    "": errno.EINVAL,
    "P": errno.EINVAL,
    "PX 8": errno.EINVAL,
    "X 8": errno.EINVAL,
    "P 3": errno.EINVAL,
    "P 8x": errno.EINVAL,
    "P 8 1": errno.EINVAL,
    "P 8 1 nonsense": errno.EINVAL,
    "P 8 1 discard_passdown_origin": errno.EINVAL,
    "P 8 3 a b c": errno.EINVAL,
}


class Form:
    """What kind of snapshot a slot has."""

    def __init__(self, number, lower):
        number, kind = divmod(number, len(KINDS))
        number, size = divmod(number, len(SIZES))
        features, room = divmod(number, len(ROOMS))
        self.kind, self.size, self.features = KINDS[kind], SIZES[size], FEATURES[features]
        self.sectors = min((ROOMS[room] or lower.sectors) * self.size, lower.sectors)
        self.persistent = self.kind != "N"
        chunks = self.sectors // self.size
        self.capacity = cow.capacity(chunks, self.size) if self.persistent else chunks

    @property
    def words(self):
        return f"{self.kind} {self.size} {self.features}".strip()

    def allocated(self, exceptions):
        """What the status says with so many."""
        return (cow.data_at(exceptions, self.size) if self.persistent else exceptions) * self.size


class Face(Layers):
    """A device of the family, with what it must read. Its layers and threads are those of the
    family.
    """

    def __init__(self, family, device, region, content):
        super().__init__(family.box, family.setup, family.tally, family.parts, b"")
        self.family, self.device, self.region, self.sectors = family, device, region, family.sectors
        self.model.now = list(content)
        self.faults, self.lingering, self.held = family.faults, family.lingering, family.held
        self.threads, self.serial = family.threads, family.serial
        self.base = device.event

    stopping = property(lambda self: self.family.stopping, lambda self, value: None)

    def join(self):
        return self.family.join()

    def run(self):
        self.family.run()

    def finish_threads(self):
        self.family.finish_threads()

    def expose_all(self):
        self.family.expose_all()

    def noted(self, fault):
        pass

    def failed(self, op, error):
        if op.kind == "discard" and error.errno == errno.EOPNOTSUPP:
            self.model.gave_up(op)
            return "not supported"
        return super().failed(op, error)

    def wrote(self, op, durable=False):
        self.model.wrote(op)

    def do_flush(self):
        op = self.model.begin("flush")
        try:
            self.device.flush()
        except OSError as error:
            return self.failed(op, error)
        self.model.flushed(op)

    def suspend(self, noflush, lockfs):
        again = self.suspended
        self.patiently(self.device.suspend, noflush, lockfs)
        self.suspended = True
        return "again" if again else None

    def resume(self):
        if not self.suspended and self.pending is None:
            self.device.resume()
            return "again"
        self.patiently(self.device.resume)
        if self.pending is not None:
            self.taken_over()
        self.suspended, self.pending = False, None

    def taken_over(self):
        pass

    def look(self):
        pass

    def calm(self):
        """Nothing is held or suspended, no I/O is on its way."""


class Front(Face):
    """The origin."""

    name_of_target = "snapshot-origin"

    def line(self):
        return self.family.origin_line()

    def words(self, inactive):
        return f"{self.parts.real.dev}"

    def load(self):
        self.device.load(self.line())
        self.pending = True

    def prepare(self, op):
        super().prepare(op)
        # An exception is owed to the snapshots that are there now; others may come to see the
        # write.
        op.watchers = self.family.snapshots() if op.changes else []
        for watcher in op.watchers:
            watcher.touched(op)

    def wrote(self, op, durable=False):
        for watcher in op.watchers:
            watcher.has(op)
        super().wrote(op)

    def excused(self, op):
        if op.anything:
            return True
        for fault in op.faults:
            if fault.layer != "real":
                continue
            if op.kind == "flush" and fault.writes:
                return True
            if fault.meets(op.start, op.end) and (
                fault.reads if op.kind == "read" else fault.writes
            ):
                return True
        return False

    def do_discard(self, start, count):
        try:
            self.device.discard(start, count)
        except OSError as error:
            assert error.errno == errno.EOPNOTSUPP or self.error_table, f"discard: {error}"
            return "not supported"
        raise AssertionError("the origin was discarded from")

    def check_status(self):
        assert all(text == "" for *_, text in self.device.specs())


class Snapshot(Face):
    """A snapshot.

    `tried` are chunks that somebody began to write to, `sure` those to which a write was
    acknowledged: the first may have an exception, the second must. A snapshot may be lost, for
    good, if its COW device had no room for all it has tried, or after a fault of it or of the
    origin. Whether it is shows when all I/O has ended.
    """

    name_of_target = "snapshot"

    def __init__(self, family, slot, form, device, content):
        super().__init__(family, device, form.size, content)
        self.slot, self.form, self.layer = slot, form, f"cow{slot}"
        self.tried, self.sure = set(), set()
        self.lost = self.doubtful = self.overflowed = self.cow_failed = False

    def line(self):
        return self.family.line(self.slot)

    def words(self, inactive):
        form = self.form
        size = 0 if inactive else form.size
        return f"{self.parts.real.dev} {getattr(self.parts, self.layer).dev} {form.kind} {size} {form.features}".strip()

    @property
    def crowded(self):
        return len(self.tried) > self.form.capacity

    @property
    def has_reason(self):
        """To be lost."""
        return self.lost or self.doubtful or self.crowded

    def chunks(self, op):
        return range(op.start // self.region, -(-op.end // self.region))

    def touched(self, op):
        self.tried.update(self.chunks(op))

    def has(self, op):
        self.sure.update(self.chunks(op))

    def noted(self, fault):
        if fault.layer == self.layer:
            self.doubtful = True
            self.cow_failed |= fault.writes
        self.doubtful |= fault.layer == "real" and fault.reads

    def excused(self, op):
        if op.anything:
            return True
        if op.kind == "flush":
            return any(fault.layer == self.layer and fault.writes for fault in op.faults)
        if op.changes and self.overflowed or op.kind == "discard" and op.faults:
            return True
        return self.has_reason or any(fault.layer == self.layer for fault in op.faults)

    def prepare(self, op):
        super().prepare(op)
        if op.changes and op.kind != "discard":
            self.touched(op)

    def wrote(self, op, durable=False):
        self.has(op)
        super().wrote(op)

    def do_discard(self, start, count):
        """Each sector is as before, or zeros; with passdown so is the origin, past all other
        snapshots.
        """
        past = (
            [face for face in self.family.faces() if face is not self]
            if "passdown" in self.form.features
            else []
        )
        ops = [
            (face, face.model.begin("discard", start, count, bytes(count * 512)))
            for face in (self, *past)
        ]
        try:
            self.device.discard(start, count)
        except OSError as error:
            for face, op in ops[1:]:
                face.model.gave_up(op)
            return self.failed(ops[0][1], error)
        for face, op in ops:
            face.model.gave_up(op)

    def load(self):
        """A second table over a first that waits is refused."""
        try:
            self.device.load(self.line())
        except OSError as error:
            assert error.errno == errno.EINVAL and self.pending, f"load: {error}"
            return "refused"
        assert not self.pending, "a second table was loaded"
        self.pending = True

    def bad_line(self, words):
        return f"0 {self.sectors} snapshot {self.parts.real.dev} {getattr(self.parts, self.layer).dev} {words}"

    BAD_LINES = BAD_LINES

    def look(self):
        """The status, compared with all that is known."""
        if self.error_table:
            return None
        least = len(self.sure)
        text = self.device.status()
        if text == "Invalid":
            assert self.has_reason, "lost for no reason"
            self.tally["snapshot", "lost"] += not self.lost
            self.lost = True
            return None
        assert not self.lost, f"it was lost, and says {text}"
        if text == "Overflow":
            assert self.form.kind == "PO" and self.crowded, "overflow for no reason"
            self.tally["snapshot", "overflowed"] += not self.overflowed
            self.overflowed = True
            return None
        assert not self.overflowed, f"it was full, and says {text}"
        status = snaps.Usage(text)
        most = len(self.tried)
        assert status.total == self.form.sectors, text
        fewest, largest = (self.form.allocated(count) for count in (least, most))
        assert fewest <= status.allocated <= largest, f"{text}: not {least} to {most} exceptions"
        return status

    def check_status(self):
        self.look()

    def calm(self):
        if self.error_table:
            return
        if not self.lost and self.is_failing():
            wait.until(lambda: self.device.status() == "Invalid", "it is said to be lost")
        self.look()
        if self.lost:
            wait.until(lambda: self.device.event > self.base, "an event says that it is lost")
        elif not self.faults:
            self.doubtful = False

    def is_failing(self):
        """Whether it is lost, though its header may not say so yet."""
        if len(self.sure) > self.form.capacity:
            return True
        try:
            self.device.read(0, 1)
        except OSError as error:
            assert error.errno == errno.EIO
            return not self.faults
        return False

    def check_disk(self):
        """The device is gone. What is on disk says what it has said."""
        if not self.form.persistent:
            return
        disk = self.family.disks[self.layer]
        magic, valid = cow.HEADER.unpack(disk.read(0, 1)[:16])[:2]
        assert magic == cow.MAGIC
        assert (
            not self.lost or not valid or self.cow_failed
        ), "it was lost, and the header does not say so"
        if self.lost:
            return
        assert valid, "it was not lost, but the header says so"
        store = cow.Store(SimpleNamespace(sectors=self.form.sectors, read=disk.read))
        self.tally[
            "store compared", f"of {store.area + 1} areas" if store.area < 3 else "of more"
        ] += 1
        assert store.records == cow.numbered(
            [old for old, _ in store.records], self.region
        ), "records out of order"
        olds = set(store.taken)
        missing, extra = sorted(self.sure - olds), sorted(olds - self.tried)
        assert not (
            store.repeated or missing or extra
        ), f"repeated {store.repeated[:4]}, missing {missing[:4]}, too many {extra[:4]}"
        real, data = self.family.disks["real"].content(self.sectors), disk.content(
            store.next * self.region
        )
        for n, held in enumerate(self.model.now):
            old, rest = divmod(n, self.region)
            source, at = (
                (data, store.taken[old] * self.region + rest) if old in store.taken else (real, n)
            )
            got = source[at * 512 : at * 512 + 512]
            assert got in model.values(held), f"on disk: {self.name(n, got)}"


def on_any(name):
    """An event of one device, for any of the family."""
    method = getattr(Layers, name)
    weight, arguments = method.event

    @event(weight, which=SMALL, **arguments)
    def chosen(self, which, **arguments):
        return method(self.pick(which), **arguments)

    return chosen


class Family(Layers):
    """The origin's disk and three COW devices, each behind a layer that can fail or hold, and what
    is over them.

    Origin I/O fails only if its own disk does. An I/O of a snapshot may fail if a device in its way
    does, or if the snapshot has a reason to be lost. Snapshots are taken, opened and removed while
    the origin is suspended, as by LVM.
    """

    TARGET = "snapshot"
    SETUP = {f"form{n}": st.integers(0, FORMS - 1) for n in range(SLOTS)} | {
        "short": st.sampled_from([0, 1, 27, 1000])
    }
    ORIGIN = 1  # how often it is picked, of so many times that a snapshot is
    PIECES = 1  # lines of the origin's table

    def __init__(self, box, setup, tally):
        self.disks = {
            "real": box.ram(MIB),
            **{f"cow{n}": box.ram(2 * MIB + 1) for n in range(SLOTS)},
        }
        self.forms = [Form(setup[f"form{n}"], self.disks[f"cow{n}"]) for n in range(SLOTS)]
        data = pattern("origin", MIB * 2048)
        self.disks["real"].fill(data)
        lengths = {f"cow{n}": form.sectors for n, form in enumerate(self.forms)} | {
            "real": MIB * 2048 - setup["short"]
        }
        parts = SimpleNamespace(
            **{name: box.layered(disk, sectors=lengths[name]) for name, disk in self.disks.items()}
        )
        super().__init__(box, setup, tally, parts, b"")
        self.sectors, self.slots = lengths["real"], [None] * SLOTS
        self.front = None
        self.make_front(data[: self.sectors * 512])
        self.take(0)

    # The devices

    def faces(self):
        return [self.front, *self.snapshots()]

    def snapshots(self):
        return [face for face in self.slots if face]

    def pick(self, which):
        return ([self.front] * self.ORIGIN + self.snapshots() * 2)[
            which % (self.ORIGIN + 2 * len(self.snapshots()))
        ]

    def origin_line(self):
        ends = [self.sectors * n // self.PIECES // 8 * 8 for n in range(self.PIECES)] + [
            self.sectors
        ]
        return "\n".join(
            f"{start} {end - start} snapshot-origin {self.parts.real.dev}"
            for start, end in zip(ends, ends[1:])
        )

    def line(self, slot):
        cow_device = getattr(self.parts, f"cow{slot}")
        return f"0 {self.sectors} snapshot {self.parts.real.dev} {cow_device.dev} {self.forms[slot].words}"

    def make_front(self, content):
        device = self.box.mapped(self.origin_line())
        now = self.front.model.now if self.front else model.split(content)
        self.front = Front(self, device, 64, now)

    def noted(self, fault):
        for face in self.snapshots():
            face.noted(fault)

    def expose_all(self):
        for face in self.faces() if self.front else ():
            with face.model.lock:
                for op in face.model.active:
                    face.expose(op)

    def check(self):
        self.reap()
        for face in self.faces():
            face.look()

    # What all do

    read, write, write_regions, flush, discard, zero_out, stream, remove_open = map(
        on_any,
        ("read", "write", "write_regions", "flush", "discard", "zero_out", "stream", "remove_open"),
    )

    def run(self):
        self.release()
        for face in self.faces():
            if face.suspended:
                face.resume()

    @event(2)
    def join(self):
        """Lets everything go on, waits for the I/O on its way, and sees what has become of the
        snapshots.
        """
        idle = not self.threads
        self.run()
        self.finish_threads()
        self.lingering.clear()
        for face in self.faces():
            face.calm()
        return IDLE if idle else None

    @event(3, which=SMALL, noflush=FLAG)
    def status(self, which, noflush):
        """With a flush, if that need not wait."""
        face = self.pick(which)
        face.device.status(noflush=noflush or bool(self.held) or face.suspended)
        face.check_status() if not face.error_table else None

    @event(2, which=SMALL, inactive=FLAG)
    def table(self, which, inactive):
        face = self.pick(which)
        rows = face.device.specs(table=True, inactive=inactive)
        if inactive and not face.pending:
            assert rows == []
            return "none loaded"
        assert {(kind, text) for _, _, kind, text in rows} == {
            (face.name_of_target, face.words(inactive))
        }, rows

    @event(5, which=SMALL, noflush=FLAG, lockfs=FLAG)
    def suspend(self, which, noflush, lockfs):
        return self.pick(which).suspend(noflush, lockfs)

    @event(8, which=SMALL)
    def resume(self, which):
        return self.pick(which).resume()

    @event(4, which=SMALL)
    def load(self, which):
        return self.pick(which).load()

    @event(2, which=SMALL)
    def clear(self, which):
        return Layers.clear(self.pick(which))

    @event(2, which=SMALL, words=st.sampled_from(list(BAD_LINES)))
    def load_bad(self, which, words):
        face = self.pick(which)
        if face is self.front or face.pending:  # a line without mistakes would be refused too
            return IDLE
        face.refused(words)

    @event(5, which=SMALL, noflush=FLAG)
    def swap(self, which, noflush):
        """Another table takes over."""
        face = self.pick(which)
        face.suspend(noflush, False)
        face.load()
        return face.resume()

    # Snapshots come and go

    def with_origin_suspended(self, call):
        """As LVM does."""
        was = self.front.suspended
        self.front.suspend(False, False)
        try:
            return call()
        finally:
            if not was:
                self.front.resume()

    @event(4, slot=st.integers(0, SLOTS - 1), noflush=FLAG)
    def take(self, slot, noflush=False):
        """A snapshot of what the origin holds now, in place of that in the slot."""
        if self.slots[slot]:
            self.remove(slot)
        form = self.forms[slot]
        self.disks[f"cow{slot}"].write(0, bytes(4096))
        device = self.open(slot)
        if not device:
            return "failed"
        was = self.front.suspended
        self.front.suspend(noflush, False)
        # Before it works: what begins later is not in it.
        with self.front.model.lock:
            face = Snapshot(self, slot, form, device, self.front.model.now)
            for op in self.front.model.active:
                if op.changes:
                    face.touched(op)
            self.slots[slot] = face
        self.new_faults()
        face.patiently(device.resume)
        if not was:
            self.front.resume()

    def open(self, slot):
        """A table for a COW device, not live yet; None if the device below does not let it be read
        or made.
        """
        device = self.box.own(
            snaps.Snapshot(
                self.parts.real,
                getattr(self.parts, f"cow{slot}"),
                self.forms[slot].kind,
                self.forms[slot].size,
                length=self.sectors,
                start=False,
            )
        )
        try:
            self.patiently(device.load, self.line(slot))
        except OSError as error:
            assert (
                error.errno == errno.EIO and f"cow{slot}" in self.faults
            ), f"loaded with {self.faults}: {error}"
            device.remove()
            return None
        return device

    @event(2, slot=st.integers(0, SLOTS - 1))
    def drop(self, slot):
        if not self.slots[slot]:
            return IDLE
        self.remove(slot)

    def remove(self, slot):
        """The snapshot is gone; its slot is free."""
        face = self.slots[slot]
        self.join()

        def gone():
            face.look()
            face.device.remove()
            if not face.error_table:
                face.check_disk()
            self.slots[slot] = None

        self.with_origin_suspended(gone)

    @event(4, slot=st.integers(0, SLOTS - 1))
    def recreate(self, slot):
        """A snapshot is made anew from what is on its COW device. Nothing is written to the origin
        between.
        """
        face = self.slots[slot]
        if not face or not face.form.persistent or face.lost or face.error_table:
            return IDLE
        self.join()
        if face.lost:
            return "lost"

        def again():
            face.device.remove()
            face.check_disk()
            face.pending = None
            face.device = self.open(slot)
            if not face.device:
                self.slots[slot] = None
                return "failed"
            face.overflowed = False
            face.base = face.device.event
            face.device.resume()

        return self.with_origin_suspended(again)

    @event(2, which=SMALL, now=FLAG)
    def remove_force(self, which, now):
        """What dmsetup remove --force does: a table that fails everything, under what I/O there is,
        then removal.
        """
        face = self.pick(which)
        self.run()
        face.fail_everything(now)
        face.pending = None
        self.join()
        if face is not self.front:
            self.slots[face.slot] = None
            face.device.remove()
            return "snapshot"
        face.device.remove()
        self.make_front(None)
        return "origin"

    # Devices that fail

    @event(5, layer=st.sampled_from(["real", *(f"cow{n}" for n in range(SLOTS))]), **FAULT)
    def fault(self, layer, kind, start, count):
        self.break_layer(layer, kind, start, count)

    @event(6, layer=st.sampled_from(["real", *(f"cow{n}" for n in range(SLOTS))]), writes=SMALL)
    def hold(self, layer, writes):
        """What arrives at the layer waits: some writes for a start."""
        if layer in self.held:
            return IDLE
        self.hold_layer(layer)
        for n in range(min(writes, 6)):
            face = self.pick(n)
            self.spawn(face.do_write, *face.extent(n * 5, 2))
        time.sleep(0.002)

    def finish(self):
        """All devices work: each snapshot has everything, or is lost for a reason; and new ones can
        be taken.
        """
        self.heal()
        self.join()
        for slot, face in enumerate(self.slots):
            if face:
                self.finish_snapshot(slot, face)
        self.front.read_all()
        assert self.disks["real"].content(self.sectors) == self.front.device.content(self.sectors)
        for slot in range(SLOTS):
            assert self.take(slot) is None
            self.slots[slot].read_all()

    def finish_snapshot(self, slot, face):
        if face.lost:
            for call in lambda: face.device.read(0, 1), lambda: face.device.write(0, bytes(512)):
                try:
                    call()
                except OSError as error:
                    assert error.errno == errno.EIO
                else:
                    raise AssertionError("it is lost, and can be used")
            return
        face.read_all()
        if not face.overflowed:
            face.do_write(0, 1)
        face.do_flush()
        self.join()
        self.recreate(slot)
        if not face.lost:
            face.read_all()


DRIVER = Family
