"""What C's clone does not have: optional arguments and messages, requests that write zeros,
requests that do not wait.
"""

import errno
import mmap
import os

import pytest

from lib import metadata, wait
from lib.box import assert_same, pattern
from lib.disk import in_flight

pytestmark = pytest.mark.only("rust")


def statistics(clone):
    words = clone.ask("statistics").split()
    return dict(zip(words[::2], map(int, words[1::2])))


# Table line and status


def test_options_are_shown_and_kept(impl, clone_box):
    trio = clone_box.trio(mib=1)
    extra = (
        "4 no_hydration no_discard_passdown hydrate_on_read zero_discards 6 max_failures 3 "
        "hydration_threshold 2 hydration_batch_size 5"
    )
    clone = trio.clone(extra=extra)
    assert clone.status().endswith(
        " 0 4 no_hydration no_discard_passdown hydrate_on_read zero_discards "
        "6 hydration_threshold 2 hydration_batch_size 5 max_failures 3 rw"
    )
    assert clone.table().endswith(f" 8 {extra}")
    clone.message("max_failures", "0")
    assert clone.status().endswith(" 4 hydration_threshold 2 hydration_batch_size 5 rw")


@pytest.mark.parametrize(
    "extra, text",
    [
        ("3 no_hydration no_hydration no_hydration", "Invalid number of feature arguments"),
        ("3 no_hydration hydrate_on_read nonsense", "Invalid feature argument"),
        (
            "0 6 hydration_threshold 1 hydration_threshold 1 hydration_threshold 1",
            "Invalid number of core arguments",
        ),
        ("0 5 max_failures 1 hydration_threshold 1 x", "Number of core arguments must be even"),
        ("0 2 max_failures x", "Invalid value for argument `max_failures'"),
    ],
)
def test_refusals(impl, clone_box, log, extra, text):
    trio = clone_box.trio(mib=1)
    with pytest.raises(OSError) as refused:
        trio.clone(extra=extra)
    assert refused.value.errno == errno.EINVAL
    assert any(text in line for line in log.dm())


# Hydration in a chosen order


def test_hydrate_on_read(impl, clone_box):
    """With hydration disabled, whole regions that were read are copied, and nothing else."""
    trio = clone_box.trio(mib=2)
    clone = trio.clone(
        extra="2 no_hydration hydrate_on_read 4 hydration_threshold 64 hydration_batch_size 8"
    )
    assert clone.read(801, 30) == trio.data[801 * 512 : 831 * 512]
    wait.until(lambda: clone.hydrated() == 4, "regions 100 to 103 have been copied")
    clone.wait_quiet()
    clone.flush()
    found = metadata.read(trio.meta)
    assert [region for region in range(512) if found.is_hydrated(region)] == [100, 101, 102, 103]
    reads = trio.source.stats()
    assert clone.read(801, 30) == trio.data[801 * 512 : 831 * 512]
    assert not (trio.source.stats() - reads).reads
    trio.check(clone)
    wait.until(lambda: clone.hydrated() > 60, "reading all of it copies what is remembered of it")
    trio.check(clone)


def test_hydrate_a_range_first(impl, clone_box):
    trio = clone_box.trio(mib=4)
    clone = trio.clone(extra="1 no_hydration 4 hydration_threshold 16 hydration_batch_size 4")
    clone.message("hydrate_range", "4001", "1000")
    wait.until(lambda: clone.hydrated() == 126, "the range, in whole regions")
    clone.wait_quiet()
    clone.flush()
    found = metadata.read(trio.meta)
    assert [r for r in range(1024) if found.is_hydrated(r)] == list(range(500, 626))
    clone.message("enable_hydration")
    clone.wait_full()
    trio.check(trio.dest)


@pytest.mark.parametrize(
    "words",
    [
        ("0",),
        ("0", "0"),
        ("0", "8193"),
        ("8192", "1"),
        ("18446744073709551614", "8"),
        ("x", "8"),
        ("0", "8", "8"),
        ("-1", "8"),
    ],
)
def test_hydrate_range_refused(impl, clone_box, words):
    clone = clone_box.trio(mib=4).clone()
    with pytest.raises(OSError) as refused:
        clone.message("hydrate_range", *words)
    assert refused.value.errno == errno.EINVAL


# Failures


def test_hydration_stops_after_max_failures(impl, clone_box, log):
    """Hydration is disabled, with an event; enabling it starts again."""
    trio = clone_box.trio(mib=1).layered("source")
    trio.source.error((800, 880))
    clone = trio.clone(
        extra="1 no_hydration 6 hydration_threshold 16 hydration_batch_size 4 max_failures 5"
    )
    before = clone.event
    clone.message("enable_hydration")
    assert clone_box.background(clone.wait_event, before).result() > before
    assert "no_hydration" in clone.look().features
    assert any("copies failed: hydration is disabled" in line for line in log.dm())
    assert statistics(clone)["failed_copies"] >= 5
    trio.source.heal()
    clone.message("enable_hydration")
    clone.wait_full()
    trio.check(trio.dest)


def test_failures_of_writes_do_not_stop_hydration(impl, clone_box):
    """Only failures of the background hydration count; a user may rewrite part of a bad region any
    number of times.
    """
    trio = clone_box.trio(mib=1).layered("source")
    trio.source.error((800, 808))
    clone = trio.clone(
        extra="1 no_hydration 6 hydration_threshold 16 hydration_batch_size 4 max_failures 4"
    )
    clone.message("hydration_threshold", "0")
    clone.message("enable_hydration")
    for _ in range(10):
        with pytest.raises(OSError):
            clone.write(803, pattern("part", 2))
    assert statistics(clone)["failed_copies"] == 10
    assert "no_hydration" not in clone.look().features
    trio.write(clone, 800, pattern("whole", 8))
    clone.message("hydration_threshold", "16")
    clone.wait_full()
    trio.check(trio.dest)


def test_rw_after_a_metadata_error(impl, clone_box, log):
    """The message `rw` ends read-only mode without a new table, with everything that had not been
    committed.
    """
    trio = clone_box.trio(mib=1).layered("meta")
    clone = trio.clone()
    trio.write(clone, 0, pattern("one", 8))
    trio.meta.error()
    with pytest.raises(OSError):
        clone.flush()
    assert clone.status() == "Fail"
    with pytest.raises(OSError):
        clone.message("rw")
    trio.meta.heal()
    before = clone.event
    clone.message("rw")
    assert clone.look().mode == "rw"
    wait.until(lambda: clone.event > before, "an event")
    assert any("Switching to read-write mode" in line for line in log.dm())
    trio.write(clone, 80, pattern("two", 3))
    clone.flush()
    clone.message("rw")  # nothing to do
    assert metadata.read(trio.meta_disk).count == 2
    trio.check(clone)


def test_rw_is_refused_after_a_failed_flush(impl, clone_box):
    """What the destination lost is unknown."""
    trio = clone_box.trio(mib=1, cache=True).layered("dest")
    clone = trio.clone()
    trio.write(clone, 0, pattern("one", 8))
    trio.dest.error_writes()
    with pytest.raises(OSError):
        clone.flush()
    trio.dest.heal()
    with pytest.raises(OSError) as refused:
        clone.message("rw")
    assert refused.value.errno == errno.EIO
    assert clone.look().mode == "ro"


def test_statistics(impl, clone_box):
    trio = clone_box.trio(mib=1)
    clone = trio.clone()
    trio.write(clone, 3, pattern("part", 2))
    trio.write(clone, 80, pattern("whole", 24))
    trio.discard(clone, 800, 80)
    clone.flush()
    assert statistics(clone) == {
        "copied_regions": 1,
        "overwritten_regions": 3,
        "discarded_regions": 10,
        "failed_copies": 0,
        "commits": 1,
    }
    clone.hydrate()
    clone.wait_full()
    assert statistics(clone)["copied_regions"] == 256 - 13


# Discards that write zeros (W7)


@pytest.mark.parametrize("discard", [True, False])
def test_zero_discards(impl, clone_box, discard):
    """Nothing shows of what the destination held before, whatever the destination does with a
    discard.
    """
    trio = clone_box.trio(mib=2, discard=discard)
    clone = trio.clone(extra="2 no_hydration zero_discards")
    trio.write(clone, 400, pattern("kept", 8))
    clone.discard(83, 500)
    trio.wrote(88, bytes((400 - 88) * 512))
    trio.wrote(408, bytes((576 - 408) * 512))
    trio.check(clone)
    assert clone.hydrated() == (576 - 88) // 8
    assert statistics(clone)["discarded_regions"] == (576 - 88) // 8 - 1
    clone.flush()
    clone.remove()
    trio.check(trio.clone())


def test_zero_discards_wait_for_copies(impl, clone_box):
    """W1 with zeros: a copy in flight does not overwrite them, nor do they overwrite what is
    written afterwards.
    """
    trio = clone_box.trio(mib=1).layered("source")
    clone = trio.clone(extra="2 no_hydration zero_discards")
    trio.source.hold()
    clone.hydrate(threshold=32, batch=8)
    clone.wait_hydrating(32)
    discard = clone_box.background(clone.discard, 0, 2048)
    wait.until(lambda: in_flight(clone) == 1, "the discard is in flight")
    trio.source.release()
    discard.result()
    trio.wrote(
        0, clone.content()
    )  # regions that arrived first keep their data, or were copied in between
    for region in range(256):
        at = region * 4096
        assert trio.expected[at : at + 4096] in (bytes(4096), trio.data[at : at + 4096])
    trio.write(clone, 40, pattern("after", 4))
    clone.wait_full()
    trio.check(clone)
    trio.check(trio.dest)


def test_zero_discards_with_write_errors(impl, clone_box):
    trio = clone_box.trio(mib=1).layered("dest")
    clone = trio.clone(extra="2 no_hydration zero_discards")
    trio.dest.error_writes((160, 168))
    with pytest.raises(OSError) as failed:
        clone.discard(0, 400)
    assert failed.value.errno == errno.EIO
    trio.dest.heal()
    # Unmarked regions are read from the source.
    for region in range(50):
        assert clone.read(region * 8, 8) in (
            bytes(4096),
            trio.data[region * 4096 : region * 4096 + 4096],
        )
    assert clone.read(160, 8) == trio.data[160 * 512 : 168 * 512]
    clone.discard(0, 400)
    assert clone.read(0, 400) == bytes(400 * 512)


# Requests that write zeros (W25)


@pytest.fixture
def loops(impl, box):
    """Disks that can write zeros, as source and destination."""
    source, dest = box.loop(2 << 20), box.loop(2 << 20)
    meta = box.ram(1)
    data = pattern("source", 4096)
    source.fill(data)
    dest.fill(pattern("destination", 4096))
    return meta, dest, source, bytearray(data)


@pytest.mark.parametrize("start, count", [(0, 64), (3, 2), (5, 200), (8, 7), (4090, 6)])
def test_write_zeroes(loops, box, start, count):
    """Passed down as such, not as pages of zeros; partial regions are copied first."""
    *devices, data = loops
    clone = box.clone(*devices, 8, "1 no_hydration")
    assert clone.queue("write_zeroes_max_bytes") > 0
    clone.zero(start, count)
    data[start * 512 : (start + count) * 512] = bytes(count * 512)
    assert_same(clone.content(), bytes(data))
    first, last = start // 8, -(-(start + count) // 8)
    assert clone.hydrated() == last - first
    clone.zero(start, count)
    clone.hydrate()
    clone.wait_full()
    clone.zero(0, 800)
    data[: 800 * 512] = bytes(800 * 512)
    assert_same(clone.content(), bytes(data))
    assert_same(devices[1].content(), bytes(data))


def test_zero_discards_by_requests_for_zeros(loops, box):
    """The destination makes the zeros: no data is sent to it."""
    meta, dest, source, data = loops
    clone = box.clone(meta, dest, source, 8, "2 no_hydration zero_discards")
    before = dest.stats()
    clone.discard(83, 3000)
    data[88 * 512 : 3080 * 512] = bytes((3080 - 88) * 512)
    assert_same(clone.content(), bytes(data))
    assert clone.hydrated() == (3080 - 88) // 8
    written = dest.stats() - before
    assert written.writes <= 4 and statistics(clone)["discarded_regions"] == clone.hydrated()
    assert not any(dest.read(88, 2992))


def test_large_requests_for_zeros(impl, box):
    """One request for more regions than are marked at a time."""
    length = 300 << 11  # 76800 regions
    meta, dest, source = box.ram(1), box.loop(length * 512), box.loop(length * 512)
    clone = box.clone(meta, dest, source, 8, "1 no_hydration")
    assert clone.queue("write_zeroes_max_bytes") > length * 512
    dest.write(length - 8, pattern("old", 8))
    source.write(8, pattern("not covered", 8))
    clone.punch(19, length - 19)
    assert clone.hydrated() == length // 8 - 2
    assert statistics(clone) == {
        "copied_regions": 1,
        "overwritten_regions": length // 8 - 3,
        "discarded_regions": 0,
        "failed_copies": 0,
        "commits": statistics(clone)["commits"],
    }
    assert clone.read(length - 8, 8) == bytes(4096)
    assert clone.read(8, 8) == pattern("not covered", 8)


# Requests that do not wait (W25)


def test_nowait(impl, clone_box):
    """As by io_uring: hydrated regions are served without waiting; requests for other regions are
    served too, or reported to need a wait.
    """
    trio = clone_box.trio(mib=1)
    clone = trio.clone()
    trio.write(clone, 0, pattern("hydrated", 8))
    buffer = mmap.mmap(-1, 4096)
    fd = os.open(clone.path, os.O_RDWR | os.O_DIRECT)
    try:
        for sector in (0, 800):
            assert os.preadv(fd, [buffer], sector * 512, os.RWF_NOWAIT) == 4096
            assert buffer[:] == bytes(trio.expected[sector * 512 : sector * 512 + 4096])
        for n, sector in enumerate(
            (0, 3, 808, 1600)
        ):  # hydrated, part of it, whole region, part of a region
            data = pattern(f"nowait {n}", 8 if sector % 8 == 0 and sector != 1600 else 1)
            buffer[: len(data)] = data
            view = memoryview(buffer)[: len(data)]
            assert os.pwritev(fd, [view], sector * 512, os.RWF_NOWAIT) == len(data)
            view.release()
            trio.wrote(sector, data)
    finally:
        os.close(fd)
    trio.check(clone)
