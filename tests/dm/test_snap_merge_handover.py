"""snapshot-merge: a merge takes over the exceptions of a live snapshot, or reads them if the
snapshot is gone.
"""

import errno

import pytest

from lib.box import pattern
from lib.expect import fails
from lib.snaps import merge_line


@pytest.mark.parametrize("kind, size", [("P", 8), ("PO", 1), ("P", 64)])
def test_merge_takes_over_a_live_snapshot(family, rng, kind, size):
    """The merge knows what the snapshot has in memory. Then the device becomes an origin again, and
    another snapshot is merged.
    """
    for turn in range(3):
        snapshot, other = family.snap(kind, size), family.snap("P", 8)
        for n in range(40):
            at, count = rng.randrange(4000), rng.randrange(1, 90)
            family.write(rng.choice((snapshot, family.origin)), at, rng.randbytes(count * 512))
        front = family.merge(snapshot)
        family.check(front)
        family.merged()
        family.end_merge()
        family.check()
        family.close(other)


def test_resume_fails_until_the_source_is_suspended(family, said):
    """The destination goes live only when the source is suspended; the source cannot be resumed
    while a destination is loaded.
    """
    snapshot, front = family.snap("P", 8), family.origin
    family.write(snapshot, 80, pattern("own", 100))
    front.load(merge_line(snapshot))
    front.suspend()
    fails(front.resume, code=errno.EINVAL)
    assert said.count("Unable to perform snapshot handover until source is suspended.") == 1
    assert front.suspended
    family.write(snapshot, 800, pattern("own", 100))
    family.read(snapshot, 0, 4096)
    snapshot.suspend()
    fails(snapshot.resume, code=errno.EINVAL)
    assert said.count("Unable to resume snapshot source until handover completes.") == 1
    family.begin_merge_of(front, snapshot)
    front.resume()
    assert snapshot.status() == "Invalid"
    snapshot.resume()
    fails(snapshot.read, 80, 8)
    family.check(front)
    snapshot.remove()
    family.merged()


def test_cleared_table_leaves_the_snapshot(family):
    """The snapshot stays what it was, and can be merged later."""
    snapshot = family.snap("P", 8)
    for turn in range(3):
        family.write(snapshot, 80 * turn, pattern(f"own {turn}", 100))
        family.origin.load(merge_line(snapshot))
        family.write(family.origin, 1000 * turn, pattern(f"new {turn}", 100))
        if turn:
            family.origin.suspend()
        family.origin.clear()
        if turn:
            family.origin.resume()
        family.check()
    family.merge(snapshot)
    family.merged()


@pytest.mark.parametrize("how", ["remove", "replace"])
@pytest.mark.parametrize("kind", ["P", "PO"])
def test_source_removed_before_the_handover(impl, family, said, kind, how):
    """dm-rust then reads the disk; C becomes Invalid, though the disk is intact."""
    other, snapshot = family.snap("P", 16), family.snap(kind, 8)
    for n in range(300):
        family.write(snapshot, 8 * n, pattern(f"own {n}", 8))
    front = family.box.own(family.origin)
    front.load(merge_line(snapshot))
    front.suspend()
    if how == "remove":
        snapshot.remove()
    else:
        snapshot.swap("0 4096 error")
    if impl == "c":
        assert said.count("Cancelling snapshot handover.") == 1
        front.resume()
        assert front.status() == "Invalid"
        return
    family.begin_merge_of(front, snapshot)
    front.resume()
    assert front.table() == f"{family.real.dev} {snapshot.cow.dev} {kind} 8"
    family.check(front, other)
    family.merged()


@pytest.mark.only("rust")
def test_resume_fails_while_the_store_cannot_be_read(family):
    """The device stays suspended, and can be resumed when the store can be read."""
    snapshot, front = family.snap("P", 8), family.origin
    family.write(snapshot, 80, pattern("own", 100))
    front.load(merge_line(snapshot))
    front.suspend()
    snapshot.remove()
    snapshot.cow.error_reads((0, 16))
    with pytest.raises(OSError):
        front.resume()
    assert front.suspended
    snapshot.cow.heal()
    family.begin_merge_of(front, snapshot)
    front.resume()
    family.check(front)
    family.merged()


@pytest.mark.only("rust")
def test_merge_of_an_overflowed_snapshot_shows_numbers(family, said):
    """A full snapshot shows numbers as soon as it is merged, so that the end is visible."""
    snapshot = family.snap("PO", 8, room=10)
    for n in range(8):
        family.write(snapshot, 80 * n, pattern(f"own {n}", 8))
    fails(snapshot.write, 2000, bytes(512))
    assert snapshot.status() == "Overflow"
    front = family.merge(snapshot)
    assert front.look().total == 80
    family.check(front)
    family.merged()


@pytest.mark.parametrize("how", ["handover", "direct", "direct without other"])
def test_invalid_store_is_not_merged(impl, family, said, how):
    """All I/O goes to the origin, and other snapshots get their copies."""
    if how != "direct without other":
        family.snap("P", 8)
    snapshot = family.snap("P", 8, room=5)
    family.write(snapshot, 80, pattern("own", 8))
    family.write(family.origin, 800, pattern("too much", 80))
    snapshot.wait_status("Invalid")
    origin, snapshot.copied = family.origin.expected[:], set()
    family.merge(snapshot, direct=how != "handover")
    family.origin.expected = origin
    assert family.origin.status() == "Invalid"
    assert said.count("snapshots: Snapshot is invalid: can't merge") == 1
    family.check()
    events = family.origin.event
    for at in (80, 3000, 4090):
        family.write(family.origin, at, pattern("on", 6))
    family.origin.flush()
    for _ in range(3):
        family.origin.suspend()
        family.origin.resume()
    assert family.origin.status() == "Invalid" and family.origin.event == events
    family.end_merge()
    family.check()
    assert snapshot.header_valid() == 0
