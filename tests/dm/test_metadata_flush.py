"""clone, era and snapshot: the flush of a commit fails, and then the power is cut.

The superblock of the failed commit may be in a volatile cache of the device only. Metadata that is
opened again shows it all the same, but a power cut goes back to the previous commit, whose blocks
must not have been overwritten.
"""

import errno

import pytest

from lib import eras, metadata, wait
from lib.box import pattern
from lib.metadata import BLOCK

pytestmark = pytest.mark.only("rust")

SUPERBLOCK = BLOCK // 512


class Meta:
    """A metadata device with a volatile cache. The superblock and the rest are on devices of their
    own, so that either can be held or fail without the other.
    """

    def __init__(self, box):
        self.box = box
        self.disk = box.ram(1, cache=True)
        rest = self.disk.sectors - SUPERBLOCK
        self.head = box.layered(self.disk, sectors=SUPERBLOCK)
        self.tail = box.layered(box.mapped(f"0 {rest} linear {self.disk.dev} {SUPERBLOCK}"))
        self.device = box.mapped(
            f"0 {SUPERBLOCK} linear {self.head.dev} 0",
            f"{SUPERBLOCK} {rest} linear {self.tail.dev} 0",
        )

    def image(self):
        self.disk.close()
        return self.disk.content()

    def without_flush(self, call, *args):
        """Makes a call that commits. The superblock reaches the disk; the flush after it fails, and
        so do all later flushes. Writes do not fail, except to the last blocks, which are not in
        use.
        """
        before = self.disk.stats().flushes
        self.head.hold()
        work = self.box.background(call, *args)
        wait.until(
            lambda: self.disk.stats().flushes > before, "everything but the superblock is durable"
        )
        self.tail.error_writes((self.tail.length - 64, self.tail.length))
        self.head.release()
        return work


def failing(call, *args):
    with pytest.raises(OSError) as error:
        call(*args)
    return error.value.errno


def cut(before, now):
    """What a power cut may leave: the superblock of the last durable commit, and all other blocks
    written since.
    """
    return before[:BLOCK] + now[BLOCK:]


def test_era(impl, box):
    """Writes to new blocks fail as long as the flush does, and are recorded as soon as it works
    again.
    """
    pair, meta = eras.Pair(box, mib=64), Meta(box)
    pair.meta = meta.device
    era = pair.era()
    for block in range(4):
        era.write(block * 8000, pattern("a", 8))
    era.remove()
    era = pair.era()
    before, marked = meta.image(), {0, 1000, 2000, 3000}
    assert eras.Metadata(before).since(1) == marked
    assert failing(meta.without_flush(era.write, 72000, pattern("b", 8)).result) == errno.EIO
    assert meta.image()[:BLOCK] != before[:BLOCK], "the superblock has not been written"
    for block in 12000, 2560, 8191:
        assert failing(era.write, block * 8, pattern("c", 8)) == errno.EIO
    assert era.status() == "Error"
    assert failing(era.message, "checkpoint") == errno.EIO
    left = cut(before, meta.image())
    assert eras.Metadata(left).since(1) == marked
    # The same, as seen by an era that goes live after the cut.
    other = eras.Pair(box, mib=64)
    other.meta_disk.fill(left)
    after = other.era()
    assert after.since(1) == marked
    after.remove()
    eras.check(other.meta_disk)
    meta.tail.heal()
    era.write(12000 * 8, pattern("c", 8))
    assert era.look().era == 2
    # The mark of the commit that was reported as failed is durable by now, so this write needs no
    # further commit.
    assert era.marked() == {9000, 12000}
    cost = meta.disk.stats()
    era.write(72000, pattern("b", 8))
    cost = meta.disk.stats() - cost
    assert (cost.write_sectors, cost.flushes) == (0, 0)
    era.remove()
    assert eras.check(pair.meta).since(1) == marked | {9000, 12000}


def test_era_resume(impl, box):
    """The flush fails while an era is archived at suspend: nothing goes live on that before it is
    durable.
    """
    pair, meta = eras.Pair(box, mib=64), Meta(box)
    pair.meta = meta.device
    era = pair.era()
    era.write(0, pattern("a", 8))
    before = meta.image()
    meta.without_flush(era.suspend).result()
    assert meta.image()[:BLOCK] != before[:BLOCK], "the superblock has not been written"
    era.load(era.line)
    for _ in range(2):
        assert failing(era.resume) == errno.EIO
    assert eras.Metadata(cut(before, meta.image())).since(1) == {0}
    meta.tail.heal()
    era.resume()
    era.write(8000, pattern("b", 8))
    assert era.since(1) == {0, 1000}
    era.remove()
    eras.check(pair.meta)


def test_clone(impl, clone_box):
    """After `rw` nothing is written as long as the flush fails; then everything is committed that
    had not been.
    """
    trio = clone_box.trio(mib=4)
    meta = Meta(clone_box)
    trio.meta = meta.device
    clone = trio.clone()
    for n in range(4):
        trio.write(clone, n * 800, pattern("w", 8))
    clone.remove()
    clone = trio.clone()
    trio.write(clone, 2800, pattern("w", 8))
    clone.status(noflush=False)
    before, hydrated = meta.image(), {0, 100, 200, 300, 350}
    assert set(metadata.Metadata(before).hydrated()) == hydrated
    trio.write(clone, 4000, pattern("w", 8))
    meta.without_flush(clone.status, False).result()
    assert meta.image()[:BLOCK] != before[:BLOCK], "the superblock has not been written"
    assert clone.look().mode == "ro"
    after = meta.image()
    for _ in range(2):
        assert failing(clone.message, "rw") == errno.EIO
        assert clone.look().mode == "ro"
        assert failing(clone.flush) == errno.EIO
    assert meta.image() == after
    assert set(metadata.Metadata(cut(before, after)).hydrated()) == hydrated
    trio.check(clone)
    meta.tail.heal()
    clone.message("rw")
    trio.write(clone, 2000, pattern("w", 8))
    clone.flush()
    assert set(metadata.read(meta.disk).hydrated()) == hydrated | {500, 250}
    trio.check(clone)


def test_clone_table(impl, clone_box, log):
    """A table over metadata that cannot be flushed is refused."""
    trio = clone_box.trio(mib=4)
    meta = Meta(clone_box)
    trio.meta = meta.device
    trio.clone().remove()
    meta.tail.error_writes()
    empty = clone_box.clone(
        trio.meta, trio.dest, trio.source, 8, "1 no_hydration", length=trio.sectors, start=False
    )
    assert failing(empty.load, empty.line) == errno.EIO
    assert any("Failed to load metadata" in line for line in log.lines())
    meta.tail.heal()
    empty.load(empty.line)
    empty.resume()
    trio.check(empty)


@pytest.mark.parametrize("kind", ["snapshot", "snapshot-merge"])
def test_snapshot_table(impl, box, kind):
    """Records are durable before they count: an existing store is flushed once before it is read,
    and the table is refused if that fails. A transient store has nothing to read.
    """
    real, disk = box.ram(1), box.ram(1, cache=True)
    cow = box.layered(disk)
    line = f"0 {real.sectors} snapshot {real.dev} {cow.dev} P 8"
    snapshot = box.mapped(line)
    snapshot.write(0, pattern("s", 8))
    snapshot.remove()
    again = box.mapped()
    cow.error_writes()
    assert failing(again.load, line.replace("snapshot", kind)) == errno.EIO
    cow.heal()
    before = disk.stats()
    again.load(line.replace("snapshot", kind))
    cost = disk.stats() - before
    assert cost.flushes == 1 and cost.reads and not cost.write_sectors
    again.resume()
    if kind == "snapshot":
        assert again.read(0, 8) == pattern("s", 8)
