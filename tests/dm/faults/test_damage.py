"""Metadata that is damaged in hundreds of ways, also under right checksums: an error, never a
crash, a hang or wrong data.

Each case damages an image and loads it. If that succeeds, it writes, flushes, discards, suspends
and removes the device. A failure names the case; that number and `--seed` repeat the damage.
"""

import errno
import random
import struct

import pytest

from lib import metadata
from lib.metadata import BLOCK

pytestmark = pytest.mark.only(
    "rust"
)  # C is not tested: some of the damage crashes the kernel there

REGIONS = 200_000  # seven array blocks
CASES = 100  # of each kind
OFFSETS = {"superblock": 8, "array": 16, "btree": 8, "index": 8, "bitmap": 8}


@pytest.fixture
def parts(impl, box):
    """A source and a destination that need no memory, metadata of three commits, and the kinds of
    its blocks.
    """
    zero = box.mapped(f"0 {REGIONS * 8} zero")
    meta = box.ram(1)
    meta.fill(bytes(64 * BLOCK))
    clone = box.clone(meta, zero, zero, 8, "1 no_hydration")
    for round_ in range(3):
        for array in range(7):
            clone.write((array * 32_000 + round_ * 500) * 8, bytes(4096 * (round_ + 1)))
        clone.flush()
    clone.remove()
    image = meta.content(64 * 8)
    return zero, meta, image, kinds(image)


def kinds(image):
    """{block: kind} of all blocks whose checksum is right for a kind."""
    found = {}
    for number in range(len(image) // BLOCK):
        block = image[number * BLOCK : (number + 1) * BLOCK]
        for kind, offset in OFFSETS.items():
            if block[:4] == struct.pack("<I", metadata.checksum(block, kind)):
                assert struct.unpack_from("<Q", block, offset)[0] == number
                found[number] = kind
    assert set(found.values()) == set(OFFSETS) and list(found.values()).count("array") >= 7
    return found


def flip(image, used, rng):
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.choice(list(used)) * BLOCK + rng.randrange(BLOCK)
        image[at] ^= 1 << rng.randrange(8)


def sealed(image, used, rng):
    """Changes fields under a right checksum, as a bug elsewhere may."""
    for _ in range(rng.choice((1, 1, 2))):
        number = rng.choice(
            [block for block in used if used[block] != "superblock"] if rng.random() < 0.7 else [0]
        )
        at = number * BLOCK
        block = bytearray(image[at : at + BLOCK])
        spread = rng.choice((64, 200, BLOCK)) - 8
        offset = rng.randrange(4, spread)
        value = rng.choice(
            (0, 1, rng.randrange(64), 0xFF, 0xFFFFFFFF, rng.getrandbits(64), 1 << rng.randrange(64))
        )
        form = rng.choice("BHIQ")
        struct.pack_into(f"<{form}", block, offset, value & ((1 << 8 * struct.calcsize(form)) - 1))
        struct.pack_into("<I", block, 0, metadata.checksum(bytes(block), used[number]))
        image[at : at + BLOCK] = block


def misplaced(image, used, rng):
    """Zeroes blocks, fills them with noise, or exchanges them."""
    a, b = (rng.choice(list(used)) * BLOCK for _ in range(2))
    what = rng.randrange(3)
    if what == 0:
        image[a : a + BLOCK] = bytes(BLOCK)
    elif what == 1:
        image[a : a + BLOCK] = rng.randbytes(BLOCK)
    else:
        image[a : a + BLOCK], image[b : b + BLOCK] = image[b : b + BLOCK], image[a : a + BLOCK]


def attempt(call, *args):
    """Whether the call succeeds. If it does not, the error is one that makes sense to a user."""
    try:
        call(*args)
        return True
    except OSError as error:
        assert error.errno in (
            errno.EIO,
            errno.EINVAL,
            errno.EILSEQ,
            errno.ENOTBLK,
            errno.ENODATA,
            errno.ENOSPC,
            errno.EPERM,
            errno.ENOMEM,
        ), error
        return False


def exercise(clone, rng):
    clone.resume()
    for _ in range(3):
        for _ in range(5):
            attempt(
                clone.write,
                rng.randrange(REGIONS - 8) * 8 + rng.randrange(8),
                bytes(512 * rng.randrange(1, 30)),
            )
        attempt(clone.flush)
        attempt(clone.discard, rng.randrange(REGIONS // 2) * 8, 8 * rng.randrange(1, REGIONS // 4))
    attempt(clone.read, rng.randrange(REGIONS) * 8, 8)
    status = clone.status(noflush=rng.random() < 0.5)
    assert status in ("Fail", "Error") or status.split()[-1] in ("rw", "ro"), status
    clone.suspend()
    clone.resume()
    (
        clone.look()
        if status not in ("Fail", "Error") and clone.status() not in ("Fail", "Error")
        else None
    )


def run(box, request, parts, damage, meta_of=None):
    zero, meta, image, used = parts
    opened = 0
    for case in range(CASES):
        rng = random.Random(f"{request.config.seed}/{request.node.name}/{case}")
        damaged = bytearray(image)
        if damage:
            damage(damaged, used, rng)
        meta.fill(bytes(damaged))
        device = meta_of(rng) if meta_of else meta
        clone = box.clone(device, zero, zero, 8, "1 no_hydration", start=False)
        try:
            if attempt(clone.load, clone.line):
                opened += 1
                exercise(clone, rng)
            clone.remove()
        except BaseException as error:
            raise AssertionError(f"case {case}: {error}") from error
        if device is not meta:
            device.remove()
    return opened


@pytest.mark.parametrize("damage", [flip, misplaced, sealed])
def test_damage(box, request, parts, damage):
    opened = run(box, request, parts, damage)
    assert opened < CASES, "no damage was found at all"


def test_cut(box, request, parts):
    """The device is shorter than the metadata says."""
    _, meta, _, used = parts

    def cut(rng):
        return box.mapped(f"0 {rng.randrange(1, max(used) + 8) * 8} linear {meta.dev} 0")

    assert run(box, request, parts, None, cut) < CASES


def test_undamaged(box, request, parts):
    """The campaign passes on metadata that is not damaged."""
    zero, meta, image, _ = parts
    meta.fill(image)
    clone = box.clone(meta, zero, zero, 8, "1 no_hydration")
    exercise(clone, random.Random(1))
    assert clone.look().mode == "rw"
