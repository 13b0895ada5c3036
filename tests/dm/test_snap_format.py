"""The persistent store of a snapshot: byte for byte what C writes, read and written by each,
damaged in every way.
"""

import copy
import errno
import itertools
import random

import pytest

from lib import cow, modules, wait
from lib.box import assert_same, pattern

EIO = errno.EIO
NOT_READ = "Failed to read snapshot metadata"
BLANK = bytes(1 << 20)


def soil(sectors):
    """What a COW device holds before it is one: the first 4096 bytes are wiped, as LVM does."""
    return bytes(4096) + pattern("soil", sectors)[4096:]


class Bench:
    """An origin, a COW device, the snapshot over both, and the model of all."""

    def __init__(
        self, box, size=8, origin=pattern("origin", 512), image=BLANK, kind="P", model=None
    ):
        """`size` is that of the table; with a model of something that exists, both devices hold it."""
        self.box, self.kind, self.table_size = box, kind, size
        if model:
            origin, image = bytes(model.origin), bytes(model.image)
        self.model = model or cow.Model(origin, image, size or 32)
        self.sectors = len(origin) // 512
        self.origin = disk(box, origin, exact=size and self.sectors % size)
        self.store = disk(box, image)
        self.snap = self.front = None

    @property
    def line(self):
        return f"0 {self.sectors} snapshot {self.origin.dev} {self.store.dev} {self.kind} {self.table_size}"

    def start(self, front=False):
        self.snap = self.box.mapped(self.line)
        if front:
            self.front = self.box.mapped(f"0 {self.sectors} snapshot-origin {self.origin.dev}")
        return self

    def stop(self):
        for device in self.front, self.snap:
            if device:
                device.remove()
        self.snap = self.front = None

    def write(self, sector, data):
        self.snap.write(sector, data)
        self.model.write(sector, data)

    def write_origin(self, sector, data):
        self.front.write(sector, data)
        self.model.write_origin(sector, data)

    def take(self, chunks):
        """An exception for each chunk."""
        for chunk in chunks:
            self.write(chunk * self.model.size, pattern(f"new {chunk % 32}", 1))

    def check_shown(self):
        assert_same(self.snap.content(), bytes(self.model.shown), where="snapshot")

    def check_image(self):
        """The COW device holds what it must, up to somewhat behind the last chunk."""
        sectors = min(self.store.sectors, (self.model.next + 2) * self.model.size)
        assert_same(
            self.store.read(0, sectors),
            bytes(self.model.image[: sectors * 512]),
            where="COW device",
        )


def disk(box, content, exact=True):
    """A device with this content; if not exact, it may be longer."""
    sectors = len(content) // 512
    mib = -(-sectors // 2048)
    ram = box.ram(mib)
    if content.count(0) < len(content):
        ram.fill(content)
    return box.mapped(f"0 {sectors} linear {ram.dev} 0") if exact and sectors < mib * 2048 else ram


def refused(bench, log):
    """(errno, what was said) of a store that must be refused."""
    device = bench.box.mapped()
    mark = log.mark()
    with pytest.raises(OSError) as error:
        device.load(bench.line)
    lines = [
        line.replace(device.dev, "<dev>")
        for line in log.dm(mark)
        if "error adding target" not in line
    ]
    assert lines[-1].startswith(f"3 device-mapper: table: <dev>: snapshot: {NOT_READ} (-"), lines
    device.remove()
    return error.value.errno, lines


# What is written


@pytest.mark.parametrize("size", [1, 8, 32, 128, 1024])
@pytest.mark.parametrize("dirty", [False, True])
def test_fresh(impl, box, size, dirty):
    """Header and first area, made when the table is loaded; nothing else is touched. A magic of 0
    is no store.
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
    image = soil(cow.needed(-(-sectors // size), size) * size)
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


# Exchange: a store is left by one implementation and opened by each, in the next phases of the run.

SHELF = {}


def counts(size):
    """Numbers of exceptions at which something happens."""
    epa = cow.per_area(size)
    return [0, 1, epa - 1, epa, epa + 1, 2 * epa, 10 * epa + 7]


CASES = [(1, n) for n in counts(1)] + [(2, n) for n in counts(2)] + [(8, n) for n in counts(8)[2:6]]


def chunks_for(size, count):
    """Chunks of an origin that is somewhat larger, in runs of all lengths, up and down."""
    rng = random.Random(f"{size}/{count}")
    runs, first = [], 0
    while first < count + 9:
        run = list(range(first, min(first + rng.choice((1, 2, 40, 300)), count + 9)))
        runs.append(run if rng.random() < 0.8 else run[::-1])
        first = run[-1] + 1
    rng.shuffle(runs)
    return [chunk for run in runs for chunk in run][:count]


def fill(bench, chunks):
    """Exceptions in this order: a rising run by one write, which may start and end inside a chunk."""
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
def test_leave_a_store(impl, box, same, size, count):
    image = soil(cow.needed(count + 40, size) * size)
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
    """Opens what was left, in a table without a chunk size; reads all, writes more, and opens it
    again.
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
def test_ours_opens_what_c_left(impl, box, size, count):
    go_on_with(Bench(box, 0, model=SHELF["c", size, count]))


@pytest.mark.phases("c-again")
@pytest.mark.both
@pytest.mark.parametrize("size, count", CASES)
def test_c_opens_what_ours_left(impl, box, size, count):
    go_on_with(Bench(box, 0, model=SHELF["rust", size, count]))


@pytest.mark.both
@pytest.mark.phases("c-again")
def test_by_turns(impl, box, rng, rust_module):
    """C and ours open the same store twenty times in turn, each with random writes."""
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
def test_next_free(impl, box, same, size):
    """The first exception after a load is never put on an area, wherever the records end."""
    most = cow.per_area(size)
    lists = [cow.numbered(range(1000, 1000 + count), size) for count in counts(size)[2:6]]
    # Chunks that were reserved when the power went away leave gaps; the last one may stand before
    # an area.
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
    """Behind the header, behind the end of the list, and in later areas there may be anything."""
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


# header fields: errno, what is said before; C leaves the COW device as it is
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
    """C gets the memory for four chunks first: four GiB, if the header says so."""
    bench = Bench(box)
    bench.store.write(0, cow.header(size) + bytes(496))
    got, _ = refused(bench, log)
    assert got in (EIO, errno.EINVAL)


@pytest.mark.parametrize("valid", [0, 1, 2, 0x80000000])
def test_valid(impl, box, log, same, valid):
    """An invalid store can be opened, only to see that it is; nothing behind its header is looked
    at.
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


# Damage. C takes what it reads for granted: some of these are a BUG in the kernel, others lose data
# later.

FUZZ = {  # what becomes of a record, and whether the store can be opened
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
    """Several records whose chunks of the origin, or of the COW device, are anything."""
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
    """Loads a store with these records: refused, or read in the way of the format, used, and read
    again.
    """
    bench = Bench(box, 1, image=soil(400))
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
        # Chunks of which the records say something else, and one of which they say nothing.
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
    """A full area at the end of the device: the next one, which must be read, is not there."""
    most = cow.per_area(size)
    bench = Bench(box, size, image=bytes((most + 2) * size * 512))
    chunks = cow.metadata(size, cow.numbered(range(most), size))
    del chunks[cow.area_at(1, size)]
    cow.put(bench.store, size, chunks)
    got, _ = refused(bench, log)
    assert got in (EIO, errno.EINVAL)


@pytest.mark.parametrize("area", [0, 1, 2, 4, 5, 6, 8])
def test_unreadable_area(impl, box, log, area):
    """Areas are read ahead: one that cannot be read matters only if the list goes on there, here up
    to area 4.
    """
    bench = Bench(box, 1, image=soil(400))
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
    """The power went away while an area was written: some of its sectors are old, others new.
    Records behind the end of the list never come back, however many exceptions follow; on C they
    hide data that was written since.
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


# The end of the COW device


def fill_up(bench, room):
    """Takes chunks until the store is full, the last ones singly; tells how many fitted."""
    size, count = bench.model.size, max(room - 3, 0)
    if count:
        bench.write(0, pattern("new", count * size))
    for count in range(count, room + 3):
        try:
            bench.snap.write(count * size, pattern(f"new {count}", 1))
        except OSError as error:
            assert error.errno == EIO
            return count
        bench.model.write(count * size, pattern(f"new {count}", 1))
    raise AssertionError("the store is larger than it can be")


def check_full(bench, room, same, log):
    """Fills a store to the last chunk and one further."""
    size, kind = bench.model.size, bench.kind
    mark = log.mark()
    bench.start()
    assert fill_up(bench, room) == room
    lines = log.lines(mark)
    assert not any("beyond end of device" in line for line in lines), lines
    if kind == "P":
        assert bench.snap.status() == "Invalid"
        wait.until(lambda: bench.snap.event == 1, "an event")
        assert any("Invalidating snapshot: Unable to allocate exception." in line for line in lines)
        bench.model.image[4] = 0
    else:
        assert bench.snap.status() == "Overflow"
        assert any("Snapshot overflowed: Unable to allocate exception." in line for line in lines)
        bench.check_shown()
        with pytest.raises(OSError) as error:
            bench.snap.write(0, pattern("a", 1))
        assert error.value.errno == EIO
    same([line for line in lines if "device-mapper: " in line])
    bench.stop()
    bench.check_image()
    bench.start()
    assert bench.snap.status() == ("Invalid" if kind == "P" else bench.model.status())
    if kind == "PO":
        bench.check_shown()
    bench.stop()


def exact(size, areas, more, odd=0):
    """Sectors of a device that ends so many chunks (and some sectors) behind its last area's data."""
    return (cow.area_at(areas, size) + more) * size + odd


@pytest.mark.parametrize("kind", ["P", "PO"])
@pytest.mark.parametrize(
    "size, areas, more, odd",
    [
        (1, 1, -1, 0),
        (1, 1, 1, 0),
        (1, 2, 2, 0),
        (8, 0, 1, 0),
        (8, 0, 4, 3),
        (8, 1, -1, 7),
        (8, 1, 1, 0),
    ],
)
def test_full(impl, box, log, same, kind, size, areas, more, odd):
    """A store that ends just before an area or behind it, filled by writes to the snapshot."""
    sectors = exact(size, areas, more, odd)
    bench = Bench(box, size, pattern("origin", sectors + 4 * size), soil(sectors), kind)
    check_full(bench, cow.capacity(sectors // size, size), same, log)


@pytest.mark.only("rust")
@pytest.mark.parametrize("kind", ["PO", "P"])
@pytest.mark.parametrize("size, areas, odd", [(1, 1, 0), (1, 2, 0), (8, 1, 0), (8, 1, 5)])
def test_full_at_an_area(impl, box, log, same, kind, size, areas, odd):
    """The last chunk of data would fill an area, and the device ends behind it: it stays free,
    because the area after a full one must be there. C writes past the end, and the snapshot is
    invalid even with overflow support.
    """
    sectors = exact(size, areas, 0, odd)
    bench = Bench(box, size, pattern("origin", sectors + 4 * size), soil(sectors), kind)
    room = cow.capacity(sectors // size, size)
    assert room == areas * cow.per_area(size) - 1
    check_full(bench, room, lambda _: None, log)
    if kind == "PO":
        SHELF["full", size, areas, odd] = bench.model


@pytest.mark.phases("c-again")
@pytest.mark.both
@pytest.mark.parametrize("size, areas, odd", [(1, 1, 0), (1, 2, 0), (8, 1, 0), (8, 1, 5)])
def test_c_opens_a_full_store(impl, box, size, areas, odd):
    model = SHELF["full", size, areas, odd]
    bench = Bench(box, size, model=model).start()
    assert bench.snap.status() == model.status()
    bench.check_shown()


@pytest.mark.parametrize("size, before, after", [(1, 20, 80), (1, 33, 35), (8, 100, 300)])
def test_growing_device(impl, box, log, same, size, before, after):
    """The COW device is made longer below a live snapshot: the total grows at once, and with it the
    room.
    """
    bench = Bench(box, size, pattern("origin", (after + 9) * size), soil(after * size), "PO")
    lower = bench.store
    grown = f"0 {after * size} linear {lower.dev} 0"
    bench.store = box.mapped(f"0 {before * size} linear {lower.dev} 0")
    bench.start()
    room, most = cow.capacity(before, size), cow.capacity(after, size)
    bench.take(range(room))
    status = bench.snap.status()
    assert status == bench.model.status().replace(f"/{after * size} ", f"/{before * size} ")
    bench.store.swap(grown)
    assert bench.snap.status() == bench.model.status()
    bench.take(range(room, most))
    with pytest.raises(OSError):
        bench.snap.write(most * size, bytes(512))
    same((status, bench.snap.status()))
    assert bench.snap.status() == "Overflow"
    bench.check_shown()
    bench.stop()
    bench.store = lower
    bench.check_image()
