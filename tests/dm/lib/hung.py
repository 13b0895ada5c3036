"""A device that does not answer, beside others that do."""

from . import eras, wait
from .box import pattern
from .disk import in_flight


def go_on(box, *calls):
    """Each call ends, while something else hangs. In threads: if one does not, the test says which."""
    for call in calls:
        box.background(call).result()


class Neighbours:
    """A device of each target, which must work whatever another one waits for. `check` makes each
    of them do what needs all its devices, and then go away and come back.
    """

    def __init__(self, box):
        self.box, self.n = box, 0
        self.pair, self.trio = eras.Pair(box), box.trio(mib=1)
        self.era, self.clone = self.pair.era(), self.trio.clone()
        self.real, self.cow = box.ram(1), box.ram(1)
        self.origin = box.mapped(f"0 {self.real.sectors} snapshot-origin {self.real.dev}")
        self.line = f"0 {self.real.sectors} snapshot {self.real.dev} {self.cow.dev} P 8"
        self.snapshot = box.mapped(self.line)

    def work_era(self):
        self.era.write(self.n * 8, pattern("n", 8))
        before = self.era.era
        assert self.era.checkpoint() == before + 1
        self.era.swap(self.era.line)
        assert self.era.since(before) >= {self.n}

    def work_clone(self):
        self.trio.write(self.clone, self.n * 8, pattern("n", 8))
        self.clone.flush()
        self.clone.status(noflush=False)
        self.clone.swap(self.clone.line)
        self.trio.check(self.clone)

    def work_snapshot(self):
        before = self.snapshot.read(self.n * 8, 8)
        self.origin.write(self.n * 8, pattern(f"n{self.n}", 8))
        self.snapshot.write(self.n * 8 + 800, pattern("s", 8))
        assert self.snapshot.read(self.n * 8, 8) == before
        self.snapshot.swap(self.line)
        assert self.snapshot.read(self.n * 8, 8) == before

    def come_and_go(self):
        self.era.remove()
        self.era = self.pair.era()
        self.clone.remove()
        self.clone = self.trio.clone()

    def check(self):
        self.n += 1
        go_on(self.box, self.work_era, self.work_clone, self.work_snapshot, self.come_and_go)


def waits(device):
    """A write to it is on its way."""
    wait.until(lambda: in_flight(device), f"{device.name} waits")
