"""snapshot-merge: what is merged, and what other snapshots of the origin show."""

import pytest

from lib import cow, wait
from lib.box import pattern
from lib.disk import in_flight
from lib.merges import scatter
from lib.snaps import Family, Valve

# What is merged


def merges():
    for size in (1, 8):
        epa = cow.per_area(size)
        yield from ((size, count, "random") for count in (0, 1, 5, epa - 1, epa, epa + 1, 2 * epa))
        yield from ((size, 2 * epa, order) for order in ("rising", "falling"))
    yield from ((128, count, "random") for count in (0, 1, 31))
    yield 1, 1000, "random"


@pytest.mark.parametrize("size, count, order", merges())
def test_merge(family, rng, size, count, order):
    """Areas of any number, full or not, with another snapshot beside the merge."""
    family.snap("P", 16)
    olds = sorted(rng.sample(range(4096 // size), count), reverse=order == "falling")
    if order == "random":
        rng.shuffle(olds)
    front = family.merge(family.store(size, cow.numbered(olds, size)), direct=True)
    family.check(front)
    family.merged()


@pytest.mark.parametrize(
    "sectors, size", [(4096 - 5, 8), (4096 - 63, 64), (4096 - 1, 128), (4096 - 127, 128)]
)
def test_short_last_chunk(impl, box, sectors, size):
    family = Family(box, sectors=sectors)
    family.snap("P", 8)
    last = sectors // size
    family.merge(family.store(size, cow.numbered([last, 3, last - 2, last - 1], size)), direct=True)
    family.merged()
    family.end_merge()
    family.merge(family.store(size, cow.numbered([last - 1, last], size)), direct=True)
    family.merged()


@pytest.mark.only("rust")
@pytest.mark.parametrize("size", [1, 8, 128])
@pytest.mark.parametrize("where", ["first", "middle", "last", "all"])
def test_useless_records_are_cleared(family, size, where):
    """Chunks beyond the origin's end, and repeated records: the records are cleared and nothing is
    copied.
    """
    good = cow.numbered([3, 9, 1, 10, 11], size)
    end = 4096 // size
    news = [cow.data_at(n, size) for n in range(5, 12)]
    useless = list(zip((end, end + 1, 1 << 50, (1 << 63) - 1, (1 << 64) - 1), news))
    repeated = [(3, news[5]), (20, good[0][1]), (3, good[1][1])]
    records = {
        "first": useless + good,
        "middle": good[:3] + useless + good[3:] + repeated + [(12, news[6])],
        "last": good + useless + repeated,
        "all": useless,
    }[where]
    snapshot = family.store(size, records)
    assert len(snapshot.copied) == {"all": 0, "middle": 6}.get(where, 5)
    family.snap("P", 8)
    family.check(family.merge(snapshot, direct=True))
    family.merged()


@pytest.mark.only("rust")
def test_area_of_useless_records_is_cleared(family):
    """A whole area of them, between two others."""
    epa = cow.per_area(1)
    olds = [n if n // epa != 1 else 5000 + n for n in range(3 * epa + 3)]
    family.merge(family.store(1, cow.numbered(olds, 1)), direct=True)
    family.merged()


@pytest.mark.parametrize("size", [1, 8])
@pytest.mark.parametrize("areas, more", [(1, 0), (2, 0), (1, 1), (2, -1)])
def test_status_of_the_first_step(family, same, size, areas, more):
    """Also with an area that is just full, and whose successor is empty."""
    valve = family.real = Valve(family.box, family.disk)
    count = areas * cow.per_area(size) + more
    snapshot = family.store(size, cow.numbered(range(min(count, family.sectors // size)), size))
    front = family.merge(snapshot, direct=True, before=lambda: valve.hold("writes"))
    wait.until(lambda: in_flight(valve), "the first step is at the origin")
    same(front.status())
    valve.release()
    family.merged()


@pytest.mark.parametrize("size", [1, 8])
def test_scattered_chunks_are_merged(family, rng, size):
    """Chunks of the COW device may have been allocated in any order."""
    olds = rng.sample(range(500), 100)
    family.snap("P", 64)
    family.check(family.merge(family.store(size, cow.scattered(olds, size, rng)), direct=True))
    family.merged()


# Other snapshots


@pytest.mark.parametrize(
    "size, others", [(8, ()), (8, (8,)), (8, (1, 64)), (1, (16, 8, 64)), (64, (1, 8, 32, 64))]
)
@pytest.mark.parametrize("direct", [False, True])
def test_other_snapshots_keep_their_contents(family, rng, size, others, direct):
    """They show what they did before. Chunks that they have not copied yet are copied first."""
    for other in others:
        family.snap(rng.choice(("P", "PO", "N")), other)
    snapshot = family.snap("P", size)
    for n in range(60):
        at, count = rng.randrange(4000), rng.randrange(1, 90)
        family.write(
            rng.choice((snapshot, family.origin, *family.snapshots)), at, rng.randbytes(count * 512)
        )
    front = family.merge(snapshot, direct)
    family.check()
    for n in range(30):
        at, count = rng.randrange(4000), rng.randrange(1, 90)
        family.write(rng.choice((front, *family.snapshots)), at, rng.randbytes(count * 512))
        family.read(rng.choice((front, *family.snapshots)), rng.randrange(4000), 90)
    family.merged()
    family.end_merge()
    for other in list(family.snapshots):
        if other.kind != "N":
            family.reopen(other)
    family.check()


@pytest.mark.parametrize("kind", ["P", "PO", "N"])
def test_merge_goes_on_when_another_snapshot_is_full(family, rng, kind):
    """The full snapshot becomes invalid; the merge and the other snapshots continue."""
    full = family.snap(kind, 8, room=20)
    family.snap("P", 8)
    family.merge(family.store(8, cow.numbered(scatter(rng, 200, 8), 8)), direct=True)
    full.wait_status("Invalid")
    family.snapshots.remove(full)
    family.merged()


@pytest.mark.parametrize("layer", ["COW read", "COW"])
def test_merge_goes_on_when_another_snapshot_fails(family, rng, layer):
    """A failing COW device of another snapshot does not affect the merge."""
    bad = family.snap("P", 8)
    family.write(bad, 0, pattern("own", 8))
    (bad.cow.error_reads if layer == "COW read" else bad.cow.error)((24, bad.cow.sectors))
    family.merge(family.store(8, cow.numbered(scatter(rng, 50, 8), 8)), direct=True)
    if layer == "COW":
        bad.wait_status("Invalid")
        family.snapshots.remove(bad)
    family.origin.wait_merged()
    bad.cow.heal()
    family.merged()


def reload_others(family, rng, suspended):
    others = [family.snap("P", 8), family.snap("N", 1)]
    front = family.merge(family.store(1, cow.numbered(scatter(rng, 800, 1), 1)), direct=True)
    for turn in range(12):
        other = rng.choice(others)
        if suspended:
            front.suspend()
        other.swap(other.line, noflush=turn % 2)
        if suspended:
            front.resume()
        family.write(other, 100 * turn, pattern(f"own {turn}", 10))
        for device in other, front:
            family.read(device, rng.randrange(3500), 500)
    family.merged()


def test_other_snapshot_is_reloaded_during_suspends(family, rng):
    """Repeatedly, while the merging device is suspended."""
    reload_others(family, rng, True)


@pytest.mark.only("rust")
def test_other_snapshot_is_reloaded_during_the_merge(family, rng):
    """While the merging device is live. C starts its next step when neither the old table nor the
    new one is asked what is to be copied.
    """
    reload_others(family, rng, False)
