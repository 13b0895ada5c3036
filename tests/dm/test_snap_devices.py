"""snapshot and snapshot-origin: the devices of a table: their block sizes, limits and sizes, and
devices in two roles.
"""

import errno
import re
from errno import EBUSY, EINVAL

import pytest

from lib import cow, modules, wait
from lib.box import assert_same, pattern
from lib.snap_lines import GOOD, NOT_READ, NO_STORE, SIZE, reasons, refusal


@pytest.mark.parametrize("which", ["origin", "cow"])
def test_chunks_below_the_block_size_are_refused(impl, load, box, disks, same, which):
    """Chunks smaller than the logical blocks of a device are refused, also those of an existing
    store.
    """
    big = box.loop(1 << 20, blocksize=4096)
    parts = dict(origin="{origin}", cow="{cow}") | {which: big.dev}
    line = f"{parts['origin']} {parts['cow']} "
    for word in "P 4", "P 1", "N 4":
        error, lines = load(line + word)
        assert (error, refusal(lines)) == (EINVAL, f"snapshot: {NO_STORE} (-EINVAL)")
        if impl == "rust":
            assert (
                "3 device-mapper: snapshots: Chunk size is not a multiple of device blocksize"
                in reasons(lines)
            )
    for word, size in ("P 8", 8), ("N 8", 8), ("P 0", 32):
        store = big if which == "cow" else disks["cow"]
        store.write(0, bytes(4096))
        assert load(line + word) == (0, [])
        assert load.device.table(inactive=True).endswith(f" {size}")
        load.device.remove()
    store.write(0, cow.header(4).ljust(4096, b"\0"))
    error, lines = load(line + "P 8")
    assert (error, refusal(lines)) == (EINVAL, f"snapshot: {NOT_READ} (-EINVAL)")
    same(lines)
    assert any(
        "on-disk chunk size 4: Chunk size is not a multiple of device blocksize." in line
        for line in lines
    )


@pytest.mark.only("rust")
@pytest.mark.parametrize("size", [8, 128, 512])
@pytest.mark.parametrize(
    "features", ["1 discard_zeroes_cow", "2 discard_zeroes_cow discard_passdown_origin"]
)
def test_discard_limits(impl, box, size, features):
    """C gives the granularity in sectors, and divides by zero if that is less than 512."""
    origin, store = box.ram(4), box.ram(4)
    snap = box.mapped(f"0 8192 snapshot {origin.dev} {store.dev} P {size} {features}")
    assert snap.queue("discard_granularity") == size * 512
    assert snap.queue("discard_max_bytes") == size * 512
    # The same for a table that waits for its exceptions.
    snap.swap(f"0 8192 snapshot {origin.dev} {store.dev} P {size} {features}")
    assert snap.queue("discard_granularity") == size * 512
    assert snap.queue("discard_max_bytes") == size * 512


def test_discards_are_off_without_support(impl, box, disks):
    """Without the features, and if one of the devices does not support discards."""
    origin, store = box.ram(1), box.ram(1)
    snap = box.mapped(f"0 2048 snapshot {origin.dev} {store.dev} P 8")
    assert snap.queue("discard_max_bytes") == 0
    front = box.mapped(f"0 2048 snapshot-origin {origin.dev}")
    assert front.queue("discard_max_bytes") == 0
    disks["other"].write(0, bytes(512))
    snap = box.mapped(
        f"0 2048 snapshot {origin.dev} {disks['other'].dev} N 512 1 discard_zeroes_cow"
    )
    assert snap.queue("discard_max_bytes") == 0


TWINS = "snapshot: COW device cannot be the same as origin device (-EINVAL)"


def test_cow_equal_to_origin_is_refused(impl, load, disks, same):
    """With a read-only table; see the next test."""
    error, lines = load("{cow} {cow} P 8", read_only=True)
    assert (error, lines) == (EINVAL, [f"3 device-mapper: table: <dev>: {TWINS}"])
    same(lines)
    load.device.remove()
    assert disks["cow"].is_free()


@pytest.mark.only("rust")
def test_cow_equal_to_origin_is_refused_for_writing(impl, load, disks, box):
    """C opens the device again for writing and goes on with the first handle, which is freed."""
    error, lines = load("{cow} {cow} P 8")
    assert (error, lines) == (EINVAL, [f"3 device-mapper: table: <dev>: {TWINS}"])
    error, lines = load("{origin} {origin} X 8")
    assert (error, refusal(lines)) == (EINVAL, TWINS)
    assert not any(disks["cow"].read(0, 64))
    # The failed device can take the next table.
    assert load(GOOD, device=load.device) == (0, [])
    load.device.remove()
    assert disks["cow"].is_free() and disks["origin"].is_free()


@pytest.mark.only("rust")
def test_origin_is_written_by_another_line(impl, disks, box):
    """C opens the origin for reading. device-mapper opens it again for the other line, and C goes
    on with a freed handle.
    """
    disks["cow"].fill(bytes(SIZE * 512))
    origin = disks["origin"].dev
    device = box.mapped(
        f"0 {SIZE} snapshot {origin} {disks['cow'].dev} P 8", f"{SIZE} {SIZE} linear {origin} 0"
    )
    device.write(SIZE + 80, pattern("below", 8))
    assert device.read(80, 8) == pattern("below", 8)
    device.write(83, pattern("own", 1))
    assert device.read(SIZE + 80, 8) == pattern("below", 8)
    device.remove()
    assert disks["cow"].is_free() and disks["origin"].is_free()


def test_origin_may_be_read_only(impl, disks, load):
    """A snapshot only reads its origin."""
    modules.run("blockdev", "--setro", disks["origin"].path)
    try:
        assert load(GOOD) == (0, [])
        load.device.resume()
        load.device.write(83, pattern("own", 1))
        assert load.device.read(83, 1) == pattern("own", 1)
        load.device.remove()
    finally:
        modules.run("blockdev", "--setrw", disks["origin"].path)


@pytest.mark.only("rust")
def test_cow_of_two_origins_is_refused(impl, load, disks, box):
    """C lets two snapshots with different origins write to one COW device."""
    wanted = "snapshot: COW device is in use by another snapshot (-EBUSY)"
    assert load(GOOD) == (0, [])
    first = load.device
    for step in "loaded", "live":
        for words in "P 8", "PO 8", "N 8":
            error, lines = load("{other} {cow} " + words)
            assert (error, refusal(lines)) == (EBUSY, wanted), step
        if step == "loaded":
            first.resume()
    before = disks["cow"].content()
    # The opposite: a linear device over the same disk is another device.
    around = box.mapped(f"0 1024 linear {disks['cow'].dev} 1024")
    assert load("{other} " + f"{around.dev} P 8") == (0, [])
    load.device.remove()
    assert disks["cow"].read(0, 1024) == before[: 1024 * 512]
    first.remove()
    assert load("{other} {cow} P 8") == (0, [])


def clean(lines, *devices):
    """The lines without names of devices and addresses."""
    for n, device in enumerate(devices):
        lines = [
            re.sub(r"0x\w+", "#", line)
            .replace(device.kernel_name, f"<{n}>")
            .replace(device.dev, f"<{n}>")
            for line in lines
        ]
    return lines


@pytest.mark.parametrize("kind", ["snapshot", "snapshot-origin"])
def test_short_origin(impl, load, disks, box, same, kind):
    """One sector short: dm itself refuses the table, after the store was made."""
    small = box.mapped(f"0 {SIZE - 1} linear {disks['origin'].dev} 0")
    error, lines = load(small.dev + (" {cow} P 8" if kind == "snapshot" else ""), kind)
    assert error == EINVAL
    lines = clean(lines, small)
    assert any("too small for target: start=0, len=2048, dev_size=2047" in line for line in lines)
    same(lines)
    assert disks["cow"].read(0, 1)[:16] == (cow.header(8) if kind == "snapshot" else bytes(16))


@pytest.mark.parametrize(
    "sectors, error", [(4, errno.EIO), (8, errno.EIO), (12, errno.EIO), (16, 0), (20, 0), (24, 0)]
)
def test_small_cow(impl, load, disks, box, same, sectors, error):
    """A store needs a header and an area; a third chunk makes room for an exception."""
    small = box.mapped(f"0 {sectors} linear {disks['cow'].dev} 0")
    got, lines = load("{origin} " + f"{small.dev} P 8")
    assert got == error
    if error:
        assert refusal(lines) == f"snapshot: {NOT_READ} (-EIO)"
        return
    snap = load.device
    snap.resume()
    assert snap.status() == f"16/{sectors} 16"
    room = sectors >= 24
    for turn in range(2):
        try:
            snap.write(turn * 8, bytes(512))
            assert room and turn == 0
        except OSError as full:
            assert full.errno == errno.EIO and (turn or not room)
            break
    assert snap.status() == "Invalid"
    # Raised by a work item, perhaps after the write has failed.
    wait.until(lambda: snap.event == 1, "an event")
    same(snap.event, "events")


def test_read_only(impl, box, same):
    """A read-only table: a store is made, reads work, dm refuses writes, and writes to the origin
    are copied.
    """
    origin, store = box.ram(1), box.ram(1)
    data = pattern("origin", SIZE)
    origin.fill(data)
    model = cow.Model(data, bytes(SIZE * 512), 16)
    snap = box.mapped(f"0 {SIZE} snapshot {origin.dev} {store.dev} P 16", read_only=True)
    front = box.mapped(f"0 {SIZE} snapshot-origin {origin.dev}")
    assert snap.read_only and snap.content() == data
    with pytest.raises(OSError) as error:
        snap.write(0, bytes(512))
    same(error.value.errno, "errno")
    for sector, length in (5, 3), (100, 50), (2040, 8):
        front.write(sector, pattern("new", length))
        model.write_origin(sector, pattern("new", length))
    assert snap.content() == data
    assert front.content() == origin.content() == bytes(model.origin)
    assert snap.status() == model.status()
    assert_same(store.content(), bytes(model.image))


def test_snapshot_after_another_target(impl, box, same):
    """A snapshot after another target: chunks, and sectors of the origin, count from the start of
    the device.
    """
    origin, store, other = box.ram(1), box.ram(1), box.ram(1)
    origin.fill(pattern("origin", SIZE))
    model = cow.Model(pattern("origin", SIZE), bytes(SIZE * 512), 8)
    snap = box.mapped(
        f"0 64 linear {other.dev} 0",
        f"64 1024 snapshot {origin.dev} {store.dev} P 8",
        f"1088 64 linear {other.dev} 64",
    )
    for sector, length in (64, 8), (100, 1), (250, 30), (1085, 3):
        snap.write(sector, pattern("new", length))
        model.write(sector, pattern("new", length))
    assert snap.read(64, 1024) == bytes(model.shown[64 * 512 : 1088 * 512])
    assert snap.specs()[1][3] == model.status()
    assert_same(store.content(), bytes(model.image))
    assert not any(other.content()) and origin.content() == bytes(model.origin)
    same(snap.specs())


@pytest.mark.only("rust")
@pytest.mark.parametrize("begin", [63, 1, 12])
def test_unaligned_start_is_refused(impl, load, box, disks, log, begin):
    """C confuses two chunks."""
    for _ in range(2):
        device = box.mapped()
        mark = log.mark()
        with pytest.raises(OSError) as error:
            device.load(
                f"0 {begin} linear {disks['other'].dev} 0",
                f"{begin} 64 snapshot {disks['origin'].dev} {disks['cow'].dev} P 8",
            )
        assert error.value.errno == EINVAL
        assert any(
            "snapshot: Target does not begin at a multiple of the chunk size (-EINVAL)" in line
            for line in log.dm(mark)
        )


def test_origin_after_another_target(impl, box):
    """Sectors count from the start of the device here too."""
    origin, other = box.ram(1), box.ram(1)
    origin.fill(pattern("origin", SIZE))
    front = box.mapped(f"0 100 linear {other.dev} 0", f"100 1000 snapshot-origin {origin.dev}")
    assert front.read(100, 1000) == pattern("origin", SIZE)[100 * 512 : 1100 * 512]
    front.write(133, pattern("new", 20))
    assert origin.read(133, 20) == pattern("new", 20)
    assert not any(other.content())
