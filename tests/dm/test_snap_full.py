"""snapshot: full COW devices, failing devices, and the header that says that the snapshot is
invalid.
"""

import pytest

from lib import cow, modules, wait
from lib.box import pattern
from lib.expect import fails
from lib.snaps import Family, Watch

FULL, FAILED = Watch.FULL, Watch.FAILED


def room(snapshot, chunks):
    """The number of exceptions that fit."""
    return chunks if snapshot.kind == "N" else cow.capacity(chunks, snapshot.size)


def fill(family, device, snapshot, number):
    """Uses up room for some exceptions, from the end of the origin on."""
    size = snapshot.size
    for n in range(number):
        family.write(
            device,
            family.sectors - (n + 1) * size,
            pattern(f"fill {n % 4}", 1 + n % 2 * (size - 1)),
        )
    assert snapshot.exceptions() == number


# Full


@pytest.mark.parametrize(
    "kind, device, sectors",
    [
        ("P", "snapshot", 8),
        ("P", "origin", 1),
        ("PO", "snapshot", 8),
        ("PO", "snapshot", 1),
        ("PO", "origin", 8),
        ("N", "snapshot", 1),
        ("N", "origin", 8),
    ],
)
def test_full(impl, family, log, kind, device, sectors):
    """The last chunk that fits is used. The next one makes the snapshot invalid, or stops writes to
    it. The origin continues, and so does another snapshot.
    """
    other, snapshot = family.snap("P", 8), family.snap(kind, 8, room=6)
    watch, origin = Watch(snapshot, log), family.origin
    target = origin if device == "origin" else snapshot
    fill(family, target, snapshot, room(snapshot, 6))
    assert snapshot.look().allocated == snapshot.look().total == 48
    family.check()
    new = pattern("one too many", sectors)
    if device == "origin":
        family.write(origin, 80, new)
    else:
        fails(snapshot.write, 80, new)
    if device == "snapshot" and kind == "PO":
        assert snapshot.status() == "Overflow"
        assert watch.said("snapshots: Snapshot overflowed: Unable to allocate exception.") == 1
        assert snapshot.header_valid() == 1
        if impl == "rust":
            wait.until(lambda: snapshot.event == watch.events + 1, "an event")
        else:
            assert snapshot.event == watch.events
        # Everything can be read; nothing can be written, not even chunks with an exception.
        family.check()
        fails(snapshot.write, family.sectors - 8, new)
        fails(snapshot.write, 80, new)
        # A write to the origin that needs no copy changes nothing; one that does makes the snapshot
        # invalid.
        family.write(origin, family.sectors - 8, new)
        assert snapshot.status() == "Overflow"
        watch.events = snapshot.event
        family.write(origin, 160, new)
    watch.ended(FULL)
    family.snapshots.remove(snapshot)
    family.write(origin, 0, pattern("on", 2048))
    family.write(other, 800, pattern("on", 8))
    family.check()
    watch.silent()


@pytest.mark.parametrize(
    "kind, chunks",
    [
        ("P", 4),
        ("P", 35),
        ("PO", 3),
        ("PO", 33),
        ("PO", 35),
        ("PO", 36),
        ("P", 66),
        ("PO", 68),
        ("PO", 69),
    ],
)
def test_full_at_area_boundaries(impl, box, log, kind, chunks):
    """Chunks of a sector, 32 exceptions in an area: full where it must be, and what fitted is found
    again.
    """
    fill_up(box, log, kind, chunks)


@pytest.mark.only("rust")
@pytest.mark.parametrize("kind, chunks", [("P", 34), ("PO", 34), ("PO", 67), ("P", 100)])
def test_full_without_room_for_the_next_area(impl, box, log, kind, chunks):
    """The COW device ends after the last chunk of an area: C uses it and writes the next area
    beyond the end.
    """
    fill_up(box, log, kind, chunks)


def fill_up(box, log, kind, chunks):
    family = Family(box, sectors=2048)
    snapshot = family.snap(kind, 1, room=chunks)
    number = room(snapshot, chunks)
    fill(family, snapshot, snapshot, number - number // 2)
    for n in range(number // 2):
        family.write(family.origin, 2 * n, pattern("origin", 1))
    assert snapshot.exceptions() == number
    snapshot = family.reopen(snapshot)
    assert snapshot.exceptions() == number
    family.check()
    watch = Watch(snapshot, log)
    if kind == "PO":
        fails(snapshot.write, 1001, pattern("new", 1))
        assert snapshot.status() == "Overflow"
        family.check()
        snapshot = family.reopen(snapshot)
        assert snapshot.exceptions() == number, "an overflow is not remembered"
        family.check()
        watch = Watch(snapshot, log)
    family.write(family.origin, 1001, pattern("new", 1))
    watch.ended(FULL)
    watch.silent()
    snapshot = family.reopen(snapshot)
    assert snapshot.status() == "Invalid"
    fails(snapshot.read, 0, 1)


@pytest.mark.parametrize("kind", ["P", "PO"])
def test_growing_cow_gives_room(family, kind):
    """The COW device grows under a full snapshot: the new room is used without a new table."""
    disk = family.box.ram(8)
    small = family.box.mapped(f"0 48 linear {disk.dev} 0")
    snapshot = family.snap(kind, 8, cow=small)
    fill(family, snapshot, snapshot, 4)
    assert snapshot.status() == "48/48 16"
    small.swap(f"0 64 linear {disk.dev} 0")
    assert snapshot.status() == "48/64 16"
    family.write(snapshot, 80, pattern("new", 1))
    family.write(family.origin, 160, pattern("new", 8))
    assert snapshot.status() == "64/64 16"
    family.check()


def test_large_write_into_the_last_chunks(family, log):
    """A write of many chunks, some of which fit: it fails, and each sector is old or new. A write
    to the origin succeeds.
    """
    first, second = family.snap("PO", 8, room=40), family.snap("PO", 8, room=40)
    fails(first.write, 84, pattern("large", 1000))
    assert first.status() == "Overflow"
    got, new = first.read(84, 1000), pattern("large", 1000)
    for at in range(0, len(got), 512):
        assert got[at : at + 512] in (
            new[at : at + 512],
            family.data[84 * 512 + at : 84 * 512 + at + 512],
        )
    family.wrote(first, 84, got)
    family.check(first, family.origin)
    watches = Watch(first, log), Watch(second, log)
    family.write(family.origin, 3000, new)
    for snapshot in (first, second):
        snapshot.wait_status("Invalid")
    for watch in watches:
        wait.until(lambda: watch.snapshot.event == watch.events + 1, "an event")
        assert watch.snapshot.header_valid() == 0
    family.snapshots.clear()
    family.check()


def test_header_while_many_are_copied(impl, box):
    """The COW device fills up while hundreds of chunks are being copied: the header is valid or
    invalid, never anything else.
    """
    family = Family(box)
    for turn in range(6):
        snapshot = family.snap("P", 8, room=100 + turn)
        assert snapshot.cow.lower.read(0, 8) == cow.header(8).ljust(4096, b"\0")
        family.write(family.origin, turn * 100, pattern(f"turn {turn}", 2048))
        snapshot.wait_status("Invalid")
        assert snapshot.cow.lower.read(0, 8) == cow.header(8, valid=0).ljust(4096, b"\0")
        family.close(snapshot)
    family.check()


# Failing devices


@pytest.mark.parametrize(
    "kind, device, sectors",
    [
        ("P", "snapshot", 8),
        ("PO", "snapshot", 1),
        ("P", "origin", 1),
        ("N", "snapshot", 1),
        ("N", "origin", 8),
    ],
)
def test_cow_write_error(family, log, kind, device, sectors):
    """An error in the data of a new chunk makes the snapshot invalid; the write to the origin
    succeeds.
    """
    snapshot = family.snap(kind, 8)
    family.write(snapshot, 800, pattern("own", 8))
    watch, at = Watch(snapshot, log), 8 if kind == "N" else 24
    snapshot.cow.error_writes((at, at + 8))
    if device == "origin":
        family.write(family.origin, 80, pattern("new", sectors))
    else:
        fails(snapshot.write, 80, pattern("new", sectors))
    watch.ended(FAILED)
    snapshot.cow.heal()
    fails(snapshot.read, 0, 8)
    family.snapshots.clear()
    family.write(family.origin, 88, pattern("on", 8))
    family.check()
    watch.silent()


@pytest.fixture
def short_pieces():
    """kcopyd copies 16 KiB at a time, and eight of these in parallel."""
    with modules.setting("/sys/module/dm_mod/parameters/kcopyd_subjob_size_kb", "16"):
        yield


@pytest.mark.parametrize("kind", ["P", "N"])
def test_one_of_two_cow_devices_fails(short_pieces, family, log, kind):
    """In a copy of many pieces: the copy to the other snapshot completes."""
    first, second = (family.snap(kind, 1024) for _ in range(2))
    watch, at = Watch(first, log), 0 if kind == "N" else 2048
    first.cow.error_writes((at, at + 8))
    family.write(family.origin, 3, pattern("new", 5))
    watch.ended(FAILED)
    family.snapshots.remove(first)
    assert second.exceptions() == 1
    family.check()


@pytest.mark.parametrize("kind", ["P", "N"])
def test_two_of_three_cow_devices_fail(short_pieces, family, log, kind):
    """At the first and at the last piece of a copy: the copy is made again for the remaining
    snapshot.
    """
    first, last, other = (family.snap(kind, 1024) for _ in range(3))
    watches, at = [Watch(snapshot, log) for snapshot in (first, last)], 0 if kind == "N" else 2048
    first.cow.error_writes((at, at + 8))
    last.cow.error_writes((at + 1016, at + 1024))
    family.write(family.origin, 3, pattern("new", 5))
    for watch in watches:
        watch.snapshot.wait_status("Invalid")
        assert watch.said(f"snapshots: Invalidating snapshot: {FAILED}") == 2
        family.snapshots.remove(watch.snapshot)
    assert other.exceptions() == 1
    family.check()


@pytest.mark.parametrize("count, size", [(1, 8), (2, 8), (2, 512), (8, 8)])
def test_nothing_is_written_that_was_not_read(short_pieces, impl, box, count, size):
    """The origin cannot be read where it is written: free chunks of the COW devices keep their
    content, except for pieces of the copy that could be read.
    """
    family = Family(box, sectors=2048).layered()
    snapshots = [family.snap("P", size) for _ in range(count)]
    stale, begin = pattern("stale", 1024), 2 * size
    for snapshot in snapshots:
        snapshot.cow.lower.write(begin, stale)
    family.real.error_reads((100, 101))
    family.write(family.origin, 0, pattern("new", 512))
    for snapshot in snapshots:
        snapshot.wait_status("Invalid")
        got = snapshot.cow.lower.read(begin, 1024)
        for n in range(1024):
            sector = got[n * 512 : n * 512 + 512]
            assert sector in (
                stale[n * 512 : n * 512 + 512],
                family.data[n * 512 : n * 512 + 512],
            ), f"sector {n} of the COW"
        assert got[100 * 512 : 101 * 512] == stale[100 * 512 : 101 * 512]
    family.real.heal()
    family.snapshots.clear()
    family.check()


@pytest.mark.parametrize("kind", ["P", "N"])
def test_error_of_a_copied_chunk(family, kind):
    """A read or a write of a chunk with an exception fails alone; the snapshot stays valid."""
    snapshot = family.snap(kind, 8)
    family.write(snapshot, 80, pattern("own", 8))
    at = 0 if kind == "N" else 16
    snapshot.cow.error((at, at + 8))
    events = snapshot.event
    fails(snapshot.read, 80, 8)
    fails(snapshot.write, 83, pattern("new", 1))
    family.write(family.origin, 80, pattern("new", 8))
    family.write(snapshot, 160, pattern("own", 8))
    assert snapshot.exceptions() == 2 and snapshot.event == events
    snapshot.cow.heal()
    family.check()


@pytest.mark.parametrize(
    "kind, device", [("P", "snapshot"), ("P", "origin"), ("PO", "origin"), ("N", "snapshot")]
)
def test_origin_read_error(impl, box, log, kind, device):
    """In a copy: the snapshot becomes invalid, the write to the origin succeeds. A plain read of
    the snapshot fails alone.
    """
    family = Family(box).layered()
    snapshot, other = family.snap(kind, 8), family.snap("P", 8)
    family.write(other, 80, pattern("own", 8))  # so it needs no copy
    watch = Watch(snapshot, log)
    family.real.error_reads((84, 85))
    fails(snapshot.read, 80, 8)
    family.write(snapshot, 160, pattern("own", 3))
    assert snapshot.exceptions() == 1 and snapshot.event == watch.events
    if device == "origin":
        family.write(family.origin, 84, pattern("new", 1))
    else:
        fails(snapshot.write, 81, pattern("new", 1))
    watch.ended(FAILED)
    family.real.heal()
    family.snapshots.remove(snapshot)
    family.check()
    watch.silent()


@pytest.mark.parametrize("kind", ["P", "PO"])
def test_whole_chunk_over_a_bad_origin(impl, box, kind):
    """The write does not need the origin, so the snapshot continues to work, and so does the
    chunk.
    """
    family = Family(box).layered()
    snapshot = family.snap(kind, 8)
    family.real.error_reads((84, 85))
    family.write(snapshot, 80, pattern("own", 8))
    family.read(snapshot, 80, 8)
    family.real.heal()
    family.check()


@pytest.mark.parametrize(
    "bad, device, sectors",
    [
        ("area", "snapshot", 8),
        ("area", "snapshot", 1),
        ("area", "origin", 1),
        ("next area", "snapshot", 1),
        ("next area", "origin", 1),
        ("area and header", "snapshot", 8),
        ("area and header", "origin", 1),
    ],
)
def test_metadata_write_error(impl, box, log, bad, device, sectors):
    """In the record alone, in the zeros of the next area, and in the header as well: the snapshot
    becomes invalid.
    """
    family = Family(box, sectors=2048)
    snapshot = family.snap("P", 1 if bad == "next area" else 8)
    size = snapshot.size
    if bad == "next area":
        # Before the first record: dm-rust tries to zero it ahead, which may fail in silence.
        snapshot.cow.error_writes((34, 35))
        fill(family, snapshot, snapshot, 31)
    else:
        fill(family, snapshot, snapshot, 3)
        snapshot.cow.error_writes({"area": (8, 16), "area and header": (0, 16)}[bad])
    watch = Watch(snapshot, log)
    if device == "origin":
        family.write(family.origin, 80, pattern("new", sectors))
    else:
        fails(snapshot.write, 80, pattern("new", min(sectors, size)))
    watch.ended(FAILED, header=int("header" in bad))
    assert watch.said("persistent snapshot: write header failed") == ("header" in bad)
    snapshot.cow.heal()
    fails(snapshot.read, 0, 8)
    family.snapshots.clear()
    family.check()
    watch.silent()


def test_metadata_read_error(family, log):
    """When the snapshot is created again: the table is refused, the metadata stays, and later it
    works.
    """
    snapshot = family.snap("P", 8)
    family.write(snapshot, 80, pattern("own", 8))
    for bad in ((0, 1), (8, 16)):
        family.origin.suspend()
        snapshot.remove()
        snapshot.cow.error_reads(bad)
        mark = log.mark()
        fails(family.box.mapped, snapshot.line)
        assert any(
            line.endswith(": snapshot: Failed to read snapshot metadata (-EIO)")
            for line in log.dm(mark)
        )
        snapshot.cow.heal()
        snapshot = family.reopen(snapshot)
        assert snapshot.exceptions() == 1
        family.check()


def test_header_that_says_invalid(family, log):
    """The table is accepted, nothing can be read, and the origin copies nothing."""
    snapshot = family.snap("P", 8)
    family.write(snapshot, 80, pattern("own", 8))
    snapshot.cow.write(0, cow.header(8, valid=0).ljust(512, b"\0"))
    mark = log.mark()
    snapshot = family.reopen(snapshot)
    assert any(line.endswith("snapshots: Snapshot is marked invalid.") for line in log.dm(mark))
    assert snapshot.status() == "Invalid"
    fails(snapshot.read, 0, 8)
    fails(snapshot.write, 0, bytes(4096))
    before, events = snapshot.cow.lower.stats(), snapshot.event
    family.write(family.origin, 0, pattern("new", 800))
    assert not (snapshot.cow.lower.stats() - before).writes and snapshot.event == events
    family.snapshots.clear()
    family.check()
