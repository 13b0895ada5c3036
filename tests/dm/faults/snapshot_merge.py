"""The scenario of the snapshot-merge target: merges the store of the snapshot scenario into its
origin.
"""

import errno

from lib import cow, faults, snaps, wait
from lib.faults import Step
from snapshot import SECTORS, SIZE, Snapshot


class Merge(Snapshot):
    """What must hold, in addition to what must for snapshots:

    - A merge fails only if a device did, and says so. Resumed when all devices work it ends, with
      what the snapshot showed and what was written since.
    - Other snapshots lose nothing, unless the origin could not be read for them.

    Parts: "open" merges the store on disk, "adopt" takes over a live snapshot.
    """

    target = "snapshot-merge"
    TESTS = {
        "tables": [("open", "slab"), ("open", "pages"), ("adopt", "slab"), ("adopt", "pages")],
        "requests": [
            ("open", "cow"),
            ("open", "origin"),
            ("adopt", "cow"),
            ("adopt", "origin"),
            ("open", "cow-dead"),
            ("open", "origin-dead"),
        ],
    }
    EVERY = {
        ("open", "slab"): 23,
        ("adopt", "slab"): 23,
        ("open", "cow"): 5,
        ("adopt", "cow"): 7,
        ("open", "origin"): 5,
        ("adopt", "origin"): 7,
        ("open", "cow-dead"): 23,
        ("open", "origin-dead"): 23,
    }

    def begin(self):
        super().begin()
        self.merging = self.loaded = False
        self.create_others()
        if self.part == "open":
            self.front.remove()
            self.front = None

    def allocate(self):
        device = self.box.mapped()
        try:
            device.load(
                f"0 {SECTORS} snapshot-merge {self.spare.origin.dev} {self.spare.cow.dev} P {SIZE}"
            )
        finally:
            device.remove()

    def steps(self):
        table = {errno.ENOMEM} if self.allocations else {errno.EIO}
        disk = set() if self.allocations else {errno.EIO}
        second = {errno.EIO} if self.kind.startswith("origin") else set()
        return [
            Step(self.start, table),
            Step(self.write_the_origin, disk),
            Step(self.read_origin, disk),
            Step(self.pause, table),
            Step(self.write_much_of_the_origin, disk),
            Step(self.flush_the_origin, disk),
            Step(self.read_second, second),
            Step(self.pause, table),
            Step(self.last_chunk, disk),
            Step(self.wait_for_the_end),
            Step(self.read_origin, disk),
            Step(self.write_the_origin_again, disk),
        ]

    # Steps

    def start(self):
        """Starts the merge; may be repeated from where it failed."""
        if self.front is None:
            self.front = self.box.own(snaps.Origin(self.real, start=False))
        if not self.loaded:
            self.front.load(f"0 {SECTORS} snapshot-merge {self.real.dev} {self.cow.dev} P {SIZE}")
            self.loaded = True
        if self.part == "adopt":
            for device in self.first, self.front:
                if not device.suspended:
                    device.suspend()
        self.front.resume()
        self.merging, self.models["origin"] = True, self.models["first"]
        if self.first:
            self.first.remove()
            self.first = None

    def pause(self):
        if not self.merging:
            raise faults.Stuck
        if not self.front.suspended:
            self.front.suspend(noflush=self.serial % 2 > 0)
        self.front.resume()

    def flush_the_origin(self):
        self.live("origin").flush()

    def wait_for_the_end(self):
        """Waits for the end of the merge, or of the attempt."""
        self.live("origin")
        text = wait.until(self.ended, lambda: f"merged ({self.front.status()})")
        assert text == "merged" or not self.allocations, "the merge failed for lack of memory"
        return text

    def ended(self):
        return snaps.merge_end(self.front.status())

    # What must hold afterwards

    def end(self, hit):
        if not self.merging:
            self.start()
        if self.front.suspended:
            self.front.resume()
        if self.wait_for_the_end() != "merged":
            assert hit, "the merge failed for no reason"
            self.pause()
            assert self.wait_for_the_end() == "merged", "it fails though all devices work"
        self.write_the_origin()
        self.read_origin()
        self.models["origin"].check(self.real.content(), "the disk of the origin")
        store = cow.Store(self.cow)
        assert store.valid and not store.records
        if self.lost("second"):
            assert hit and self.kind.startswith("origin"), "lost for a fault of others"
        else:
            self.write_the_second()
            self.read_second()
        self.drop()
        self.gone()

    def complete(self, series, said):
        least = {"slab": 50, "cow": 10, "origin": 10}
        assert series.last >= least.get(self.kind, 1), f"only {series.last}"
        if not self.allocations:
            assert any("shutting down merge" in line for line in said), "no merge failed"


SCENARIO = Merge
