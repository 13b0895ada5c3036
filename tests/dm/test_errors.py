"""Failing devices: each error is reported where it must be and nowhere else, and the device can
always be removed.
"""

import errno

import pytest

from lib import metadata, wait
from lib.box import pattern
from lib.expect import fails
from lib.wait import Background

FAILED = "3 device-mapper: clone: <clone>: hydration failed"


def lines(log, clone, mark=0):
    return [
        line.replace(clone.dev, "<clone>")
        for line in log.dm(mark)
        if "device-mapper: clone" in line
    ]


# Source


def test_bad_source_sector(impl, clone_box, log):
    """Only reads of the bad sector fail, and partial writes to its region; a write of the whole
    region repairs it.
    """
    trio = clone_box.trio(mib=1).layered("source")
    clone = trio.clone()
    trio.source.error((42, 43))
    fails(clone.read, 42, 1)
    assert clone.read(40, 2) == trio.data[40 * 512 : 42 * 512]
    assert clone.read(43, 5) == trio.data[43 * 512 : 48 * 512]
    fails(clone.write, 41, pattern("new", 1))
    wait.until(lambda: FAILED in lines(log, clone), "the failure is logged")
    status = clone.wait_quiet()
    assert (status.hydrated, status.mode) == (0, "rw")
    trio.write(clone, 40, pattern("whole", 8))
    assert clone.hydrated() == 1
    trio.check(clone)


def test_bad_source_sector_in_a_batch(impl, clone_box):
    """W3: C never copies any region of the batch again. dm-rust copies everything but the bad
    region, and that one when it works again.
    """
    trio = clone_box.trio(mib=1).layered("source")
    clone = trio.clone()
    trio.source.error((330, 331))  # region 41
    clone.hydrate(threshold=256, batch=64)
    if impl == "c":
        wait.until(lambda: clone.hydrated() == 192, "all but the bad batch is hydrated")
    else:
        wait.until(lambda: clone.hydrated() == 255, "all but the bad region is hydrated")
        fails(clone.read, 330, 1)
        trio.source.hold()
        trio.source.release()
    assert clone.look().mode == "rw"
    trio.source.heal()
    clone.wait_full()
    trio.check(clone)
    trio.check(trio.dest)


def test_write_beside_a_bad_source_sector(impl, clone_box):
    """A write queued behind another region of a failing batch: C fails it, dm-rust does not
    (W3).
    """
    trio = clone_box.trio(mib=1).layered("source")
    clone = trio.clone()
    trio.source.hold()
    clone.hydrate(threshold=64, batch=64)
    clone.wait_hydrating(64)
    writer = Background(
        clone.write, 80, pattern("new", 3)
    )  # region 10, waits for the batch of regions 0 to 63
    wait.until(lambda: not writer.done, "the write waits")
    trio.source.error((330, 331))  # fails the held I/O as well
    if impl == "c":
        with pytest.raises(OSError):
            writer.result()
    else:
        writer.result()
        trio.wrote(80, pattern("new", 3))
        assert clone.read(80, 3) == pattern("new", 3)
    trio.source.heal()
    clone.wait_full()
    trio.check(clone)


def test_whole_region_write_behind_a_failing_copy(impl, clone_box):
    """The write does not need the source, but arrived while the region was being copied. C fails it
    with the copy.
    """
    trio = clone_box.trio(mib=1).layered("source")
    clone = trio.clone()
    trio.source.hold()
    clone.hydrate(threshold=64, batch=1)
    clone.wait_hydrating(64)
    writer = Background(clone.write, 80, pattern("new", 8))
    wait.until(lambda: not writer.done, "the write waits")
    trio.source.error()
    if impl == "c":
        with pytest.raises(OSError):
            writer.result()
    else:
        writer.result()
        trio.wrote(80, pattern("new", 8))
        assert clone.read(80, 8) == pattern("new", 8)
    trio.source.heal()
    clone.wait_full()
    trio.check(clone)


def test_source_lost_and_back(impl, clone_box, log):
    """The whole source fails for a while: hydrated regions still work, and the others are hydrated
    later.
    """
    trio = clone_box.trio(mib=1).layered("source")
    clone = trio.clone()
    trio.write(clone, 0, pattern("new", 80))
    trio.source.error()
    clone.hydrate(threshold=64, batch=8)
    wait.until(lambda: FAILED in lines(log, clone), "the failure is logged")
    assert clone.read(0, 80) == pattern("new", 80)
    trio.write(clone, 3, pattern("newer", 5))
    clone.message(
        "disable_hydration"
    )  # a write that meets a failing background copy is the subject of another test
    clone.wait_quiet()
    trio.write(clone, 800, pattern("whole", 8))
    clone.message("enable_hydration")
    fails(clone.read, 400, 8)
    fails(clone.write, 401, pattern("x", 1))
    clone.flush()
    clone.suspend()
    clone.resume()
    trio.source.heal()
    clone.wait_full(60)
    trio.check(clone)
    trio.check(trio.dest)


def test_removal_with_a_dead_source(impl, clone_box):
    trio = clone_box.trio(mib=1).layered("source")
    clone = trio.clone()
    trio.source.error()
    clone.hydrate(threshold=64, batch=8)
    fails(clone.write, 401, pattern("x", 1))
    clone.remove()
    assert metadata.read(trio.meta).count == 0


# Destination


@pytest.mark.parametrize("kind", ["copy", "whole region", "hydrated region"])
def test_destination_write_error(impl, clone_box, kind):
    """The write fails, its regions do not count as hydrated, and it succeeds when the disk works
    again.
    """
    trio = clone_box.trio(mib=1).layered("dest")
    clone = trio.clone()
    if kind == "hydrated region":
        trio.write(clone, 40, pattern("before", 8))
    before = clone.hydrated()
    trio.dest.error_writes((40, 48))
    new = pattern("new", 8 if kind == "whole region" else 3)
    fails(clone.write, 40, new)
    status = clone.wait_quiet()
    assert (status.hydrated, status.mode) == (before, "rw")
    trio.write(clone, 80, pattern("beside", 5))
    trio.check(clone)
    trio.dest.heal()
    trio.write(clone, 40, new)
    assert clone.hydrated() == 2
    trio.check(clone)


def test_destination_write_error_in_the_sweep(impl, clone_box, log):
    trio = clone_box.trio(mib=1).layered("dest")
    clone = trio.clone()
    trio.dest.error_writes((330, 331))
    clone.hydrate(threshold=256, batch=1)
    wait.until(lambda: clone.hydrated() == 255, "all but one region is hydrated")
    wait.until(lambda: FAILED in lines(log, clone), "the failure is logged")
    trio.check(clone)
    trio.dest.heal()
    clone.wait_full()
    trio.check(trio.dest)


class Unflushable:
    """A clone whose destination accepts each write and fails each flush: there is a bad sector
    beyond the clone's end.
    """

    def __init__(self, box):
        self.trio = box.trio(mib=1, cache=True)
        trio, disk = self.trio, self.trio.dest_disk
        trio.sectors = 2040
        trio.expected = trio.expected[: 2040 * 512]
        trio.dest = box.layered(disk)
        self.clone = trio.clone()
        assert self.clone.regions == 255
        trio.write(self.clone, 0, pattern("safe", 8))
        self.clone.flush()
        trio.dest.error_writes((2040, 2048))


@pytest.mark.only("rust")
@pytest.mark.parametrize("busy", [True, False])
def test_a_flush_fails_beside_a_copy(impl, clone_box, log, busy):
    """A flush fails that is not part of a commit. What the destination lost may be data of a region
    that is being filled, so that region is not marked then. If nothing is in flight, and everything
    is committed, the metadata claims nothing that could be lost.
    """
    trio = clone_box.trio(mib=1, cache=True).layered("source", "dest")
    clone = trio.clone()
    trio.write(clone, 0, pattern("safe", 8))
    clone.flush()
    trio.source.hold()
    if busy:
        clone.hydrate(threshold=8, batch=4)
        clone.wait_hydrating(8)
        clone.message("hydration_threshold", "0")
    events, mark = clone.event, log.mark()
    trio.dest.error_writes()
    fails(clone.flush)
    trio.dest.heal()
    if not busy:
        assert clone.look().mode == "rw" and clone.event == events
        trio.source.release()
        trio.write(clone, 40, pattern("new", 8))
        clone.flush()
        trio.check(clone)
        return
    wait.until(lambda: clone.event == events + 1, "an event")
    assert clone.look().mode == "ro"
    assert "6 device-mapper: clone: <clone>: Switching to read-only mode" in lines(log, clone, mark)
    trio.source.release()
    clone.wait_quiet()
    assert clone.hydrated() == 1
    with pytest.raises(OSError):
        clone.message("rw")
    trio.check(clone)
    clone.remove()
    assert metadata.read(trio.meta).hydrated() == {0}
    clone = trio.clone()
    clone.hydrate()
    clone.wait_full()
    trio.check(trio.dest)


def test_destination_flush_error(impl, clone_box, log, same):
    """C's log messages, one event, read-only mode, EIO for the flush; the metadata does not claim
    what was not flushed.
    """
    case = Unflushable(clone_box)
    trio, clone = case.trio, case.clone
    trio.write(clone, 40, pattern("lost in the cache?", 8))
    events, mark = clone.event, log.mark()
    fails(clone.flush)
    wait.until(lambda: clone.event == events + 1, "an event")
    assert clone.look().mode == "ro"
    said = lines(log, clone, mark)
    assert said[:2] == [
        "3 device-mapper: clone: <clone>: Metadata operation `flush destination device' failed: "
        "error = -5",
        "3 device-mapper: clone: <clone>: Aborting current metadata transaction",
    ]
    assert "6 device-mapper: clone: <clone>: Switching to read-only mode" in said
    same([line for line in said if "Reloading" not in line])
    assert metadata.read(trio.meta_disk).hydrated() == {0}

    fails(clone.flush)
    fails(clone.write, 80, pattern("new", 8))  # not hydrated: refused
    fails(clone.write, 81, pattern("new", 1))
    trio.write(clone, 2, pattern("allowed", 3))  # hydrated and committed
    clone.discard(800, 80)  # ignored
    clone.message("hydration_threshold", "64")
    clone.message("enable_hydration")
    assert clone.read(800, 80) == trio.data[800 * 512 : 880 * 512]
    got = clone.read(40, 8)
    if impl == "c":  # W8: reads no longer show an acknowledged write
        assert got == trio.data[40 * 512 : 48 * 512], "C kept the write: has W8 been fixed there?"
        trio.wrote(40, got)
    else:
        assert got == pattern("lost in the cache?", 8)
    trio.check(clone)
    assert clone.look().hydrating == 0
    clone.remove()

    trio.dest.heal()
    clone = trio.clone()
    assert (clone.look().mode, clone.hydrated()) == ("rw", 1)
    trio.wrote(40, trio.data[40 * 512 : 48 * 512])  # it was never flushed, so it may be lost now
    trio.check(clone)


def test_periodic_commit_fails(impl, clone_box):
    """Without any flush, the periodic commit changes the mode, with an event."""
    case = Unflushable(clone_box)
    events = case.clone.event
    waiter = clone_box.background(case.clone.wait_event, events)
    case.trio.write(case.clone, 40, pattern("new", 8))
    assert waiter.result() == events + 1
    assert case.clone.look().mode == "ro"


@pytest.mark.only("rust")
def test_reload_recovers_from_read_only(impl, clone_box):
    """W9: after a metadata error a reloaded table tries again, and commits what was not
    committed.
    """
    trio = clone_box.trio(mib=1, cache=True).layered("meta")
    clone = trio.clone()
    trio.write(clone, 0, pattern("safe", 8))
    clone.flush()
    trio.meta.error_writes()
    trio.write(clone, 40, pattern("new", 8))
    fails(clone.flush)
    assert clone.look().mode == "ro"
    trio.meta.heal()
    clone.swap(clone.line)
    assert clone.look().mode == "rw"
    clone.flush()
    trio.check(clone)
    assert metadata.read(trio.meta_disk).hydrated() == {0, 5}
    clone.hydrate()
    clone.wait_full()
    trio.check(trio.dest)


def test_suspend_and_removal_in_read_only_mode(impl, clone_box):
    case = Unflushable(clone_box)
    case.trio.write(case.clone, 40, pattern("new", 8))
    fails(case.clone.flush)
    case.clone.suspend()
    case.clone.resume()
    assert case.clone.look().mode == "ro"
    case.clone.remove()


# Metadata


def test_metadata_write_error_at_each_block(impl, clone_box, log):
    """Each block that a commit writes fails in turn: the mode becomes read-only, and the next open
    finds the last successful commit.
    """
    trio = clone_box.trio(mib=1).layered("meta")

    def start():
        trio.meta_disk.write(0, bytes(metadata.BLOCK))
        trio.dest_disk.fill(trio.stale)
        trio.expected = bytearray(trio.data)
        clone = trio.clone()
        trio.write(clone, 40, pattern("safe", 8))
        clone.flush()
        return clone

    clone = start()
    before = trio.meta_disk.content()
    clone.write(800, pattern("doubtful", 8))
    clone.flush()
    after = trio.meta_disk.content()
    clone.remove()
    step = metadata.BLOCK
    written = [
        n
        for n in range(len(before) // step)
        if before[n * step :][:step] != after[n * step :][:step]
    ]
    assert written[0] == 0 and len(written) >= 4

    for bad in written:
        clone = start()
        trio.meta.error_writes((bad * 8, bad * 8 + 8))
        trio.write(clone, 800, pattern("doubtful", 8))
        mark = log.mark()
        fails(clone.flush)
        assert clone.look().mode == "ro"
        said = lines(log, clone, mark)
        assert any(
            "Metadata operation `dm_clone_metadata_commit' failed: error = -5" in line
            for line in said
        ), said
        fails(clone.flush)
        fails(clone.write, 1600, pattern("refused", 1))
        trio.write(clone, 40, pattern("allowed", 4))
        got = clone.read(800, 8)
        # W8: with C, reads no longer show an acknowledged write.
        assert got == (trio.data[800 * 512 : 808 * 512] if impl == "c" else pattern("doubtful", 8))
        clone.remove()

        trio.meta.heal()
        clone = trio.clone()
        status = clone.look()
        assert (status.mode, status.hydrated) == ("rw", 1), f"block {bad}"
        assert metadata.read(trio.meta_disk).count == 1
        trio.wrote(800, trio.data[800 * 512 : 808 * 512])
        trio.check(clone)
        clone.hydrate()
        clone.wait_full()
        trio.check(trio.dest)
        clone.remove()


def test_metadata_gone(impl, clone_box, log, same):
    """Reads of the metadata fail too, so the state cannot be read back: with C everything ends."""
    trio = clone_box.trio(mib=1).layered("meta")
    clone = trio.clone()
    trio.write(clone, 40, pattern("safe", 8))
    clone.flush()
    trio.write(clone, 800, pattern("doubtful", 8))
    trio.meta.error()
    events, mark = clone.event, log.mark()
    fails(clone.flush)
    said = lines(log, clone, mark)
    assert (
        "3 device-mapper: clone: <clone>: Metadata operation `dm_clone_metadata_commit' failed: "
        "error = -5" in said
    )
    assert "3 device-mapper: clone: <clone>: Aborting current metadata transaction" in said
    assert "3 device-mapper: clone: <clone>: Failed to abort metadata transaction" in said
    assert clone.status() == "Fail"
    wait.until(lambda: clone.event > events, "an event")
    same(clone.status())
    fails(clone.read, 0, 8)
    fails(clone.read, 40, 8)
    fails(clone.write, 40, pattern("x", 1))
    fails(clone.flush)
    clone.message("enable_hydration")
    assert clone.table().endswith(" 8 1 no_hydration")
    clone.suspend()
    clone.resume()
    assert clone.status() == "Fail"
    clone.remove()
    trio.meta.heal()
    clone = trio.clone()
    assert clone.look().mode == "rw" and clone.hydrated() in (1, 2)
    assert clone.read(40, 8) == pattern("safe", 8)


@pytest.mark.parametrize("bad", ["read", "write"])
def test_metadata_error_at_open(impl, clone_box, log, same, bad):
    """A format that cannot be written, and an open that cannot read: refused, and no device stays
    claimed.
    """
    trio = clone_box.trio(mib=1).layered("meta")
    if bad == "read":
        trio.clone().remove()
        trio.meta.error_reads((0, 8))
    else:
        trio.meta.error_writes((0, 8))
    clone = clone_box.clone(trio.meta, trio.dest, trio.source, 8, "1 no_hydration", start=False)
    mark = log.mark()
    fails(clone.load, clone.line)
    said = [line.replace(clone.dev, "<clone>") for line in log.dm(mark)]
    assert "3 device-mapper: table: <clone>: clone: Failed to load metadata (-EIO)" in said
    same([line for line in said if "<clone>" in line])
    trio.meta.heal()
    clone.load(clone.line)
    clone.resume()
    assert clone.hydrated() == 0


@pytest.mark.crowd
def test_errors_at_random(impl, clone_box, rng):
    """Source and destination fail here and there, for a while, under random I/O: no wrong data, no
    hang, and everything works in the end.
    """
    trio = clone_box.trio(mib=2).layered("source", "dest")
    clone = trio.clone()
    unsure = set()
    for turn in range(60):
        if turn % 6 == 0:
            layer = rng.choice((trio.source, trio.dest))
            start = rng.randrange(4000)
            {
                0: layer.heal,
                1: lambda: (
                    layer.error_reads((start, start + 40))
                    if layer is trio.source
                    else layer.error_writes((start, start + 40))
                ),
                2: layer.heal,
            }[rng.randrange(3)]()
            clone.message(
                *rng.choice(
                    (
                        ["enable_hydration"],
                        ["disable_hydration"],
                        ["hydration_threshold", "20"],
                        ["hydration_batch_size", "5"],
                    )
                )
            )
        sector, count = rng.randrange(4096 - 40), rng.randrange(1, 40)
        data = rng.randbytes(count * 512)
        try:
            clone.write(sector, data)
            trio.wrote(sector, data)
            unsure -= set(range(sector, sector + count))
        except OSError as error:
            assert error.errno == errno.EIO
            unsure |= set(range(sector, sector + count))
        try:
            start = rng.randrange(4096 - 100)
            got = clone.read(start, 100)
            for n in range(100):
                if start + n not in unsure:
                    want = trio.expected[(start + n) * 512 : (start + n + 1) * 512]
                    assert got[n * 512 : (n + 1) * 512] == want, f"turn {turn}: sector {start + n}"
        except OSError as error:
            assert error.errno == errno.EIO
    assert clone.look().mode == "rw"
    trio.source.heal()
    trio.dest.heal()
    clone.hydrate()
    clone.wait_full(60)
    for n in unsure:
        trio.wrote(n, clone.read(n, 1))
    trio.check(clone)
    trio.check(trio.dest)
