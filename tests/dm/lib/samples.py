"""Metadata of each kind as C wrote it on x86, stored in tests/dm/data, for kernels and
architectures that came later.

scripts/vm --module c -- env PYTHONPATH=tests/dm python3 -m lib.samples    # writes them again
"""

import lzma
import sys
from pathlib import Path

from . import box as boxes
from . import eras, modules, snaps

DATA = Path(__file__).resolve().parents[1] / "data"
HYDRATED = {*range(3, 10), 100, *range(200, 256)}
WRITTEN = {2: {0, 5, 6, 1023}, 3: {5, 40}, 4: {7}}  # by the era after which they were written
COPIED = {
    0: b"a",
    7: b"b",
    100: b"c",
    300: b"d",
    301: b"e",
}  # these chunks of the snapshot hold such bytes


def clone(box):
    trio = box.trio(mib=1)
    clone = trio.clone()
    clone.write(3 * 8, bytes(7 * 4096))
    clone.write(100 * 8 + 3, bytes(512))
    clone.discard(200 * 8, 56 * 8)
    clone.remove()
    return trio.meta.content()


def era(box):
    pair = eras.Pair(box)
    era = pair.era()
    for number, blocks in WRITTEN.items():
        assert era.checkpoint() == number
        for block in blocks:
            era.write(block * 8 + 2, bytes(512))
    era.remove()
    return pair.meta.content()


def snapshot(box):
    family = snaps.Family(box)
    snapshot = family.snap(cow=box.ram(1))
    for chunk, byte in COPIED.items():
        snapshot.write(chunk * 8, byte * 4096)
    snapshot.remove()
    return snapshot.cow.content()


KINDS = {kind.__name__: kind for kind in (clone, era, snapshot)}


def stored(kind):
    return lzma.decompress((DATA / f"{kind}.xz").read_bytes())


def write():
    modules.run("modprobe", "-a", "dm-mod", "configfs")
    modules.run("modprobe", "null_blk", "nr_devices=0")
    for kind, make in KINDS.items():
        box = boxes.Box()
        image = make(box)
        box.close()
        (DATA / f"{kind}.xz").write_bytes(lzma.compress(image, preset=9))


if __name__ == "__main__":
    sys.exit(write())
