"""An ext4 file system on a clone."""

import hashlib
import os
from pathlib import Path

import pytest

from lib import modules


def sums(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def drop_caches():
    Path("/proc/sys/vm/drop_caches").write_text("3")


def populate(folder, rng, name, files, most):
    for n in range(files):
        path = folder / name / f"dir{n % 5}" / f"file{n}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.randbytes(rng.randrange(1, most)))


@pytest.mark.parametrize("region, trim", [(8, True), (256, False)])
def test_ext4(impl, box, rng, folder, region, trim):
    """Mounted at once, used during hydration and through a re-creation, and in the end checked on
    the destination alone.
    """
    trio = box.trio(mib=32)
    modules.run("mkfs.ext4", "-q", "-b", "4096", trio.source_disk.path)
    modules.run("mount", trio.source_disk.path, folder)
    populate(folder, rng, "old", 40, 200_000)
    want = sums(folder)
    modules.run("umount", folder)
    source = trio.source_disk.content()

    clone = trio.clone(region=region)
    modules.run("mount", clone.path, folder)
    if trim:  # before the hydration, as C must not be discarded under a copy (W1)
        modules.run("fstrim", folder)
        assert clone.hydrated() > clone.regions // 3
    clone.hydrate(threshold=64, batch=8)
    populate(folder, rng, "new", 30, 100_000)
    (folder / "old" / "dir1" / "file1").write_bytes(b"changed")
    (folder / "old" / "dir2" / "file2").unlink()
    want = sums(folder)
    assert len(want) == 69
    modules.run("umount", folder)
    clone.remove()

    clone = trio.clone(region=region)
    modules.run("mount", clone.path, folder)
    drop_caches()
    assert sums(folder) == want, "after the device was created again"
    clone.hydrate()
    populate(folder, rng, "newer", 10, 50_000)
    clone.wait_full()
    want = sums(folder)
    os.sync()
    clone.to_linear()  # under the mounted file system
    drop_caches()
    assert sums(folder) == want, "after the swap to linear"
    modules.run("umount", folder)
    clone.remove()

    modules.run("fsck.ext4", "-fn", trio.dest_disk.path)
    modules.run("mount", "-o", "ro", trio.dest_disk.path, folder)
    drop_caches()
    assert sums(folder) == want, "on the destination alone"
    modules.run("umount", folder)
    assert trio.source_disk.content() == source, "the source was written to"
