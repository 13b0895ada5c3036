"""Reads, writes, flushes and FUA: what they return, what they cost, and the order in which requests
reach the disks.
"""

import time

import pytest

from lib import metadata, wait
from lib.box import assert_same, pattern

REGION = 8


def test_reads(impl, clone_box):
    """An unhydrated region is read from the source and stays unhydrated; a hydrated one is read
    from the destination.
    """
    trio = clone_box.trio(mib=1)
    clone = trio.clone()
    source, dest = trio.source.stats(), trio.dest.stats()
    trio.check(clone)
    assert clone.hydrated() == 0
    assert (trio.source.stats() - source).read_sectors == trio.sectors
    assert not (trio.dest.stats() - dest).reads
    clone.hydrate()
    clone.wait_full()
    source = trio.source.stats()
    trio.check(clone)
    assert not (trio.source.stats() - source).reads


@pytest.mark.parametrize(
    "region, offset, sectors",
    [(8, 3, 2), (8, 0, 1), (8, 7, 1), (64, 5, 50), (64, 0, 63), (64, 1, 63)],
)
def test_partial_write(impl, clone_box, region, offset, sectors):
    """The region becomes source data plus what was written; its neighbours stay as they were."""
    trio = clone_box.trio(mib=1)
    clone = trio.clone(region=region)
    start = 5 * region
    source = trio.source.stats()
    trio.write(clone, start + offset, pattern("new", sectors))
    assert (trio.source.stats() - source).read_sectors == region
    assert clone.hydrated() == 1
    assert trio.dest.read(start, region) == bytes(
        trio.expected[start * 512 : (start + region) * 512]
    )
    assert (
        trio.dest.read(start - region, region) == trio.stale[(start - region) * 512 : start * 512]
    )
    assert (
        trio.dest.read(start + region, region)
        == trio.stale[(start + region) * 512 : (start + 2 * region) * 512]
    )
    trio.check(clone)


@pytest.mark.parametrize("region, start, count", [(8, 4, 1), (64, 3, 1), (8, 4, 16), (8, 0, 256)])
def test_whole_regions_are_not_read_first(impl, clone_box, region, start, count):
    trio = clone_box.trio(mib=1)
    clone = trio.clone(region=region)
    source = trio.source.stats()
    trio.write(clone, start * region, pattern("new", count * region))
    assert not (trio.source.stats() - source).reads
    assert clone.hydrated() == count
    trio.check(clone)


@pytest.mark.parametrize("how", ["partial", "whole", "copy", "copy in a batch", "across"])
def test_short_last_region(impl, clone_box, how):
    trio = clone_box.trio(mib=1, sectors=2048 - 5)  # the last of 32 regions has 59 of 64 sectors
    clone = trio.clone(region=64)
    last = 31 * 64
    if how == "partial":
        trio.write(clone, last + 50, pattern("new", 9))
    elif how == "whole":
        trio.write(clone, last, pattern("new", 59))
    elif how == "across":
        trio.write(clone, last - 20, pattern("new", 79))
    else:
        for region in range(31 if how == "copy" else 25):
            trio.write(clone, region * 64, pattern("new", 64))
        clone.hydrate(batch=1 if how == "copy" else 64)
        clone.wait_full()
    trio.check(clone)
    assert trio.dest.read(last, 59) == bytes(trio.expected[last * 512 :])
    assert trio.dest.read(2048 - 5, 5) == trio.stale[(2048 - 5) * 512 :], "wrote behind the end"


def test_io_across_hydrated_and_other_regions(impl, clone_box):
    """A large read and a large write over a checkerboard of regions."""
    trio = clone_box.trio(mib=2)
    clone = trio.clone()
    for region in range(0, 256, 2):
        trio.write(clone, region * REGION, pattern(f"board {region}", REGION))
    assert_same(clone.read(3, 2000), bytes(trio.expected[3 * 512 : 2003 * 512]), trio)
    trio.write(clone, 1021, pattern("large", 2048))
    trio.check(clone)
    # Even regions below 256 and all from 127 (1021 / 8) to 383 (3068 / 8).
    assert clone.hydrated() == 64 + 257


@pytest.mark.crowd
def test_many_writers_one_copy(impl, clone_box):
    """Sixty-four writers to one unhydrated region: it is copied once, and each write arrives."""
    trio = clone_box.trio(mib=1).layered("source")
    clone = trio.clone(region=64)
    trio.source.hold()
    before = trio.source_disk.stats()
    writers = [
        clone_box.background(clone.write, 64 + n, pattern(f"writer {n}", 1)) for n in range(64)
    ]
    clone.wait_hydrating()
    assert not any(writer.done for writer in writers)
    trio.source.release()
    for n, writer in enumerate(writers):
        writer.result()
        trio.wrote(64 + n, pattern(f"writer {n}", 1))
    read = trio.source_disk.stats() - before
    assert (read.reads, read.read_sectors) == (1, 64)
    trio.check(clone)
    assert clone.hydrated() == 1


def test_whole_region_write_waits_behind_a_copy(impl, clone_box):
    """A partial write starts a copy, which must not overwrite a later write of the whole region."""
    trio = clone_box.trio(mib=1).layered("source")
    clone = trio.clone(region=64)
    trio.source.hold()
    first = clone_box.background(clone.write, 64 + 3, pattern("partial", 5))
    clone.wait_hydrating()
    second = clone_box.background(clone.write, 64, pattern("whole", 64))
    trio.source.release()
    first.result()
    second.result()
    trio.wrote(64, pattern("whole", 64))
    got = clone.read(64, 64)
    # Either may come last, for both were in flight together.
    if got[3 * 512 : 8 * 512] == pattern("partial", 5):
        trio.wrote(64 + 3, pattern("partial", 5))
    trio.check(clone)


def test_partial_write_waits_behind_an_overwrite(impl, clone_box):
    """A write of a whole region is in flight; it does not overwrite a later partial write."""
    trio = clone_box.trio(mib=1).layered("dest")
    clone = trio.clone(region=64)
    trio.dest.hold()
    first = clone_box.background(clone.write, 64, pattern("whole", 64))
    clone.wait_hydrating()
    second = clone_box.background(clone.write, 64 + 3, pattern("partial", 5))
    assert not first.done and not second.done
    assert (
        clone.read(64, 64) == trio.data[64 * 512 : 128 * 512]
    ), "not yet written, so still the source's"
    trio.dest.release()
    first.result()
    second.result()
    got = clone.read(64, 64)
    assert (
        got[: 3 * 512] + got[8 * 512 :]
        == pattern("whole", 64)[: 3 * 512] + pattern("whole", 64)[8 * 512 :]
    )
    assert got[3 * 512 : 8 * 512] in (
        pattern("partial", 5),
        pattern("whole", 64)[3 * 512 : 8 * 512],
    )


def test_reads_go_on_during_a_copy(impl, clone_box):
    """Only writes wait for a copy. The destination is held, so the copy has read and cannot
    write.
    """
    trio = clone_box.trio(mib=1).layered("dest")
    clone = trio.clone(region=64)
    trio.dest.hold()
    writer = clone_box.background(clone.write, 64, pattern("new", 1))
    clone.wait_hydrating()
    assert clone.read(64, 64) == trio.data[64 * 512 : 128 * 512]
    assert not writer.done
    trio.dest.release()
    writer.result()
    trio.wrote(64, pattern("new", 1))
    trio.check(clone)


# Order and cost of flushes: disks with a volatile write cache, so that flushes reach them and are
# counted.


def on_disk(trio):
    """The regions that the metadata on the disk calls hydrated."""
    return metadata.read(trio.meta_disk).hydrated()


def test_flush_with_nothing_to_commit(impl, clone_box, same):
    trio = clone_box.trio(mib=1, cache=True)
    clone = trio.clone()
    clone.flush()
    meta, dest, source = trio.meta.stats(), trio.dest.stats(), trio.source.stats()
    clone.flush()
    meta, dest, source = (
        trio.meta.stats() - meta,
        trio.dest.stats() - dest,
        trio.source.stats() - source,
    )
    assert (meta.writes, meta.flushes, dest.flushes, source.flushes) == (0, 0, 1, 0)


def test_flush_commits_and_flushes_once(impl, clone_box):
    """After a write, a flush flushes the destination once and the metadata twice, and then the
    superblock has the region.
    """
    trio = clone_box.trio(mib=1, cache=True)
    clone = trio.clone()
    clone.flush()
    trio.write(clone, 40, pattern("new", 8))
    meta, dest = trio.meta.stats(), trio.dest.stats()
    clone.flush()
    meta, dest = trio.meta.stats() - meta, trio.dest.stats() - dest
    assert dest.flushes == 1
    assert meta.writes and meta.flushes in (1, 2)
    assert on_disk(trio) == {5}


@pytest.mark.parametrize("kind", ["partial", "whole region", "hydrated region"])
def test_fua(impl, clone_box, kind):
    """A FUA write completes only after the metadata on disk has its region."""
    trio = clone_box.trio(mib=1, cache=True)
    clone = trio.clone()
    if kind == "hydrated region":
        trio.write(clone, 40, pattern("before", 8))
    dest = trio.dest.stats()
    data = pattern("new", 3 if kind == "partial" else 8)
    trio.write(clone, 40, data, fua=True)
    assert on_disk(trio) == {5}
    assert (trio.dest.stats() - dest).flushes >= 1
    # With nothing left to commit, a FUA write goes straight to the destination.
    meta = trio.meta.stats()
    trio.write(clone, 41, pattern("again", 2), fua=True)
    assert not (trio.meta.stats() - meta).writes
    trio.check(clone)


@pytest.mark.parametrize("kind", ["flush", "FUA, partial", "FUA, whole region"])
def test_completion_waits_for_the_metadata(impl, clone_box, kind):
    """While the metadata cannot be written, neither a flush nor a FUA write completes."""
    trio = clone_box.trio(mib=1, cache=True).layered("meta")
    clone = trio.clone()
    clone.flush()
    new = pattern("new", 3 if kind == "FUA, partial" else 8)
    trio.meta.hold()
    if kind == "flush":
        clone.write(40, new)
        request = clone_box.background(clone.flush)
    else:
        request = clone_box.background(clone.write, 40, new, fua=True)
    if kind == "FUA, partial":  # copied; then the data waits for the commit
        wait.until(
            lambda: trio.dest_disk.read(40, 8) == trio.data[40 * 512 : 48 * 512], "region copied"
        )
    else:
        wait.until(lambda: trio.dest_disk.read(40, 8) == new, "data written")
    _tick()
    assert not request.done, "completed before the metadata was written"
    assert on_disk(trio) == set()
    trio.meta.release()
    request.result()
    assert on_disk(trio) == {5}
    trio.wrote(40, new)
    trio.check(clone)


@pytest.mark.crowd
def test_region_finished_during_a_commit_belongs_to_the_next(impl, clone_box):
    """The corruption that exact tracking prevents (clone.md section 4).

    Region 5 is being committed: its data has left the destination's cache. Before the commit
    collects what to write, region 3 of the same word is filled, and while the metadata is being
    written, region 7; both have their data in the cache. The commit must write the bit of region 5
    only. The destination has a second half on another disk, which is held to stop the flush in the
    middle, and again to delay the next commit.
    """
    trio = clone_box.trio(mib=1, cache=True).layered("meta")
    half = clone_box.ram(1, cache=True)
    gate = clone_box.layered(half)
    trio.dest = clone_box.mapped(
        f"0 1024 linear {trio.dest_disk.dev} 0", f"1024 1024 linear {gate.dev} 1024"
    )
    clone = trio.clone()
    clone.flush()
    trio.write(clone, 40, pattern("five", 8))
    before, before_half = trio.dest_disk.stats(), half.stats()
    trio.meta.hold()
    gate.hold()
    request = clone_box.background(clone.flush)
    wait.until(
        lambda: (trio.dest_disk.stats() - before).flushes == 1,
        "the first half is flushed for the commit",
    )
    trio.write(clone, 24, pattern("three", 8))
    gate.release()
    wait.until(
        lambda: (half.stats() - before_half).flushes == 1,
        "the second half is flushed for the commit",
    )
    gate.hold()
    trio.write(clone, 56, pattern("seven", 8))
    trio.meta.release()
    wait.until(lambda: 5 in on_disk_or_none(trio), "region 5 is in the metadata")
    _tick(2)
    assert on_disk(trio) == {5}, "a region whose data was never flushed is marked on disk"
    gate.release()
    request.result()
    clone.flush()
    assert on_disk(trio) == {3, 5, 7}
    trio.check(clone)


def on_disk_or_none(trio):
    try:
        return on_disk(trio)
    except metadata.Damaged:  # read in the middle of a commit
        return set()


@pytest.mark.crowd
def test_flush_during_a_commit_is_not_early(impl, clone_box):
    """A flush that arrives while a commit runs covers what the commit does not."""
    trio = clone_box.trio(mib=1, cache=True).layered("meta")
    clone = trio.clone()
    clone.flush()
    trio.write(clone, 40, pattern("five", 8))
    trio.meta.hold()
    flushes = trio.dest_disk.stats()
    first = clone_box.background(clone.flush)
    wait.until(
        lambda: (trio.dest_disk.stats() - flushes).flushes == 1,
        "destination flushed for the commit",
    )
    trio.write(clone, 24, pattern("three", 8))
    second = clone_box.background(clone.flush)
    _tick()
    assert not first.done and not second.done
    trio.meta.release()
    first.result()
    second.result()
    assert on_disk(trio) == {3, 5}


@pytest.mark.crowd
def test_periodic_commit(impl, clone_box):
    """Without a flush, changes reach the metadata within about two seconds; then there are no more
    requests.
    """
    trio = clone_box.trio(mib=1, cache=True)
    clone = trio.clone()
    trio.write(clone, 40, pattern("new", 8))
    wait.until(lambda: 5 in on_disk_or_none(trio), "committed without a flush", deadline=10)
    clone.flush()
    meta = trio.meta.stats()
    _tick(2)
    assert not (trio.meta.stats() - meta).writes


def _tick(seconds=1):
    """Waits long enough for a superfluous periodic commit."""
    time.sleep(1.1 * seconds)


# Cost of a hydrated clone


def test_large_io_stays_whole_when_hydrated(impl, clone_box):
    """1 MiB over regions of 4 KiB: C always splits it into 256 pieces; dm-rust passes it on as a
    whole.
    """
    trio = clone_box.trio(mib=4)
    clone = trio.clone()
    clone.hydrate()
    clone.wait_full()
    pieces = (
        (256, 256) if impl == "c" else (1, 4)
    )  # 1 MiB of scattered pages may exceed the disk's 128 segments
    before = trio.dest.stats()
    trio.write(clone, 1024, pattern("new", 2048))
    write = trio.dest.stats() - before
    assert write.write_sectors == 2048
    assert pieces[0] <= write.writes <= pieces[1]
    before = trio.dest.stats()
    assert clone.read(1024, 2048) == pattern("new", 2048)
    read = trio.dest.stats() - before
    assert read.read_sectors == 2048
    assert pieces[0] <= read.reads <= pieces[1]


@pytest.mark.only("rust")
def test_large_io_is_cut_only_where_regions_differ(impl, clone_box):
    """Also before the end: a read of two runs of regions is one or a few reads of each side."""
    trio = clone_box.trio(mib=4)
    clone = trio.clone()
    trio.write(clone, 0, pattern("new", 1024))
    source, dest = trio.source.stats(), trio.dest.stats()
    assert clone.read(0, 2048) == pattern("new", 1024) + trio.data[1024 * 512 : 2048 * 512]
    source, dest = trio.source.stats() - source, trio.dest.stats() - dest
    assert (source.read_sectors, dest.read_sectors) == (1024, 1024)
    assert source.reads <= 3 and dest.reads <= 3
    before = trio.dest.stats()
    trio.write(clone, 2048, pattern("more", 2048))
    assert (trio.dest.stats() - before).writes <= 4
    assert clone.hydrated() == 128 + 256
