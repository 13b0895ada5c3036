"""Metadata of eras that is damaged in hundreds of ways, also under right checksums: an error, never
a crash or a hang.

A failure names the case; that number and `--seed` repeat the damage.
"""

import random
import struct

import pytest

from lib import eras, metadata
from lib.box import pattern
from lib.metadata import BLOCK

pytestmark = pytest.mark.only(
    "rust"
)  # C is not tested: some of the damage crashes the kernel there

BLOCKS = 200_000
KINDS = {
    "superblock": "era superblock",
    "array": "array",
    "btree": "btree",
    "index": "index",
    "bitmap": "bitmap",
}
OFFSETS = {"superblock": 8, "array": 16, "btree": 8, "index": 8, "bitmap": 8}


def used(image):
    """{block: kind} of all blocks whose checksum is right for a kind."""
    found = {}
    for number in range(len(image) // BLOCK):
        block = image[number * BLOCK : (number + 1) * BLOCK]
        for kind, salt in KINDS.items():
            if block[:4] == struct.pack("<I", metadata.checksum(block, salt)):
                found[number] = kind
    assert set(found.values()) == set(KINDS)
    return found


def flip(image, kinds, rng):
    for _ in range(rng.choice((1, 1, 2, 8))):
        image[rng.choice(list(kinds)) * BLOCK + rng.randrange(BLOCK)] ^= 1 << rng.randrange(8)


def sealed(image, kinds, rng):
    """Changes fields under a right checksum."""
    for _ in range(rng.choice((1, 1, 2))):
        others = [block for block in kinds if kinds[block] != "superblock"]
        number = rng.choice(others) if rng.random() < 0.6 else 0
        block = bytearray(image[number * BLOCK : (number + 1) * BLOCK])
        offset = rng.randrange(4, rng.choice((64, 224, BLOCK)) - 8)
        value = rng.choice(
            (0, 1, rng.randrange(64), 0xFF, 0xFFFFFFFF, rng.getrandbits(64), 1 << rng.randrange(64))
        )
        form = rng.choice("BHIQ")
        struct.pack_into(f"<{form}", block, offset, value & ((1 << 8 * struct.calcsize(form)) - 1))
        struct.pack_into("<I", block, 0, metadata.checksum(bytes(block), KINDS[kinds[number]]))
        image[number * BLOCK : (number + 1) * BLOCK] = block


def misplaced(image, kinds, rng):
    """Zeroes blocks, or exchanges them."""
    a, b = (rng.choice(list(kinds)) * BLOCK for _ in range(2))
    if rng.random() < 0.3:
        image[a : a + BLOCK] = bytes(BLOCK)
    else:
        image[a : a + BLOCK], image[b : b + BLOCK] = image[b : b + BLOCK], image[a : a + BLOCK]


@pytest.mark.parametrize(
    "damage, cases",
    [(flip, 60), (sealed, 90), (misplaced, 40)],
    ids=lambda p: getattr(p, "__name__", ""),
)
def test_damage(pair, rng, request, damage, cases):
    """Damaged metadata, also under right checksums: an error, never a crash, a hang or a process
    that cannot be killed.
    """
    pair.origin = pair.box.mapped(f"0 {BLOCKS * 8} zero")
    pair.meta = pair.meta_disk = pair.box.ram(4)
    era = pair.era()
    for n in range(5):
        era.write(n * 30_000 * 8, pattern("a", 8))
        if n == 2:
            era.take()
        era.message("checkpoint")
    era.remove()
    image = pair.meta.content(300 * 8)
    kinds = used(image)
    seed = rng.random()
    for case in range(cases):
        print(f"case {case} of seed {request.config.seed}")
        numbers, broken = random.Random(f"{seed} {case}"), bytearray(image)
        damage(broken, kinds, numbers)
        pair.meta.fill(bytes(broken))
        pair.meta.close()
        length = numbers.choice((BLOCKS, BLOCKS, BLOCKS - 1000, 1018 * 100, 5)) * 8
        device = pair.box.own(eras.Era(pair.meta, pair.origin, length=length, start=False))
        for call in (
            lambda: device.load(device.line),
            device.resume,
            *(
                lambda block=block: device.write(block * 8 % length, pattern("b", 8))
                for block in (0, 30_000, 65_000, 199_999)
            ),
            device.drop,
            lambda: device.message("checkpoint"),
            device.take,
            device.drop,
            lambda: device.message("checkpoint"),
            device.suspend,
            device.resume,
        ):
            try:
                call()
            except OSError:
                if call == device.resume:
                    break  # suspended: writes would wait
        device.remove()


@pytest.mark.parametrize("blocks", [0, 1, 7, 8, 20])
def test_truncated(pair, blocks):
    """The end of the metadata device is missing."""
    era = pair.era()
    era.write(0, pattern("a", 8))
    era.checkpoint()
    era.remove()
    image = pair.meta.content(64 * 8)
    pair.meta = pair.box.mapped(f"0 {max(blocks, 1) * 8} linear {pair.meta_disk.dev} 0")
    pair.meta_disk.fill(image)
    pair.meta_disk.close()
    device = pair.box.own(eras.Era(pair.meta, pair.origin, start=False))
    for call in (
        lambda: device.load(device.line),
        device.resume,
        lambda: device.write(0, pattern("b", 8)),
        device.suspend,
    ):
        try:
            call()
        except OSError:
            if call == device.resume:
                break  # suspended: writes would wait
    device.remove()


def node(flags, entries, value_size, keys, values, location, most=None):
    """A node of a tree, under a right checksum."""
    most = most if most is not None else (BLOCK - 32) // (value_size + 8) // 3 * 3
    block = bytearray(BLOCK)
    struct.pack_into("<IQIII", block, 4, flags, location, entries, most, value_size)
    struct.pack_into(f"<{len(keys)}Q", block, 32, *keys)
    at = 32 + most * 8
    for value in values:
        if at + len(value) <= BLOCK:
            block[at : at + len(value)] = value
        at += value_size
    struct.pack_into("<I", block, 0, metadata.checksum(bytes(block), "btree"))
    return bytes(block)


def far(root):
    return struct.pack("<IQ", 1024, root)


CRAFTED = {  # what the tree of bitsets is made of, given its place
    "a child that is the node itself": lambda at: node(1, 1, 8, [1], [struct.pack("<Q", at)], at),
    "a bitset far outside": lambda at: node(2, 1, 12, [1], [far(1 << 60)], at),
    "a bitset that is the tree": lambda at: node(2, 1, 12, [1], [far(at)], at),
    "a bitset that is free space": lambda at: node(2, 1, 12, [1], [far(250)], at),
    "values of another size": lambda at: node(2, 300, 4, range(300), [], at, 336),
    "values of no size": lambda at: node(2, 400, 0, range(400), [], at, 508),
    "too many entries": lambda at: node(2, 5000, 12, [], [], at),
    "keys out of order": lambda at: node(2, 2, 12, [9, 3], [far(0), far(0)], at),
    "no entry in an internal node": lambda at: node(1, 0, 8, [], [], at),
    "neither leaf nor internal": lambda at: node(0, 1, 12, [1], [far(0)], at),
}


@pytest.mark.parametrize("what", CRAFTED)
@pytest.mark.parametrize("tree", ["tree_root", "bitset_root"])
def test_crafted_trees(pair, log, what, tree):
    """Trees that would mislead the library: loops, block numbers beyond the device, values of
    another size.
    """
    era = pair.era()
    era.write(0, pattern("a", 8))
    era.checkpoint()
    era.write(8, pattern("a", 8))
    era.suspend()
    era.resume()
    era.write(16, pattern("a", 8))
    image = bytearray(pair.meta.content())  # as a crash would leave it
    era.remove()
    at = struct.unpack_from("<Q", image, eras.FIELDS[tree][0])[0]
    image[at * BLOCK : (at + 1) * BLOCK] = CRAFTED[what](at)
    pair.meta.fill(bytes(image))
    pair.meta.close()
    device = pair.box.own(eras.Era(pair.meta, pair.origin, start=False))
    with pytest.raises(OSError):
        device.load(device.line)
    assert any("the metadata is damaged" in line for line in log.lines())
    assert pair.meta.content() == bytes(image)


@pytest.mark.parametrize(
    "field, value",
    [
        ("nr_blocks", 1 << 40),
        ("nr_blocks", 257),
        ("bitmap_root", 1 << 30),
        ("ref_count_root", 0),
        ("tree_root", 0),
        ("array_root", 1 << 50),
        ("snapshot", 77),
        ("bitset_root", 200),
        ("metadata_block", 16),
        ("blocks", (1 << 32) - 1),
        ("blocks", 9999),
        ("bits", 9999),
    ],
)
def test_crafted_superblock(pair, field, value):
    era = pair.era()
    era.write(0, pattern("a", 8))
    image = pair.meta.content()
    era.remove()
    pair.meta.fill(eras.change(image, **{field: value}))
    pair.meta.close()
    device = pair.box.own(eras.Era(pair.meta, pair.origin, start=False))
    for call in (
        lambda: device.load(device.line),
        device.resume,
        lambda: device.write(8, pattern("b", 8)),
        lambda: device.message("checkpoint"),
        device.suspend,
    ):
        try:
            call()
        except OSError:
            if call == device.resume:
                break  # suspended: writes would wait
    device.remove()


def test_count_without_a_number(pair, log):
    """The space map says "more than two" references of a block, and the exact count is missing, on
    which the library would stop the machine.
    """
    era = pair.era()
    era.write(0, pattern("a", 8))
    era.remove()
    image = bytearray(pair.meta.content())
    index = struct.unpack_from("<Q", image, eras.FIELDS["bitmap_root"][0])[0]
    bitmap = struct.unpack_from("<Q", image, index * BLOCK + 16)[0]
    at = bitmap * BLOCK
    image[at + 16 + index // 4] |= 3 << index % 4 * 2
    struct.pack_into("<I", image, at, metadata.checksum(bytes(image[at : at + BLOCK]), "bitmap"))
    pair.meta.fill(bytes(image))
    pair.meta.close()
    device = pair.box.own(eras.Era(pair.meta, pair.origin, start=False))
    with pytest.raises(OSError):
        device.load(device.line)
    assert any("the metadata is damaged" in line for line in log.lines())


class Grown:
    """Metadata with deeper trees: nodes with one child each, in blocks that the space map counts as
    used.
    """

    def __init__(self, image):
        self.image = bytearray(image)
        self.free = len(image) // BLOCK
        index = struct.unpack_from("<Q", image, eras.FIELDS["bitmap_root"][0])[0]
        self.bitmap = struct.unpack_from("<Q", image, index * BLOCK + 16)[0] * BLOCK

    def seal(self, at, kind):
        struct.pack_into(
            "<I", self.image, at, metadata.checksum(bytes(self.image[at : at + BLOCK]), kind)
        )

    def above(self, root, levels):
        """Puts nodes above a tree; returns the topmost one."""
        key = struct.unpack_from("<Q", self.image, root * BLOCK + 32)[0]
        for _ in range(levels):
            self.free -= 1
            assert (
                not self.image[self.bitmap + 16 + self.free // 4] >> self.free % 4 * 2 & 3
            ), "out of free blocks"
            self.image[self.bitmap + 16 + self.free // 4] |= 1 << self.free % 4 * 2 + 1
            self.image[self.free * BLOCK : (self.free + 1) * BLOCK] = node(
                1, 1, 8, [key], [struct.pack("<Q", root)], self.free
            )
            root = self.free
        self.seal(self.bitmap, "bitmap")
        return root


@pytest.mark.parametrize("levels, accepted", [(2, True), (14, True), (15, False)])
def test_deep_trees(pair, log, levels, accepted):
    """A tree of eras and its bitset, both as deep as the library allows: few blocks are held at a
    time, which the kernel checks.
    """
    era = pair.era()
    era.write(0, pattern("a", 8))
    era.suspend()
    grown = Grown(pair.meta.content())
    era.resume()
    era.remove()
    at = eras.FIELDS["tree_root"][0]
    tree = struct.unpack_from("<Q", grown.image, at)[0]
    flags, _, entries, most, size = struct.unpack_from("<IQIII", grown.image, tree * BLOCK + 4)
    assert (flags, size) == (2, 12) and entries, "no era is archived"
    value = tree * BLOCK + 32 + most * 8 + 4
    bits = struct.unpack_from("<Q", grown.image, value)[0]
    struct.pack_into("<Q", grown.image, value, grown.above(bits, levels))
    grown.seal(tree * BLOCK, "btree")
    struct.pack_into("<Q", grown.image, at, grown.above(tree, min(levels, 14)))
    grown.seal(0, "era superblock")
    pair.meta.fill(bytes(grown.image))
    pair.meta.close()
    device = pair.box.own(eras.Era(pair.meta, pair.origin, start=False))
    if accepted:
        device.load(device.line)
    else:
        with pytest.raises(OSError):
            device.load(device.line)
    assert any("the metadata is damaged" in line for line in log.lines()) != accepted
    assert not any("WARNING" in line for line in log.lines())
    device.remove()
