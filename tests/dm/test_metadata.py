"""The metadata device: format, refusals, and the exchange of half hydrated images between C and
dm-rust.
"""

import errno
import re

import pytest

from lib import metadata
from lib.box import assert_same, pattern

BLOCK = metadata.BLOCK


def refusal(box, log, meta, length=2048, region=8, disks=[]):
    """Tries to open metadata; returns (errno or 0, what the kernel logged, the device)."""
    if not disks or disks[0] is not box:
        disks[:] = [box, box.ram(1), box.ram(1)]
    device = box.mapped()
    mark = log.mark()
    error = 0
    try:
        device.load(
            f"0 {length} clone {meta.dev} {disks[1].dev} {disks[2].dev} {region} 1 no_hydration"
        )
    except OSError as refused:
        error = refused.errno
    # The library limits the rate of its own messages.
    said = [
        line.replace(device.dev, "<clone>")
        for line in log.dm(mark)
        if "device-mapper: block manager: " not in line
    ]
    return error, said, device


@pytest.mark.parametrize(
    "region, sectors", [(8, 2048), (8, 8), (16, 2043), (2048, 8192), (8, 40000 * 8)]
)
def test_format(impl, clone_box, same, region, sectors):
    """A blank device is formatted; an independent reader finds each field, checksum and reference
    as it must be.
    """
    disk = clone_box.mapped(f"0 {sectors} zero")
    meta = clone_box.ram(1)
    meta.fill(bytes(BLOCK) + pattern("garbage behind the first block", 255 * 8))
    clone = clone_box.clone(
        meta, clone_box.mapped(f"0 {sectors} zero"), disk, region, "1 no_hydration"
    )
    assert clone.hydrated() == 0
    used = int(clone.status().split()[1].split("/")[0])
    clone.remove()
    found = metadata.read(meta)
    assert (found.region_size, found.target_size, found.nr_blocks) == (region, sectors, 256)
    assert (found.bitmap_root, found.ref_count_root) == (1, 2)
    assert found.count == 0
    assert found.nr_allocated == used == metadata.needed(found.regions, 256)[0]
    # Byte for byte what C writes, as far as the format uses the blocks.
    same([found.image[n * BLOCK : (n + 1) * BLOCK] for n in sorted(found._reached)])


def test_format_then_open(impl, clone_box):
    """What was formatted and never used opens again."""
    trio = clone_box.trio(mib=1)
    first = trio.clone()
    first.remove()
    image = trio.meta.content()
    again = trio.clone()
    assert again.hydrated() == 0
    again.remove()
    assert metadata.Metadata(image).nr_allocated == metadata.read(trio.meta).nr_allocated


@pytest.mark.parametrize("offset", [0, 4, 40, 2000, 4095])
def test_not_blank_is_not_formatted(impl, clone_box, log, same, offset):
    """One nonzero byte anywhere in the first block is enough."""
    meta = clone_box.ram(1)
    block = bytearray(BLOCK)
    block[offset] = 1
    meta.write(0, bytes(block))
    error, lines, _ = refusal(clone_box, log, meta)
    assert error == errno.EILSEQ
    assert "3 device-mapper: table: <clone>: clone: Failed to load metadata (-EILSEQ)" in lines
    assert any("Superblock check failed: magic" in line for line in lines)
    same(lines)
    assert meta.content() == bytes(block) + bytes(
        meta.sectors * 512 - BLOCK
    ), "refused metadata was changed"


@pytest.fixture
def image(clone_box):
    """Valid metadata of a clone of 2048 sectors with regions of 8 sectors, seven of them
    hydrated.
    """
    trio = clone_box.trio(mib=1)
    clone = trio.clone()
    clone.write(16, pattern("new", 56))
    clone.remove()
    return trio.meta.content()


DAMAGE = {  # name: (fields to change, errno, log)
    "block number": (dict(blocknr=7), "ENOTBLK", "Superblock check failed: blocknr 7, expected 0"),
    "magic": (dict(magic=5), "EILSEQ", "Superblock check failed: magic 5, expected 2331148132"),
    "magic, upper half": (
        dict(magic=metadata.MAGIC | 1 << 32),
        "EILSEQ",
        f"Superblock check failed: magic {metadata.MAGIC | 1 << 32}, expected 2331148132",
    ),
    "checksum": (dict(csum=1), "EILSEQ", r"Superblock check failed: checksum \d+, expected 1"),
    "version 0": (
        dict(version=0),
        "EINVAL",
        "Clone metadata version 0 found, but only versions between 1 and 1 supported.",
    ),
    "version 2": (
        dict(version=2),
        "EINVAL",
        "Clone metadata version 2 found, but only versions between 1 and 1 supported.",
    ),
    "region size": (
        dict(region_size=16),
        "EINVAL",
        "Region and/or target size don't match the ones in metadata",
    ),
    "target size": (
        dict(target_size=2047),
        "EINVAL",
        "Region and/or target size don't match the ones in metadata",
    ),
    # Several at once: block number, magic, checksum, version, sizes, in this order.
    "block number and magic": (
        dict(blocknr=7, magic=5, csum=1),
        "ENOTBLK",
        "Superblock check failed: blocknr 7",
    ),
    "magic and checksum": (
        dict(magic=5, csum=1, version=9),
        "EILSEQ",
        "Superblock check failed: magic 5",
    ),
    "checksum and version": (
        dict(version=9, csum=1),
        "EILSEQ",
        "Superblock check failed: checksum",
    ),
    "version and sizes": (
        dict(version=9, region_size=16),
        "EINVAL",
        "Clone metadata version 9 found",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_superblock(impl, clone_box, log, same, image, name):
    fields, code, text = DAMAGE[name]
    meta = clone_box.ram(1)
    damaged = metadata.change(image, **fields)
    meta.fill(damaged)
    error, lines, _ = refusal(clone_box, log, meta)
    assert errno.errorcode[error] == code
    assert any(re.search(text, line) for line in lines), lines
    assert f"3 device-mapper: table: <clone>: clone: Failed to load metadata (-{code})" in lines
    same(lines)
    assert meta.content() == damaged, "refused metadata was changed"


@pytest.mark.parametrize("fields", [dict(flags=0xFFFFFFFF), dict(uuid=b"0123456789abcdef")])
def test_ignored_fields(impl, clone_box, log, image, fields):
    """Flags and uuid mean nothing to version 1."""
    meta = clone_box.ram(1)
    meta.fill(metadata.change(image, **fields))
    error, lines, device = refusal(clone_box, log, meta)
    assert (error, lines) == (0, [])
    assert device.specs(inactive=True)[0][3].split()[3] == "7/256"


@pytest.mark.parametrize("length, region", [(2048, 16), (2040, 8), (2056, 8)])
def test_other_sizes_are_refused(impl, clone_box, log, same, image, length, region):
    """Opening with another region or target size changes nothing."""
    meta = clone_box.ram(1)
    meta.fill(image)
    error, lines, _ = refusal(
        clone_box, log, meta, min(length, 2048) if length != 2056 else 2056, region
    )
    assert error == errno.EINVAL
    assert any("don't match the ones in metadata" in line for line in lines)
    same(lines)
    assert meta.content() == image


def blocks_of(image):
    """{kind: block number} of the blocks that an image uses."""
    found = metadata.Metadata(image)
    array = (
        found._reached - {0, found.bitmap_root, found.ref_count_root, found.bitset_root, 3}
    ).pop()
    return {
        "index": found.bitmap_root,
        "reference counts": found.ref_count_root,
        "bitmap": 3,
        "bitset": found.bitset_root,
        "array": array,
    }


@pytest.mark.parametrize("kind", ["index", "reference counts", "bitmap", "bitset", "array"])
def test_damaged_block(impl, clone_box, log, image, kind):
    """A flipped bit in any block: refused, or found at the first commit, but never used and never a
    crash.
    """
    trio = clone_box.trio(mib=1)
    damaged = bytearray(image)
    damaged[blocks_of(image)[kind] * BLOCK + 1000] ^= 4
    trio.meta.fill(bytes(damaged))
    error, lines, device = refusal(clone_box, log, trio.meta)
    if error:
        assert "3 device-mapper: table: <clone>: clone: Failed to load metadata" in "\n".join(lines)
        return
    assert kind in ("reference counts", "bitmap"), "damaged metadata was believed"
    device.resume()
    device.write(0, pattern("new", 1))
    try:
        device.flush()
    except OSError:
        assert device.status().endswith(" ro") or device.status() == "Fail"


def test_random_damage(impl, clone_box, log, image, rng):
    """Damaged bits, bytes and whole blocks anywhere, also with a valid checksum of the superblock:
    no crash.
    """
    meta = clone_box.ram(1)
    used = max(blocks_of(image).values()) + 1
    opened = 0
    for round_ in range(60):
        damaged = bytearray(image)
        for _ in range(rng.choice((1, 1, 3, 20))):
            at = rng.randrange(used * BLOCK) if rng.random() < 0.5 else rng.randrange(200)
            damaged[at] = rng.randrange(256)
        if rng.random() < 0.2:
            block = rng.randrange(used)
            damaged[block * BLOCK : (block + 1) * BLOCK] = bytes(BLOCK)
        result = bytes(damaged)
        if rng.random() < 0.4 and any(result[:BLOCK]):
            result = metadata.change(result)
        meta.fill(result[: 64 * BLOCK])
        error, lines, device = refusal(clone_box, log, meta)
        if error:
            assert any("Failed to load metadata" in line for line in lines), (round_, lines)
        else:
            opened += 1
            device.specs(inactive=True)
        device.remove()
    assert opened < 50


@pytest.mark.parametrize(
    "blocks, formats, commits",
    [(5, False, False), (6, True, False), (9, True, False), (10, True, True)],
)
def test_smallest_metadata(impl, clone_box, log, blocks, formats, commits):
    """U - 1 blocks cannot be formatted, U can and are full at the first commit, 2U - 2 are always
    enough.
    """
    trio = clone_box.trio(mib=1, cache=True)
    assert metadata.needed(256, blocks) == (6, 10)
    trio.meta = clone_box.mapped(f"0 {blocks * 8} linear {trio.meta_disk.dev} 0")
    if not formats:
        error, lines, _ = refusal(clone_box, log, trio.meta)
        assert error == errno.ENOSPC
        assert "3 device-mapper: table: <clone>: clone: Failed to load metadata (-ENOSPC)" in lines
        assert not any(
            trio.meta_disk.read(0, 8)
        ), "a superblock was written by a format that failed"
        return
    clone = trio.clone()
    assert clone.status().split()[1] == f"6/{blocks}"
    trio.write(clone, 40, pattern("new", 8))
    if commits:
        for sector in range(0, 2048, 100):
            trio.write(clone, sector, pattern(f"new {sector}", 8))
            clone.flush()
        assert clone.look().mode == "rw"
        trio.check(clone)
        return
    refused = False
    for sector in (40, 80, 120, 160):  # some sizes fit one transaction, and not the next
        try:
            clone.write(sector, pattern("new", 8))
            clone.flush()
        except OSError as error:
            assert error.errno == errno.EIO
            refused = True
            break
    assert refused
    assert clone.look().mode == "ro"
    assert any("Switching to read-only mode" in line for line in log.dm())
    clone.remove()
    # The last commit is intact: the image opens, and what it calls hydrated is on the destination.
    metadata.Metadata(trio.meta_disk.content()[: blocks * BLOCK])
    again = trio.clone()
    assert again.look().mode == "rw"


def test_warning_above_16_gib(impl, clone_box, log, same):
    """Metadata larger than the space map can use: a warning, and it works."""
    big = clone_box.loop(33554432 * 512 + 4096)
    disks = clone_box.ram(1), clone_box.ram(1)
    mark = log.mark()
    clone = clone_box.clone(big, *disks, 8, "1 no_hydration")
    lines = [line.replace(big.kernel_name, "<meta>") for line in log.dm(mark)]
    assert lines == [
        "4 device-mapper: clone: Metadata device <meta> is larger than 33292800 sectors: excess "
        "space will "
        "not be used."
    ]
    same(lines)
    assert clone.status().split()[1].endswith("/4161600")
    same(clone.status().split()[1], "usage")


@pytest.mark.only("rust")
@pytest.mark.parametrize("arrays, touched", [(1, 1), (5, 1), (5, 5)])
@pytest.mark.parametrize("free", range(8))
def test_small_metadata(impl, clone_box, log, free, arrays, touched):
    """A commit needs four free blocks, however many blocks of the bitset it changes: it is done in
    parts. A smaller device is reported, and a full one is an error, neither a loss nor a bug in the
    kernel.
    """
    regions = arrays * metadata.WORDS * 64 - 5
    length = regions * 8
    used, blocks = 5 + arrays, 5 + arrays + free
    meta = clone_box.loop(blocks * 4096)
    dest, source = clone_box.loop(length * 512), clone_box.mapped(f"0 {length} zero")
    mark = log.mark()
    clone = clone_box.clone(meta, dest, source, 8, "1 no_hydration")
    assert clone.status().split()[1] == f"{used}/{blocks}"
    lines = [line.replace(meta.kernel_name, "<meta>") for line in log.dm(mark)]
    enough = free >= 4
    assert lines == (
        []
        if enough
        else [
            "4 device-mapper: clone: Metadata device <meta> is too small to be sure: it has "
            f"{blocks} blocks, {used + 4} may be needed."
        ]
    )
    written = {}
    for turn in range(4):
        for part in range(touched):
            region = part * metadata.WORDS * 64 + 31 * turn
            written[region] = pattern(f"turn {turn} {part}", 8)
            clone.write(region * 8, written[region])
        if enough:
            clone.flush()
            assert clone.look().mode == "rw"
            assert metadata.Metadata(meta.content()).hydrated() == set(written)
        else:
            with pytest.raises(OSError) as full:
                clone.flush()
            assert full.value.errno == errno.EIO
            assert clone.look().mode == "ro"
            assert metadata.Metadata(meta.content()).count == 0
            break
    for region, data in written.items():
        assert clone.read(region * 8, 8) == data
    clone.remove()
    if enough:
        again = clone_box.clone(meta, dest, source, 8, "1 no_hydration")
        assert again.hydrated() == len(written)


# Exchange: each implementation makes an image, and in later phases of the run each opens both.

SHELF = {}


def make_half_hydrated(box):
    """Regions of all kinds: partial and whole writes, copies, discards; with a short last
    region.
    """
    trio = box.trio(mib=8, sectors=8 * 2048 - 5).layered("source")
    clone = trio.clone(region=16)
    for n in range(40):
        trio.write(clone, 331 * n, pattern(f"shelf {n}", 1 + n % 40))
    clone.flush()
    trio.source.hold()  # exactly 300 more regions
    clone.hydrate(threshold=300, batch=7)
    clone.wait_hydrating(300)
    clone.message("disable_hydration")
    trio.source.release()
    clone.wait_quiet()
    clone.discard(12000, 64)
    trio.wrote(12000, bytes(64 * 512))
    hydrated = clone.hydrated()
    trio.check(clone)
    clone.remove()
    return dict(
        meta=trio.meta.content(),
        dest=trio.dest.content(),
        expected=bytes(trio.expected),
        hydrated=hydrated,
    )


@pytest.mark.leaves
def test_leave_half_hydrated_image(impl, clone_box):
    SHELF[impl] = made = make_half_hydrated(clone_box)
    found = metadata.Metadata(made["meta"])
    assert found.count == made["hydrated"] and 300 < found.count < 600
    assert not found.leaked or len(found.leaked) < 10


def go_on_with(writer, box):
    made = SHELF[writer]
    trio = box.trio(mib=8, sectors=8 * 2048 - 5)
    trio.meta.fill(made["meta"])
    trio.dest.fill(made["dest"])
    trio.expected = bytearray(made["expected"])
    clone = trio.clone(region=16)
    status = clone.look()
    assert (status.hydrated, status.regions, status.mode) == (made["hydrated"], 1024, "rw")
    trio.check(clone)
    trio.write(clone, 777, pattern("by the other", 99))
    clone.flush()
    found = metadata.read(trio.meta)
    assert found.count == clone.hydrated() >= made["hydrated"]
    clone.remove()
    clone = trio.clone(region=16)
    clone.hydrate()
    clone.wait_full()
    clone.remove()
    assert metadata.read(trio.meta).count == 1024
    assert_same(trio.dest.content(trio.sectors), bytes(trio.expected), trio, "destination")


def test_open_own_half_hydrated_image(impl, clone_box):
    go_on_with(impl, clone_box)


@pytest.mark.only("rust")
@pytest.mark.both
def test_dm_rust_opens_what_c_left(impl, clone_box):
    go_on_with("c", clone_box)


@pytest.mark.phases("c-again")
@pytest.mark.both
def test_c_opens_what_dm_rust_left(impl, clone_box):
    assert impl == "c"
    go_on_with("rust", clone_box)
