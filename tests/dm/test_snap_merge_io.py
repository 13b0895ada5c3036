"""snapshot-merge: reads and writes of the origin during a merge, at random and while the merge is
held at each kind of I/O.
"""

import errno
import random
import threading

import pytest

from lib import cow, snaps, wait
from lib.box import pattern
from lib.chance import take_steps
from lib.disk import in_flight
from lib.merges import Parts, must_complete
from lib.expect import fails
from lib.snaps import Family, Valve


class Chaos(snaps.Chaos):
    """A merge, and steps that a seed chooses."""

    def __init__(self, impl, family, rng, others, turns):
        super().__init__(family, rng, others)
        self.impl, self.turns = impl, turns

    def any(self):
        return self.rng.choice([self.family.origin] * 4 + self.family.snapshots)

    def range(self, most=600):
        count = self.rng.choice((1, 1, 2, 8, self.rng.randrange(1, most)))
        return self.rng.randrange(self.family.sectors - count + 1), count

    def write(self):
        start, count = self.range()
        self.family.write(
            self.any(), start, self.rng.randbytes(count * 512), fua=self.rng.random() < 0.2
        )

    def write_chunks(self):
        size = self.family.merging.size
        count = self.rng.choice((1, 1, 2, 10))
        start = self.rng.randrange(self.family.sectors // size - count) * size
        self.family.write(self.family.origin, start, self.rng.randbytes(count * size * 512))

    def suspend(self):
        device = self.any()
        device.suspend(noflush=self.rng.random() < 0.5, lockfs=self.rng.random() < 0.2)
        device.resume()

    def recreate_merge(self):
        self.family.recreate_merge()

    def reload(self):
        """Reloads another snapshot, if there is one. C loses copies unless the merge is
        suspended.
        """
        front, suspended = self.family.origin, self.impl == "c" or self.rng.random() < 0.5
        for other in self.rng.sample(self.family.snapshots, min(1, len(self.family.snapshots))):
            if suspended:
                front.suspend()
            other.swap(other.line)
            if suspended:
                front.resume()

    def run(self):
        weights = {
            self.read: 6,
            self.write: 6,
            self.write_chunks: 6,
            self.flush: 1,
            self.zero: 1,
            self.suspend: 2,
            self.recreate_merge: 1,
            self.reload: 1,
        }
        take_steps(self.rng, weights, self.turns)
        self.family.merged()


@pytest.mark.parametrize(
    "size, others, sectors",
    [
        (8, (), 4096),
        (1, (8,), 4096 - 1),
        (8, (64, 1), 4096 - 27),
        (64, (8, 16, 1, 128), 4096),
        (1, (1, 32), 4096),
    ],
)
def test_random_steps(impl, box, rng, size, others, sectors):
    family = Family(box, sectors=sectors)
    chaos = Chaos(impl, family, rng, others, 100)
    number = sectors // size * 3 // 4
    family.merge(
        family.store(size, cow.numbered(rng.sample(range(sectors // size), number), size)),
        direct=True,
    )
    chaos.run()


@pytest.mark.crowd
@pytest.mark.parametrize("size, others", [(64, (8,)), (8, ()), (1, (8, 64))])
def test_threads(family, rng, size, others):
    """Threads share each chunk, each with sectors of its own, until everything is merged."""
    for other in others:
        family.snap("P", other)
    olds = rng.sample(range(4096 // size), min(4096 // size * 3 // 4, 700))
    snapshot, threads, stop = family.store(size, cow.numbered(olds, size)), 8, threading.Event()
    front = family.merge(snapshot, direct=True)

    def work(number, seed):
        """Owns the sectors n with n % 8 == number, and prefers those that are merged early."""
        own = random.Random(seed)
        device = family.snapshots[number % len(others)] if others and number == 7 else front
        for turn in range(100_000):
            if stop.is_set() and turn > 40:
                return
            chunk = (
                olds[-1 - int(len(olds) * own.random() ** 2)] * size
                if own.random() < 0.8
                else own.randrange(4096)
            )
            sector = min(chunk + own.randrange(size), 4095) // threads * threads + number
            if own.random() < 0.6:
                family.write(device, sector, own.randbytes(512), fua=own.random() < 0.1)
            else:
                family.read(device, sector, 1)

    workers = [family.box.background(work, number, rng.random()) for number in range(threads)]
    try:
        front.wait_merged()
    finally:
        stop.set()
    for worker in workers:
        worker.result()
    family.merged()


def test_flush_reaches_origin_and_cow(impl, box):
    """What was written is on the COW device, or on the origin."""
    family = Family(box, cache=True)
    snapshot = family.store(8, cow.numbered([5], 8))
    before = snapshot.cow.lower
    front = family.merge(snapshot, direct=True)
    family.merged()
    marks = family.disk.stats(), before.stats()
    front.flush()
    for disk, mark in zip((family.disk, before), marks):
        assert (disk.stats() - mark).flushes == 1


def discards(family, size):
    snapshot = family.store(size, cow.numbered([1, 3], size), extra="1 discard_zeroes_cow")
    front = family.merge(snapshot, direct=True, before=snapshot.cow.hold)
    must_complete(family, front.discard, 0, 4 * size)
    must_complete(family, front.discard, size, size)
    snapshot.cow.release()
    front.discard(0, 4 * size)
    family.merged()
    front.discard(0, 4 * size)
    family.merging = snapshot
    family.merged()


def test_discard_changes_nothing(family):
    """It succeeds and has no effect."""
    discards(family, 512)


@pytest.mark.only("rust")
@pytest.mark.parametrize("size", [8, 64])
def test_discard_of_small_chunks_changes_nothing(family, size):
    """With these, C's limits are wrong."""
    discards(family, size)


def test_discard_is_refused_without_the_feature(family):
    front = family.merge(family.store(8, cow.numbered([1, 3], 8)), direct=True)
    assert front.queue("discard_max_bytes") == 0
    fails(front.discard, 0, 8, code=errno.EOPNOTSUPP)
    family.merged()


@pytest.mark.parametrize("what", Parts.KINDS)
@pytest.mark.parametrize("others", [0, 2])
def test_writes_wait_for_the_step_and_reads_go_on(parts, what, others):
    """A write to a chunk that is being merged waits, and then takes effect; reads continue, and
    show what the snapshot showed.
    """
    family, held = parts.family, None
    for _ in range(others):
        other = family.snap("P", 8)
        family.write(other, 0, pattern("copied", 4096))  # so nothing is to be copied
    olds = list(range(100, 110))
    if what == "record read":
        olds = [*range(200, 456), *olds]
    snapshot = family.store(8, cow.numbered(olds, 8), cow_device=parts.cow)

    def hold():
        nonlocal held
        held = parts.hold(what)

    front = family.merge(snapshot, direct=True, before=hold)
    wait.until(lambda: in_flight(held), f"{what} is held")
    fresh = {
        8 * 109 + 2: pattern("new", 3),
        8 * 108: pattern("new", 8),
        8 * 101 + 4: pattern("new", 20),
    }
    writers = []
    if what not in ("record read", "origin write"):
        must_complete(
            family, family.write, front, 8, pattern("elsewhere", 20)
        )  # no exception: goes to the origin
    if what != "record read":
        writers = [family.writer(front, at, data) for at, data in fresh.items()]
        # The last one is split, and each piece waits by itself.
        wait.until(lambda: in_flight(front) >= 3, "the writes are in flight")
    if what == "COW read":
        must_complete(family, family.read, front, 0, 800)
    else:
        for _ in range(5):
            must_complete(family, family.check, front)
    for other in family.snapshots:
        must_complete(family, family.check, other)
    assert not any(writer.done for writer in writers)
    assert not front.merged
    held.release()
    for writer in writers:
        writer.result()
    family.merged()


def test_merge_waits_for_writes(impl, box):
    """A chunk with a write in flight is not copied before the write has ended; nothing else waits
    for the write.
    """
    family, disk, chunk = Family(box), box.ram(8), Valve(box, box.ram(1))
    real = family.real = Valve(box, family.disk)
    cow_device = box.mapped(
        f"0 16 linear {disk.dev} 0", f"16 8 linear {chunk.dev} 0", f"24 16000 linear {disk.dev} 24"
    )
    snapshot = family.store(8, cow.numbered(range(100, 400), 8), cow_device=cow_device)
    front = family.merge(snapshot, direct=True, before=lambda: real.hold("writes"))
    wait.until(lambda: in_flight(real), "the first step is at the origin")
    chunk.hold("writes")
    start = front.look().allocated
    writer = family.box.background(front.write, 800, pattern("late", 5))
    wait.until(lambda: in_flight(chunk), "the write is at the COW")
    real.release()
    wait.until(lambda: front.look().allocated < start, "the first step has been made")
    must_complete(family, family.write, front, 8, pattern("elsewhere", 8))
    must_complete(family, family.read, front, 808, 3000)
    assert not writer.done and not front.merged
    chunk.release()
    writer.result()
    family.wrote(front, 800, pattern("late", 5))
    family.merged()


def test_merge_waits_for_copies(family):
    """Another snapshot has its copy before the origin is written."""
    other = family.snap("P", 8)
    snapshot = family.store(8, cow.numbered(range(100, 110), 8))

    def hold():
        other.cow.hold()

    begun = family.box.background(family.merge, snapshot, True, hold)  # with C the resume waits
    wait.until(lambda: family.merging and in_flight(other.cow), "copies are in flight")
    assert family.disk.content() == family.data
    other.cow.release()
    begun.result()
    family.merged()


@pytest.mark.only("rust")
def test_large_run_is_merged_in_steps(impl, box):
    """Chunks that are adjacent on the origin and on the COW device: C merges them in one step,
    during which all writes to them wait.
    """
    size, chunks = 128, 48 * 16
    family = Family(box, sectors=size * chunks)
    valve = family.real = Valve(box, family.disk)
    snapshot = family.store(size, cow.numbered(range(chunks), size))
    front = family.merge(snapshot, direct=True, before=lambda: valve.hold("writes"))
    wait.until(lambda: in_flight(valve), "the first step is at the origin")
    late = family.box.background(front.write, size * chunks - 8, pattern("late", 8))
    must_complete(
        family, family.write, front, 0, pattern("early", 8)
    )  # 48 MiB before what is merged first
    must_complete(family, family.write, front, size * 8 + 3, pattern("early", 800))
    assert not late.done
    valve.release()
    late.result()
    family.wrote(front, size * chunks - 8, pattern("late", 8))
    family.merged()
