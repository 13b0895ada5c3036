"""era: table lines, refusals, limits, and the metadata that is left."""

import errno

import pytest

from lib import dm, eras
from lib.box import pattern
from lib.metadata import BLOCK


def refused(mapped, line):
    """The errno of a table line."""
    with pytest.raises(OSError) as error:
        mapped.load(line)
    return error.value.errno


def test_create(pair, same):
    """Status and table line of a new device. Over the metadata that it leaves, the era is the next
    one.
    """
    era = pair.era(128)
    same(era.status(), "status")
    assert era.table() == f"{pair.meta.dev} {pair.origin.dev} 128"
    assert era.era == 1 and era.look().snapshot is None
    era.remove()
    image = eras.check(pair.meta)
    assert (image.era, image.bitset_root, set(image.archived)) == (1, 0, {1})
    era = pair.era(128)
    assert era.era == 2
    same(era.look().total, "blocks")


def test_version(impl, same):
    same(dm.target_versions()["era"])


@pytest.mark.parametrize("start", [0, 1, 511, 2048, 4095])
def test_only_a_zeroed_block_is_formatted(pair, rng, start):
    """Metadata is formatted only if its first block is zero, whatever follows."""
    pair.meta.fill(bytes(4096) + rng.randbytes(60 * 4096))
    era = pair.era()
    assert era.era == 1
    era.remove()
    block = bytearray(4096)
    block[start] = 1
    pair.meta.fill(bytes(block))
    empty = pair.box.own(eras.Era(pair.meta, pair.origin, start=False))
    code = refused(empty, empty.line)
    assert code in (errno.EILSEQ, errno.ENOTBLK)
    assert pair.meta.read(0, 8) == bytes(block)


LINES = [
    "",
    "{meta}",
    "{meta} {origin}",
    "{meta} {origin} 8 9",
    "/dev/none {origin} 8",
    "{meta} /dev/none 8",
    "{meta} {origin} abc",
    "{meta} {origin} 8x",
    "{meta} {origin} -8",
    "{meta} {origin} +8",
    "{meta} {origin} 0",
    "{meta} {origin} 7",
    "{meta} {origin} 12",
    "{meta} {origin} 1",
    "nonsense {origin} 8",
]


@pytest.mark.parametrize("line", LINES)
def test_refused(pair, same, log, line):
    """Errors and messages are C's, and nothing is written."""
    pair.meta.fill(bytes(range(256)) * 16)
    empty = pair.box.own(eras.Era(pair.meta, pair.origin, start=False))
    mark = log.mark()
    code = refused(empty, "0 8192 era " + line.format(meta=pair.meta.dev, origin=pair.origin.dev))
    same(code, "errno")
    same(
        [
            text.split("device-mapper: ")[1].replace(empty.dev, "<era>")
            for text in log.lines(mark)
            if "device-mapper: table" in text
        ],
        "texts",
    )
    assert pair.meta.read(0, 8) == bytes(range(256)) * 16


@pytest.mark.only("rust")
@pytest.mark.parametrize("size", ["4294967304", "18446744073709551624", " 8"])
def test_block_size_is_not_truncated(pair, log, size):
    """C takes the low 32 bits."""
    empty = pair.box.own(eras.Era(pair.meta, pair.origin, start=False))
    line = f"0 8192 era {pair.meta.dev} {pair.origin.dev} " + size.replace(" ", "\\ ")
    assert refused(empty, line) == errno.EINVAL
    assert any("era: Error parsing block size" in text for text in log.lines())


@pytest.mark.parametrize(
    "field, value", [("magic", 1), ("version", 2), ("version", 0), ("blocknr", 3), ("csum", 7)]
)
def test_bad_superblock(pair, same, log, field, value):
    pair.era().remove()
    image = eras.change(pair.meta.read(0, 8), **{field: value})
    pair.meta.fill(image)
    empty = pair.box.own(eras.Era(pair.meta, pair.origin, start=False))
    mark = log.mark()
    same(refused(empty, empty.line), "errno")
    lines = [
        text.split("device-mapper: ")[1].replace(empty.dev, "<era>")
        for text in log.lines(mark)
        if "device-mapper: era" in text or "device-mapper: table" in text
    ]
    same([line for line in lines if field != "csum" or "csum" not in line], "texts")
    assert pair.meta.read(0, 8) == image


def test_block_size_cannot_change(pair, same, log):
    pair.era(128).remove()
    before = pair.meta.content()
    empty = pair.box.own(eras.Era(pair.meta, pair.origin, 64, start=False))
    mark = log.mark()
    same(refused(empty, empty.line), "errno")
    assert any(
        "changing the data block size (from 128 to 64) is not supported" in line
        for line in log.lines(mark)
    )
    assert pair.meta.content() == before


@pytest.mark.only("rust")
def test_devices_that_exclude_each_other(pair, log):
    """C accepts these tables, and destroys the metadata sooner or later."""
    empty = pair.box.own(eras.Era(pair.meta, pair.origin, start=False))
    assert refused(empty, f"0 8192 era {pair.meta.dev} {pair.meta.dev} 8") == errno.EBUSY
    pair.era()
    assert refused(empty, empty.line) == errno.EBUSY
    assert refused(empty, f"0 4096 era {pair.meta.dev} {pair.origin.dev} 8") == errno.EBUSY
    assert refused(empty, f"0 9000 era {pair.box.ram(1).dev} {pair.origin.dev} 8") == errno.EINVAL
    assert any("too small for target" in line for line in log.lines())


@pytest.mark.only("rust")
def test_too_many_blocks(pair, log):
    """C finds out at resume."""
    zero = pair.box.mapped(f"0 {1 << 34} zero")
    empty = pair.box.own(eras.Era(pair.meta, zero, 8, start=False))
    assert refused(empty, empty.line) == errno.EINVAL
    assert any("Too many blocks" in line for line in log.lines())
    empty.load(f"0 {(1 << 34) - 8} era {pair.meta.dev} {zero.dev} 8")


@pytest.mark.parametrize("size", [8, 24, 128, 1024])
def test_limits(pair, same, size):
    era = pair.era(size)
    same(
        [
            era.queue(name)
            for name in (
                "minimum_io_size",
                "optimal_io_size",
                "discard_granularity",
                "discard_max_bytes",
            )
        ]
    )


@pytest.mark.only("rust")
def test_limit_beyond_32_bits_is_not_set(pair):
    """A hint beyond 32 bits, for a block of 4 GiB, is not set; C's wraps to zero or below."""
    era = pair.era(1 << 23)
    assert era.queue("optimal_io_size") == pair.origin.queue("optimal_io_size")


def test_era_after_another_target(pair):
    """A table of two targets: sectors count from the start of each target."""
    disk, other = pair.box.ram(4), pair.box.ram(4)
    pair.origin = disk
    device = pair.box.mapped(
        f"0 1000 linear {other.dev} 0\n1000 4000 era {pair.meta.dev} {disk.dev} 24"
    )
    device.write(1000 + 24 * 3, pattern("a", 24))
    device.write(1000 + 24 * 7 - 1, pattern("b", 2))
    device.message("checkpoint", sector=1000)
    device.remove()
    assert disk.read(24 * 3, 24) == pattern("a", 24)
    assert eras.check(pair.meta).since(1) == {3, 6, 7}


@pytest.mark.only("rust")
@pytest.mark.parametrize("how", ["clear", "remove"])
def test_nothing_is_written_before_resume(pair, how):
    """Loading a table formats nothing; nor do status and table of the loaded table."""
    empty = pair.box.own(eras.Era(pair.meta, pair.origin, start=False))
    before = pair.meta.stats()
    empty.load(empty.line)
    assert empty.specs(inactive=True)[0][3] == "8 0/256 0 -"
    assert empty.specs(table=True, inactive=True)
    empty.clear() if how == "clear" else empty.remove()
    assert not (pair.meta.stats() - before).writes
    assert pair.meta.content() == bytes(256 * BLOCK)
