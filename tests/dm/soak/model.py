"""What each sector of a device may hold, while I/O overlaps, fails and is lost.

The content of a sector is one value (bytes) or, if it is uncertain, a frozenset of them. Each I/O
begins and ends in the model. A write that fails, or that overlaps another one, leaves its sectors
uncertain; a read that sees one of the values makes them certain again. In addition the model has
what a lost commit may bring back: the values since the last successful flush.
"""

import threading

from lib.disk import split

ZEROS = bytes(512)


def content(number, sector, count):
    """The data of write `number`: each sector tells its write and its place."""
    return b"".join(
        (b"write%07d/%07d " % (number, n) * 25)[:512] for n in range(sector, sector + count)
    )


def values(held):
    return held if isinstance(held, frozenset) else frozenset((held,))


def one_of(held):
    """The inverse: a single value stands for itself."""
    return next(iter(held)) if len(held) == 1 else frozenset(held)


class Op:
    """An I/O, from before it is issued until after it has ended."""

    def __init__(self, kind, start, count, data):
        self.kind, self.start, self.end, self.data = kind, start, start + count, data
        self.changes = bool(data)
        # Sectors to which another write was in flight when this one began, or began later.
        self.clashes = set()
        # For reads and flushes: what concurrent writes may have left, as {sector: values}.
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
        """`prepare` is called with each I/O before other threads can see it, under the lock."""
        self.prepare = prepare
        self.active = []
        self.lock = threading.Lock()
        self.restart(data)

    def restart(self, data):
        """The device certainly holds this. Nothing is in flight."""
        assert not self.active
        self.now = split(data)
        self.since = {}  # sector: all values since the last flush, for those that changed

    def begin(self, kind, start=0, count=0, *data):
        """An I/O starts; `data` is what it writes, or several alternatives."""
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
        """From now on a sector may hold these values as well."""
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
        """A discard has ended. If it was `certain`ly carried out, its whole regions read as what is
        `below`, on the destination. Other sectors may have been discarded or not.
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
        """A write, a read or a flush failed: its effect is unknown."""
        with self.lock:
            self.active.remove(op)

    def flushed(self, op):
        """A flush was acknowledged: what was written when it began is durable."""
        with self.lock:
            self.active.remove(op)
            for sector, safe in op.before.items():
                left = safe | op.added.get(sector, set())
                if values(self.now[sector]) == left:
                    self.since.pop(sector, None)
                else:
                    self.since[sector] = left

    def saw(self, op, got):
        """A read has ended; returns the sectors with wrong contents, as (sector, value)."""
        bad = []
        with self.lock:
            self.active.remove(op)
            for sector in range(op.start, op.end):
                before, at = op.before[sector - op.start], (sector - op.start) * 512
                value = got[at : at + 512]
                if value == before:
                    continue
                if value in values(before):
                    # A write in flight beside the read may have arrived after it.
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
        """What was not flushed may be lost. Nothing is in flight."""
        assert not self.active
        for sector, held in self.since.items():
            self.now[sector] = one_of(held | values(self.now[sector]))
        self.since.clear()

    def keep(self):
        """Everything has become durable. Nothing is in flight."""
        assert not self.active
        self.since.clear()
