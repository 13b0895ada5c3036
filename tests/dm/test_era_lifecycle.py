"""era: suspend, resume, tables over each other, sizes, messages and status."""

import errno

import pytest

from lib import eras, wait
from lib.box import pattern
from lib.metadata import BLOCK


@pytest.fixture
def era(pair):
    return pair.era(8)


def failing(call, *args):
    with pytest.raises(OSError) as error:
        call(*args)
    return error.value.errno


# Messages and status


@pytest.mark.parametrize(
    "words",
    [
        "CHECKPOINT",
        "checkpoint now",
        "nonsense",
        "drop_metadata_snap",
        "take_metadata_snap",
        "Take_Metadata_Snap x",
        "checkpoints",
        "@cancel",
    ],
)
def test_messages(pair, era, same, log, words):
    mark = log.mark()
    try:
        era.message(*words.split())
        code = 0
    except OSError as error:
        code = error.errno
    same(code, "errno")
    same(
        [
            line.split("device-mapper: ")[1]
            for line in log.lines(mark)
            if "device-mapper: era" in line
        ],
        "texts",
    )
    same(era.era, "era")


def test_snapshots(pair, era, same, log):
    """At most one snapshot exists. Refused messages change nothing; after a drop the blocks are
    free again.
    """
    era.write(0, pattern("a", 64))
    same(failing(era.drop), "nothing to drop")
    era.take()
    status = era.look()
    assert status.era == 2 and status.snapshot
    mark = log.mark()
    same(failing(era.take), "taken already")
    assert any(
        "metadata_take_snap: metadata snapshot already exists" in line for line in log.lines(mark)
    )
    assert era.era == 2
    assert eras.invalidate(pair.meta, 1, snapshot=True) == set(range(8))
    # It stays as it is while the device changes.
    for n in range(5):
        era.write(800 + 8 * n, pattern("b", 8))
        era.checkpoint()
    assert eras.invalidate(pair.meta, 1, snapshot=True) == set(range(8))
    era.drop()
    assert era.look().snapshot is None
    assert eras.Metadata(pair.meta.content()).since(1) == set(range(8)) | set(range(100, 105))


def test_snapshot_survives(pair, era):
    era.write(8, pattern("a", 8))
    era.take()
    era.remove()
    era = pair.era()
    assert era.look().snapshot
    assert eras.invalidate(pair.meta, 1, snapshot=True) == {1}
    era.drop()
    era.remove()
    assert eras.check(pair.meta).snapshot == 0


@pytest.mark.only("rust")
def test_status_costs_nothing(pair, era):
    """The status does not commit. C commits with each."""
    era.write(0, pattern("a", 8))
    before = pair.meta.stats()
    for _ in range(100):
        assert era.look().era == 1
    done = pair.meta.stats() - before
    assert not done.writes and not done.flushes


@pytest.mark.only("rust")
def test_suspended_era_answers(pair, era):
    """Status and messages work at once; a snapshot that is taken now is complete. C hangs."""
    era.write(24, pattern("a", 8))
    era.suspend()
    status = era.status()
    assert era.look().era == 1
    era.checkpoint()
    assert era.status() == status
    era.take()
    assert era.look().era == 1
    assert eras.invalidate(pair.meta, 1, snapshot=True) == {3}
    era.drop()
    assert failing(era.drop) == errno.EINVAL
    era.load(era.line)
    era.resume()
    assert era.era == 2
    assert era.since(1) == {3}


# Suspend and tables


@pytest.mark.parametrize("how", [dict(), dict(noflush=True), dict(lockfs=True)])
def test_suspend_and_resume(pair, era, how):
    for n in range(10):
        era.write(n * 8, pattern("a", 8))
        assert era.era == n + 1
        era.suspend(**how)
        era.resume()
    assert era.since(1) == set(range(10))
    assert era.since(9) == {8, 9}
    era.remove()
    eras.check(pair.meta)


@pytest.mark.only("rust")
def test_reload_over_a_live_era(pair, era):
    """Loaded early, resumed late: the table knows what happened in between. With C the era goes
    back, and writes vanish.
    """
    era.write(0, pattern("a", 8))
    era.load(era.line)
    for n in range(1, 4):
        era.checkpoint()
        era.write(n * 8, pattern("a", 8))
    # Blocks that the last commit freed may be free again between the two.
    wait.until(lambda: era.specs(inactive=True)[0][3] == era.status(), "both tell the same")
    before = pair.meta.stats()
    for _ in range(5):
        era.specs(inactive=True)
        era.specs(inactive=True, table=True)
    assert not (pair.meta.stats() - before).writes
    era.suspend()
    era.resume()
    assert era.era == 5
    assert era.since(2) == {1, 2, 3}
    assert era.since(1) == {0, 1, 2, 3}


@pytest.mark.crowd
@pytest.mark.only("rust")
def test_swaps_under_load(pair, era):
    """Tables are replaced while other threads write; nothing is missing."""
    import random
    import threading

    stop, written = threading.Event(), set()

    def write():
        numbers = random.Random(1)
        while not stop.is_set():
            block = numbers.randrange(1024)
            era.write(block * 8, pattern("w", 8))
            written.add(block)

    writer = pair.box.background(write)
    for n in range(8):
        era.swap(era.line, noflush=bool(n % 2))
        era.checkpoint()
    stop.set()
    writer.result()
    assert era.era == 17
    assert era.since(1) == written


def test_replaced_by_another_target(pair, era):
    era.write(8, pattern("a", 8))
    era.swap(f"0 {era.length} linear {pair.origin.dev} 0")
    assert eras.check(pair.meta).since(1) == {1}
    era.swap(era.line)
    assert era.era == 2


# Sizes


@pytest.mark.parametrize(
    "sizes",
    [
        (1000, 1018, 1019),
        (1023, 1018),
        (1018, 1017, 1018),
        (100, 1000, 1),
        (64, 65, 63),
        (1020, 3000, 2036),
    ],
)
def test_resize(pair, impl, sizes):
    """Blocks are added and cut off; what was written stays known as far as there are blocks."""
    pair.origin_disk = pair.origin = pair.box.ram(16)
    spare = pair.box.ram(1)
    era = pair.era(8, length=sizes[0] * 8)
    known = {}
    for n, size in enumerate(sizes):
        if n:
            era.swap(f"0 {size * 8} era {pair.meta.dev} {pair.origin.dev} 8")
        now = era.era
        for block in {0, size // 2, size - 1}:
            era.write(block * 8, pattern("a", 8))
            known[block] = now
        known = {block: at for block, at in known.items() if block < size}
        era.checkpoint()
        era.write(0, pattern("b", 8))
        known[0] = now + 1
    era.remove()
    if impl == "c" and sizes[-1] % eras.ENTRIES == 0 and sizes[-2] > sizes[-1]:
        with pytest.raises(AssertionError):  # blocks of the array stay in use that should not
            eras.check(pair.meta)
        return
    image = eras.check(pair.meta, spare)
    assert {block: at for block, at in enumerate(image.eras()) if at} == known


@pytest.mark.only("rust")
def test_resize_with_pending_eras(pair):
    """Bitsets of another size, archived and in a snapshot, are digested with the new size."""
    pair.origin_disk = pair.origin = pair.box.ram(512)
    era = pair.era(8, length=40_000 * 8)
    for block in (0, 32575, 32576, 39_999):
        era.write(block * 8, pattern("a", 8))
    era.take()
    era.swap(f"0 {32_576 * 8} era {pair.meta.dev} {pair.origin.dev} 8")
    assert eras.invalidate(pair.meta, 1, snapshot=True) >= {0, 32575, 32576, 39_999}
    era.drop()
    era.swap(f"0 {65_152 * 8} era {pair.meta.dev} {pair.origin.dev} 8")
    era.write(65_151 * 8, pattern("b", 8))
    for _ in range(3):
        era.checkpoint()
    era.wait_digested()
    assert era.since(1) - {32576, 39_999} == {0, 32575, 65_151}
    era.remove()
    eras.check(pair.meta)


@pytest.mark.only("rust")
def test_larger_metadata_device(pair):
    """What is added to the metadata device is used from the next resume on. C ignores it."""
    pair.meta = pair.box.mapped(f"0 {64 * 8} linear {pair.meta_disk.dev} 0")
    era = pair.era()
    assert era.look().total == 64
    pair.meta.swap(f"0 {200 * 8} linear {pair.meta_disk.dev} 0")
    assert era.look().total == 64
    era.suspend()
    era.resume()
    assert era.look().total == 200
    era.write(0, pattern("a", 8))
    era.remove()
    assert eras.check(pair.meta).since(1) == {0}
    assert pair.era().look().total == 200


# The last era

LAST = (1 << 32) - 1


def restored(pair, now):
    """Metadata whose present era is `now`, with a block in each of the two eras before."""
    era = pair.era()
    era.write(0, pattern("a", 8))
    era.checkpoint()
    era.write(8, pattern("a", 8))
    era.remove()
    xml = eras.dump(pair.meta).replace('current_era="2"', f'current_era="{now}"')
    xml = xml.replace('<writeset era="2"', f'<writeset era="{now}"').replace(
        '<writeset era="1"', f'<writeset era="{now - 1}"'
    )
    import pathlib

    file = pathlib.Path(pair.box.folder(), "era.xml")
    file.write_text(xml)
    pair.meta.fill(bytes(BLOCK))
    eras.tool("era_restore", "-i", file, "-o", pair.meta.path)
    pair.meta.close()


@pytest.mark.only("rust")
def test_last_era(pair, log):
    """Era numbers end without a wrap, and blocks continue to be recorded. C starts again at 0, and
    forgets.
    """
    restored(pair, LAST - 1)
    era = pair.era()
    assert era.era == LAST
    era.write(80, pattern("a", 8))
    events = era.event
    assert failing(era.message, "checkpoint") == errno.EOVERFLOW
    assert failing(era.message, "take_metadata_snap") == errno.EOVERFLOW
    wait.until(lambda: era.event > events, "an event")
    assert era.era == LAST
    for block in (11, 12):
        era.suspend()
        era.resume()
        assert era.era == LAST
        era.write(block * 8, pattern("a", 8))
    era.swap(f"0 {40 * 8} era {pair.meta.dev} {pair.origin.dev} 8")
    era.write(39 * 8, pattern("a", 8))
    era.remove()
    image = eras.check(pair.meta)
    assert image.era == LAST and image.since(LAST) == {10, 11, 12, 39}
    assert eras.invalidate(pair.meta, LAST) == {10, 11, 12, 39}
    assert image.since(LAST - 2) == {0, 1, 10, 11, 12, 39}


@pytest.mark.both
@pytest.mark.phases("c-again")
def test_c_opens_the_last_era(impl, box):
    """C archives the last era when it is suspended; dm-rust takes it out again. (In this test C
    makes such metadata in the end.)
    """
    pair = eras.Pair(box)
    restored(pair, LAST - 1)
    era = pair.era()
    era.write(80, pattern("a", 8))
    era.remove()
    image = eras.read(pair.meta)
    assert image.era == LAST and set(image.archived) >= {LAST}


@pytest.mark.only("rust")
def test_last_era_archived_by_c(pair):
    """Metadata as the test above leaves it: the bitset of the last era is in the tree, and there is
    no present one.
    """
    restored(pair, LAST)
    era = pair.era()
    assert era.era == LAST
    era.write(80, pattern("a", 8))
    era.remove()
    image = eras.check(pair.meta)
    assert image.era == LAST and image.since(LAST) == {1, 10}


@pytest.mark.only("rust")
def test_warning_near_the_end(pair, log):
    restored(pair, LAST - (1 << 20) - 1)
    pair.era()
    assert any("era numbers" in line for line in log.lines())
