"""The devices of the soak driver of the snapshot target: an origin and its snapshots, and what is
known of each.
"""

import errno
from types import SimpleNamespace

import model
from layers import Layers
from lib import cow, snaps, wait

SLOTS = 3
KINDS = "P", "PO", "N"
SIZES = 8, 1, 16, 64, 256
ROOMS = None, 34, 300, 3  # chunks of the COW device, or as many as it has room for
FEATURES = "", "1 discard_zeroes_cow", "2 discard_zeroes_cow discard_passdown_origin"
FORMS = len(KINDS) * len(SIZES) * len(ROOMS) * len(FEATURES)
BAD_LINES = {  # what replaces the arguments after the devices: errno
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
    """The kind of snapshot that a slot has."""

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
        """What the status says with so many exceptions."""
        return (cow.data_at(exceptions, self.size) if self.persistent else exceptions) * self.size


class Face(Layers):
    """A device of the family, with the model of its content. It shares the layers and threads of
    the family.
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
        """Nothing is held, suspended or in flight."""


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
        # Snapshots that exist now need an exception; later ones may show the write.
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

    `tried` are the chunks to which a write has begun, `sure` those to which one was acknowledged:
    the former may have an exception, the latter must. A snapshot may become invalid, permanently,
    if its COW device had no room for all that was tried, or after a fault of its COW device or of
    the origin. Whether it is invalid shows when all I/O has ended.
    """

    name_of_target = "snapshot"

    def __init__(self, family, slot, form, device, content):
        super().__init__(family, device, form.size, content)
        self.slot, self.form, self.layer = slot, form, f"cow{slot}"
        self.tried, self.sure = set(), set()
        self.invalid = self.doubtful = self.overflowed = self.cow_failed = False

    def line(self):
        return self.family.line(self.slot)

    def words(self, inactive):
        form = self.form
        size = 0 if inactive else form.size
        return (
            f"{self.parts.real.dev} {getattr(self.parts, self.layer).dev} {form.kind} {size} "
            f"{form.features}"
        ).strip()

    @property
    def crowded(self):
        return len(self.tried) > self.form.capacity

    @property
    def has_reason(self):
        """Whether it has a reason to be invalid."""
        return self.invalid or self.doubtful or self.crowded

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
        """Each sector is as before, or zeros; with passdown so is the origin, whatever other
        snapshots show.
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
        """Loads a table. It is refused while another one is loaded."""
        try:
            self.device.load(self.line())
        except OSError as error:
            assert error.errno == errno.EINVAL and self.pending, f"load: {error}"
            return "refused"
        assert not self.pending, "a second table was loaded"
        self.pending = True

    def bad_line(self, words):
        return (
            f"0 {self.sectors} snapshot {self.parts.real.dev} "
            f"{getattr(self.parts, self.layer).dev} {words}"
        )

    BAD_LINES = BAD_LINES

    def look(self):
        """Compares the status with all that is known."""
        if self.error_table:
            return None
        least = len(self.sure)
        text = self.device.status()
        if text == "Invalid":
            assert self.has_reason, "invalid for no reason"
            self.tally["snapshot", "invalid"] += not self.invalid
            self.invalid = True
            return None
        assert not self.invalid, f"it was invalid, and says {text}"
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
        if not self.invalid and self.is_failing():
            wait.until(lambda: self.device.status() == "Invalid", "the status says Invalid")
        self.look()
        if self.invalid:
            wait.until(lambda: self.device.event > self.base, "an event of the end")
        elif not self.faults:
            self.doubtful = False

    def is_failing(self):
        """Whether it is invalid, although its header may not say so yet."""
        if len(self.sure) > self.form.capacity:
            return True
        try:
            self.device.read(0, 1)
        except OSError as error:
            assert error.errno == errno.EIO
            return not self.faults
        return False

    def check_disk(self):
        """The device is gone; its disk agrees with what its status said."""
        if not self.form.persistent:
            return
        disk = self.family.disks[self.layer]
        magic, valid = cow.HEADER.unpack(disk.read(0, 1)[:16])[:2]
        assert magic == cow.MAGIC
        assert (
            not self.invalid or not valid or self.cow_failed
        ), "it was invalid, and the header does not say so"
        if self.invalid:
            return
        assert valid, "it was not invalid, but the header says so"
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
