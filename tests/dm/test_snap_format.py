"""The persistent store of a snapshot: byte for byte what C writes; each implementation opens the
other's.
"""

import copy
import random

import pytest

from lib import cow, modules
from lib.box import assert_same, pattern
from lib.stores import BLANK, Bench, dirty_image

# What is written


@pytest.mark.parametrize("size", [1, 8, 32, 128, 1024])
@pytest.mark.parametrize("dirty", [False, True])
def test_fresh_store(impl, box, size, dirty):
    """Loading a table makes the header and the first area, and touches nothing else. A magic of 0
    means that there is no store.
    """
    image = bytes(4) + pattern("soil", 2048)[4:] if dirty else BLANK
    bench = Bench(box, size, image=image)
    assert bench.model.image[:16] == b"SnAp\1\0\0\0\1\0\0\0" + size.to_bytes(4, "little")
    device = box.mapped()
    device.load(bench.line)
    bench.check_image()
    device.clear()
    bench.check_image()
    bench.start()
    assert bench.snap.status() == f"{2 * size}/2048 {2 * size}"
    bench.check_image()
    assert cow.Store(bench.store).records == []


@pytest.mark.parametrize(
    "size, sectors", [(1, 700), (8, 2048), (8, 2043), (32, 2048), (128, 2048 - 77)]
)
def test_same_writes_same_image(impl, box, rng, same, size, sectors):
    """Writes of all sizes to snapshot and origin, one at a time: both implementations leave the
    same bytes.
    """
    image = dirty_image(cow.needed(-(-sectors // size), size) * size)
    bench = Bench(box, size, pattern("origin", sectors), image).start(front=True)
    for turn in range(60):
        sector = rng.randrange(sectors)
        length = min(rng.choice((1, 3, 8, 16, 100, 333)), sectors - sector)
        if rng.random() < 0.3:
            sector -= sector % size
            length = min(size, sectors - sector)
        rng.choice((bench.write, bench.write_origin))(sector, pattern(f"turn {turn}", length))
    assert bench.snap.status() == bench.model.status()
    bench.check_shown()
    assert_same(bench.origin.content(sectors), bytes(bench.model.origin), where="origin")
    same((bench.snap.status(), bench.snap.table().split()[2:], bench.snap.event))
    bench.stop()
    bench.check_image()
    assert cow.Store(bench.store).records == bench.model.records


# Exchange: each implementation leaves a store, and in later phases of the run each opens both.

SHELF = {}


def counts(size):
    """Numbers of exceptions at which something happens."""
    epa = cow.per_area(size)
    return [0, 1, epa - 1, epa, epa + 1, 2 * epa, 10 * epa + 7]


CASES = [(1, n) for n in counts(1)] + [(2, n) for n in counts(2)] + [(8, n) for n in counts(8)[2:6]]


def chunks_for(size, count):
    """Chunks of an origin that is somewhat larger, in ascending and descending runs of all
    lengths.
    """
    rng = random.Random(f"{size}/{count}")
    runs, first = [], 0
    while first < count + 9:
        run = list(range(first, min(first + rng.choice((1, 2, 40, 300)), count + 9)))
        runs.append(run if rng.random() < 0.8 else run[::-1])
        first = run[-1] + 1
    rng.shuffle(runs)
    return [chunk for run in runs for chunk in run][:count]


def fill(bench, chunks):
    """Makes exceptions in this order: an ascending run by one write, which may start and end inside
    a chunk.
    """
    size, at = bench.model.size, 0
    rng = random.Random(f"{size}/{len(chunks)}")
    while at < len(chunks):
        end = at + 1
        while end < len(chunks) and end - at < 64 and chunks[end] == chunks[end - 1] + 1:
            end += 1
        head, tail = rng.choice([(0, 0), (size // 3, 0), (size // 3, size // 2), (0, size // 8)])
        bench.write(
            chunks[at] * size + head, rng.randbytes(((end - at) * size - head - tail) * 512)
        )
        at = end


@pytest.mark.parametrize("size, count", CASES)
def test_leave_a_store_for_the_other(impl, box, same, size, count):
    image = dirty_image(cow.needed(count + 40, size) * size)
    bench = Bench(box, size, pattern("origin", (count + 20) * size), image).start()
    fill(bench, chunks_for(size, count))
    assert bench.snap.status() == bench.model.status()
    same(bench.snap.status())
    bench.stop()
    bench.check_image()
    SHELF[impl, size, count] = copy.deepcopy(bench.model)
    store = cow.Store(bench.store)
    assert len(store.records) == count and not cow.is_metadata(store.next, size)
    go_on_with(bench)


def go_on_with(bench):
    """Opens the store that was left, in a table without a chunk size; reads all, writes more, and
    opens it again.
    """
    size = bench.model.size
    bench.table_size = 0
    bench.start(front=True)
    assert bench.snap.status() == bench.model.status()
    bench.check_shown()
    end = bench.sectors // size
    bench.write((end - 8) * size, pattern("more", size))
    bench.write_origin((end - 6) * size, pattern("more", 1))
    bench.write(0, pattern("more", 1))
    bench.write_origin(1, pattern("more", 2 * size))
    bench.stop()
    bench.check_image()
    bench.start()
    assert bench.snap.status() == bench.model.status()
    bench.check_shown()


@pytest.mark.only("rust")
@pytest.mark.both
@pytest.mark.parametrize("size, count", CASES)
def test_dm_rust_opens_what_c_left(impl, box, size, count):
    go_on_with(Bench(box, 0, model=SHELF["c", size, count]))


@pytest.mark.phases("c-again")
@pytest.mark.both
@pytest.mark.parametrize("size, count", CASES)
def test_c_opens_what_dm_rust_left(impl, box, size, count):
    go_on_with(Bench(box, 0, model=SHELF["rust", size, count]))


@pytest.mark.both
@pytest.mark.phases("c-again")
def test_c_and_dm_rust_alternate(impl, box, rng, rust_module):
    """C and dm-rust open the same store twenty times alternately, each with random writes."""
    bench = Bench(box, 8, pattern("origin", 2048), bytes(4096 * 512))
    modules.unload_c()
    hands = (
        modules.Swift(modules.c_file("snapshot"), modules.C_MODULES["snapshot"]),
        modules.Swift(rust_module, modules.RUST_MODULE),
    )
    hands[1].load()
    try:
        for turn in range(20):
            hands[turn % 2 - 1].unload()
            hands[turn % 2].load()
            bench.start(front=True)
            assert bench.snap.status() == bench.model.status()
            for n in range(rng.randrange(20)):
                write = rng.choice((bench.write, bench.write_origin))
                write(rng.randrange(1900), rng.randbytes(rng.choice((1, 8, 100)) * 512))
            bench.check_shown()
            bench.stop()
            bench.check_image()
    finally:
        modules.unload(modules.RUST_MODULE)
        modules.use("c", rust_module)


# What is read


@pytest.mark.parametrize("size", [1, 8])
def test_next_free_chunk_is_never_an_area(impl, box, same, size):
    """The first exception after a load never overwrites an area, wherever the records end."""
    most = cow.per_area(size)
    lists = [cow.numbered(range(1000, 1000 + count), size) for count in counts(size)[2:6]]
    # Chunks that were reserved at a power cut leave gaps; the last one may be before an area.
    lists += [[(3, 9), (4, 7)], [(9, most + 1)], [(9, most + 3)], [(7, 2 * most + 2), (9, 5)]]
    bench = Bench(box, size, image=bytes(3 << 20))
    for records in lists:
        cow.put(bench.store, size, cow.metadata(size, records))
        expected = cow.Store(bench.store)
        bench.start()
        assert bench.snap.status() == expected.status(), records[-3:]
        same(bench.snap.status(), f"{len(records)} {records[-1:]}")
        bench.snap.write(5 * size, pattern("new", 1))
        bench.stop()
        assert cow.Store(bench.store).records == records + [(5, expected.next)]


def test_ignored_bytes(impl, box):
    """Bytes after the header, after the end of the list, and in later areas do not matter."""
    bench = Bench(box)
    records = cow.numbered([7, 3, 100], 1)
    area = b"".join(cow.RECORD.pack(*record) for record in records) + cow.RECORD.pack(5, 0)
    bench.store.write(0, cow.header(1, valid=0xFFFFFFFF) + pattern("a", 1)[16:])
    bench.store.write(1, area + pattern("b", 1)[len(area) :])
    bench.model = cow.Model(bench.model.origin, bench.store.content())
    assert bench.model.records == records
    bench.start()
    assert bench.snap.table().endswith(" P 1")
    assert bench.snap.status() == bench.model.status() == "5/2048 2"
    bench.check_shown()
