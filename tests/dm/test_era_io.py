"""era: which blocks are recorded, what passes through, and what it costs."""

import os
import threading

import pytest

from lib import eras, modules, wait
from lib.box import pattern
from lib.disk import in_flight


@pytest.fixture
def era(pair):
    return pair.era(8)


@pytest.mark.crowd
def test_random_work(pair, rng, same):
    """Random writes over many eras: exactly the blocks that were written are listed, and the data
    is on the origin.
    """
    size = 24
    era = pair.era(size)
    last, content = {}, bytearray(pair.origin.content())
    now = era.era
    for _ in range(12):
        for serial in range(rng.randrange(1, 12)):
            start = rng.randrange(era.length)
            count = min(rng.choice((1, 2, 7, 24, 30, 200)), era.length - start)
            data = rng.randbytes(count * 512)
            era.write(start, data, fua=rng.random() < 0.2)
            content[start * 512 : (start + count) * 512] = data
            last |= dict.fromkeys(range(start // size, (start + count - 1) // size + 1), now)
        if rng.random() < 0.3:
            era.flush()
        now = era.checkpoint()
        since = rng.randrange(1, now + 1)
        assert era.since(since) == {block for block, at in last.items() if at >= since}
        now = era.era
    assert pair.origin.content() == content == era.content()
    era.remove()
    image = eras.check(pair.meta)
    assert {block: at for block, at in enumerate(image.eras()) if at} == last


@pytest.mark.parametrize("size", [8, 24, 128])
def test_boundaries(pair, size):
    """Writes that end or begin at a boundary, or cross it; the last block is short."""
    era = pair.era(size, length=size * 40 + 8)
    era.write(size * 2, pattern("a", size))
    era.write(size * 5 - 1, pattern("b", 2))
    era.write(size * 9, pattern("c", 1))
    era.write(size * 12 - 1, pattern("d", 1))
    era.write(size * 20 + 3, pattern("e", size * 3))
    era.write(size * 40 + 7, pattern("f", 1))
    assert era.since(1) == {2, 4, 5, 9, 11, 20, 21, 22, 23, 40}


def test_reads_record_nothing(pair, era):
    before = pair.meta.stats()
    era.content()
    assert not (pair.meta.stats() - before).writes
    assert era.since(1) == set()


def test_flush(pair):
    """A flush goes to the origin, records nothing and waits for nothing, also for a target that
    does not start at 0.
    """
    origin = pair.box.ram(4, cache=True)
    pair.origin = origin
    era = pair.box.mapped(
        f"0 800 linear {pair.origin_disk.dev} 0\n800 8000 era {pair.meta.dev} {origin.dev} 8"
    )
    before = origin.stats(), pair.meta.stats()
    era.flush()
    assert (origin.stats() - before[0]).flushes == 1
    assert not (pair.meta.stats() - before[1]).writes
    era.write(800 + 80, pattern("durable", 8), fua=True)
    era.remove()
    assert eras.check(pair.meta).since(1) == {10}


@pytest.mark.only("rust")
@pytest.mark.parametrize("kind", ["discard", "zero"])
@pytest.mark.parametrize(
    "start, count, blocks",
    [(0, 512, range(64)), (5, 100, range(14)), (8191, 1, [1023]), (0, 8192, range(1024))],
)
def test_discard_records_every_block(pair, era, kind, start, count, blocks):
    """A discard, and a request to write zeros, record each block that they touch. C records the
    first one only.
    """
    pair.origin.fill(pattern("old", 8192))
    getattr(era, kind)(start, count)
    assert not any(pair.origin.read(start, count))
    assert era.since(1) == set(blocks)


def test_discard_first_block(pair, era, same):
    """What both implementations record of it."""
    era.discard(64, 64)
    assert 8 in era.since(1)


@pytest.mark.only("rust")
def test_large_io_is_not_split(pair, era):
    """A mebibyte over blocks of 4 KiB reaches the origin in as many requests as from a linear
    device: C makes 256.
    """
    linear = pair.box.mapped(f"0 {era.length} linear {pair.origin.dev} 0")
    data = pattern("large", 2048)

    def requests(device, call):
        before = pair.origin.stats()
        call(device)
        done = pair.origin.stats() - before
        return done.reads, done.writes

    for call in (lambda d: d.write(0, data), lambda d: d.write(0, data), lambda d: d.read(0, 2048)):
        assert requests(era, call) == requests(linear, call)
    assert era.since(1) == set(range(256))


def test_marked_blocks_cost_nothing(pair, era):
    """A block that was written in this era is written again without metadata I/O."""
    era.write(0, pattern("first", 80))
    before = pair.meta.stats()
    for at in range(0, 80, 3):
        era.write(at, pattern("again", 2))
    done = pair.meta.stats() - before
    assert not done.writes and not done.flushes
    era.checkpoint()
    before = pair.meta.stats()
    era.write(0, pattern("new era", 1))
    assert (pair.meta.stats() - before).writes


@pytest.mark.crowd
@pytest.mark.only("rust")
def test_concurrent_writes_share_a_commit(pair):
    """First writes that arrive while a commit runs share the next one."""
    pair.layered("meta")
    era = pair.era()
    pair.meta.hold()
    writers = [pair.box.background(era.write, 8 * n, pattern("w", 8)) for n in range(12)]
    wait.until(lambda: in_flight(era) == 12, "12 in flight")
    before = pair.meta_disk.stats()
    pair.meta.release()
    for writer in writers:
        writer.result()
    assert (pair.meta_disk.stats() - before).writes < 12 * 3, "each write had a commit of its own"
    assert era.since(1) == set(range(12))


@pytest.mark.only("rust")
def test_nowait(pair, era):
    """A write that may not wait passes if its blocks are marked, and is refused otherwise. Reads
    pass.
    """
    era.write(0, pattern("marked", 8))
    fd = os.open(era.path, os.O_RDWR | os.O_DIRECT)
    try:
        import mmap

        buffer = mmap.mmap(-1, 4096)
        assert os.preadv(fd, [buffer], 8192, os.RWF_NOWAIT) == 4096
        assert os.pwritev(fd, [buffer], 0, os.RWF_NOWAIT) == 4096
        with pytest.raises(BlockingIOError):
            os.pwritev(fd, [buffer], 4096, os.RWF_NOWAIT)
        assert os.pwritev(fd, [buffer], 4096) == 4096
        assert os.pwritev(fd, [buffer], 4096, os.RWF_NOWAIT) == 4096
    finally:
        os.close(fd)
    assert era.since(1) == {0, 1}


def test_read_only_table(pair, same):
    era = pair.box.mapped(
        f"0 {pair.origin.sectors} era {pair.meta.dev} {pair.origin.dev} 8", read_only=True
    )
    same((era.read_only, era.status()))


@pytest.mark.crowd
def test_many_writers(pair, era, rng):
    """Several threads write all the time while eras end: each list is complete."""
    stop = threading.Event()
    written = [set() for _ in range(4)]

    def write(mine, seed):
        import random

        numbers = random.Random(seed)
        while not stop.is_set():
            block = numbers.randrange(1024)
            era.write(block * 8, pattern("many", 1))
            mine.add(block)

    threads = [pair.box.background(write, mine, n) for n, mine in enumerate(written)]
    eras_seen = [era.checkpoint() for _ in range(20)]
    stop.set()
    for thread in threads:
        thread.result()
    assert eras_seen == sorted(set(eras_seen)), "the era did not grow each time"
    assert era.since(1) == set().union(*written)


@pytest.mark.parametrize("size", [8, 128])
def test_file_system(pair, size):
    """ext4 in use while eras end; then fsck, and everything is in the list."""
    box = pair.box
    pair.origin = pair.origin_disk = box.ram(64)
    era = pair.era(size)
    folder = box.folder()
    mount = f"{folder}/mnt"
    os.mkdir(mount)
    modules.run("mkfs.ext4", "-q", era.path)
    modules.run("mount", era.path, mount)
    try:
        before = pair.origin.content()
        start = era.checkpoint()
        for n in range(8):
            with open(f"{mount}/file{n}", "wb") as file:
                file.write(os.urandom(100_000))
                file.flush()
                os.fsync(file.fileno())
            if n % 2:
                os.unlink(f"{mount}/file{n - 1}")
            era.checkpoint()
    finally:
        modules.run("umount", mount)
    modules.run("fsck.ext4", "-fn", era.path)
    after = pair.origin.content()
    changed = {
        block
        for block in range(era.blocks)
        if before[block * size * 512 : (block + 1) * size * 512]
        != after[block * size * 512 : (block + 1) * size * 512]
    }
    assert changed and changed <= era.since(start)
