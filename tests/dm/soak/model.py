"""What each sector of a device may hold, while I/O overlaps, fails and is lost.

A sector's content is one value (bytes) or, where nobody can know, a frozenset of them. Every I/O
begins and ends in the model. A write that fails, or that overlaps another, leaves its sectors
uncertain; a read that sees one of the values makes them certain again. Beside it stands what a lost
commit may bring back: the values since the last good flush.
"""

import threading

from lib.disk import split

ZEROS = bytes(512)


def content(number, sector, count):
    """The data of write `number`: each sector says which write it is of, and which sector it is."""
    return b"".join(
        (b"write%07d/%07d " % (number, n) * 25)[:512] for n in range(sector, sector + count)
    )


def values(held):
    return held if isinstance(held, frozenset) else frozenset((held,))


def one_of(held):
    """The other way round: a single value stands for itself."""
    return next(iter(held)) if len(held) == 1 else frozenset(held)


class Op:
    """One I/O, from before it is issued until after it has ended."""

    def __init__(self, kind, start, count, data):
        self.kind, self.start, self.end, self.data = kind, start, start + count, data
        self.changes = bool(data)
        # Sectors that another write was on its way to when it began, or began to write meanwhile.
        self.clashes = set()
        # For reads and flushes: what writes meanwhile may have left, as {sector: values}.
        self.added = {}
        self.before = None

    def values(self, sector):
        """What it may leave in a sector."""
        at = (sector - self.start) * 512
        return {data[at : at + 512] for data in self.data}

    def __repr__(self):
        return f"{self.kind} of {self.end - self.start} sectors at {self.start}"


class Model:
    def __init__(self, data, prepare=lambda op: None):
        """`prepare` is called with each I/O before anybody else can see it, under the lock."""
        self.prepare = prepare
        self.active = []
        self.lock = threading.Lock()
        self.restart(data)

    def restart(self, data):
        """This is what the device holds, for sure. Nothing is on its way."""
        assert not self.active
        self.now = split(data)
        self.since = {}  # sector: all values since the last flush, for those that changed

    def begin(self, kind, start=0, count=0, *data):
        """An I/O starts; `data` is what it writes, or several such if either may be the outcome."""
        op = Op(kind, start, count, data)
        with self.lock:
            self.prepare(op)
            if op.changes:
                for other in self.active:
                    both = range(max(op.start, other.start), min(op.end, other.end))
                    if other.changes:
                        op.clashes.update(both)
                        other.clashes.update(both)
                    elif other.kind == "read":
                        for sector in both:
                            other.added.setdefault(sector, set()).update(op.values(sector))
                for sector in range(op.start, op.end):
                    self._add(sector, op.values(sector))
            elif kind == "read":
                op.before = self.now[op.start : op.end]
                for other in self.active:
                    if other.changes:
                        op.clashes.update(range(max(op.start, other.start), min(op.end, other.end)))
            elif kind == "flush":
                op.before = {sector: values(self.now[sector]) for sector in self.since}
            self.active.append(op)
        return op

    def _add(self, sector, more):
        """A sector may from now on hold these as well."""
        held = values(self.now[sector])
        self.since[sector] = self.since.get(sector, held) | held | more
        for op in self.active:
            if op.kind == "flush":
                op.added.setdefault(sector, set()).update(more)
        self.now[sector] = one_of(held | more)

    def wrote(self, op, durable=False):
        """A write was acknowledged."""
        with self.lock:
            self.active.remove(op)
            for sector in range(op.start, op.end):
                if sector not in op.clashes:
                    self.now[sector] = one_of(op.values(sector))
                    if durable:
                        self.since.pop(sector, None)

    def discarded(self, op, region, certain, below):
        """A discard has ended. If it is `certain` that it was carried out, its whole regions read
        as what is `below`, on the destination. Other sectors it may have taken or left.
        """
        first, last = -(-op.start // region) * region, op.end // region * region
        with self.lock:
            self.active.remove(op)
            for sector in range(op.start, op.end):
                raw = below[(sector - op.start) * 512 :][:512]
                if certain and first <= sector < last and sector not in op.clashes:
                    self.since[sector] = self.since.get(sector, frozenset()) | {raw}
                    self.now[sector] = raw
                elif first <= sector < last:
                    self._add(sector, {raw})

    def gave_up(self, op):
        """A write, a read or a flush failed: nothing is known of it."""
        with self.lock:
            self.active.remove(op)

    def flushed(self, op):
        """A flush was acknowledged: what was there when it began is safe."""
        with self.lock:
            self.active.remove(op)
            for sector, safe in op.before.items():
                left = safe | op.added.get(sector, set())
                if values(self.now[sector]) == left:
                    self.since.pop(sector, None)
                else:
                    self.since[sector] = left

    def saw(self, op, got):
        """A read has ended; returns the sectors that hold what they must not, as (sector, value)."""
        bad = []
        with self.lock:
            self.active.remove(op)
            for sector in range(op.start, op.end):
                before, at = op.before[sector - op.start], (sector - op.start) * 512
                value = got[at : at + 512]
                if value == before:
                    continue
                if value in values(before):
                    # A write on its way beside the read may have landed after it.
                    if (
                        sector not in op.clashes
                        and sector not in op.added
                        and self.now[sector] is before
                    ):
                        self.now[sector] = value
                elif value not in op.added.get(sector, ()):
                    bad.append((sector, value))
        return bad

    def lose(self):
        """What was not flushed may be gone. Nothing is on its way."""
        assert not self.active
        for sector, held in self.since.items():
            self.now[sector] = one_of(held | values(self.now[sector]))
        self.since.clear()

    def keep(self):
        """Everything has become durable. Nothing is on its way."""
        assert not self.active
        self.since.clear()
