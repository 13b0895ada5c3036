"""Discards: which regions they mark, what they pass down, what they must keep; limits of the queue;
zeroing.
"""

from pathlib import Path

import pytest

from lib import wait
from lib.box import pattern


@pytest.mark.parametrize("start, count", [(3, 4), (8, 7), (9, 14), (1, 7), (15, 2)])
def test_less_than_a_region_is_nothing(impl, clone_box, start, count):
    trio = clone_box.trio(mib=1)
    clone = trio.clone()
    before = trio.dest.stats()
    clone.discard(start, count)
    assert clone.hydrated() == 0
    assert not (trio.dest.stats() - before).discards
    trio.check(clone)


@pytest.mark.parametrize(
    "start, count, first, regions",
    [(3, 26, 1, 2), (8, 8, 1, 1), (0, 2048, 0, 256), (7, 10, 1, 1), (100, 1000, 13, 124)],
)
def test_rounds_inwards(impl, clone_box, start, count, first, regions):
    """Whole regions inside the range are marked, and exactly those are passed down."""
    trio = clone_box.trio(mib=1)
    clone = trio.clone()
    before = trio.dest.stats(), trio.source.stats()
    clone.discard(start, count)
    assert clone.hydrated() == regions
    dest, source = trio.dest.stats() - before[0], trio.source.stats() - before[1]
    assert dest.discard_sectors == regions * 8
    assert not source.reads
    trio.wrote(
        first * 8, bytes(regions * 8 * 512)
    )  # these disks read as zeros where they were discarded
    trio.check(clone)
    assert trio.dest.read(first * 8, regions * 8) == bytes(regions * 8 * 512)


def test_without_passdown(impl, clone_box):
    """Marked, not passed down: the destination's old bytes show, which is the purpose of the
    feature.
    """
    trio = clone_box.trio(mib=1)
    clone = trio.clone(extra="2 no_hydration no_discard_passdown")
    clone.discard(8, 80)
    assert clone.hydrated() == 10
    trio.wrote(8, trio.stale[8 * 512 : 88 * 512])
    trio.check(clone)


def test_of_hydrated_regions(impl, clone_box):
    """Hydrated regions are only passed down; mixed ranges mark the others."""
    trio = clone_box.trio(mib=1)
    clone = trio.clone()
    trio.write(clone, 16, pattern("new", 32))
    assert clone.hydrated() == 4
    before = trio.dest.stats()
    clone.discard(16, 16)
    assert (trio.dest.stats() - before).discard_sectors == 16
    assert clone.hydrated() == 4
    clone.discard(0, 64)
    assert (trio.dest.stats() - before).discard_sectors == 16 + 64
    assert clone.hydrated() == 8
    trio.wrote(0, bytes(64 * 512))
    trio.check(clone)


def test_survives_recreation(impl, clone_box):
    trio = clone_box.trio(mib=1)
    clone = trio.clone()
    clone.discard(0, 800)
    trio.wrote(0, bytes(800 * 512))
    clone.flush()
    clone.remove()
    clone = trio.clone()
    assert clone.hydrated() == 100
    trio.check(clone)


def test_hydration_skips_what_was_discarded(impl, clone_box):
    trio = clone_box.trio(mib=1)
    clone = trio.clone()
    clone.discard(160, 1000)
    trio.wrote(160, bytes(1000 * 512))
    before = trio.source.stats()
    clone.hydrate()
    clone.wait_full()
    assert (trio.source.stats() - before).read_sectors == trio.sectors - 1000
    trio.check(clone)
    trio.check(trio.dest)


@pytest.mark.parametrize(
    "why", ["discard unsupported", "max discard sectors smaller than a region"]
)
def test_impossible_passdown(impl, clone_box, log, same, why):
    """Passdown is switched off with a warning, which INFO shows and TABLE does not; discards still
    mark regions.
    """
    trio = clone_box.trio(mib=1, discard=why != "discard unsupported")
    if "smaller" in why:
        Path(f"/sys/dev/block/{trio.dest.dev}/queue/discard_max_bytes").write_text("4096")
        trio.dest_disk.pool_key = None  # not for other tests
    mark = log.mark()
    before = trio.dest.stats()
    clone = trio.clone(region=16)
    lines = [line.replace(trio.dest.kernel_name, "<dest>") for line in log.dm(mark)]
    assert lines == [
        f"4 device-mapper: clone: Destination device (<dest>) {why}: Disabling discard passdown."
    ]
    same(lines)
    assert clone.look().features == ["no_hydration", "no_discard_passdown"]
    assert clone.table().endswith(" 16 1 no_hydration")
    clone.discard(16, 160)
    assert clone.hydrated() == 10
    assert not (trio.dest.stats() - before).discards
    trio.wrote(16, trio.stale[16 * 512 : 176 * 512])
    trio.check(clone)


# In sysfs a clone must look like C's. The rest of queue/ is the kernel's, not the target's.
LIMITS = (
    "discard_granularity",
    "discard_max_bytes",
    "discard_max_hw_bytes",
    "write_zeroes_max_bytes",
    "minimum_io_size",
    "optimal_io_size",
    "write_cache",
    "fua",
    "logical_block_size",
    "physical_block_size",
    "max_sectors_kb",
    "max_hw_sectors_kb",
    "max_segments",
    "max_segment_size",
    "max_discard_segments",
    "chunk_sectors",
    "dax",
    "zoned",
    "nr_zones",
    "rotational",
    "stable_writes",
    "virt_boundary_mask",
    "write_same_max_bytes",
    "zone_write_granularity",
    "add_random",
    "io_poll",
    "max_integrity_segments",
    "dma_alignment",
    "atomic_write_max_bytes",
)


@pytest.mark.parametrize("region", [8, 2048, 2097152])
@pytest.mark.parametrize("words", ["1 no_hydration", "2 no_hydration no_discard_passdown"])
@pytest.mark.parametrize("cache", [False, True])
def test_limits(impl, clone_box, same, region, words, cache):
    trio = clone_box.trio(mib=1, cache=cache)
    clone = trio.clone(region=region, extra=words)
    queue = Path(f"/sys/dev/block/{clone.dev}/queue")
    found = {name: (queue / name).read_text().strip() for name in LIMITS if (queue / name).exists()}
    found["discard_alignment"] = (queue.parent / "discard_alignment").read_text().strip()
    passdown = "passdown" not in words
    dest = Path(f"/sys/dev/block/{trio.dest.dev}/queue")
    assert found["minimum_io_size"] == found["optimal_io_size"] == str(region * 512)
    assert found["write_zeroes_max_bytes"] == "0"
    assert (found["write_cache"], found["fua"]) == ("write back", "1")
    if passdown:
        for name in ("discard_granularity", "discard_max_hw_bytes"):
            assert found[name] == (dest / name).read_text().strip()
    else:
        assert found["discard_granularity"] == str(region * 512)
        assert found["discard_max_hw_bytes"] == str((0xFFFFFFFF >> 9) // region * region * 512)
    same(found)


def test_zeroing(impl, clone_box):
    """BLKZEROOUT (`blkdiscard -z`): zeros are read back, in regions of all kinds."""
    trio = clone_box.trio(mib=1)
    clone = trio.clone()
    trio.write(clone, 64, pattern("new", 64))
    clone.zero(30, 70)
    trio.wrote(30, bytes(70 * 512))
    trio.check(clone)
    clone.hydrate()
    clone.wait_full()
    trio.check(trio.dest)


# W1: a discard marks a region while a copy of it is in flight; the copy then overwrites what was
# written in between.


@pytest.mark.parametrize("words", ["passdown", "no_discard_passdown"])
@pytest.mark.parametrize("copy", ["sweep, single", "sweep, batch", "for a write"])
def test_discard_races_a_copy(impl, clone_box, copy, words):
    """The source is held, so that the copy of region 5 stays in flight. C loses the write
    silently.
    """
    trio = clone_box.trio(mib=1).layered("source")
    clone = trio.clone(
        extra="2 no_hydration no_discard_passdown" if words != "passdown" else "1 no_hydration"
    )
    trio.source.hold()
    helper = None
    if copy == "for a write":
        helper = clone_box.background(clone.write, 40 + 7, pattern("helper", 1))
        clone.wait_hydrating()
    else:
        clone.message("hydration_batch_size", "64" if "batch" in copy else "1")
        clone.message("hydration_threshold", "64")
        clone.message("enable_hydration")
        clone.wait_hydrating(64)

    def discard_and_write():
        clone.discard(0, 512)
        clone.write(40, pattern("precious", 5))
        clone.flush()

    work = clone_box.background(discard_and_write)
    if impl == "c":
        work.result()  # C does not wait, which is the bug
        assert clone.read(40, 5) == pattern("precious", 5)
    else:
        wait.until(lambda: work.done or clone.look().hydrating, "discard has met the copy")
    trio.source.release()
    if helper:
        helper.result()
    work.result()
    clone.message("disable_hydration")
    clone.wait_quiet()
    got = clone.read(40, 5)
    if impl == "c":
        assert (
            got == trio.data[40 * 512 : 45 * 512]
        ), "C did not lose the write: has W1 been fixed there?"
    else:
        assert got == pattern("precious", 5), "an acknowledged write was lost under an old copy"
        clone.hydrate()
        clone.wait_full()
        assert trio.dest.read(40, 5) == pattern("precious", 5)


@pytest.mark.only("rust")
def test_discard_and_write_at_full_hydration(impl, clone_box, rng):
    """Discards of everything and writes, at the maximum speed of the hydration; C loses writes here
    (W1).
    """
    for _ in range(6):
        trio = clone_box.trio(mib=2)
        clone = trio.clone()
        clone.hydrate(threshold=512, batch=rng.choice((1, 16, 64)))
        for _ in range(10):
            if rng.random() < 0.3:
                clone.discard(0, trio.sectors)
                trio.wrote(0, bytes(trio.sectors * 512))
            else:
                start = rng.randrange(0, 3800)
                count = rng.randrange(8, 200)
                trio.discard(clone, start, count)
            for _ in range(4):
                sector = rng.randrange(trio.sectors - 16)
                trio.write(clone, sector, rng.randbytes(512 * rng.randrange(1, 16)))
        clone.wait_full()
        trio.check(clone)
        trio.check(trio.dest)
        clone.remove()
