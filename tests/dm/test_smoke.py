"""One test for each target and each format, for kernels on which the whole suite does not run."""

import pytest

from lib import cow, eras, metadata, samples
from lib.box import pattern
from lib.snaps import Merge, Snapshot


def test_clone(impl, clone_box):
    trio = clone_box.trio(mib=1)
    clone = trio.clone()
    trio.write(clone, 83, pattern("across regions", 30))
    trio.discard(clone, 800, 100)
    trio.check(clone)
    before = clone.hydrated()
    assert 0 < before < clone.regions
    clone.remove()
    clone = trio.clone()
    assert clone.hydrated() == before
    clone.hydrate()
    clone.wait_full()
    clone.remove()
    trio.check(trio.dest)
    trio.check_source()
    assert metadata.read(trio.meta).count == clone.regions


def test_era(pair):
    era = pair.era()
    era.write(100, pattern("first", 20))
    now = era.checkpoint()
    era.write(8191, pattern("second", 1))
    assert era.since(now) == {1023} and era.since(1) == {12, 13, 14, 1023}
    era.remove()
    era = pair.era()
    assert era.since(now) == {1023}
    assert era.read(100, 20) == pattern("first", 20)
    era.remove()
    eras.check(pair.meta)


def test_snapshot(family):
    """Two snapshots of different chunk sizes, and one without a persistent store."""
    first, second, third = family.snap(size=8), family.snap("PO", size=32), family.snap("N", size=8)
    family.write(family.origin, 100, pattern("new", 50))
    family.write(first, 120, pattern("own", 50))
    family.check()
    first, second = family.reopen(first), family.reopen(second)
    family.write(family.origin, 2000, pattern("newer", 100))
    family.check()
    assert third.exceptions() > second.exceptions() > 0


@pytest.mark.parametrize("direct", [False, True])
def test_merge(family, direct):
    snapshot = family.snap()
    family.write(family.origin, 100, pattern("new", 300))
    family.write(snapshot, 2000, pattern("own", 50))
    family.merge(snapshot, direct)
    family.write(family.origin, 2040, pattern("newest", 20))
    family.merged()


def test_stored_clone(impl, clone_box):
    """Metadata that C wrote on x86, here and in the next tests."""
    trio = clone_box.trio(mib=1)
    trio.meta.fill(samples.stored("clone"))
    clone = trio.clone()
    for region in samples.HYDRATED:
        trio.wrote(region * 8, trio.stale[region * 4096 : (region + 1) * 4096])
    assert clone.hydrated() == len(samples.HYDRATED)
    trio.check(clone)
    clone.hydrate()
    clone.wait_full()
    trio.check(clone)


def test_stored_era(pair):
    pair.meta.fill(samples.stored("era"))
    era = pair.era()
    for number in samples.WRITTEN:
        assert era.since(number) == set().union(
            *(blocks for at, blocks in samples.WRITTEN.items() if at >= number)
        )
    era.write(3, pattern("now", 1))
    assert era.since(max(samples.WRITTEN) + 1) == {0}
    era.remove()
    eras.check(pair.meta)


def test_stored_snapshot(impl, box):
    """Read, then merged."""
    origin, disk = box.ram(2), box.ram(1)
    origin.fill(pattern("origin", 4096))
    disk.fill(samples.stored("snapshot"))
    expected = bytearray(pattern("origin", 4096))
    for chunk, byte in samples.COPIED.items():
        expected[chunk * 4096 : (chunk + 1) * 4096] = byte * 4096
    snapshot = box.own(Snapshot(origin, disk))
    assert snapshot.content() == expected
    assert snapshot.exceptions() == len(samples.COPIED)
    snapshot.remove()
    merge = box.own(Merge(snapshot))
    merge.wait_merged()
    merge.remove()
    assert origin.content() == expected
    assert not cow.Store(disk).records
