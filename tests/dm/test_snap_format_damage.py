"""The persistent store of a snapshot: which damaged stores are refused, and how the others are
used.
"""

import errno
import itertools
from errno import EIO

import pytest

from lib import cow
from lib.box import pattern
from lib.stores import Bench, dirty_image, refused

# header fields: errno, what is logged before; C leaves the COW device as it is
HEADERS = {
    "magic": (dict(size=8, magic=0x70416E54), errno.ENXIO, "Invalid or corrupt snapshot"),
    "magic of one byte": (dict(size=8, magic=1 << 24), errno.ENXIO, "Invalid or corrupt snapshot"),
    "version 0": (
        dict(size=8, version=0),
        errno.EINVAL,
        "unable to handle snapshot disk version 0",
    ),
    "version 2": (
        dict(size=8, version=2),
        errno.EINVAL,
        "unable to handle snapshot disk version 2",
    ),
    "invalid, version 2": (
        dict(size=8, version=2, valid=0),
        errno.EINVAL,
        "unable to handle snapshot disk version 2",
    ),
    **{
        f"chunk size {size}": (
            dict(size=size),
            errno.EINVAL,
            f"invalid on-disk chunk size {size}: Chunk size is not a power of 2.",
        )
        for size in (0, 3, 7, 0x7FFFFFFF, 0xFFFFFFFF)
    },
    **{
        f"chunk size {size}": (
            dict(size=size),
            errno.EINVAL,
            f"invalid on-disk chunk size {size}: Chunk size is too high.",
        )
        for size in (4194304, 1 << 31)
    },
    "chunk size 3, version 2": (
        dict(size=3, version=2),
        errno.EINVAL,
        "invalid on-disk chunk size 3",
    ),
}


@pytest.mark.parametrize("case", HEADERS)
def test_bad_header(impl, box, log, same, case):
    fields, error, text = HEADERS[case]
    bench = Bench(box)
    image = cow.header(**fields) + pattern("header", 64)[16:]
    bench.store.write(0, image)
    for bench.table_size in 8, 0:
        got, lines = refused(bench, log)
        assert got == error
        assert any(text in line for line in lines)
        same((got, lines), bench.table_size)
    assert bench.store.read(0, 128) == image + bytes(64 * 512)


@pytest.mark.parametrize("size, sectors", [(4096, 2048), (8, 8), (8, 15), (1024, 1024 + 512)])
def test_chunks_larger_than_the_device(impl, box, log, size, sectors):
    """There is a header, but no room for an area."""
    bench = Bench(box, image=bytes(sectors * 512))
    bench.store.write(0, cow.header(size).ljust(4096, b"\0"))
    got, _ = refused(bench, log)
    assert got in (EIO, errno.EINVAL)


@pytest.mark.only("rust")
@pytest.mark.parametrize("size", [1 << 17, 2097152])
def test_huge_chunks(impl, box, log, size):
    """C first allocates memory for four chunks: four GiB, if the header says so."""
    bench = Bench(box)
    bench.store.write(0, cow.header(size) + bytes(496))
    got, _ = refused(bench, log)
    assert got in (EIO, errno.EINVAL)


@pytest.mark.parametrize("valid", [0, 1, 2, 0x80000000])
def test_invalid_store_can_be_opened(impl, box, log, same, valid):
    """An invalid store can be opened, only to show that it is invalid; nothing after its header is
    read.
    """
    bench = Bench(box, 16)
    image = cow.metadata(16, cow.numbered([4, 2], 16), valid=valid)
    if not valid:
        image[1] = pattern("garbage", 16)
    cow.put(bench.store, 16, image)
    before = bench.store.content()
    mark = log.mark()
    bench.start(front=True)
    lines = log.dm(mark)
    same((bench.snap.status(), bench.snap.table().split()[2:], lines))
    assert bench.snap.table().endswith(" P 16")
    if valid:
        assert (bench.snap.status(), lines) == ("64/2048 32", [])
        return
    assert bench.snap.status() == "Invalid"
    assert lines == ["4 device-mapper: snapshots: Snapshot is marked invalid."]
    for call in lambda: bench.snap.read(0, 1), lambda: bench.snap.write(0, bytes(512)):
        with pytest.raises(OSError) as error:
            call()
        assert error.value.errno == EIO
    bench.front.write(0, pattern("new", 100))
    assert bench.origin.read(0, 100) == pattern("new", 100)
    assert bench.store.content() == before
    assert bench.snap.event == 0


# Damage. C trusts what it reads: some of these are a BUG in the kernel, others lose data later.

FUZZ = {  # the change of a record, and whether the store can be opened
    "new chunk 1": (lambda old, new: (old, 1), False),
    "new chunk is the second area": (lambda old, new: (old, 34), False),
    "new chunk is an area not reached yet": (lambda old, new: (old, 1 + 33 * 9), False),
    "new chunk behind the end": (lambda old, new: (old, 400), False),
    "new chunk far behind the end": (lambda old, new: (old, 1 << 40), False),
    "top byte of the new chunk": (lambda old, new: (old, new | 1 << 56), False),
    "all of the top byte": (lambda old, new: (old, new | 255 << 56), False),
    "new chunk of all ones": (lambda old, new: (old, (1 << 64) - 1), False),
    "record of all ones": (lambda old, new: ((1 << 64) - 1, (1 << 64) - 1), False),
    "last new chunk": (lambda old, new: (old, 399), True),
    "old chunk at the end of the origin": (lambda old, new: (512, new), True),
    "old chunk behind the origin": (lambda old, new: (1 << 40, new), True),
    "top byte of the old chunk": (lambda old, new: (old | 255 << 56, new), True),
    "old chunk of all ones": (lambda old, new: ((1 << 64) - 1, new), True),
    "old chunk twice": (lambda old, new: (0, new), True),
    "new chunk twice": (lambda old, new: (old, 2), True),
    "record twice": (lambda old, new: (0, 2), True),
    "end of the list": (lambda old, new: (old, 0), True),
}


@pytest.mark.only("rust")
@pytest.mark.parametrize("at", [1, 32])
@pytest.mark.parametrize("case", FUZZ)
def test_damaged_record(impl, box, log, case, at):
    """One record of 40 is wrong, in the first area or the second."""
    change, fine = FUZZ[case]
    records = cow.numbered([3 * n for n in range(40)], 1)
    records[at] = change(*records[at])
    check_damaged(box, log, records, fine)


@pytest.mark.only("rust")
def test_random_records(impl, box, log, rng):
    """Several records with arbitrary chunks of the origin, or of the COW device."""
    opened = 0
    for turn in range(12):
        records = cow.numbered([3 * n for n in range(rng.choice((5, 31, 32, 33, 64, 70)))], 1)
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(records))
            number = rng.choice(
                (
                    rng.randrange(400),
                    rng.randrange(600),
                    1 << rng.randrange(64),
                    rng.getrandbits(64),
                )
            )
            records[at] = (records[at][0], number) if turn % 2 else (number, records[at][1])
        opened += check_damaged(box, log, records)
    assert 0 < opened < 12


@pytest.mark.only("rust")
@pytest.mark.parametrize("size", [1, 8, 128])
def test_garbage_behind_the_header(impl, box, log, rng, size):
    bench = Bench(box, size)
    bench.store.fill(cow.header(size).ljust(size * 512, b"\0") + rng.randbytes((2048 - size) * 512))
    image = bench.store.content()
    got, _ = refused(bench, log)
    assert got == errno.EINVAL
    assert bench.store.content() == image


def check_damaged(box, log, records, fine=None):
    """Loads a store with these records: it is refused, or read as the format says, used, and read
    again.
    """
    bench = Bench(box, 1, image=dirty_image(400))
    cow.put(bench.store, 1, cow.metadata(1, records))
    image = bench.store.content()
    try:
        cow.Store(image)
    except cow.Damaged:
        assert not fine
        got, _ = refused(bench, log)
        assert got == errno.EINVAL
        assert bench.store.content() == image
        return False
    assert fine is not False
    bench.model = cow.Model(bench.model.origin, image)
    store = cow.Store(image)
    mark = log.mark()
    bench.start(front=True)
    assert any(line.startswith("4 device-mapper: ") for line in log.dm(mark)) == bool(
        store.repeated
    ), log.dm(mark)
    assert bench.snap.status() == store.status()
    bench.check_shown()
    if store.next < 380:
        # Chunks with a repeated record, and some without any record.
        bench.take([old for old, _ in store.repeated if old < 512][:2] + [499, 500])
        bench.write_origin(502, pattern("new", 1))
        for old, _ in store.records[-3:]:
            if old < 512:
                bench.write(old, pattern("again", 1))
        bench.check_shown()
        bench.stop()
        after = cow.Store(bench.store)
        assert after.records == bench.model.records and not any(after.tail)
        bench.start()
        assert bench.snap.status() == after.status()
        bench.check_shown()
    bench.snap.remove()
    return True


@pytest.mark.parametrize("size", [1, 8])
def test_full_area_without_successor(impl, box, log, size):
    """A full area at the end of the device: its successor, which must be read, does not exist."""
    most = cow.per_area(size)
    bench = Bench(box, size, image=bytes((most + 2) * size * 512))
    chunks = cow.metadata(size, cow.numbered(range(most), size))
    del chunks[cow.area_at(1, size)]
    cow.put(bench.store, size, chunks)
    got, _ = refused(bench, log)
    assert got in (EIO, errno.EINVAL)


@pytest.mark.parametrize("area", [0, 1, 2, 4, 5, 6, 8])
def test_unreadable_area(impl, box, log, area):
    """Areas are read ahead: an unreadable one matters only if the list continues there, here up to
    area 4.
    """
    bench = Bench(box, 1, image=dirty_image(400))
    cow.put(bench.store, 1, cow.metadata(1, cow.numbered([3 * n for n in range(140)], 1)))
    bench.model = cow.Model(bench.model.origin, bench.store.content())
    bench.store = box.layered(bench.store)
    at = cow.area_at(area, 1)
    bench.store.error_reads((at, at + 1))
    if area <= 4:
        got, _ = refused(bench, log)
        assert got == EIO
        bench.store.heal()
    bench.start()
    assert bench.snap.status() == bench.model.status()
    bench.check_shown()


@pytest.mark.only("rust")
@pytest.mark.parametrize("mix", ["onoo", "oonn", "onnn", "nonn", "nnon"])
def test_torn_area(impl, box, mix):
    """A power cut while an area was written: some of its sectors are old, others new. Stale records
    after the end of the list never come back, however many exceptions follow; on C they hide data
    that was written since.
    """
    lists = {
        state: cow.metadata(8, cow.numbered(range(count), 8))[1]
        for state, count in (("o", 10), ("n", 120))
    }
    area = b"".join(lists[state][n * 512 : (n + 1) * 512] for n, state in enumerate(mix + "oooo"))
    bench = Bench(box, origin=pattern("origin", 2048), image=bytes(2 << 20))
    cow.put(bench.store, 8, {0: cow.header(8).ljust(4096, b"\0"), 1: area})
    bench.model = cow.Model(bench.model.origin, bench.store.content())
    fresh = iter(range(255, 0, -1))
    for goal in 31, 32, 33, 64, 96, 128:
        bench.start()
        assert bench.snap.status() == bench.model.status()
        bench.check_shown()
        bench.take(itertools.islice(fresh, max(goal - len(bench.model.records), 0)))
        bench.stop()
        assert cow.Store(bench.store).records == bench.model.records
