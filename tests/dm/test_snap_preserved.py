"""snapshot-origin: writes to chunks that all snapshots have preserved. The module remembers such
chunks in a map, and looks up only those that are not in it. The map is an optimisation: it shows
in nothing but the number of lookups.
"""

import pytest

from lib import delay, modules, snaps, wait
from lib.box import assert_same, pattern
from lib.snaps import Origin, Snapshot

pytestmark = [pytest.mark.only("rust"), pytest.mark.delays]

LOOKUP, FAST = (
    "snapshot: origin write not in the map",
    "snapshot: origin write in the map, not yet sent",
)
# A point that no test here passes: while a point is chosen, all are counted.
ELSEWHERE = "snapshot: lost, header not yet written"
MEMORY = "snapshot_preserved_memory"
PAGE = 32768  # chunks


def passes(write, *args, **how):
    """How many bios of a write were looked up, and how many were in the map."""
    with delay.held(ELSEWHERE):
        before = delay.counts()
        write(*args, **how)
        after = delay.counts()
    none = (0, 0)
    return tuple(after.get(name, none)[0] - before.get(name, none)[0] for name in (LOOKUP, FAST))


def learn(write, *args):
    """Repeats a write until the map has its chunks: memory for the map comes from the worker."""
    wait.until(lambda: passes(write, *args)[0] == 0, "the map has the chunks")


def settle(family, sector, data):
    learn(family.write, family.origin, sector, data)


@pytest.mark.parametrize("number", [1, 8])
def test_lookups_end(family, number):
    """The first write copies. Later ones are looked up until the map has the chunks; then never
    again, however many snapshots there are.
    """
    for n in range(number):
        family.snap("P", (8, 16, 64)[n % 3])
    assert passes(family.write, family.origin, 128, pattern("first", 64)) == (1, 0)
    settle(family, 128, pattern("again", 64))
    for start, count in ((128, 64), (128, 1), (191, 1), (135, 2)):
        assert passes(family.write, family.origin, start, pattern("fast", count)) == (0, 1)
    # Its neighbours are not in the map, and neither is a write that reaches them.
    for start, count in ((127, 1), (192, 1), (190, 3)):
        assert passes(family.write, family.origin, start, pattern("slow", count))[0] >= 1
    family.check()


def test_large_write_is_one_lookup(family):
    """A mebibyte whose chunks were copied one by one is looked up at once, and known as a whole
    afterwards.
    """
    snapshot = family.snap("P", 8)
    for chunk in range(256):
        family.write(family.origin, 1024 + chunk * 8, pattern(f"{chunk}", 8))
    assert snapshot.exceptions() == 256
    settle(family, 1024, pattern("large", 2048))
    assert passes(family.write, family.origin, 1024, pattern("again", 2048)) == (0, 1)
    for chunk in (0, 100, 255):
        assert passes(family.write, family.origin, 1024 + chunk * 8, pattern("one", 8)) == (0, 1)
    family.check()


@pytest.mark.parametrize("size", [8, 64, 1024])
def test_new_snapshot_needs_everything(family, size):
    """What is in the map is preserved in the snapshots that were there, and not in a new one."""
    family.snap("P", 64)
    settle(family, 0, pattern("old", 1024))
    new = family.snap("P", size)
    assert passes(family.write, family.origin, 512, pattern("new", 8)) == (1, 0)
    assert new.copied == {512 // size} and new.exceptions() == 1
    settle(family, 512, pattern("again", 8))
    family.check()


def test_removed_snapshot_needs_nothing(family):
    """The map stays right when a snapshot goes, and when it comes back with its exceptions."""
    first, second = family.snap("P", 16), family.snap("P", 8)
    settle(family, 0, pattern("old", 64))
    family.close(second)
    assert passes(family.write, family.origin, 0, pattern("new", 64)) == (0, 1)
    family.write(family.origin, 64, pattern("new", 64))
    settle(family, 64, pattern("new", 64))
    first = family.reopen(first)
    assert passes(family.write, family.origin, 0, pattern("newer", 64)) == (1, 0)
    settle(family, 0, pattern("newest", 128))
    assert first.exceptions() == 8
    family.check()


def test_reloaded_table(family):
    """A handover to another table of the same device: the map is a new one, and learns the old
    exceptions.
    """
    snapshot = family.snap("P", 8)
    settle(family, 0, pattern("old", 64))
    snapshot.load(snapshot.line)
    snapshot.resume()
    assert passes(family.write, family.origin, 0, pattern("new", 64)) == (1, 0)
    settle(family, 0, pattern("again", 64))
    assert snapshot.exceptions() == 8
    # A resume without a new table keeps the map.
    snapshot.suspend()
    snapshot.resume()
    assert passes(family.write, family.origin, 0, pattern("fast", 64)) == (0, 1)
    family.check()


@pytest.mark.parametrize("size, other", [(16, 8), (64, 16), (16, 64)])
def test_snapshot_that_ends_within_a_chunk(family, size, other):
    """The last chunk of a shorter snapshot is needed, though writes to the rest of it are not."""
    family.snap("P", other)
    short = family.snap("P", size, length=1001)
    for n in range(4):
        assert passes(family.write, family.origin, 1002, pattern(f"behind {n}", 6))[0] >= 1
    assert short.exceptions() == 0
    assert passes(family.write, family.origin, 1000, pattern("inside", 1))[0] >= 1
    assert short.exceptions() == 1
    # Now it is preserved as a whole.
    settle(family, 1000, pattern("all", 8))
    family.check()


def test_origin_with_several_targets(family):
    """The map is that of the origin, whatever the targets of its devices are."""
    family.snap("P", 8)
    settle(family, 1000, pattern("old", 64))
    real = family.real.dev
    family.origin.swap(
        f"0 1032 snapshot-origin {real}", f"1032 {family.sectors - 1032} snapshot-origin {real}"
    )
    # device-mapper splits the write.
    assert passes(family.write, family.origin, 1000, pattern("new", 64)) == (0, 2)
    other = family.box.own(Origin(family.real))
    assert passes(other.write, 1000, pattern("other", 64)) == (0, 1)
    family.wrote(family.origin, 1000, pattern("other", 64))
    other.remove()
    family.check()


def test_merge_beside_the_map(family):
    """A merge into the origin is no active snapshot: writes to it pass the map if the others have
    preserved the chunk. What it overwrites is preserved in the others.
    """
    kept, merged = family.snap("P", 8), family.snap("P", 64)
    settle(family, 0, pattern("old", 128))
    family.write(merged, 640, pattern("merged", 256))
    family.merge(merged)
    family.merged()
    settle(family, 0, pattern("map", 128))
    assert passes(family.write, family.origin, 16, pattern("fast", 8)) == (0, 1)
    assert kept.copied == set(range(16)) | set(range(80, 112))
    family.end_merge()
    assert passes(family.write, family.origin, 16, pattern("fast", 8)) == (0, 1)
    family.check()


def test_without_memory(impl, family):
    """With the parameter at zero each write is looked up."""
    with modules.setting(snaps.parameter(impl, MEMORY), "0"):
        family.snap("P", 8)
    for n in range(5):
        assert passes(family.write, family.origin, 0, pattern(f"{n}", 64)) == (1, 0)
    # It counts when a snapshot becomes active.
    family.snap("P", 8)
    settle(family, 0, pattern("map", 64))
    family.check()


@pytest.fixture
def huge(impl, box):
    """An origin of 64 GiB, which is zero, and keeps nothing."""

    class Huge:
        sectors = 512 * PAGE * 8
        real = box.mapped(f"0 {sectors} zero")
        origin = box.own(Origin(real))

        def snap(self):
            return box.own(Snapshot(self.real, box.ram(4), "P", 8))

        def write(self, page):
            self.origin.write(page * PAGE * 8, pattern("new", 8))

    return Huge()


def test_memory_has_a_limit(impl, huge):
    """A mebibyte holds 252 pages of the map, and the table of its 512 pages. Writes to the other
    pages are looked up, and are as right.
    """
    with modules.setting(snaps.parameter(impl, MEMORY), "1"):
        snapshot = huge.snap()
    for page in range(252):
        learn(huge.write, page)
    for page in range(252, 258):
        for _ in range(4):
            assert passes(huge.write, page) == (1, 0)
    for page in range(0, 252, 25):
        assert passes(huge.write, page) == (0, 1)
    assert snapshot.exceptions() == 258
    assert not any(snapshot.read(255 * PAGE * 8, 8))


def test_origin_grows(box, huge):
    """Behind the end that the origin had when a snapshot became active, the map has nothing."""
    huge.real.swap(f"0 {PAGE * 8} zero")
    snapshot = box.own(Snapshot(huge.real, box.ram(4), "P", 8, length=PAGE * 8))
    huge.origin.swap(f"0 {PAGE * 8} snapshot-origin {huge.real.dev}")
    learn(huge.write, 0)
    huge.real.swap(f"0 {huge.sectors} zero")
    huge.origin.swap(huge.origin.line)
    assert passes(huge.write, 0) == (0, 1)
    for _ in range(4):
        assert passes(huge.write, 1) == (1, 0)
    assert snapshot.exceptions() == 1


# A write that the map let pass


def racing(family):
    """A snapshot, a chunk that it has preserved, and a new snapshot that is not active yet."""
    family.snap("P", 8)
    settle(family, 80, pattern("old", 8))
    new = Snapshot(family.real, family.cow(8), "P", 8, length=family.sectors, start=False)
    new.load(family.box.own(new).line)
    return new


@pytest.mark.parametrize("other", [False, True])
def test_snapshot_beside_a_write_in_flight(family, other):
    """A write has passed the map, and a snapshot becomes active before the write is sent. The
    snapshot need not have what that write overwrites, but it has all that later writes overwrite,
    and what it shows after both does not change.
    """
    new = racing(family)
    old, late = pattern("old", 8), pattern("late", 8)
    with delay.held(FAST) as point:
        writer = family.box.background(family.origin.write, 80, late)
        point.wait()
        new.resume()  # does not wait for it
        if other:
            family.origin.write(80, pattern("other", 8))
            assert new.exceptions() == 1
        assert_same(new.read(80, 8), old, where="the new snapshot")
        point.release()
        writer.result()
    shown = old if other else late
    assert_same(new.read(80, 8), shown, where="the new snapshot, after the write")
    for n in range(4):
        family.origin.write(80, pattern(f"last {n}", 8))
        assert_same(new.read(80, 8), shown, where="the new snapshot, after later writes")
    assert new.exceptions() == 1
    family.wrote(family.origin, 80, pattern("last 3", 8))
    family.check()


def test_lookup_beside_an_activation(family):
    """A write is about to be looked up when a snapshot becomes active: it is preserved there."""
    new = racing(family)
    with delay.held(LOOKUP) as point:
        writer = family.box.background(family.origin.write, 88, pattern("late", 8))
        point.wait()
        new.resume()
        point.release()
        writer.result()
    family.wrote(family.origin, 88, pattern("late", 8))
    assert new.exceptions() == 1
    assert_same(new.read(88, 8), family.data[88 * 512 : 96 * 512], where="the new snapshot")
    family.check()


@pytest.mark.parametrize("number", range(4))
def test_any_order(family, rng, number):
    """Snapshots of any size and length come, go, and return, between writes to few places."""
    fast = 0
    places = [(rng.randrange(4000), rng.randrange(1, 96)) for _ in range(6)]

    def take():
        size = rng.choice((8, 16, 64, 256))
        family.snap(rng.choice("PN"), size, length=rng.choice((4096, 1001, 2500)))

    take()
    for step in range(150):
        act = rng.random()
        if act < 0.04 and len(family.snapshots) < 4:
            take()
        elif act < 0.08 and len(family.snapshots) > 1:
            rng.choice((family.close, family.reopen))(rng.choice(family.snapshots))
        else:
            start, count = rng.choice(places)
            at = start + rng.randrange(count)
            data = pattern(f"{step}", rng.randrange(1, start + count - at + 1))
            fast += passes(family.write, family.origin, at, data)[1]
    assert fast > 20
    family.check()
