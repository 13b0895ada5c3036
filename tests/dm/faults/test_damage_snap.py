"""Stores of snapshots that are damaged in hundreds of ways: refused, or read and used as the format
says. Never a crash.

The output of a failure names the case; that number and `--seed` repeat the damage.
"""

import errno
import random
import struct

import pytest

from lib import cow
from lib.box import assert_same, pattern
from lib.snaps import Origin, Snapshot

pytestmark = pytest.mark.only(
    "rust"
)  # C is not tested: some of the damage crashes the kernel there

SECTORS = 512  # of the origin
LENGTH = 700  # of the COW device
SIZES = 1, 2, 8
LARGEST = 1 << 21  # chunk size
REFUSED = {errno.ENXIO, errno.EINVAL, errno.EIO}


def image_of(size, records, rng):
    """A store with these records, over chunks that were never used."""
    image = bytearray(rng.randbytes(LENGTH * 512))
    for chunk, data in cow.metadata(size, records).items():
        image[chunk * size * 512 : chunk * size * 512 + len(data)] = data
    return image


def metadata_chunks(size, records):
    return [0, *(cow.area_at(area, size) for area in range(len(records) // cow.per_area(size) + 1))]


def number(rng, size):
    """A number for a field of a record."""
    chunks = LENGTH // size
    return rng.choice(
        (
            0,
            1,
            2,
            chunks - 1,
            chunks,
            cow.area_at(1, size),
            cow.area_at(2, size),
            SECTORS // size,
            1 << rng.randrange(64),
            (1 << 64) - 1,
            rng.randrange(chunks),
            rng.randrange(chunks),
            rng.getrandbits(64),
        )
    )


# Each function changes an image in place.


def flips(image, size, records, rng):
    for _ in range(rng.choice((1, 1, 2, 8))):
        chunk = rng.choice(metadata_chunks(size, records))
        most = 16 if not chunk else rng.choice((16, 64, size * 512))
        image[chunk * size * 512 + rng.randrange(most)] ^= 1 << rng.randrange(8)


def header_fields(image, size, records, rng):
    for _ in range(rng.choice((1, 1, 2))):
        value = rng.choice(
            (0, 1, 2, 3, 8, 128, 1 << rng.randrange(32), 0xFFFFFFFF, rng.getrandbits(32), LENGTH)
        )
        struct.pack_into("<I", image, rng.choice((0, 4, 8, 12, 12)), value)


def record_fields(image, size, records, rng):
    for _ in range(rng.choice((1, 1, 2, 5))):
        area = rng.choice(metadata_chunks(size, records)[1:])
        slot = rng.randrange(min(cow.per_area(size), len(records) + 2))
        struct.pack_into(
            "<Q", image, area * size * 512 + slot * 16 + rng.choice((0, 8)), number(rng, size)
        )


def chunks_moved(image, size, records, rng):
    """Replaces chunks by zeros, garbage, other metadata or data."""
    a, b = rng.choice(metadata_chunks(size, records)), rng.randrange(LENGTH // size)
    if rng.random() < 0.5:
        b = rng.choice(metadata_chunks(size, records))
    step = size * 512
    was = image[a * step : (a + 1) * step]
    image[a * step : (a + 1) * step] = rng.choice(
        (bytes(step), rng.randbytes(step), image[b * step : (b + 1) * step])
    )
    if rng.random() < 0.3:
        image[b * step : (b + 1) * step] = was


def records_of_anything(image, size, records, rng):
    """Fills an area, and sometimes the one after it, with plausible numbers."""
    chunks, count = range(2, LENGTH // size), rng.randrange(1, 3 * cow.per_area(size))
    chunks = [chunk for chunk in chunks if not cow.is_metadata(chunk, size)]
    wrong = [(rng.randrange(SECTORS // size), rng.choice(chunks)) for _ in range(count)]
    for chunk, data in cow.metadata(size, wrong).items():
        at = chunk * size * 512
        if at + len(data) <= len(image):
            image[at : at + len(data)] = data


def cut_off(image, size, records, rng):
    """The end of the device is missing."""
    places = 1, 2, size, 2 * size, 3 * size, cow.area_at(1, size) * size, rng.randrange(1, LENGTH)
    del image[rng.choice(places) * 512 :]


class Bench:
    """Devices on which one store after the other is opened and used."""

    def __init__(self, box, log):
        self.box, self.log = box, log
        self.disk, self.ram = box.ram(1), box.ram(1)
        self.real = box.mapped(f"0 {SECTORS} linear {self.disk.dev} 0")
        self.data = pattern("origin", SECTORS)

    def open(self, image, size):
        """Loads a table over a store; None if it is refused."""
        self.real.fill(self.data)
        self.ram.fill(bytes(image))
        self.cow = self.box.mapped(f"0 {len(image) // 512} linear {self.ram.dev} 0")
        self.snapshot = self.box.own(
            Snapshot(self.real, self.cow, size=size, length=SECTORS, start=False)
        )
        try:
            self.snapshot.load(self.snapshot.line)
        except OSError as error:
            assert error.errno in REFUSED, error
            return error.errno
        self.snapshot.resume()
        return None

    def close(self):
        self.snapshot.remove()
        self.cow.remove()

    def check(self, image, size, rng):
        """Checks what must become of the store; returns whether it was opened."""
        wanted, refused = expected(image, size), self.open(image, size)
        try:
            if isinstance(wanted, set):
                assert refused in wanted, f"error {refused}, not one of {wanted}"
                assert self.cow.content() == image, "refused, and changed"
                return False
            assert not refused, f"refused with {errno.errorcode[refused]}"
            if wanted == "Invalid":
                assert self.snapshot.status() == "Invalid"
                assert self.cow.content() == image, "invalid, and changed"
                return True
            self.use(cow.Model(self.data, image, wanted), rng)
            return True
        finally:
            self.close()

    def use(self, model, rng):
        """Reads and writes while there is room; afterwards the store on the disk can be opened
        again.
        """
        snapshot = self.snapshot
        assert snapshot.status() == model.status()
        assert_same(snapshot.content(), bytes(model.shown), where="opened")
        front = self.box.own(Origin(self.real))
        for turn in range(rng.choice((1, 4, 40))):
            if model.next + 12 > len(model.image) // 512 // model.size:
                break
            sector, data = rng.randrange(SECTORS - 8), pattern(f"turn {turn}", rng.randrange(1, 9))
            if rng.random() < 0.5:
                snapshot.write(sector, data)
                model.write(sector, data)
            else:
                front.write(sector, data)
                model.write_origin(sector, data)
        if rng.random() < 0.3:
            snapshot.swap(snapshot.line)
        front.remove()
        assert_same(snapshot.content(), bytes(model.shown), where="written to")
        assert snapshot.status() == model.status()
        snapshot.remove()
        assert cow.Store(self.cow).records == model.records
        self.snapshot = self.box.own(Snapshot(self.real, self.cow, size=model.size, length=SECTORS))
        assert_same(self.snapshot.content(), bytes(model.shown), where="opened again")


def expected(image, size):
    """A set of errors, "Invalid", or the chunk size of a store that can be used."""
    sectors = len(image) // 512
    if sectors < size:
        return {errno.EIO, errno.EINVAL}
    magic, valid, version, found = cow.HEADER.unpack_from(image)
    if not magic:
        return size if sectors >= 2 * size else {errno.EIO, errno.EINVAL}
    if magic != cow.MAGIC:
        return {errno.ENXIO}
    if not 0 < found <= LARGEST or found & (found - 1) or version != 1:
        return {errno.EINVAL}
    if not valid:
        return "Invalid"
    try:
        cow.Store(bytes(image))
    except cow.Damaged:
        return {errno.EIO, errno.EINVAL}
    return found


DAMAGES = {
    flips: 50,
    header_fields: 30,
    record_fields: 60,
    chunks_moved: 40,
    records_of_anything: 20,
    cut_off: 30,
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage(impl, box, log, rng, request, damage):
    bench, seed, opened = Bench(box, log), rng.random(), 0
    for case in range(DAMAGES[damage]):
        print(f"case {case} of seed {request.config.seed}")
        numbers = random.Random(f"{seed} {case}")
        size = numbers.choice(SIZES)
        most = cow.per_area(size)
        counts = 0, 1, 5, most - 1, most, most + 1, 2 * most, 2 * most + 9
        counts = [count for count in counts if cow.needed(count + 2, size) < LENGTH // size]
        chunks = numbers.sample(
            range(SECTORS // size), min(numbers.choice(counts), SECTORS // size)
        )
        records = cow.numbered(chunks, size)
        image = image_of(size, records, numbers)
        damage(image, size, records, numbers)
        opened += bench.check(image, numbers.choice((size, size, 8)), numbers)
    assert 0 < opened
