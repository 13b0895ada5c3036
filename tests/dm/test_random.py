"""Random work against a model, while the hydration runs and the device is suspended, created again
and sent messages.
"""

import random
import threading

import pytest

from lib import metadata
from lib.box import assert_same, pattern


class Chaos:
    """A clone, its model, and steps that a seed chooses."""

    def __init__(self, box, rng, impl, region, sectors):
        self.rng, self.impl, self.region = rng, impl, region
        self.trio = box.trio(mib=4, sectors=sectors)
        self.clone = self.trio.clone(region=region)
        self.least = 0
        self.steps = []

    def step(self):
        # C loses writes when a discard meets a copy (W1), so with C the hydration is stopped before
        # each discard.
        kinds = [
            (self.read, 6),
            (self.write, 8),
            (self.write_regions, 3),
            (self.flush, 1),
            (self.discard, 1),
            (self.message, 3),
            (self.suspend, 1),
            (self.status, 1),
            (self.zero, 0.5),
            (self.reload, 0.3),
            (self.recreate, 0.3),
        ]
        kind = self.rng.choices([kind for kind, _ in kinds], [weight for _, weight in kinds])[0]
        self.steps.append(kind.__name__)
        kind()

    def range(self, most):
        count = self.rng.choice((1, 1, 2, self.rng.randrange(1, most)))
        return self.rng.randrange(self.trio.sectors - count), count

    def read(self):
        start, count = self.range(1500)
        want = bytes(self.trio.expected[start * 512 : (start + count) * 512])
        assert_same(
            self.clone.read(start, count), want, where=f"read of {count} sectors at {start}"
        )

    def write(self):
        start, count = self.range(self.rng.choice((10, 600)))
        self.trio.write(
            self.clone, start, self.rng.randbytes(count * 512), fua=self.rng.random() < 0.1
        )

    def write_regions(self):
        regions = min(self.rng.choice((1, 1, 2, 10)), 512 // self.region + 1)
        start = self.rng.randrange(self.trio.sectors // self.region - regions) * self.region
        self.trio.write(
            self.clone,
            start,
            self.rng.randbytes(regions * self.region * 512),
            fua=self.rng.random() < 0.1,
        )

    def flush(self):
        self.clone.flush()

    def calm(self):
        if self.impl == "c":
            self.clone.message("disable_hydration")
            self.clone.wait_quiet()

    def discard(self):
        self.calm()
        start, count = self.range(500)
        self.trio.discard(self.clone, start, count)

    def zero(self):
        start, count = self.range(300)
        self.clone.zero(start, count)
        self.trio.wrote(start, bytes(count * 512))

    def message(self):
        self.clone.message(
            *self.rng.choice(
                (
                    ["enable_hydration"],
                    ["enable_hydration"],
                    ["disable_hydration"],
                    ["hydration_threshold", str(self.rng.choice((0, 1, 2, 10, 100)))],
                    ["hydration_batch_size", str(self.rng.choice((0, 1, 3, 64)))],
                )
            )
        )

    def suspend(self):
        self.clone.suspend(noflush=self.rng.random() < 0.5)
        status = self.clone.look()
        assert not status.hydrating, "a copy runs while suspended"
        if self.rng.random() < 0.5:
            self.message()
        assert self.clone.hydrated() == status.hydrated
        self.clone.resume()

    def status(self):
        status = self.clone.look(noflush=self.rng.random() < 0.5)
        assert status.mode == "rw"
        assert self.least <= status.hydrated <= status.regions
        self.least = status.hydrated

    def reload(self):
        self.clone.swap(self.clone.line)

    def recreate(self):
        self.clone.remove()
        self.clone = self.trio.clone(region=self.region)
        status = self.clone.look()
        assert status.hydrated >= self.least, "hydrated regions were forgotten"
        self.least = status.hydrated

    def finish(self):
        self.trio.check(self.clone, "at the end of the random steps")
        self.clone.hydrate()
        self.clone.wait_full()
        self.trio.check(self.clone, "hydrated")
        self.clone.to_linear()
        self.trio.check(self.clone, "linear")
        self.trio.check_source()


@pytest.mark.crowd
@pytest.mark.parametrize("region, sectors", [(8, 8192), (64, 8192 - 27), (1024, 8192 - 1)])
def test_random_steps(impl, clone_box, rng, region, sectors):
    chaos = Chaos(clone_box, rng, impl, region, sectors)
    try:
        for _ in range(250):
            chaos.step()
        chaos.finish()
    except Exception:
        print("steps:", " ".join(chaos.steps))
        raise


@pytest.mark.crowd
def test_threads(impl, clone_box, rng):
    """Four threads write and read sectors of their own in shared regions, during hydration,
    messages and suspends.
    """
    region, sectors, threads = 16, 8192, 4
    trio = clone_box.trio(mib=4)
    clone = trio.clone(region=region)
    failed = threading.Event()

    def work(number, seed):
        """Owns the sectors n with n % 4 == number; all four threads share each region."""
        own = random.Random(seed)
        mine = {}
        for turn in range(120):
            if failed.is_set():
                return mine
            sector = own.randrange(sectors // threads) * threads + number
            if own.random() < 0.7:
                data = own.randbytes(512)
                clone.write(sector, data, fua=own.random() < 0.1)
                mine[sector] = data
            elif mine:
                sector = own.choice(list(mine))
                if clone.read(sector, 1) != mine[sector]:
                    failed.set()
                    raise AssertionError(
                        f"thread {number}, turn {turn}: sector {sector} is not what was written"
                    )
            if own.random() < 0.05:
                clone.flush()
        return mine

    workers = [clone_box.background(work, number, rng.random()) for number in range(threads)]
    # A limited number of rounds: each costs the workers a suspend, and they must end too.
    for _ in range(100):
        if all(worker.done for worker in workers):
            break
        clone.message("hydration_threshold", str(rng.choice((1, 16, 64))))
        clone.message("hydration_batch_size", str(rng.choice((1, 8))))
        clone.message(rng.choice(("enable_hydration", "disable_hydration")))
        clone.suspend(noflush=rng.random() < 0.5)
        clone.resume()
        clone.look()
    for worker in workers:
        for sector, data in worker.result().items():
            trio.wrote(sector, data)
    trio.check(clone)
    clone.hydrate()
    clone.wait_full()
    trio.check(trio.dest)


@pytest.mark.both
def test_same_steps_same_result(impl, clone_box, same):
    """The same steps on C and on dm-rust, without hydration, so that nothing depends on time: the
    same status, images and bits.
    """
    own = random.Random(7)
    trio = clone_box.trio(mib=4, sectors=8192 - 24)
    clone = trio.clone(region=32)
    seen = []
    for _ in range(120):
        start = own.randrange(trio.sectors - 100)
        kind = own.random()
        if kind < 0.7:
            trio.write(clone, start, pattern(f"step {own.random()}", own.randrange(1, 90)))
        elif kind < 0.85:
            trio.discard(clone, start // 32 * 32, own.randrange(1, 4) * 32)
        else:
            clone.flush()
        clone.wait_quiet()  # a copy may be in flight longer than the write that waited for it
        seen.append(clone.status().split()[2:])
    trio.check(clone)
    clone.remove()
    image = metadata.read(trio.meta)
    same((seen, image.words, trio.dest.content()))
