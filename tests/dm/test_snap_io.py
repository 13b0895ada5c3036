"""snapshot and snapshot-origin: what reads and writes return, one at a time and concurrently."""

import threading

import pytest

from lib import snaps, wait
from lib.box import assert_same, pattern
from lib.chance import take_steps
from lib.disk import in_flight, requests
from lib.snaps import Family, chunk_of

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
        """Removes a snapshot and takes another one."""
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
    """Threads share each chunk, each with sectors of its own, on the origin and on three
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

    # A snapshot shows what was written to the origin before it was taken, and nothing later.
    workers = [family.box.background(work, number, rng.random()) for number in range(threads)]
    for worker in workers:
        worker.result()
    family.check()


# Concurrent I/O


@pytest.mark.crowd
def test_many_writers_one_exception(family):
    """Sixty-four writers to one chunk, half of them through the snapshot: it is copied once, and
    each write arrives.
    """
    snapshot = family.layered().snap("P", 64)
    origin = family.origin
    family.real.hold()
    before = family.disk.stats()
    writers = [
        family.writer(snapshot if n % 2 else origin, 128 + n, pattern(f"writer {n}", 1))
        for n in range(64)
    ]
    wait.until(lambda: in_flight(snapshot) == in_flight(origin) == 32, "all are in flight")
    assert not any(writer.done for writer in writers)
    family.real.release()
    for writer in writers:
        writer.result()
    assert (family.disk.stats() - before).read_sectors == 64
    assert snapshot.exceptions() == 1
    family.check()


def test_whole_chunk_write_waits_for_a_copy(family):
    """A partial write starts a copy, which must not overwrite a later write of the whole chunk."""
    snapshot = family.layered().snap("P", 64)
    family.real.hold()
    partial = family.box.background(snapshot.write, 64 + 3, pattern("partial", 5))
    wait.until(lambda: in_flight(family.real) == 1, "the copy is reading")
    whole = family.box.background(snapshot.write, 64, pattern("whole", 64))
    wait.until(lambda: in_flight(snapshot) == 2, "the second is in flight")
    family.real.release()
    whole.result()
    partial.result()
    got = snapshot.read(64, 64)
    family.wrote(snapshot, 64, pattern("whole", 64))
    if got[3 * 512 : 8 * 512] == pattern(
        "partial", 5
    ):  # either may come last, for both were in flight together
        family.wrote(snapshot, 64 + 3, pattern("partial", 5))
    family.check()


def test_partial_write_waits_for_a_whole_chunk_write(family):
    """A write of a whole chunk is in flight to the COW device; it does not overwrite a later
    partial write.
    """
    snapshot = family.snap("P", 64)
    snapshot.cow.hold()
    whole = family.box.background(snapshot.write, 64, pattern("whole", 64))
    wait.until(lambda: in_flight(snapshot.cow) == 1, "the first is at the COW")
    partial = family.box.background(snapshot.write, 64 + 3, pattern("partial", 5))
    wait.until(lambda: in_flight(snapshot) == 2, "the second is in flight")
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
def test_tracked_read_delays_the_overwrite(family):
    """A read of the snapshot is in flight to the origin when its chunk gets an exception that needs
    no copy. The origin is not overwritten before the read has ended.
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
    wait.until(lambda: in_flight(origin) == 1, "the write is in flight")
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
    """Reads of the origin are slow, writes are not. The snapshot reads what it held, however
    late.
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
    """The last of 32 chunks has 59 of 64 sectors; beyond the end of the origin there is nothing to
    read.
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
    """A write beyond the end of the snapshot makes no exception; a write across the end makes
    one.
    """
    snapshot = family.snap("P", 8, length=length)
    family.write(family.origin, 2048, pattern("beyond", 2048))
    family.write(family.origin, 4095, pattern("last", 1))
    assert snapshot.exceptions() == 0
    family.write(family.origin, 2040, pattern("across", 16))
    assert snapshot.exceptions() == 1
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
    """A snapshot of 15 PiB of zeros: large chunk numbers, and runs of chunks across multiples of
    256.
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
def test_snapshot_of_an_origin_in_use(family):
    """The origin was not suspended when the snapshot went live: C would keep only the first chunk
    of a large write.
    """
    origin = family.origin
    snapshot = family.box.own(snaps.Snapshot(family.real, family.cow(8), size=8))
    snapshot.expected = bytearray(family.data)
    family.snapshots.append(snapshot)
    family.write(origin, 1027, pattern("large", 2048))
    assert snapshot.exceptions() == 257
    family.check()
