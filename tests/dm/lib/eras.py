"""Eras: the device, the tools of thin-provisioning-tools, and an independent reader of the
metadata.

block 0       superblock: present era, present bitset, roots of the tree and the array, block of the
              metadata snapshot
tree          era: its bitset, for the eras that have ended and are not digested yet
array         for each block the last digested era in which it was written, or 0
"""

import re
import struct
import subprocess
from xml.etree import ElementTree

from . import dm, metadata, wait
from .metadata import BLOCK, Damaged, _require

MAGIC = 0x7EC1077B
ENTRIES = 1018  # of the array, per block
FIELDS = metadata.HEAD_FIELDS | {  # name: (offset, format)
    "block_size": (172, "<I"),
    "metadata_block": (176, "<I"),
    "blocks": (180, "<I"),
    "era": (184, "<I"),
    "bits": (188, "<I"),
    "bitset_root": (192, "<Q"),
    "tree_root": (200, "<Q"),
    "array_root": (208, "<Q"),
    "snapshot": (216, "<Q"),
}


def change(image, **fields):
    """A copy of the image with fields of the superblock replaced; see `metadata.change`."""
    return metadata.change(image, FIELDS, "era superblock", **fields)


class Metadata(metadata.Image):
    """Everything that an image says; the constructor raises Damaged where it contradicts itself.

    `at` is the block of a metadata snapshot to read instead. Unless `sums`, checksums are not
    verified, which is a hundred times faster.
    """

    def __init__(self, image, at=0, sums=True):
        self.image, self.sums = image, sums
        head = image[at * BLOCK : (at + 1) * BLOCK]
        for name, (offset, form) in FIELDS.items():
            setattr(self, name, struct.unpack_from(form, head, offset)[0])
        _require(self.blocknr == at, "superblock does not know its own number")
        _require(self.magic == MAGIC, "wrong magic")
        _require(
            not sums or self.csum == metadata.checksum(head, "era superblock"),
            "superblock checksum",
        )
        _require(self.version == 1 and self.metadata_block == 8, "wrong version or block size")
        _require(
            not any(head[224:]) and not any(head[76:172]) and not any(self.uuid) and not self.flags,
            "reserved bytes of the superblock are in use",
        )
        self._reached = {0, self.bitmap_root}
        self._counts = {}
        self.present = (
            self._bits(self.bitset_root, self.bits) if self.bitset_root and not at else set()
        )
        tree = self._btree(self.tree_root)
        self.archived = {
            era: self._bits(*reversed(struct.unpack("<IQ", value))) for era, value in tree
        }
        keys = sorted(self.archived)
        # While the device is suspended its present era is archived too; a snapshot may be of that
        # moment.
        last = keys[-1] if keys and at else self.era - bool(self.bitset_root)
        if keys:
            _require(
                keys == list(range(keys[0], last + 1)), f"era {self.era}, but {keys} are archived"
            )
            _require(
                last in (self.era, self.era - 1),
                f"era {self.era}, but {last} is the last one archived",
            )
        self.array = self._array(self.array_root, ENTRIES, "I")
        _require(
            len(self.array) == self.blocks, f"{len(self.array)} entries for {self.blocks} blocks"
        )
        _require(max(self.array, default=0) <= self.era, "a block of an era to come")
        if at:
            return
        if self.snapshot:
            held = Metadata(image, self.snapshot, sums)
            self._reached |= held._reached - {held.bitmap_root} | {self.snapshot}
            self.held = held
        self._space_map()

    def _bits(self, root, bits):
        words = self._array(root, metadata.WORDS, "Q")
        _require(len(words) == -(-bits // 64), f"{len(words)} words for {bits} bits")
        found = {
            i * 64 + bit
            for i, word in enumerate(words)
            if word
            for bit in range(64)
            if word >> bit & 1
        }
        _require(max(found, default=0) < max(bits, 1), "a bit behind the last one")
        return found

    def eras(self):
        """The last era of each block of all that is on disk, including the present bitset."""
        found = list(self.array)
        for era, blocks in sorted(self.archived.items()) + [(self.era, self.present)]:
            for block in blocks:
                if block < len(found):
                    found[block] = max(found[block], era)
        return found

    def since(self, era):
        """The blocks that were written in an era or later."""
        return {block for block, last in enumerate(self.eras()) if last >= era}


def read(device):
    """Parses the metadata on a device."""
    return Metadata(device.content())


STATUS = re.compile(r"8 (?P<used>\d+)/(?P<total>\d+) (?P<era>\d+) (?P<snapshot>\d+|-)")


class Status:
    """The INFO status of an era, parsed."""

    def __init__(self, text):
        match = STATUS.fullmatch(text)
        assert match, f"not an era status: {text!r}"
        self.used, self.total, self.era = (int(match[name]) for name in ("used", "total", "era"))
        self.snapshot = None if match["snapshot"] == "-" else int(match["snapshot"])


class Era(dm.Mapped):
    """An era device over (metadata, origin)."""

    def __init__(self, meta, origin, size=8, length=None, start=True, name=None):
        self.meta, self.origin, self.size = meta, origin, size
        self.length = length if length is not None else origin.sectors
        self.blocks = -(-self.length // size)
        self.line = f"0 {self.length} era {meta.dev} {origin.dev} {size}"
        super().__init__(*([self.line] if start else []), name=name)

    def look(self):
        return Status(self.status())

    @property
    def era(self):
        return self.look().era

    def checkpoint(self):
        """Ends the era; returns the new one."""
        self.message("checkpoint")
        return self.era

    def take(self):
        self.message("take_metadata_snap")

    def drop(self):
        self.message("drop_metadata_snap")

    def since(self, era):
        """The blocks that were written since an era began, according to a metadata snapshot and an
        independent reader.
        """
        self.take()
        try:
            at = self.look().snapshot
            self.meta.close()  # drops cached data
            return Metadata(self.meta.content(), at, sums=False).since(era)
        finally:
            self.drop()

    def marked(self):
        """The blocks in the present bitset on disk; None while it is being written."""
        try:
            return read(self.meta).present
        except Damaged:
            return None

    def wait_digested(self):
        """Waits until only the newest archived era is left in the tree (C leaves none)."""

        def done():
            image = self.meta.content()
            try:
                return len(Metadata(image).archived) <= 1
            except Damaged:
                return False  # read while it was being written

        wait.until(done, "archived eras are digested")


class Pair:
    """A metadata device and an origin."""

    def __init__(self, box, mib=4, meta_mib=1):
        self.box = box
        self.meta_disk, self.origin_disk = box.ram(meta_mib), box.ram(mib)
        self.meta, self.origin = self.meta_disk, self.origin_disk

    def era(self, size=8, **more):
        return self.box.own(Era(self.meta, self.origin, size, **more))

    def layered(self, *which):
        """Puts devices that can be held or made to fail between the era and the named disks."""
        for name in which:
            setattr(self, name, self.box.layered(getattr(self, f"{name}_disk")))
        return self


# thin-provisioning-tools


def tool(*words, check=True):
    result = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if check:
        assert (
            not result.returncode
        ), f"{' '.join(map(str, words))}: {result.returncode}\n{result.stdout}{result.stderr}"
    return result


def invalidate(device, since, snapshot=False):
    """The blocks that era_invalidate lists."""
    words = ["--metadata-snapshot", "0"] if snapshot else []
    text = tool("era_invalidate", *words, "--written-since", since, device.path).stdout
    found = set()
    for element in ElementTree.fromstring(text):
        if element.tag == "block":
            found.add(int(element.get("block")))
        else:
            assert element.tag == "range"
            found.update(range(int(element.get("begin")), int(element.get("end"))))
    return found


def dump(device):
    return tool("era_dump", device.path).stdout


def check(device, spare=None):
    """Checks metadata of a device that is not in use: the tools accept it, and so does the
    independent reader, which also finds leaked blocks.

    With a `spare` device the metadata is dumped, restored there, and dumped again.
    """
    device.close()
    tool("era_check", device.path)
    text = dump(device)
    found = read(device)
    if spare:
        import tempfile

        with tempfile.NamedTemporaryFile("w", suffix=".xml") as file:
            file.write(text)
            file.flush()
            tool("era_restore", "-i", file.name, "-o", spare.path)
        assert dump(spare) == text, "restored metadata differs"
        spare.close()
    return found
