"""A device of a snapshot does not answer: it holds up I/O that needs it, and nothing else. Each
role is tested with a device that accepts all requests and completes none, and with one that accepts
no more requests, so that submitters sleep.
"""

import pytest

from lib import hung, modules, wait
from lib.box import pattern
from lib.disk import in_flight
from lib.expect import fails
from lib.snaps import Family, Gate, Snapshot, parameter

pytestmark = [
    pytest.mark.crowd,
    pytest.mark.only("rust"),
]  # C writes headers, and waits for tags, in the threads of others


class JammedGate(Gate):
    """A Gate over a Jam. While it is held and jammed, submissions to it sleep."""

    def __init__(self, box, disk, sectors=None):
        self.box, self.jam = box, box.jam(disk)
        super().__init__(box, self.jam, sectors)
        self.lower = disk
        self.hold, self.release = self.jam.lower.hold, self.jam.lower.release

    def fill(self, data, sector=0, step=8192):
        self.lower.fill(data, sector, step)

    def stop(self):
        """Accepts nothing from now on."""
        self.hold()
        self.jam.jam(self.box)


def others_continue(family, devices, *others):
    """While a device under `devices` hangs, these end: their status and table, all work on other
    devices, the creation and removal of another snapshot of this origin, and writes of whole chunks
    to other snapshots that have them.
    """
    for device in devices:
        device.status()
        device.table()
    hung.go_on(family.box, lambda: hung.Neighbours(family.box).check())
    if family.merging is None:  # else it is taken between two batches, as in C
        another = family.box.background(
            lambda: family.box.own(Snapshot(family.real, family.cow(8), "P", 8))
        ).result()
        family.box.background(another.remove).result()
    for snapshot in others:
        snapshot.look()
        family.writer(snapshot, 3200, pattern("beside it", 24)).result()
        family.box.background(family.read, snapshot, 3200, 24).result()


def stops(device, jams):
    device.stop() if jams else device.hold()


JAMS = pytest.mark.parametrize("jams", [True, False])


@JAMS
@pytest.mark.parametrize("others", [0, 1])
def test_hung_cow(family, jams, others):
    """The worker submits to the COW device. Partial writes to another snapshot continue too, unless
    the origin is written: its copy for both snapshots is a single one.
    """
    cow = JammedGate(family.box, family.box.ram(4))
    target, *rest = [family.snap("P", 8, cow=cow)] + [family.snap("P", 8) for _ in range(others)]
    stops(cow, jams)
    with modules.setting(parameter("rust", "snapshot_cow_threshold"), "1"):
        first = family.writer(target, 800, pattern("first", 8))
        wait.until(lambda: in_flight(cow) == 1, "the first is in flight")
        second = family.writer(
            target, 1600, pattern("second", 8)
        )  # over the limit, so it is left to the worker
        wait.until(lambda: in_flight(target) == 2, "the second waits")
    # Any further write makes the worker process the second one.
    for snapshot in rest:
        family.writer(snapshot, 163, pattern("part", 3)).result()
    third = family.writer(family.origin, 240, pattern("third", 8)) if not rest else first
    wait.until(lambda: in_flight(cow) >= 2, "the second is in flight")
    others_continue(family, [target], *rest)
    assert not any(writer.done for writer in (first, second, third)) and cow.jam.is_jammed == jams
    cow.release()
    for writer in first, second, third:
        writer.result()
    family.check()


@JAMS
def test_hung_origin(impl, box, jams):
    """A write reaches the origin when both snapshots have what it overwrites. I/O that does not
    need the origin continues.
    """
    real = JammedGate(box, box.ram(2))
    family = Family(box, real=real)
    real.fill(family.data)
    first, second = family.snap("P", 8), family.snap("P", 8)
    first.cow.hold()
    writer = family.writer(family.origin, 80, pattern("new", 8))
    wait.until(lambda: in_flight(first.cow) == 1, "the copy is in flight")
    stops(real, jams)
    first.cow.release()
    wait.until(lambda: in_flight(real) == 1, "the write is in flight")
    others_continue(family, [first, second, family.origin], first, second)
    assert not writer.done and real.jam.is_jammed == jams
    real.release()
    writer.result()
    family.check()


@JAMS
def test_hung_cow_of_a_merge(family, jams):
    """The merge reads chunks from the COW device. Another snapshot of the origin continues,
    including its copies from the origin.
    """
    cow = JammedGate(family.box, family.box.ram(4))
    merged, other = family.snap("P", 8, cow=cow), family.snap("P", 8)
    for n in range(4):
        family.write(merged, 400 + 80 * n, pattern(f"own {n}", 8))
    merge = family.merge(merged, before=lambda: stops(cow, jams))
    wait.until(lambda: in_flight(cow) >= 1, "the merge reads")
    family.writer(other, 163, pattern("part", 3)).result()
    others_continue(family, [merge], other)
    assert not merge.merged and cow.jam.is_jammed == jams
    cow.release()
    family.merged()


class Failing:
    """A snapshot that has failed, and whose header cannot be written yet."""

    def __init__(self, family, length=None):
        box = family.box
        self.header, self.rest = Gate(box, box.ram(1)), Gate(box, box.ram(4))
        lines = (
            f"0 8 linear {self.header.dev} 0",
            f"8 {self.rest.sectors - 8} linear {self.rest.dev} 8",
        )
        self.family, self.snapshot = family, family.snap(
            "P", 8, cow=box.mapped(*lines), length=length
        )

    def fail(self):
        self.rest.error_writes()
        self.header.hold()
        self.writer = self.family.box.background(fails, self.snapshot.write, 80, pattern("lost", 8))
        wait.until(lambda: in_flight(self.header) == 1, "the header is in flight")

    def end(self):
        assert not self.writer.done and self.snapshot.status() != "Invalid"
        self.header.release()
        self.writer.result()
        self.snapshot.wait_status("Invalid")
        self.rest.heal()
        self.family.snapshots.remove(self.snapshot)
        self.family.check()


def test_failing_writes_do_not_wait_for_another_header(family):
    """A snapshot is full while the header of another one is in flight: writes to it fail, and it
    can be suspended.
    """
    failing, full = Failing(family), family.snap("PO", 8, room=3)
    family.write(full, 800, pattern("fills it", 8))
    failing.fail()
    family.box.background(fails, full.write, 1600, pattern("one too many", 8)).result()
    assert full.status() == "Overflow"
    family.box.background(full.suspend).result()
    full.resume()
    failing.end()


def test_writes_beyond_an_invalid_snapshot_do_not_wait(family):
    """The failing snapshot is shorter than the origin. Writes to the origin wait for its header
    within its length, not beyond it.
    """
    failing, other = Failing(family, length=2048), family.snap("P", 8)
    failing.fail()
    family.writer(family.origin, 2048, pattern("beyond", 24)).result()
    assert other.exceptions() == 3
    inside = family.writer(family.origin, 2040, pattern("inside", 8))
    wait.until(lambda: in_flight(family.origin) == 1, "it waits")
    family.writer(family.origin, 2048, pattern("beyond again", 8)).result()
    assert not inside.done
    failing.end()
    inside.result()
    family.check()
