"""snapshot and snapshot-origin: what reads and writes return, what they cost, in which order things
reach the disks.
"""

import threading

import pytest

from lib import cow, snaps, wait
from lib.box import assert_same, pattern
from lib.chance import take_steps
from lib.disk import in_flight
from lib.logwrites import Recorder, write_fua
from lib.snaps import Family, Gate, chunk_of


def requests(disk, call, *args):
    """What a call costs a disk."""
    before = disk.stats()
    call(*args)
    return disk.stats() - before


# Random work


class Chaos(snaps.Chaos):
    """A family, and steps that a seed chooses."""

    def __init__(self, box, rng, sizes, sectors):
        super().__init__(Family(box, sectors=sectors), rng, sizes)

    def run(self, turns):
        take_steps(
            self.rng,
            {
                self.read: 6,
                self.write: 8,
                self.write_chunks: 4,
                self.flush: 1,
                self.zero: 0.5,
                self.suspend: 1,
                self.reload: 1,
                self.reopen: 0.5,
                self.replace: 0.5,
            },
            turns,
        )
        self.family.check()

    def any(self):
        return self.rng.choice([self.family.origin, *self.family.snapshots])

    def range(self, most):
        count = self.rng.choice((1, 1, 2, self.rng.randrange(1, most)))
        return self.rng.randrange(self.family.sectors - count + 1), count

    def write(self):
        start, count = self.range(self.rng.choice((10, 600, 2048)))
        self.family.write(
            self.any(), start, self.rng.randbytes(count * 512), fua=self.rng.random() < 0.1
        )

    def write_chunks(self):
        """Whole chunks, of this snapshot or of another."""
        size = self.rng.choice(self.family.snapshots).size
        chunks = min(self.rng.choice((1, 1, 2, 10)), 1024 // size + 1)
        start = self.rng.randrange(self.family.sectors // size - chunks) * size
        self.family.write(self.any(), start, self.rng.randbytes(chunks * size * 512))

    def suspend(self):
        device = self.any()
        device.suspend(noflush=self.rng.random() < 0.5)
        device.resume()

    def reload(self):
        device = self.any()
        device.swap(device.line)

    def reopen(self):
        snapshot = self.rng.choice(self.family.snapshots)
        if snapshot.kind != "N":
            self.family.reopen(snapshot)

    def replace(self):
        """One snapshot less and another more."""
        snapshot = self.rng.choice(self.family.snapshots)
        self.family.check(snapshot)
        self.family.close(snapshot)
        self.family.snap(snapshot.kind, snapshot.size)


@pytest.mark.parametrize(
    "sizes, sectors",
    [
        ((8,), 8192),
        ((16, 16, 16), 8192 - 27),
        ((64, 8, 1), 8192 - 1),
        ((1, 8, 32, 128, 8, 16, 1024, 64), 8192),
    ],
)
def test_random_steps(impl, box, rng, sizes, sectors):
    Chaos(box, rng, sizes, sectors).run(80)


@pytest.mark.crowd
def test_threads(family, rng):
    """Threads that share every chunk, each with sectors of its own, on the origin and on three
    snapshots.
    """
    for kind, size in (("P", 8), ("PO", 64), ("N", 16)):
        family.snap(kind, size)
    devices, threads = [family.origin, *family.snapshots], 8

    def work(number, seed):
        import random

        own = random.Random(seed)
        device = devices[number % len(devices)]
        for _ in range(60):
            sector = own.randrange(family.sectors // threads) * threads + number
            if own.random() < 0.7:
                family.write(device, sector, own.randbytes(512), fua=own.random() < 0.1)
            else:
                family.read(device, sector, 1)

    # A snapshot holds what the origin was given before it was taken; nothing else moves between
    # them.
    workers = [family.box.background(work, number, rng.random()) for number in range(threads)]
    for worker in workers:
        worker.result()
    family.check()


# What a write costs


@pytest.mark.parametrize(
    "kind, size, offset, sectors",
    [
        ("P", 8, 3, 2),
        ("PO", 8, 0, 1),
        ("N", 8, 7, 1),
        ("P", 64, 5, 50),
        ("N", 64, 1, 63),
        ("PO", 1024, 1000, 3),
    ],
)
def test_partial_write_copies_once(family, kind, size, offset, sectors):
    """Through the snapshot and through the origin: one read of the chunk by the first, none by the
    next.
    """
    snapshot, start = family.snap(kind, size), 2 * size
    for at, device in ((start, snapshot), (start + size, family.origin)):
        done = requests(family.disk, family.write, device, at + offset, pattern("new", sectors))
        assert done.read_sectors == size
        for again in (device, snapshot, family.origin):
            assert not requests(
                family.disk, family.write, again, at + offset, pattern("again", sectors)
            ).reads
    assert snapshot.exceptions() == 2
    family.check()


@pytest.mark.parametrize(
    "size, start, count", [(8, 4, 1), (64, 3, 1), (8, 4, 16), (1, 100, 64), (8, 0, 256)]
)
def test_whole_chunks_are_not_read_first(family, size, start, count):
    """Of the snapshot. A whole chunk of the origin is copied like any other."""
    snapshot = family.snap("P", size)
    data = pattern("new", count * size)
    assert not requests(family.disk, family.write, snapshot, start * size, data).reads
    assert snapshot.exceptions() == count
    done = requests(family.disk, family.write, family.origin, (start + count) * size, data)
    assert done.read_sectors == count * size
    assert snapshot.exceptions() == 2 * count
    family.check()


def test_large_write_reads_its_edges(family):
    """A write from the middle of a chunk to the middle of another: only these two are read."""
    snapshot = family.snap("P", 64)
    done = requests(family.disk, family.write, snapshot, 64 + 40, pattern("new", 512))
    assert done.read_sectors == 128
    assert snapshot.exceptions() == 9
    family.check()


def test_reads_cost_nothing_more(family):
    """A chunk without exception is read from the origin, one with it from the COW; no read makes
    one.
    """
    snapshot = family.snap("P", 8)
    assert requests(family.disk, family.check, snapshot).read_sectors == family.sectors
    family.write(snapshot, 80, pattern("new", 8))
    assert not requests(family.disk, family.read, snapshot, 80, 8).reads
    assert requests(snapshot.cow.lower, family.read, snapshot, 0, 80).reads == 0
    assert snapshot.exceptions() == 1


@pytest.mark.only("rust")
@pytest.mark.parametrize("number", [2, 8])
def test_one_read_for_all_snapshots(family, number):
    """Snapshots with chunks of one size are given a chunk by one read; others by another. With C
    each reads.
    """
    for _ in range(number):
        family.snap("P", 8)
    other = family.snap("P", 64)
    assert (
        requests(family.disk, family.write, family.origin, 64, pattern("new", 3)).read_sectors
        == 8 + 64
    )
    assert (
        requests(family.disk, family.write, family.origin, 80, pattern("new", 8)).read_sectors == 8
    )
    # One that has the chunk already does not matter to the others.
    family.write(family.snapshots[0], 128, pattern("own", 8))
    family.write(other, 128, pattern("own", 64))
    assert (
        requests(family.disk, family.write, family.origin, 128, pattern("new", 3)).read_sectors == 8
    )
    assert [snapshot.exceptions() for snapshot in family.snapshots] == [3] * number + [2]
    family.check()


def linear(family):
    """What the same requests cost through a linear device."""
    return family.box.mapped(f"0 {family.sectors} linear {family.disk.dev} 0")


def test_origin_without_snapshots_is_passed_through(family):
    """As many requests as through a linear device, for a mebibyte."""
    data, other = pattern("large", 2048), linear(family)
    for device in (family.origin, other):
        write = requests(family.disk, device.write, 1024, data)
        read = requests(family.disk, device.read, 1024, 2048)
        if device is family.origin:
            first = write.writes, read.reads
    assert first == (write.writes, read.reads)
    family.wrote(family.origin, 1024, data)
    family.check()


@pytest.mark.only("rust")
def test_large_io_stays_whole_where_nothing_is_copied(family):
    """C cuts everything at chunks."""
    snapshot, other, data = family.snap("P", 8), linear(family), pattern("large", 2048)
    reads = requests(family.disk, other.read, 1024, 2048).reads
    assert requests(family.disk, family.read, snapshot, 1024, 2048).reads == reads, "not copied yet"
    family.write(family.origin, 1024, data)
    writes = requests(family.disk, other.write, 1024, data).writes
    assert (
        requests(family.disk, family.write, family.origin, 1024, data).writes == writes
    ), "copied already"
    # The COW has the chunks in the order of their numbers, but for an area in between.
    assert requests(snapshot.cow.lower, family.read, snapshot, 1024, 2048).reads <= 2 * reads
    assert (
        requests(snapshot.cow.lower, family.write, snapshot, 1024, pattern("own", 2048)).writes
        <= 2 * writes
    )
    family.check()


# Many at a time


@pytest.mark.crowd
def test_many_writers_one_exception(family):
    """Sixty-four writers to one chunk, half through the snapshot: it is copied once and every write
    lands.
    """
    snapshot = family.layered().snap("P", 64)
    origin = family.origin
    family.real.hold()
    before = family.disk.stats()
    writers = [
        family.writer(snapshot if n % 2 else origin, 128 + n, pattern(f"writer {n}", 1))
        for n in range(64)
    ]
    wait.until(lambda: in_flight(snapshot) == in_flight(origin) == 32, "all are on their way")
    assert not any(writer.done for writer in writers)
    family.real.release()
    for writer in writers:
        writer.result()
    assert (family.disk.stats() - before).read_sectors == 64
    assert snapshot.exceptions() == 1
    family.check()


def test_whole_chunk_write_waits_behind_a_copy(family):
    """A partial write starts a copy; a write of the whole chunk that comes meanwhile must not lose
    to it.
    """
    snapshot = family.layered().snap("P", 64)
    family.real.hold()
    partial = family.box.background(snapshot.write, 64 + 3, pattern("partial", 5))
    wait.until(lambda: in_flight(family.real) == 1, "the copy is reading")
    whole = family.box.background(snapshot.write, 64, pattern("whole", 64))
    wait.until(lambda: in_flight(snapshot) == 2, "the second is on its way")
    family.real.release()
    whole.result()
    partial.result()
    got = snapshot.read(64, 64)
    family.wrote(snapshot, 64, pattern("whole", 64))
    if got[3 * 512 : 8 * 512] == pattern(
        "partial", 5
    ):  # either may come last, for both were in flight at once
        family.wrote(snapshot, 64 + 3, pattern("partial", 5))
    family.check()


def test_partial_write_waits_behind_a_whole_chunk(family):
    """A write of a whole chunk is on its way to the COW; a partial one that comes meanwhile is not
    lost under it.
    """
    snapshot = family.snap("P", 64)
    snapshot.cow.hold()
    whole = family.box.background(snapshot.write, 64, pattern("whole", 64))
    wait.until(lambda: in_flight(snapshot.cow) == 1, "the first is at the COW")
    partial = family.box.background(snapshot.write, 64 + 3, pattern("partial", 5))
    wait.until(lambda: in_flight(snapshot) == 2, "the second is on its way")
    assert snapshot.read(64, 64) == chunk_of(
        family.data, 1, 64
    ), "not yet written, so still the origin's"
    snapshot.cow.release()
    whole.result()
    partial.result()
    got = snapshot.read(64, 64)
    assert (
        got[: 3 * 512] + got[8 * 512 :]
        == pattern("whole", 64)[: 3 * 512] + pattern("whole", 64)[8 * 512 :]
    )
    assert got[3 * 512 : 8 * 512] in (
        pattern("partial", 5),
        pattern("whole", 64)[3 * 512 : 8 * 512],
    )


@pytest.mark.parametrize("kind", ["P", "N"])
def test_reads_go_on_during_a_copy(family, kind):
    """Only writes wait for a copy, of the snapshot and of the origin."""
    snapshot = family.snap(kind, 64)
    snapshot.cow.hold()
    writers = [
        family.writer(family.origin, 64, pattern("new", 64)),
        family.writer(snapshot, 130, pattern("own", 1)),
    ]
    wait.until(lambda: in_flight(snapshot.cow) == 2, "both copies are at the COW")
    family.read(snapshot, 0, 2048)
    family.read(family.origin, 0, 2048)
    assert not any(writer.done for writer in writers)
    snapshot.cow.release()
    for writer in writers:
        writer.result()
    family.check()


@pytest.mark.crowd
def test_reader_holds_back_the_overwrite(family):
    """A read of the snapshot is on its way to the origin, when its chunk gets an exception, which
    needs no copy. The origin is not overwritten before the read has ended.
    """
    snapshot = family.layered().snap("P", 8)
    origin = family.origin
    family.write(origin, 80, pattern("copied", 8))
    family.real.hold()
    reader = family.box.background(snapshot.read, 40, 8)
    wait.until(lambda: in_flight(family.real) == 1, "the read is at the origin")
    first = family.writer(snapshot, 40, pattern("whole", 8))
    wait.until(
        lambda: snapshot.cow.lower.read(24, 8) == pattern("whole", 8), "the chunk has an exception"
    )
    second = family.writer(origin, 40, pattern("new", 8))
    wait.until(lambda: in_flight(origin) == 1, "the write is on its way")
    third = family.writer(origin, 80, pattern("free", 8))
    wait.until(
        lambda: in_flight(family.real) == 2, "a later one that need not wait is at the origin"
    )
    assert not second.done
    family.real.release()
    assert reader.result() == chunk_of(family.data, 5, 8)
    for writer in (first, second, third):
        writer.result()
    family.check()


@pytest.mark.crowd
def test_slow_origin(family):
    """Reads of the origin take their time, writes do not. What the snapshot reads is what was
    there, however late.
    """
    disk = family.disk
    family.real = family.box.mapped(f"0 {family.sectors} delay {disk.dev} 0 30 {disk.dev} 0 0")
    snapshot = family.snap("P", 8)
    stop = threading.Event()

    def read(chunk):
        turns = 0
        while not stop.is_set() or turns < 2:
            assert snapshot.read(chunk * 8, 8) == chunk_of(family.data, chunk, 8)
            turns += 1

    readers = [family.box.background(read, n) for n in range(8)]
    wait.until(lambda: in_flight(snapshot) == 8, "all are reading")
    writers = [family.writer(family.origin, n * 8 + n, pattern(f"new {n}", 1)) for n in range(8)]
    for writer in writers:
        writer.result()
    stop.set()
    for reader in readers:
        reader.result()
    family.check()


# The ends of devices


@pytest.mark.parametrize(
    "device, offset, sectors",
    [
        ("snapshot", 50, 9),
        ("snapshot", 0, 59),
        ("snapshot", -20, 79),
        ("origin", 0, 59),
        ("origin", -20, 79),
        ("origin", 58, 1),
    ],
)
def test_short_last_chunk(impl, box, device, offset, sectors):
    """The last of 32 chunks has 59 of 64 sectors, and behind the end of the origin there is nothing
    to read.
    """
    family = Family(box, sectors=2048 - 5)
    snapshot = family.snap("P", 64)
    target = family.origin if device == "origin" else snapshot
    done = requests(family.disk, family.write, target, 31 * 64 + offset, pattern("new", sectors))
    assert done.read_sectors <= 59 + 64 * (offset < 0)
    family.check()
    family.reopen(snapshot)
    family.check()


@pytest.mark.parametrize("length", [2048, 2048 - 5])
def test_origin_longer_than_the_snapshot(family, length):
    """What is written beyond the end of the snapshot makes no exception; a write across the end
    makes one.
    """
    snapshot = family.snap("P", 8, length=length)
    family.write(family.origin, 2048, pattern("beyond", 2048))
    family.write(family.origin, 4095, pattern("last", 1))
    assert snapshot.exceptions() == 0
    family.write(family.origin, 2040, pattern("across", 16))
    assert snapshot.exceptions() == 1
    family.check()


# Order


def test_flush(impl, box):
    """A flush of the snapshot goes to the COW, one of the origin to the origin, and neither makes
    an exception.
    """
    family = Family(box, cache=True)
    snapshot = family.snap("P", 8)
    disks = family.disk, snapshot.cow.lower
    for device, flushes in ((snapshot, (0, 1)), (family.origin, (1, 0))):
        before = [disk.stats() for disk in disks]
        device.flush()
        done = [disk.stats() - stats for disk, stats in zip(disks, before)]
        assert tuple(one.flushes for one in done) == flushes
        assert not any(one.write_sectors for one in done)


def order(recorder):
    """What was written to the origin and to the COW, with the flushes, in order: the words of the
    tests below.
    """
    words = []
    for entry in recorder.entries():
        if entry.where == "dest":
            words.append("flush origin" if entry.flush else f"origin {entry.sectors[0][0]}")
        elif entry.flush:
            words.append("flush")
        else:
            first, last = entry.sectors[0][0] // 8, entry.sectors[-1][0] // 8
            word = "header" if first == 0 else "record" if first == last == 1 else f"data {first}"
            words.append(f"{word}{' FUA' if entry.fua else ''}")
    return words


@pytest.fixture
def recorded(impl, box):
    """A family whose origin and COW are on one log."""
    recorder = Recorder(box, 0, meta_sectors=1024)
    content = pattern("origin", 2048)
    recorder.start(
        [bytes(512)] * 1024, [content[at : at + 512] for at in range(0, len(content), 512)]
    )
    family = Family(box, real=recorder.dest, sectors=2048)
    family.snap("P", 8, cow=recorder.meta)
    family.recorder = recorder
    return family


def end(family):
    """Ends the recording: whatever is not flushed is written to the log first."""
    snapshot, origin = family.snapshots[0], family.origin
    family.check(snapshot, origin)
    snapshot.flush()
    origin.flush()
    snapshot.remove()
    origin.remove()
    return order(family.recorder)


def test_order_of_an_origin_write(recorded):
    """The copy, a flush, the record with FUA, and only then the origin."""
    recorded.write(recorded.origin, 43, pattern("new", 2))
    words = end(recorded)
    assert words.index("data 2") < words.index("record FUA") < words.index("origin 43")
    assert "flush" in words[words.index("data 2") : words.index("record FUA")]


@pytest.mark.parametrize("sectors", [8, 3])
def test_order_of_a_snapshot_write(recorded, sectors):
    """A whole chunk: its data, a flush, the record. A part of one: the copy, a flush, the record,
    the data.
    """
    snapshot, data = recorded.snapshots[0], pattern("new", sectors)
    recorded.write(snapshot, 40, data)
    words = end(recorded)
    assert words.index("data 2") < words.index("record FUA")
    assert "flush" in words[words.index("data 2") : words.index("record FUA")]
    assert words.count("data 2") == (1 if sectors == 8 else 2)
    assert sectors == 8 or "data 2" in words[words.index("record FUA") :]
    assert not any(word.startswith("origin") for word in words)


@pytest.mark.parametrize("device", ["snapshot", "origin"])
def test_fua_reaches_the_disk(recorded, device):
    """Of a chunk that has its exception, so that nothing else is written."""
    target = recorded.origin if device == "origin" else recorded.snapshots[0]
    recorded.write(recorded.snapshots[0], 40, pattern("before", 8))
    data = pattern("durable", 2)
    write_fua(target.path, 42, data)
    recorded.wrote(target, 42, data)
    recorder = recorded.recorder
    recorded.check(*recorded.snapshots, recorded.origin)
    for it in (*recorded.snapshots, recorded.origin):
        it.remove()
    where, at = ("dest", 42) if device == "origin" else ("meta", 18)
    found = [
        it
        for it in recorder.entries()
        if it.where == where and it.sectors[:1] == [(at, data[:512])]
    ]
    assert [entry.fua for entry in found] == [True]


@pytest.mark.parametrize("device", ["snapshot", "origin"])
def test_writes_wait_for_the_record(impl, box, device):
    """The COW lies on two disks: one has header and area, the other the data. While the first is
    held, the copy is made and flushed, and that is all. While the second is held, there is no
    record.
    """
    family = Family(box, cache=True)
    front, back = (Gate(box, box.ram(mib, cache=True)) for mib in (1, 8))
    snapshot = family.snap(
        "P", 8, cow=box.mapped(f"0 16 linear {front.dev} 0", f"16 8192 linear {back.dev} 0")
    )
    target = family.origin if device == "origin" else snapshot
    for turn, held in enumerate((front, back)):
        flushes = back.lower.stats().flushes
        held.hold()
        writer = family.writer(target, 43 + 80 * turn, pattern("new", 2))
        if held is front:
            wait.until(lambda: back.lower.stats().flushes > flushes, "the copy is flushed")
            assert_same(back.lower.read(0, 8), chunk_of(family.data, 5, 8), where="the copy")
        else:
            wait.until(lambda: in_flight(back) >= 1, "the copy is at the disk")
        assert len(cow.Store(front.lower.content()).records) == turn, "a record is there too early"
        assert not writer.done
        assert family.disk.content() == family.origin.expected
        held.release()
        writer.result()
    assert snapshot.exceptions() == 2
    family.check()


# The throttle


@pytest.fixture
def throttle(impl):
    """Sets the parameters, and puts them back afterwards."""
    files = {
        name: snaps.parameter(impl, name)
        for name in ("snapshot_cow_threshold", "snapshot_copy_throttle")
    }
    before = {name: file.read_text() for name, file in files.items()}
    assert [int(text) for text in before.values()] == [2048, 100]
    yield lambda name, value: files[name].write_text(str(value))
    for name, text in before.items():
        files[name].write_text(text)


@pytest.mark.crowd
@pytest.mark.parametrize("device", ["snapshot", "origin"])
@pytest.mark.parametrize("threshold", [1, 8])
def test_threshold(impl, family, throttle, device, threshold):
    """So many chunks are copied at a time, and few more; the other writers wait for their turn, and
    reads do not.
    """
    snapshot = family.snap("P", 8)
    target = family.origin if device == "origin" else snapshot
    throttle("snapshot_cow_threshold", threshold)
    before = family.disk.stats()
    snapshot.cow.hold()
    writers = [family.writer(target, n * 8, pattern(f"w{n}", 1)) for n in range(24)]
    wait.until(lambda: in_flight(snapshot.cow) >= threshold, "copies are at the COW")
    if impl == "rust":  # with C they sleep before they are counted
        wait.until(lambda: in_flight(target) == 24, "all are on their way")
    family.read(snapshot, 1024, 8)
    family.read(family.origin, 1024, 8)
    assert (family.disk.stats() - before).read_sectors <= (threshold + 1) * 8 + 16
    assert in_flight(snapshot.cow) <= threshold + 1
    snapshot.cow.release()
    for writer in writers:
        writer.result()
    assert snapshot.exceptions() == 24
    # Without the limit.
    throttle("snapshot_cow_threshold", 2048)
    snapshot.cow.hold()
    writers = [family.writer(target, (n + 32) * 8, pattern(f"v{n}", 1)) for n in range(24)]
    wait.until(lambda: in_flight(snapshot.cow) == 24, "all copies are at the COW")
    snapshot.cow.release()
    for writer in writers:
        writer.result()
    family.check()


def test_large_writes_under_a_low_threshold(family, throttle):
    """A write of many chunks alone is more than the limit."""
    snapshots = [family.snap("P", 8), family.snap("N", 16)]
    for threshold in (1, 0):
        throttle("snapshot_cow_threshold", threshold)
        for n, device in enumerate((family.origin, *snapshots)):
            family.write(device, threshold * 2048 + 100 + n * 300, pattern("large", 1200))
    family.check()


@pytest.mark.parametrize("percent", [1, 100, 0])
def test_copy_throttle(family, throttle, percent):
    """However little time copies are given, they come to an end."""
    family.snap("P", 8)
    throttle("snapshot_copy_throttle", percent)
    family.write(family.origin, 100, pattern("new", 100))
    family.check()


# Other stores and origins


def test_transient_store(family):
    """Data from the first chunk on, no metadata, and nothing left after removal."""
    snapshot = family.snap("N", 8)
    assert snapshot.status() == f"0/{snapshot.cow.sectors} 0"
    family.write(snapshot, 83, pattern("own", 2))
    family.write(family.origin, 160, pattern("new", 8))
    assert snapshot.status() == f"16/{snapshot.cow.sectors} 0"
    assert snapshot.cow.lower.read(8, 8) == chunk_of(family.data, 20, 8)
    family.check()
    snapshot = family.reopen(snapshot)
    assert snapshot.exceptions() == 0
    family.check()


def test_sparse_device(impl, box):
    """A snapshot of 15 PiB of zeros: chunks with large numbers, and runs of chunks across multiples
    of 256.
    """
    sectors = (15 << 41) + 8192
    zeros = box.mapped(f"0 {sectors} zero")
    disk = box.ram(8)
    written = {}

    def check():
        for sector, data in written.items():
            assert_same(snapshot.read(sector, len(data) // 512), data, where=f"sector {sector}")
            assert not any(snapshot.read(sector ^ 8192, 8))

    snapshot = box.own(snaps.Snapshot(zeros, disk, length=15 << 41))
    for chunk in (0, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 41) + 77, (15 << 38) - 1):
        written[chunk * 8] = pattern(f"chunk {chunk}", 8)
        snapshot.write(chunk * 8, written[chunk * 8])
    run = ((1 << 40) + 250) * 8
    for chunk in range(12):
        snapshot.write(run + chunk * 8 + 2, pattern(f"part {chunk}", 3))
    written[run] = b"".join(
        bytes(1024) + pattern(f"part {chunk}", 3) + bytes(1536) for chunk in range(12)
    )
    check()
    assert snapshot.exceptions() == 18
    line = snapshot.line
    snapshot.remove()
    snapshot = box.own(snaps.Snapshot(zeros, disk, length=15 << 41))
    assert snapshot.line == line and snapshot.exceptions() == 18
    check()


@pytest.mark.only("rust")
def test_snapshot_of_a_working_origin(family):
    """The origin was not suspended when the snapshot went live: C would keep the first chunk of a
    large write alone.
    """
    origin = family.origin
    snapshot = family.box.own(snaps.Snapshot(family.real, family.cow(8), size=8))
    snapshot.expected = bytearray(family.data)
    family.snapshots.append(snapshot)
    family.write(origin, 1027, pattern("large", 2048))
    assert snapshot.exceptions() == 257
    family.check()
