"""A device that does not answer, beside others that do."""

from . import eras, snaps, wait
from .box import pattern
from .disk import in_flight


def go_on(box, *calls):
    """Asserts that each call ends while a device hangs. Calls run in threads of their own, so that
    a failure names the call that does not end.
    """
    for call in calls:
        box.background(call).result()


class Neighbours:
    """A device of each target, on disks of their own, which must work whatever another device waits
    for. `check` lets each of them do all that needs its devices: I/O, commits, new tables, copies
    and merges, removal and creation.
    """

    def __init__(self, box):
        self.box, self.n = box, 0
        self.pair, self.trio, self.family = eras.Pair(box), box.trio(mib=1), snaps.Family(box)
        self.era, self.clone = self.pair.era(), self.trio.clone()
        self.snapshot = self.family.snap()

    def check(self):
        self.n += 1
        go_on(
            self.box,
            self.use_era,
            self.use_clone,
            self.hydrate_clone,
            self.use_snapshot,
            self.merge_snapshot,
            self.recreate,
        )

    def use_era(self):
        self.era.write(self.n * 8, pattern("n", 8))
        before = self.era.era
        assert self.era.checkpoint() == before + 1
        self.era.swap(self.era.line)
        assert self.era.since(before) >= {self.n}

    def use_clone(self):
        self.trio.write(self.clone, self.n * 8, pattern("n", 8))
        self.trio.write(self.clone, 800 + 24 * self.n + 3, pattern(f"part {self.n}", 10))
        self.clone.flush()
        self.clone.status(noflush=False)
        self.clone.swap(self.clone.line)
        self.trio.check(self.clone)

    def hydrate_clone(self):
        trio = self.box.trio(mib=1)
        clone = trio.clone()
        trio.write(clone, 5, pattern("one more", 20))
        clone.flush()
        clone.hydrate()
        clone.wait_full()
        clone.remove()
        clone = trio.clone()
        trio.check(clone)
        clone.remove()

    def use_snapshot(self):
        self.family.write(self.family.origin, self.n * 8, pattern(f"n{self.n}", 8))
        self.family.write(self.snapshot, self.n * 8 + 800, pattern("s", 8))
        self.snapshot.swap(self.snapshot.line)
        self.family.check()

    def merge_snapshot(self):
        family = snaps.Family(self.box)
        snapshot = family.snap()
        family.write(family.origin, 80, pattern("new", 20))
        family.write(snapshot, 803, pattern("own", 3))
        family.write(snapshot, 1000, pattern("own", 16))
        snapshot.look()
        snapshot.table()
        family.check()
        family.merge(snapshot)
        family.merged()
        family.end_merge()
        family.origin.remove()

    def recreate(self):
        self.era.remove()
        self.era = self.pair.era()
        self.clone.remove()
        self.clone = self.trio.clone()


def waits(device):
    """Waits until I/O is in flight on a device."""
    wait.until(lambda: in_flight(device), f"I/O is in flight on {device.name}")
