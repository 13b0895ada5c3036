"""The scenario of the snapshot-origin target: the devices of the snapshot scenario, with the faults
on the origin.
"""

import errno

from lib import snaps
from lib.faults import Step
from snapshot import ACTIVE, SECTORS, Snapshot


class Origin(Snapshot):
    """What must hold, in addition to what must for snapshots:

    - A read or a write of the origin fails only if the disk failed it, whatever becomes of copies.
    - A snapshot becomes invalid if the origin could not be read for it, and only then.
    """

    target = "snapshot-origin"
    EVERY = {
        ("front", "slab"): 3,
        ("alone", "slab"): 7,
        ("life", "origin"): 3,
        ("life", "origin-dead"): 29,
        ("life", "origin-torn"): 97,
    }
    TESTS = {
        "tables": [("front", "slab"), ("alone", "slab")],
        "requests": [("life", "origin"), ("life", "origin-dead"), ("life", "origin-torn")],
    }

    def begin(self):
        super().begin()
        if self.part == "front":
            self.create()
            self.create_others()
            self.remove_front()

    def allocate(self):
        device = self.box.mapped()
        try:
            device.load(f"0 {SECTORS} snapshot-origin {self.spare.origin.dev}")
        finally:
            device.remove()

    def steps(self):
        if self.part not in ("front", "alone"):
            return super().steps()
        table = {errno.ENOMEM}
        return [
            Step(self.create_front, table),
            Step(self.write_the_origin),
            Step(self.reload_front, table),
            Step(self.read_origin),
            Step(self.remove_front),
            Step(self.create_front, table),
        ]

    def create_front(self):
        if self.front is None:
            self.front = self.box.own(snaps.Origin(self.real, start=False))
        if not self.front.info().flags & ACTIVE:
            self.front.load(self.front.line)
            self.front.resume()

    def reload_front(self):
        self.front.suspend()
        self.front.load(self.front.line)
        self.front.resume()

    def remove_front(self):
        self.front.remove()
        self.front = None

    def complete(self, series, said):
        least = {"slab": 4, "origin": 20, "origin-dead": 20, "origin-torn": 60}
        assert series.last >= least[self.kind], f"only {series.last}"
        if self.kind.startswith("origin"):
            assert any(
                "Invalidating snapshot: Error reading/writing." in line for line in said
            ), "no snapshot was lost"


SCENARIO = Origin
