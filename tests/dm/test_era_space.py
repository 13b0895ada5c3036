"""era: metadata with little space: what fits succeeds, what does not is refused, and neither costs
the others anything.
"""

import errno

import pytest

from lib import eras, snaps, wait
from lib.box import pattern
from lib.expect import errno_of
from lib.disk import in_flight

pytestmark = pytest.mark.only("rust")

LEAF = 32576  # blocks of the origin whose bits are in one block of a bitset
LEAVES = 4


class Small(eras.Pair):
    """131072 blocks, in metadata of a given size. A mark in a leaf that was not used yet takes a
    block of metadata.
    """

    def __init__(self, box, blocks):
        super().__init__(box)
        self.origin_disk = self.origin = box.ram(512)
        self.gate = snaps.Gate(box, box.ram(1, cache=True), sectors=blocks * 8)
        self.meta_disk = self.meta = self.gate


def mark(era, leaf, block=0):
    return errno_of(era.write, (leaf * LEAF + block) * 8, pattern("x", 8))


def edge(box):
    """A size for which some writes, each to another leaf, fit one by one, and others do not; and
    the number that fits.
    """
    for blocks in range(140, 180):
        small = Small(box, blocks)
        try:
            era = small.era()
        except OSError as error:
            assert error.errno == errno.ENOSPC
            continue
        results = [mark(era, leaf) for leaf in range(LEAVES)]
        assert set(results) <= {0, errno.EIO} and era.status() != "Error"
        era.remove()
        fit = results.count(0)
        assert results == [0] * fit + [errno.EIO] * (LEAVES - fit)
        if 1 < fit < LEAVES:
            return blocks, fit
    raise AssertionError("no size lets some pass and others not")


def test_batch_at_the_edge(impl, box):
    """What fits when writes arrive one by one fits when they arrive together, and so do marks that
    need no space.
    """
    blocks, fit = edge(box)
    small = Small(box, blocks)
    era = small.era()
    assert not any(mark(era, leaf) for leaf in range(fit - 1))
    small.gate.hold()
    first = box.background(mark, era, 0, 64)
    wait.until(lambda: in_flight(small.gate), "a commit waits")
    before = in_flight(era)
    # The next batch, of which no write has been processed yet.
    together = {leaf: box.background(mark, era, leaf) for leaf in range(fit - 1, LEAVES)}
    wait.until(lambda: in_flight(era) == before + len(together), "the others wait for the commit")
    small.gate.release()
    assert not first.result()
    results = {leaf: write.result() for leaf, write in together.items()}
    assert sorted(results.values()) == [0] + [errno.EIO] * (LEAVES - fit), results
    assert era.status() != "Error"
    # A write that has found room is carried out.
    passed = set(range(fit - 1)) | {leaf for leaf, result in results.items() if not result}
    assert not any(mark(era, leaf) for leaf in passed)
    era.remove()
    assert {block // LEAF for block in eras.read(small.meta).since(1)} >= passed


def test_refused_writes_cost_nothing(impl, box):
    """A write that finds no room reads, writes and flushes nothing: memory has all the answers."""
    blocks, fit = edge(box)
    small = Small(box, blocks)
    era = small.era()
    assert [mark(era, leaf) for leaf in range(LEAVES)].count(0) == fit
    before = small.gate.stats()
    for block in range(5):
        for leaf in range(fit, LEAVES):
            assert mark(era, leaf, block * 64) == errno.EIO
    cost = small.gate.stats() - before
    assert (cost.reads, cost.writes, cost.flushes) == (0, 0, 0)
    # A range with some marked blocks is refused as well, and costs no more.
    for _ in range(3):
        assert errno_of(era.write, (LEAF - 4) * 8, pattern("wide", 64)) == errno.EIO
        assert errno_of(era.discard, 0, era.length) == errno.EIO
    assert era.status() != "Error"
    # The next era has room again.
    small.gate.heal()
    era.remove()
    eras.check(small.meta)


def test_snapshot_without_room(impl, box):
    """`take_metadata_snap` finds no room, repeatedly: the era continues, and nothing is written or
    opened again.
    """
    blocks, _ = edge(box)
    small = Small(box, blocks)
    era = small.era()
    for leaf in range(LEAVES):
        mark(era, leaf)
    now = era.era
    reads = small.gate.stats()
    for _ in range(3):
        assert errno_of(era.take) == errno.ENOSPC
    assert not (small.gate.stats() - reads).reads
    assert era.era == now and era.status() != "Error"
    assert not mark(era, 0)


def smaller(box, blocks):
    pair = eras.Pair(box)
    pair.origin_disk = pair.origin = box.ram(128)
    pair.meta_disk = pair.meta = box.mapped(f"0 {blocks * 8} linear {pair.meta_disk.dev} 0")
    return pair


def ended(box, blocks, length):
    """A suspended era with a metadata snapshot, if there was room for one, and the blocks written
    in it.
    """
    pair = smaller(box, blocks)
    era = pair.era(length=length * 8)
    written = {0} if not errno_of(era.write, 0, pattern("a", 8)) else set()
    kept = not errno_of(era.take)
    era.suspend()
    return pair, era, written, kept


# In entries of the array: a new last block, a last block that grows, many blocks; and the same
# backwards.
@pytest.mark.parametrize(
    "sizes",
    [
        (1000, 2000),
        (1000, 1018),
        (1018, 1019),
        (1000, 16000),
        (2000, 1000),
        (16000, 1000),
        (16000, 15270),
        (1019, 1018),
    ],
)
def test_resize_with_little_room(impl, box, sizes):
    """With each number of free blocks, until it has fitted ten times: the era is resized, or
    refused, and a size that does not fit is not begun. A refusal leaves the old table fully
    working.
    """
    old, new = sizes
    met = {True: [], False: []}
    for blocks in range(8, 52):
        try:
            pair, era, written, kept = ended(box, blocks, old)
        except OSError as error:
            assert error.errno == errno.ENOSPC
            continue
        before = eras.Metadata(pair.meta.content())
        era.load(f"0 {new * 8} era {pair.meta.dev} {pair.origin.dev} 8")
        result = errno_of(era.resume)
        met[kept].append(result)
        assert result in (0, errno.ENOSPC)
        if result:
            assert eras.Metadata(pair.meta.content()).blocks in (old, new if new < old else old)
            assert before.since(1) == written
            era.load(era.line)
            result = errno_of(era.resume)
            if result:  # there is no room for another era in any case
                assert result == errno_of(ended(box, blocks, old)[1].resume)
                era.remove()
                continue
        if not errno_of(era.write, 8, pattern("b", 8)):
            written.add(1)
        assert era.status() != "Error"
        era.remove()
        assert eras.check(pair.meta).since(1) == written
        if met[True].count(0) == 10:
            break
    else:
        pytest.fail("it hardly ever fits")
    for results in met.values():
        assert results == sorted(results, reverse=True), "it fits, and with more room it does not"


def test_refused_growth(impl, box, log):
    """Refused with a line in the log. The old table continues, and so does the new one once there
    is room.
    """
    pair = smaller(box, 40)
    era = pair.era(length=1000 * 8)
    era.write(0, pattern("a", 8))
    used = era.look().used
    era.suspend()
    longer = f"0 {131072} era {pair.meta.dev} {pair.origin.dev} 8"
    big = f"0 {40000 * 8} era {pair.meta.dev} {box.ram(512).dev} 8"
    era.load(big)
    assert errno_of(era.resume) == errno.ENOSPC
    assert any("era_preresume: metadata_resize failed" in line for line in log.lines())
    assert not any("leaked buffer" in line for line in log.lines())
    era.load(era.line)
    era.resume()
    assert era.look().used <= used + 4
    era.write(8, pattern("b", 8))
    era.swap(longer)
    era.remove()
    assert eras.check(pair.meta).since(1) == {0, 1}


def test_shrinks_in_slices(impl, box):
    """Four million blocks become ten: no transaction frees more than a slice of the array."""
    pair = eras.Pair(box)
    pair.meta_disk = pair.meta = box.ram(32, cache=True)
    pair.origin_disk = pair.origin = box.mapped(f"0 {4_000_000 * 8} zero")
    era = pair.era()
    for block in 5, 3_999_999:
        era.write(block * 8, pattern("a", 8))
    before = pair.meta.stats()
    era.swap(f"0 {1018 * 8} era {pair.meta.dev} {pair.origin.dev} 8")
    # Two for each commit, of the old era, four slices, and the new era; and one before the array is
    # opened with another size.
    assert (pair.meta.stats() - before).flushes == 2 * (1 + 4 + 1) + 1
    era.write(8, pattern("b", 8))
    era.remove()
    found = eras.check(pair.meta)
    assert found.blocks == 1018 and found.since(1) == {1, 5}


def test_not_all_of_a_table_goes_live(impl, box):
    """One target of a table goes live, another does not; the table is replaced without a
    suspend.
    """
    one, two = eras.Pair(box), eras.Pair(box)
    two.layered("meta")
    half = one.origin.sectors
    lines = [
        f"0 {half} era {one.meta.dev} {one.origin.dev} 8",
        f"{half} {half} era {two.meta.dev} {two.origin.dev} 8",
    ]
    device = box.mapped()
    device.load(*lines)
    two.meta.error_writes()
    assert errno_of(device.resume) in (
        errno.EIO,
        errno.ENOTBLK,
    )  # of a block that was not written and is read again
    look = lambda: eras.Status(device.status())
    assert look().era == 1
    device.message("checkpoint")
    assert look().era == 2
    # Another table of the same metadata goes live over it.
    device.load(lines[0])
    device.resume()
    assert look().era == 3
    device.write(80, pattern("a", 8))
    device.message("checkpoint")
    assert look().era == 4
    device.write(88, pattern("b", 8))
    two.meta.heal()
    device.swap(*lines)
    assert look().era == 5
    device.remove()
    found = eras.check(one.meta).eras()
    assert (found[10], found[11]) == (3, 4)
    assert eras.check(two.meta).since(1) == set()
