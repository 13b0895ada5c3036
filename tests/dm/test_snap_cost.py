"""snapshot and snapshot-origin: the number of requests for a read or write, and the throttling of
copies.
"""

import pytest

from lib import snaps, wait
from lib.box import pattern
from lib.disk import in_flight, requests
from lib.snaps import Family, Gate

# The cost of writes


@pytest.mark.parametrize(
    "kind, size, offset, sectors",
    [
        ("P", 8, 3, 2),
        ("PO", 8, 0, 1),
        ("N", 8, 7, 1),
        ("P", 64, 5, 50),
        ("N", 64, 1, 63),
        ("PO", 1024, 1000, 3),
    ],
)
def test_partial_write_copies_once(family, kind, size, offset, sectors):
    """Through the snapshot and through the origin: the first write reads the chunk once, the next
    one not at all.
    """
    snapshot, start = family.snap(kind, size), 2 * size
    for at, device in ((start, snapshot), (start + size, family.origin)):
        done = requests(family.disk, family.write, device, at + offset, pattern("new", sectors))
        assert done.read_sectors == size
        for again in (device, snapshot, family.origin):
            assert not requests(
                family.disk, family.write, again, at + offset, pattern("again", sectors)
            ).reads
    assert snapshot.exceptions() == 2
    family.check()


@pytest.mark.parametrize(
    "size, start, count", [(8, 4, 1), (64, 3, 1), (8, 4, 16), (1, 100, 64), (8, 0, 256)]
)
def test_whole_chunks_are_not_read_first(family, size, start, count):
    """A write of a whole chunk of the snapshot reads nothing. A whole chunk of the origin is copied
    like any other.
    """
    snapshot = family.snap("P", size)
    data = pattern("new", count * size)
    assert not requests(family.disk, family.write, snapshot, start * size, data).reads
    assert snapshot.exceptions() == count
    done = requests(family.disk, family.write, family.origin, (start + count) * size, data)
    assert done.read_sectors == count * size
    assert snapshot.exceptions() == 2 * count
    family.check()


def test_large_write_reads_its_edges(family):
    """A write from the middle of a chunk to the middle of another: only these two are read."""
    snapshot = family.snap("P", 64)
    done = requests(family.disk, family.write, snapshot, 64 + 40, pattern("new", 512))
    assert done.read_sectors == 128
    assert snapshot.exceptions() == 9
    family.check()


def test_reads_cost_nothing_more(family):
    """A chunk without an exception is read from the origin, one with an exception from the COW
    device; no read makes an exception.
    """
    snapshot = family.snap("P", 8)
    assert requests(family.disk, family.check, snapshot).read_sectors == family.sectors
    family.write(snapshot, 80, pattern("new", 8))
    assert not requests(family.disk, family.read, snapshot, 80, 8).reads
    assert requests(snapshot.cow.lower, family.read, snapshot, 0, 80).reads == 0
    assert snapshot.exceptions() == 1


@pytest.mark.only("rust")
@pytest.mark.parametrize("number", [2, 8])
def test_one_read_for_all_snapshots(family, number):
    """Snapshots with the same chunk size share one read of a chunk; other sizes need another read.
    C reads for each snapshot.
    """
    for _ in range(number):
        family.snap("P", 8)
    other = family.snap("P", 64)
    assert (
        requests(family.disk, family.write, family.origin, 64, pattern("new", 3)).read_sectors
        == 8 + 64
    )
    assert (
        requests(family.disk, family.write, family.origin, 80, pattern("new", 8)).read_sectors == 8
    )
    # A snapshot that already has the chunk does not matter to the others.
    family.write(family.snapshots[0], 128, pattern("own", 8))
    family.write(other, 128, pattern("own", 64))
    assert (
        requests(family.disk, family.write, family.origin, 128, pattern("new", 3)).read_sectors == 8
    )
    assert [snapshot.exceptions() for snapshot in family.snapshots] == [3] * number + [2]
    family.check()


def linear(family):
    """The same requests through a linear device, for comparison."""
    return family.box.mapped(f"0 {family.sectors} linear {family.disk.dev} 0")


def test_origin_without_snapshots_is_passed_through(family):
    """A mebibyte takes as many requests as through a linear device."""
    data, other = pattern("large", 2048), linear(family)
    for device in (family.origin, other):
        write = requests(family.disk, device.write, 1024, data)
        read = requests(family.disk, device.read, 1024, 2048)
        if device is family.origin:
            first = write.writes, read.reads
    assert first == (write.writes, read.reads)
    family.wrote(family.origin, 1024, data)
    family.check()


@pytest.mark.only("rust")
def test_large_io_stays_whole_where_nothing_is_copied(family):
    """C splits everything at chunks."""
    snapshot, other, data = family.snap("P", 8), linear(family), pattern("large", 2048)
    reads = requests(family.disk, other.read, 1024, 2048).reads
    assert requests(family.disk, family.read, snapshot, 1024, 2048).reads == reads, "not copied yet"
    family.write(family.origin, 1024, data)
    writes = requests(family.disk, other.write, 1024, data).writes
    assert (
        requests(family.disk, family.write, family.origin, 1024, data).writes == writes
    ), "copied already"
    # The COW device has the chunks in the order of their numbers, except for an area in between.
    assert requests(snapshot.cow.lower, family.read, snapshot, 1024, 2048).reads <= 2 * reads
    assert (
        requests(snapshot.cow.lower, family.write, snapshot, 1024, pattern("own", 2048)).writes
        <= 2 * writes
    )
    family.check()


# Commits


class Commits:
    """The flushes of a COW device, and the sectors of metadata that were written to it."""

    def __init__(self, box, size, mib):
        self.family = Family(box, mib * 2048, cache=True)
        self.gate = Gate(box, box.ram(mib + 1, cache=True))
        self.snapshot = self.family.snap("P", size, cow=self.gate)
        self.before, self.data = self.gate.lower.stats(), 0

    def write(self, number, sectors, together):
        """Origin writes, one after the other or with all copies in flight at the same time."""
        starts = [index * max(sectors, self.snapshot.size) for index in range(number)]
        data = pattern("new", sectors)
        if together:
            self.gate.hold()
            writers = [self.family.writer(self.family.origin, start, data) for start in starts]
            chunks = number * max(sectors // self.snapshot.size, 1)
            wait.until(lambda: self.snapshot.exceptions() == chunks, "all copies have begun")
            self.gate.release()
            for writer in writers:
                writer.result()
        else:
            for start in starts:
                self.family.write(self.family.origin, start, data)
        self.data = self.snapshot.exceptions() * self.snapshot.size

    def end(self):
        """The number of flushes and of sectors."""
        self.family.check()
        self.snapshot.remove()
        self.family.snapshots.clear()
        done = self.gate.lower.stats() - self.before
        return done.flushes, done.write_sectors - self.data


@pytest.mark.only("rust")
@pytest.mark.parametrize(
    "size, number, sectors, together, flushes, metadata",
    [
        # A record each, and no zeros before the area is nearly full.
        (8, 20, 8, False, 20, 20),
        # 32 records are an area: the second one is zeroed ahead.
        (1, 40, 1, False, 40, 40 + 1),
        # One batch.
        (8, 16, 8, True, 1, 1),
        # One batch fills eight areas. The seven after the first one, and the next one, are zeroed;
        # the device has no more.
        (8, 8, 2048, True, 1, 8 * 8 + 8 * 8),
    ],
)
def test_flushes_and_metadata_of_first_writes(
    impl, box, size, number, sectors, together, flushes, metadata
):
    """C takes as many flushes, or more: one for each area."""
    commits = Commits(box, size, 8)
    commits.write(number, sectors, together)
    assert commits.end() == (flushes, metadata)


# Throttling


@pytest.fixture
def throttle(impl):
    """Sets the parameters; they are restored afterwards."""
    files = {
        name: snaps.parameter(impl, name)
        for name in ("snapshot_cow_threshold", "snapshot_copy_throttle")
    }
    before = {name: file.read_text() for name, file in files.items()}
    assert [int(text) for text in before.values()] == [2048, 100]
    yield lambda name, value: files[name].write_text(str(value))
    for name, text in before.items():
        files[name].write_text(text)


@pytest.mark.crowd
@pytest.mark.parametrize("device", ["snapshot", "origin"])
@pytest.mark.parametrize("threshold", [1, 8])
def test_threshold(impl, family, throttle, device, threshold):
    """At most `threshold` chunks are copied at a time, and one more; other writers wait for their
    turn, and reads do not.
    """
    snapshot = family.snap("P", 8)
    target = family.origin if device == "origin" else snapshot
    throttle("snapshot_cow_threshold", threshold)
    before = family.disk.stats()
    snapshot.cow.hold()
    writers = [family.writer(target, n * 8, pattern(f"w{n}", 1)) for n in range(24)]
    wait.until(lambda: in_flight(snapshot.cow) >= threshold, "copies are at the COW")
    if impl == "rust":  # with C they sleep before they are counted
        wait.until(lambda: in_flight(target) == 24, "all are in flight")
    family.read(snapshot, 1024, 8)
    family.read(family.origin, 1024, 8)
    assert (family.disk.stats() - before).read_sectors <= (threshold + 1) * 8 + 16
    assert in_flight(snapshot.cow) <= threshold + 1
    snapshot.cow.release()
    for writer in writers:
        writer.result()
    assert snapshot.exceptions() == 24
    # Without the limit.
    throttle("snapshot_cow_threshold", 2048)
    snapshot.cow.hold()
    writers = [family.writer(target, (n + 32) * 8, pattern(f"v{n}", 1)) for n in range(24)]
    wait.until(lambda: in_flight(snapshot.cow) == 24, "all copies are at the COW")
    snapshot.cow.release()
    for writer in writers:
        writer.result()
    family.check()


def test_large_writes_under_a_low_threshold(family, throttle):
    """A single write of many chunks exceeds the limit."""
    snapshots = [family.snap("P", 8), family.snap("N", 16)]
    for threshold in (1, 0):
        throttle("snapshot_cow_threshold", threshold)
        for n, device in enumerate((family.origin, *snapshots)):
            family.write(device, threshold * 2048 + 100 + n * 300, pattern("large", 1200))
    family.check()


@pytest.mark.parametrize("percent", [1, 100, 0])
def test_copy_throttle(family, throttle, percent):
    """Copies end, however little time they are given."""
    family.snap("P", 8)
    throttle("snapshot_copy_throttle", percent)
    family.write(family.origin, 100, pattern("new", 100))
    family.check()
