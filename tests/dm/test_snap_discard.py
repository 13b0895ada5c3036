"""snapshot: discards. With chunks below 256 KiB C's limits crash the kernel, so C is tested with
chunks of that size only.
"""

import errno

import pytest

from lib import cow, wait
from lib.box import assert_same, pattern
from lib.disk import in_flight
from lib.expect import fails
from lib.snaps import Family

ZEROES, PASSDOWN = "1 discard_zeroes_cow", "2 discard_zeroes_cow discard_passdown_origin"
BIG = 512


def copied(family, size, *chunks, kind="P", extra=ZEROES):
    """A snapshot that has exceptions for these chunks."""
    snapshot = family.snap(kind, size, extra)
    for chunk in chunks:
        family.write(snapshot, chunk * size, pattern(f"chunk {chunk}", size))
    return snapshot


def whole_chunks(family, size, kind):
    snapshot = copied(family, size, 1, 2, 3, 5, kind=kind)
    status, before = snapshot.status(), family.disk.stats()
    family.discard(snapshot, 2 * size, size)
    family.discard(snapshot, 5 * size, 2 * size)  # the second of them has no exception
    place = (1 if kind == "N" else 3) * size
    assert not any(snapshot.cow.lower.read(place, size))
    assert snapshot.status() == status, "the place stays taken"
    done = family.disk.stats() - before
    assert not done.writes and not done.discards
    family.check()
    if kind != "N":
        snapshot = family.reopen(snapshot)
        family.check()
    family.write(snapshot, 2 * size + 3, pattern("again", 4))
    family.check()


@pytest.mark.parametrize("kind", ["P", "N"])
def test_whole_chunks(family, kind):
    """A chunk with an exception becomes zeros; one without stays what the origin has."""
    whole_chunks(family, BIG, kind)


@pytest.mark.only("rust")
@pytest.mark.parametrize("size", [8, 64])
@pytest.mark.parametrize("kind", ["P", "N"])
def test_whole_small_chunks(family, size, kind):
    whole_chunks(family, size, kind)


def no_exception(family, size):
    """A discard of chunks without exceptions copies, writes and discards nothing anywhere."""
    snapshot = copied(family, size, 3)
    disks = family.disk, snapshot.cow.lower
    before = [disk.stats() for disk in disks]
    snapshot.discard(4 * size, 3 * size)
    snapshot.discard(size + 1, 1)
    for disk, stats in zip(disks, before):
        done = disk.stats() - stats
        assert not done.reads and not done.writes and not done.discards
    family.check()


def test_chunks_without_exception(family):
    no_exception(family, BIG)


@pytest.mark.only("rust")
def test_small_chunks_without_exception(family):
    no_exception(family, 8)


def parts(family, size):
    """Within a chunk, up to its end, from its beginning, and of the short last chunk."""
    snapshot = copied(family, size, 0, 1, 2, 3)
    last = family.sectors // size * size
    family.write(snapshot, last, pattern("last", family.sectors - last))
    for start, count in (
        (size + 2, 3),
        (2 * size - 1, 1),
        (3 * size, size - 1),
        (last, family.sectors - last),
    ):
        family.discard(snapshot, start, count)
        family.check(snapshot)
    family.reopen(snapshot)
    family.check()


def test_parts_of_chunks(impl, box):
    parts(Family(box, sectors=4096 - 5), BIG)


@pytest.mark.only("rust")
@pytest.mark.parametrize("size", [8, 64])
def test_parts_of_small_chunks(impl, box, size):
    parts(Family(box, sectors=4096 - 5), size)


@pytest.mark.only("rust")
@pytest.mark.parametrize("size", [8, 64, BIG])
def test_unaligned_discards(family, size):
    """As long as a chunk, but from the middle of one to the middle of the next, which is elsewhere
    on the COW device: C zeroes what lies after the first one.
    """
    snapshot = copied(family, size, 3, 0, 5, 1, 4, 2)
    for start, count in ((size // 2, size), (3 * size + 1, size), (5 * size - 1, size)):
        family.discard(snapshot, start, count)
        family.check()
    snapshot = family.reopen(snapshot)
    family.discard(snapshot, 1, 5 * size)
    family.check()


@pytest.mark.only("rust")
def test_discard_spares_the_next_area(family):
    """The last chunk before an area is discarded, and the records of that area stay intact."""
    snapshot = copied(family, 8, *range(300))
    assert cow.data_at(255, 8) + 1 == cow.area_at(1, 8)
    for start in (255 * 8 + 4, 255 * 8 - 4, 255 * 8):
        family.discard(snapshot, start, 8)
    family.check()
    family.reopen(snapshot)
    family.check()


@pytest.mark.only("rust")
@pytest.mark.parametrize("size", [8, 64])
@pytest.mark.parametrize("extra", [ZEROES, PASSDOWN])
def test_random_discards(family, rng, size, extra):
    """With writes in between, to the snapshot and the origin, and another snapshot without the
    feature.
    """
    snapshot, other = copied(family, size, extra=extra), family.snap("P", 32)
    for _ in range(60):
        kind = rng.random()
        start = rng.randrange(family.sectors - 600)
        count = rng.choice((1, size, rng.randrange(1, 600)))
        if rng.random() < 0.5:
            start -= start % size
        if kind < 0.5:
            family.discard(snapshot, start, count)
        else:
            family.write(
                rng.choice((snapshot, snapshot, family.origin, other)),
                start,
                rng.randbytes(count * 512),
            )
        if kind > 0.95:
            snapshot = family.reopen(snapshot)
    family.check()


def passdown(family, size):
    snapshot, other = copied(family, size, 1, 2, extra=PASSDOWN), copied(
        family, size, 2, 4, extra=""
    )
    before = family.disk.stats(), other.cow.lower.stats()
    family.discard(snapshot, 2 * size, 3 * size)
    done = family.disk.stats() - before[0], other.cow.lower.stats() - before[1]
    assert done[0].discard_sectors == 3 * size and not done[0].reads and not done[0].writes
    assert not done[1].discards and not done[1].writes
    assert not any(family.disk.read(2 * size, 3 * size))
    family.check()
    family.write(family.origin, 3 * size, pattern("new", 8))
    family.write(snapshot, 4 * size, pattern("own", 8))
    family.check()


def test_passdown(family):
    """The origin is discarded too, and with it what other snapshots have not copied; their own
    copies stay.
    """
    passdown(family, BIG)


@pytest.mark.only("rust")
@pytest.mark.parametrize("size", [8, 64])
def test_passdown_of_small_chunks(family, size):
    passdown(family, size)


def test_tracked_discard_delays_the_overwrite(family):
    """A discard is in flight to the origin when its chunk gets an exception. Later writes to the
    origin are not discarded.
    """
    snapshot = copied(family.layered(), BIG, 1, extra=PASSDOWN)
    origin, own, new = family.origin, pattern("own", BIG), pattern("new", 8)
    family.real.hold()
    discard = family.box.background(snapshot.discard, 4 * BIG, BIG)
    wait.until(lambda: in_flight(family.real) == 1, "the discard is at the origin")
    whole = family.writer(snapshot, 4 * BIG, own)
    wait.until(lambda: snapshot.cow.lower.read(3 * BIG, BIG) == own, "the chunk has an exception")
    first = family.writer(origin, 4 * BIG, new)
    wait.until(lambda: in_flight(origin) == 1, "the write is in flight")
    second = family.writer(origin, BIG, new)
    wait.until(
        lambda: in_flight(family.real) == 2, "a later one that need not wait is at the origin"
    )
    assert not first.done
    family.real.release()
    for work in (discard, whole, first, second):
        work.result()
    assert_same(origin.read(4 * BIG, BIG), new + bytes((BIG - 8) * 512))
    family.wrote(origin, 4 * BIG, new + bytes((BIG - 8) * 512))
    family.check()


def test_discard_is_refused_without_the_feature(family):
    """Without the feature, and on the origin."""
    snapshot = copied(family, 8, 1, 2, extra="")
    for device in (snapshot, family.origin):
        assert device.queue("discard_max_bytes") == 0
        fails(device.discard, 8, 8, code=errno.EOPNOTSUPP)
    family.check()


@pytest.mark.parametrize("kind, status", [("P", "Invalid"), ("PO", "Overflow")])
def test_discard_of_a_full_snapshot_fails(family, kind, status):
    """A snapshot that is full discards nothing."""
    snapshot = family.snap(kind, BIG, ZEROES, room=4)
    for chunk in (1, 2):
        family.write(snapshot, chunk * BIG, pattern(f"chunk {chunk}", BIG))
    fails(snapshot.write, 3 * BIG, bytes(512))
    assert snapshot.status() == status
    fails(snapshot.discard, BIG, BIG)
    fails(snapshot.discard, 5 * BIG, BIG)
    if status == "Invalid":
        family.snapshots.clear()
    family.check()
