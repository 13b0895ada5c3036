"""snapshot-merge: suspend, resume, reload and removal during a merge, and its change back into a
snapshot.
"""

import subprocess
from pathlib import Path

import pytest

from lib import cow, dm, wait
from lib.box import pattern
from lib.disk import in_flight
from lib.merges import back_to_snapshot, must_complete, scatter
from lib.expect import fails
from lib.snaps import Family, Gate, Snapshot, Valve


@pytest.mark.parametrize("others", [0, 2])
def test_merge_continues_after_each_suspend(family, rng, others):
    """However often it is suspended, it continues where it was."""
    for _ in range(others):
        family.snap("P", 8)
    front = family.merge(family.store(1, cow.numbered(scatter(rng, 1800, 1), 1)), direct=True)
    for turn in range(150):
        front.suspend(noflush=rng.random() < 0.5, lockfs=rng.random() < 0.1)
        if turn % 10 == 0:
            before = front.status()
            family.real.read(rng.randrange(4000), 90)
            assert front.status() == before
        front.resume()
        if turn % 3 == 0:
            family.write(front, rng.randrange(4000), pattern(f"w{turn}", rng.randrange(1, 90)))
        if turn % 7 == 0:
            family.read(front, 0, 4096)
    family.merged()


def test_suspend_waits_for_one_step_only(parts, rng):
    """A suspend waits for the step that has begun, and for no other."""
    family = parts.family
    snapshot = family.store(1, cow.numbered(scatter(rng, 640, 1), 1))
    front = family.merge(snapshot, direct=True, before=lambda: parts.real.hold("writes"))
    wait.until(lambda: in_flight(parts.real), "the first step is at the origin")
    suspend = family.box.background(front.suspend, True)
    must_complete(family, family.real.read, 0, 100)
    assert not suspend.done
    parts.real.release()
    suspend.result()
    usage = front.look()
    assert usage.allocated > cow.data_at(640 - 2 * 32, 1), f"{usage.allocated} sectors are left"
    front.resume()
    family.merged()


@pytest.mark.parametrize("size, number", [(1, 1800), (8, 250)])
def test_merge_becomes_a_snapshot_again(family, rng, size, number):
    """And then a merge again, several times. The rest on the COW device is found, and there is room
    for more.
    """
    family.snap("P", 16)
    family.merge(family.store(size, cow.numbered(scatter(rng, number, size), size)), direct=True)
    for turn in range(4):
        snapshot = back_to_snapshot(family)
        if turn % 2:
            family.check()
        for n in range(10):
            device = rng.choice((family.origin, *family.snapshots))
            family.write(device, rng.randrange(4000), pattern(f"w{turn} {n}", rng.randrange(1, 90)))
        family.check()
        if turn % 2:
            snapshot = family.reopen(snapshot)
            family.check()
        family.merge(snapshot, direct=turn == 2)
    family.merged()


@pytest.mark.parametrize("size, number", [(1, 1800), (8, 250)])
def test_resume_without_the_store_merges_nothing(family, rng, said, size, number):
    """A snapshot has taken over the store. The device that merged is a plain origin for it, and
    merges nothing.
    """
    front = family.merge(
        family.store(size, cow.numbered(scatter(rng, number, size), size)), direct=True
    )
    snapshot = back_to_snapshot(family, reload=False)
    assert front.status() == "Invalid"
    assert said.count("snapshots: Snapshot is invalid: can't merge") == 1
    for n in range(20):
        family.write(
            rng.choice((front, snapshot)),
            rng.randrange(4000),
            pattern(f"w{n}", rng.randrange(1, 90)),
        )
    family.check()
    front.suspend()
    front.resume()
    front.swap(front.plain_line)
    family.check()
    family.merge(snapshot)
    family.merged()


@pytest.mark.only("rust")
def test_merge_of_a_snapshot_with_pending_copies(family):
    """A snapshot is merged while copies that an earlier merge needed are still pending for it. C
    waits for these at the end of the earlier merge.
    """
    other = family.snap("P", 8)
    front = family.merge(
        family.store(8, cow.numbered(range(100, 110), 8)), direct=True, before=other.cow.hold
    )
    wait.until(lambda: in_flight(other.cow), "copies are in flight")
    front.swap(front.plain_line)
    family.merging, front.expected, other.copied = (
        None,
        bytearray(family.data),
        set(range(100, 110)),
    )
    merge = family.box.background(family.merge, other)
    wait.until(lambda: family.merging, "the merge is about to begin")
    writer = family.box.background(front.write, 840, pattern("late", 8))
    for _ in range(20):
        must_complete(family, family.real.read, 0, 8)
    assert not merge.done and not writer.done
    other.cow.release()
    merge.result()
    writer.result()
    family.wrote(front, 840, pattern("late", 8))
    family.merged()


@pytest.mark.crowd
@pytest.mark.only("rust")
def test_snapshot_is_taken_during_a_merge(family):
    """Another snapshot still copies the last chunks that the current step overwrites. With C,
    taking the snapshot waits for that.
    """
    other, olds = family.snap("P", 8), range(100, 140, 2)
    family.write(other, 800, pattern("own", 8 * 35))
    family.merge(family.store(8, cow.numbered(olds, 8)), direct=True, before=other.cow.hold)
    wait.until(lambda: in_flight(other.cow), "copies are in flight")
    new = family.box.own(Snapshot(family.real, family.cow(8)))
    new.expected, new.copied = bytearray(family.data), set(olds)
    family.snapshots.append(new)
    other.cow.release()
    family.merged()


@pytest.mark.only("rust")
@pytest.mark.parametrize("size", [1, 8])
def test_merge_with_gaps_becomes_a_snapshot_again(family, rng, size):
    """New exceptions use chunks after all that are in use. C counts records, and uses some of these
    chunks.
    """
    for number in (300, 300 if size == 8 else 40):
        valve = family.real = Valve(family.box, family.disk)
        olds = rng.sample(range(4096 // size), number)
        snapshot = family.store(size, cow.scattered(olds, size, rng, 3))
        front = family.merge(snapshot, direct=True, before=lambda: valve.hold("writes"))
        wait.until(lambda: in_flight(valve), "the first step is at the origin")
        suspend = family.box.background(front.suspend)
        valve.release()
        suspend.result()
        snapshot = back_to_snapshot(family)
        news = [new for _, new in cow.Store(snapshot.cow).records]
        assert 0 < len(news) < number
        assert snapshot.look().allocated > max(news) * size
        for n in range(60):
            family.write(snapshot, n * 64 + 13, pattern(f"own {n}", 5))
        family.read(snapshot, 0, 4096)
        store = cow.Store(snapshot.cow)
        assert not store.repeated and store.taken.keys() == snapshot.copied
        snapshot = family.reopen(snapshot)
        family.read(snapshot, 0, 4096)
        family.merge(snapshot)
        family.merged()
        family.end_merge()


@pytest.mark.parametrize("others", [0, 2])
def test_merge_continues_after_a_removal(family, rng, others):
    """Removed in the middle and created again, it continues from what is on the disk."""
    for _ in range(others):
        family.snap("P", 8)
    snapshot = family.store(1, cow.numbered(scatter(rng, 1500, 1), 1))
    family.merge(snapshot, direct=True)
    for turn in range(15):
        family.write(family.origin, rng.randrange(4000), pattern(f"w{turn}", rng.randrange(1, 90)))
        family.recreate_merge()
        family.read(family.origin, 0, 4096)
    family.merged()


@pytest.mark.crowd
def test_removal_waits_for_the_step_in_flight(family, rng):
    """The removal waits for the current step; the remaining records stay on the disk."""
    family.layered()
    snapshot = family.store(1, cow.numbered(scatter(rng, 320, 1), 1))
    front = family.merge(snapshot, direct=True, before=lambda: family.real.hold())
    wait.until(lambda: in_flight(family.real), "the first step is at the origin")
    removal = family.box.background(front.remove)
    wait.until(lambda: not dm.Mapped.exists(front.name), "the device is gone")
    assert not removal.done
    family.real.release()
    removal.result()
    assert cow.Store(snapshot.cow).records
    family.recreate_merge()
    family.merged()


def test_merge_continues_after_an_error_table(family, rng):
    """What `dmsetup remove --force` does, during the merge; then it continues."""
    snapshot = family.store(1, cow.numbered(scatter(rng, 640, 1), 1))
    front = family.merge(snapshot, direct=True)
    front.load(f"0 {family.sectors} error")
    front.suspend(noflush=True)
    front.resume()
    fails(front.read, 0, 8)
    family.recreate_merge()
    family.merged()


@pytest.mark.only("rust")
@pytest.mark.parametrize("how", [("--nolockfs",), ("--nolockfs", "--noflush")])
def test_merge_goes_on_after_an_interrupted_suspend(impl, box, rng, how):
    """A suspend that is interrupted: the merge continues. With C it stands still until the next
    resume.
    """
    family = Family(box)
    stuck = Gate(box, family.disk)
    family.real = box.mapped(
        f"0 4000 linear {family.disk.dev} 0", f"4000 96 linear {stuck.dev} 4000"
    )
    olds = [old for old in scatter(rng, 1500, 1) if old < 4000]
    snapshot = family.store(1, cow.numbered(olds, 1))
    front = family.merge(snapshot, direct=True, before=snapshot.cow.hold)
    for turn in range(2):
        stuck.hold()
        reader = box.background(front.read, 4000, 8)
        wait.until(lambda: in_flight(stuck), "the read is held")
        process = subprocess.Popen(["dmsetup", "suspend", *how, front.name])
        try:
            wait.until(lambda: in_ioctl(process.pid), "it suspends")
            if turn == 0:
                snapshot.cow.release()
            wait.until(lambda: state(process.pid) == "S", "it waits for the read")
            assert turn or not front.merged
        finally:
            process.kill()
        assert process.wait(wait.DEADLINE) < 0, "it was suspended"
        assert not front.suspended
        stuck.release()
        assert reader.result() == family.data[4000 * 512 : 4008 * 512]
        family.check(front)
    family.merged()


def state(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def in_ioctl(pid):
    """Whether a process waits, in the kernel, with device-mapper open."""
    try:
        fds = [link.readlink() for link in Path(f"/proc/{pid}/fd").iterdir()]
    except FileNotFoundError:
        return False
    return Path("/dev/mapper/control") in fds and state(pid) in "DS"
