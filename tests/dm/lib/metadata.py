"""An independent reader of clone metadata, written from the description of the format; it shares no
code with the module.

block 0          superblock: checksum, identity, sizes, root of the space map, root of the bitset
bitset           dm-array: a btree of array blocks, each of up to 509 little-endian 64-bit words,
                 one bit per region
space map        bitmap blocks (two bits per block: not 0 if the block is in use), found through one
                 index block
"""

import functools
import struct

BLOCK = 4096
SECTORS = BLOCK // 512
MAGIC = 0x8AF27F64
SALT = {
    "superblock": 257649492,
    "era superblock": 146538381,
    "array": 595846735,
    "btree": 121107,
    "index": 160478,
    "bitmap": 240779,
}
WORDS = 509  # per array block
PER_BITMAP = (BLOCK - 16) * 4  # blocks that one bitmap block covers
# The beginning of a superblock, of clones and eras.
HEAD_FIELDS = {  # name: (offset, format)
    "csum": (0, "<I"),
    "flags": (4, "<I"),
    "blocknr": (8, "<Q"),
    "uuid": (16, "16s"),
    "magic": (32, "<Q"),
    "version": (40, "<I"),
    "nr_blocks": (44, "<Q"),
    "nr_allocated": (52, "<Q"),
    "bitmap_root": (60, "<Q"),
    "ref_count_root": (68, "<Q"),
}
FIELDS = HEAD_FIELDS | {
    "region_size": (172, "<Q"),
    "target_size": (180, "<Q"),
    "bitset_root": (188, "<Q"),
}


def _table():
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_CRC = _table()


@functools.lru_cache(maxsize=1024)
def checksum(block, kind):
    """crc32c of everything after the checksum, without the final inversion, salted by the kind of
    block.
    """
    crc, table = 0xFFFFFFFF, _CRC
    for byte in block[4:]:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc ^ SALT[kind]


def change(image, table=FIELDS, kind="superblock", /, **fields):
    """A copy of the image with fields of the superblock replaced. The checksum is updated, unless
    `csum` is given.
    """
    block = bytearray(image[:BLOCK])
    for name, value in fields.items():
        offset, form = table[name]
        struct.pack_into(form, block, offset, value)
    if "csum" not in fields:
        struct.pack_into("<I", block, 0, checksum(bytes(block), kind))
    return bytes(block) + bytes(image[BLOCK:])


def needed(regions, device_blocks):
    """(U, safe): the blocks used after a format, and the smallest device whose transactions always
    fit.
    """
    arrays = -(-(-(-regions // 64)) // WORDS)
    assert arrays <= 252, "deeper trees are not modelled here"
    used = 3 + -(-device_blocks // PER_BITMAP) + arrays + 1
    return used, 2 * used - 2


class Damaged(AssertionError):
    pass


def _require(condition, text):
    if not condition:
        raise Damaged(text)


class Image:
    """What all metadata of dm-persistent-data has in common: blocks, trees, arrays, the space
    map.
    """

    sums = True  # whether checksums are verified

    def _block(self, number, kind, number_at=8):
        _require(
            number < self.nr_blocks and (number + 1) * BLOCK <= len(self.image),
            f"block {number} is outside",
        )
        block = self.image[number * BLOCK : (number + 1) * BLOCK]
        _require(
            not self.sums or struct.unpack_from("<I", block)[0] == checksum(block, kind),
            f"{kind} block {number}: checksum",
        )
        _require(
            struct.unpack_from("<Q", block, number_at)[0] == number,
            f"{kind} block {number}: wrong number",
        )
        self._reached.add(number)
        return block

    def _btree(self, root):
        """(key, value) of a tree; values are bytes."""
        block = self._block(root, "btree")
        flags, _, entries, most, size = struct.unpack_from("<IQIII", block, 4)
        _require(entries <= most, f"btree node {root}: {entries} entries of {most}")
        keys = struct.unpack_from(f"<{entries}Q", block, 32)
        values = [block[32 + most * 8 + i * size :][:size] for i in range(entries)]
        _require(list(keys) == sorted(set(keys)), f"btree node {root}: keys out of order")
        if flags & 2:
            return list(zip(keys, values))
        _require(flags & 1, f"btree node {root}: neither leaf nor internal")
        return [pair for value in values for pair in self._btree(struct.unpack("<Q", value)[0])]

    def _array(self, root, per_block, form):
        """The entries of an array."""
        entries = []
        for position, (key, value) in enumerate(self._btree(root)):
            number = struct.unpack("<Q", value)[0]
            block = self._block(number, "array", number_at=16)
            most, count, size = struct.unpack_from("<III", block, 4)
            _require(
                (key, most, size) == (position, per_block, struct.calcsize(form)),
                f"array block {number}: header",
            )
            _require(
                len(entries) == position * per_block,
                f"array block {number}: the one before is not full",
            )
            entries += struct.unpack_from(f"<{count}{form}", block, 24)
        return entries

    def _space_map(self):
        index = self._block(self.bitmap_root, "index")
        counts = []
        for n in range(-(-self.nr_blocks // PER_BITMAP)):
            number, free, _ = struct.unpack_from("<QII", index, 16 + 16 * n)
            block = self._block(number, "bitmap")
            here = [
                block[16 + i // 4] >> i % 4 * 2 & 3
                for i in range(min(PER_BITMAP, self.nr_blocks - n * PER_BITMAP))
            ]
            # What lies beyond the end of the device counts as free.
            taken = len(here) - here.count(0)
            _require(free == PER_BITMAP - taken, f"bitmap {n}: {free} free, {taken} taken")
            counts += here
        for number, count in self._btree(self.ref_count_root):
            _require(
                counts[number] == 3, f"block {number} has a count of many references, and another"
            )
            counts[number] = struct.unpack("<I", count)[0]
        self.references = counts
        used = {n for n, count in enumerate(counts) if count}
        _require(
            len(used) == self.nr_allocated,
            f"{self.nr_allocated} blocks allocated, {len(used)} counted",
        )
        _require(
            self._reached <= used,
            f"in use but free for the space map: {sorted(self._reached - used)}",
        )
        # The space map keeps the blocks of the previous transaction until the next one, because a
        # crash goes back to them.
        self.leaked = used - self._reached


class Metadata(Image):
    """Everything that an image says; the constructor raises Damaged where it contradicts itself."""

    def __init__(self, image):
        self.image = image
        head = image[:BLOCK]
        for name, (offset, form) in FIELDS.items():
            setattr(self, name, struct.unpack_from(form, head, offset)[0])
        _require(self.blocknr == 0, "superblock does not know its own number")
        _require(self.magic == MAGIC, "wrong magic")
        _require(self.csum == checksum(head, "superblock"), "superblock checksum")
        _require(self.version == 1, "wrong version")
        _require(
            not any(head[196:]) and not any(head[76:172]) and not any(self.uuid) and not self.flags,
            "reserved bytes of the superblock are in use",
        )
        self.regions = -(-self.target_size // self.region_size)
        self._reached = {0, self.bitmap_root}
        self.words = self._bitset()
        self._space_map()
        _require(max(self.references) < 3, "blocks with more than two references")

    def _bitset(self):
        words = self._array(self.bitset_root, WORDS, "Q")
        _require(
            len(words) == -(-self.regions // 64), f"{len(words)} words for {self.regions} regions"
        )
        if self.regions % 64:
            _require(not words[-1] >> self.regions % 64, "bits behind the last region are set")
        return words

    def is_hydrated(self, region):
        return bool(self.words[region // 64] >> region % 64 & 1)

    def hydrated(self):
        """The set of hydrated regions."""
        return {
            i * 64 + bit
            for i, word in enumerate(self.words)
            if word
            for bit in range(64)
            if word >> bit & 1
        }

    @property
    def count(self):
        return sum(word.bit_count() for word in self.words)


def read(device):
    """Parses the metadata on a device."""
    return Metadata(device.content())
