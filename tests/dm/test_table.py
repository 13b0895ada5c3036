"""Table lines: each refusal with its message and errno, in C's order, and what the accepted ones
echo.
"""

import errno
import fcntl
import itertools
import os
import re
import struct

import pytest

from lib import box as boxes
from lib import dm, wait

SIZE = 64  # sectors: eight regions of 4 KiB
EINVAL, ENOENT = errno.EINVAL, errno.ENOENT
TEXT = "device-mapper: table: <clone>: clone: "


@pytest.fixture(scope="module")
def disks(guest):
    box = boxes.Box()
    yield {name: box.ram(1) for name in ("meta", "dest", "source")} | {"box": box}
    box.close()


@pytest.fixture
def load(disks, clone_box, log):
    """Loads a table line into a new device; returns (errno or 0, what the kernel logged)."""
    names = {key: disks[key].dev for key in ("meta", "dest", "source")}

    def attempt(line, length=SIZE, **more):
        device = clone_box.mapped()
        mark = log.mark()
        try:
            device.load(f"0 {length} clone {line.format(**names, **more)}")
            error = 0
        except OSError as refused:
            error = refused.errno
        lines = [text.replace(device.dev, "<clone>") for text in log.dm(mark)]
        attempt.device = device
        return error, lines

    disks["meta"].write(0, bytes(4096))
    return attempt


GOOD = "{meta} {dest} {source} 8"
# label: (arguments, errno, message)
REFUSED = {
    "no arguments": ("", EINVAL, "Invalid number of arguments"),
    "one argument": ("{meta}", EINVAL, "Invalid number of arguments"),
    "three arguments": ("{meta} {dest} {source}", EINVAL, "Invalid number of arguments"),
    "three arguments, all wrong": ("a b c", EINVAL, "Invalid number of arguments"),
    "metadata missing": ("/dev/none {dest} {source} 8", ENOENT, "Error opening metadata device"),
    "metadata number free": ("240:77 {dest} {source} 8", None, "Error opening metadata device"),
    "destination missing": (
        "{meta} /dev/none {source} 8",
        ENOENT,
        "Error opening destination device",
    ),
    "source missing": ("{meta} {dest} /dev/none 8", ENOENT, "Error opening source device"),
    **{
        f"region {size}": ("{meta} {dest} {source} " + size, EINVAL, "Invalid region size")
        for size in (
            "7",
            "0",
            "abc",
            "8x",
            "x8",
            "-8",
            "+8",
            "0x8",
            "8.0",
            "4194304",
            "2097153",
            "4294967295",
        )
    },
    **{
        f"region {size}": (
            "{meta} {dest} {source} " + size,
            EINVAL,
            "Region size is not a power of 2",
        )
        for size in ("9", "10", "12", "24", "2097151", "012")
    },
    **{
        f"features: {words}": (GOOD + " " + words, EINVAL, "Invalid number of feature arguments")
        for words in (
            "3 no_hydration no_hydration no_hydration",
            "1",
            "2 no_hydration",
            "x",
            "-1",
            "no_hydration",
            "1x no_hydration",
            "4294967297x",
            "99",
        )
    },
    **{
        f"feature {words}": (GOOD + " " + words, EINVAL, "Invalid feature argument")
        for words in (
            "1 hydration",
            "1 1",
            "2 no_hydration no",
            "1 no_hydration_",
            "2 x no_hydration",
            "1 hydration_threshold",
            "1 no_discard_passdownn",
        )
    },
    **{
        f"core: {words}": (GOOD + " " + words, EINVAL, "Invalid number of core arguments")
        for words in (
            "0 1",
            "0 x",
            "0 5 a b c d e",
            "0 6 a 1 b 2 c 3",
            "0 -1",
            "0 2 hydration_threshold",
            "1 no_hydration 4 hydration_threshold 1 hydration_batch_size",
            "0 hydration_threshold 1",
        )
    },
    **{
        f"core: {words}": (GOOD + " " + words, EINVAL, "Number of core arguments must be even")
        for words in (
            "0 1 hydration_threshold",
            "0 3 hydration_threshold 1 hydration_batch_size",
            "0 1 nonsense",
        )
    },
    **{
        f"core: {words}": (GOOD + " " + words, EINVAL, "Invalid core argument")
        for words in (
            "0 2 threshold 1",
            "0 2 1 hydration_threshold",
            "0 4 hydration_threshold 1 nonsense 1",
            "0 2 no_hydration 1",
            "0 2 hydration_thresholdd x",
        )
    },
    **{
        f"core: hydration_threshold {value}": (
            f"{GOOD} 0 2 hydration_threshold {value}",
            EINVAL,
            "Invalid value for argument `hydration_threshold'",
        )
        for value in ("x", "-1", "4294967296", "1.5", "0x10", "1k", "18446744073709551617")
    },
    **{
        f"core: hydration_batch_size {value}": (
            f"{GOOD} 0 2 hydration_batch_size {value}",
            EINVAL,
            "Invalid value for argument `hydration_batch_size'",
        )
        for value in ("x", "-1", "4294967296", "+", "1_0")
    },
    "core: second value wrong": (
        GOOD + " 0 4 hydration_threshold 1 hydration_batch_size x",
        EINVAL,
        "Invalid value for argument `hydration_batch_size'",
    ),
    "core: first of two wrong": (
        GOOD + " 0 4 hydration_threshold x hydration_batch_size y",
        EINVAL,
        "Invalid value for argument `hydration_threshold'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(impl, load, same, case):
    arguments, error, text = REFUSED[case]
    got, lines = load(arguments)
    if error is None:
        assert got
    else:
        assert got == error
    name = errno.errorcode[got]
    assert lines[0] == f"3 {TEXT}{text} (-{name})"
    same((got, lines))
    assert not any(
        load.device.info().flags & flag for flag in (1 << 5, 1 << 6)
    ), "a refused table was kept"


# What C accepts: arguments after the region size, echoed literally, and (features, threshold,
# batch) of the status.
ACCEPTED = {
    "": ("0", 1, 1),
    "0": ("0", 1, 1),
    "0 0": ("0", 1, 1),
    "1 no_hydration": ("1 no_hydration", 1, 1),
    "1 NO_Hydration": ("1 no_hydration", 1, 1),
    "2 no_hydration no_hydration": ("1 no_hydration", 1, 1),
    "1 no_discard_passdown": ("1 no_discard_passdown", 1, 1),
    "2 no_discard_passdown no_hydration": ("2 no_hydration no_discard_passdown", 1, 1),
    "0 2 hydration_threshold 4": ("0", 4, 1),
    "0 2 HYDRATION_Batch_Size 7": ("0", 1, 7),
    "0 4 hydration_threshold 5 hydration_threshold 6": ("0", 6, 1),
    "0 4 hydration_batch_size 0 hydration_threshold 4294967295": ("0", 4294967295, 0),
    "0 2 hydration_threshold +3": ("0", 3, 1),
    "0 2 hydration_threshold 007": ("0", 7, 1),
    "1 no_hydration 2 hydration_batch_size 64 and whatever follows": ("1 no_hydration", 1, 64),
    "1 no_hydration 0 trailing  words": ("1 no_hydration", 1, 1),
    r"0 0 with\ blank": ("0", 1, 1),
    "00 0": ("0", 1, 1),
}


@pytest.mark.parametrize("words", ACCEPTED)
def test_accepted(impl, load, disks, same, words):
    features, threshold, batch = ACCEPTED[words]
    error, lines = load(f"{GOOD} {words}".strip())
    assert (error, lines) == (0, [])
    device = load.device
    echo = device.table(inactive=True)
    devices = " ".join(disks[name].dev for name in ("meta", "dest", "source"))
    assert echo == f"{devices} 8 {' '.join(words.replace(chr(92), '').split(' '))}".strip().replace(
        "  ", " "
    )
    device.resume()
    status = device.status()
    hydration = f"4 hydration_threshold {threshold} hydration_batch_size {batch}"
    assert re.fullmatch(rf"8 \d+/256 8 \d+/8 \d+ {features} {hydration} rw", status), status
    assert device.table() == echo
    used = status.split()[1]
    assert used == "6/256"
    same((echo.replace(devices, ""), features, hydration))


@pytest.mark.parametrize("region", ["8", "16", "64", "2097152", "08", "4294967304"])
def test_region_sizes(impl, load, same, region):
    """Both ends of the range; sscanf's %u accepts leading zeros and drops what exceeds 32 bits."""
    error, lines = load("{meta} {dest} {source} " + region + " 1 no_hydration")
    assert (error, lines) == (0, [])
    load.device.resume()
    status = load.device.status()
    size = int(region) % (1 << 32)
    assert status.split()[2:4] == [str(size), f"0/{-(-SIZE // size)}"]
    same((load.device.table().split(" ", 3)[3], status))


def test_paths_are_echoed_as_numbers(impl, load, disks):
    error, _ = load(
        "/dev/{m} /dev/{d} {source} 8 1 no_hydration",
        m=disks["meta"].kernel_name,
        d=disks["dest"].kernel_name,
    )
    assert error == 0
    assert load.device.table(inactive=True).split()[:3] == [
        disks[n].dev for n in ("meta", "dest", "source")
    ]


def test_first_error_wins(impl, load, disks, same):
    """Each pair of mistakes that fit into one line: the one that C checks first is reported."""
    faults = [  # in the order of the checks: (which argument, its value, message)
        ("meta", "/dev/none", "Error opening metadata device"),
        ("dest", "/dev/none", "Error opening destination device"),
        ("source", "/dev/none", "Error opening source device"),
        ("region", "7", "Invalid region size"),
        ("region", "12", "Region size is not a power of 2"),
        ("count", "3", "Invalid number of feature arguments"),
        ("feature", "bad", "Invalid feature argument"),
        ("core", "6", "Invalid number of core arguments"),
        ("core", "1", "Number of core arguments must be even"),
        ("key", "bad", "Invalid core argument"),
        ("value", "bad", "Invalid value for argument `hydration_threshold'"),
        ("content", None, "Failed to load metadata"),
    ]
    seen = []
    for first, second in itertools.combinations(faults, 2):
        if first[0] == second[0]:
            continue
        words = dict(
            meta="{meta}",
            dest="{dest}",
            source="{source}",
            region="8",
            count="1",
            feature="no_hydration",
            core="2",
            key="hydration_threshold",
            value="1",
        )
        for argument, value, _ in (second, first):
            if argument == "content":
                disks["meta"].write(0, b"x" * 4096)
            else:
                words[argument] = value
        error, lines = load(" ".join(words.values()))
        assert error and first[2] in lines[0], f"{first} and {second}: {lines}"
        disks["meta"].write(0, bytes(4096))
        seen.append((error, lines))
    same(seen)


@pytest.mark.skipif(
    not os.path.isdir("/sys/kernel/mm/transparent_hugepage"),
    reason="a kernel without huge pages has no blocks above 4 KiB",
)
def test_logical_block_larger_than_region(impl, load, disks, clone_box, same):
    """A disk with blocks of 8 KiB and regions of 4 KiB; regions of 8 KiB are accepted."""
    for which in "dest", "source":
        big = clone_box.loop(1 << 20, blocksize=8192)
        parts = dict(meta="{meta}", dest="{dest}", source="{source}") | {which: big.dev}
        line = " ".join(parts.values())
        error, lines = load(line + " 8")
        assert error == EINVAL
        assert (
            lines[0]
            == f"3 {TEXT}Region size is not a multiple of device logical block size (-EINVAL)"
        )
        same(lines, which)
        assert load(line + " 16 1 no_hydration") == (0, [])
        load.device.remove()
        disks["meta"].write(0, bytes(4096))
        # The size is checked before the arguments that follow, and after the power of two.
        assert "logical block size" in load(line + " 8 9")[1][0]
        assert "power of 2" in load(line + " 12 9")[1][0]


def test_too_many_regions(impl, load, clone_box, disks, same):
    """2^31 + 1 regions are refused before the metadata is read."""
    huge = clone_box.mapped(f"0 {(1 << 34) + 8} zero")
    disks["meta"].write(0, b"x" * 4096)
    line = "{meta} {huge} {huge} 8 1 nonsense"
    error, lines = load(line, length=(1 << 34) + 1, huge=huge.dev)
    assert error == EINVAL
    assert lines[0] == f"3 {TEXT}Too many regions. Consider increasing the region size (-EINVAL)"
    same(lines)
    # Exactly 2^31: the next check refuses it.
    assert "Invalid feature argument" in load(line, length=1 << 34, huge=huge.dev)[1][0]


@pytest.mark.parametrize("data", ["dest", "source"])
def test_metadata_on_a_data_device_is_refused(impl, load, disks, data):
    """C accepts it, and formats the metadata over the data. dm-rust checks it last, so that other
    mistakes are reported as by C.
    """
    disks[data].write(0, bytes(4096))
    disks[data].write(8, b"precious".ljust(4096))
    line = "{meta} {dest} {source} 8".replace("{meta}", f"{{{data}}}")
    error, lines = load(line)
    if impl == "c":
        assert error == 0
        assert disks[data].read(8, 8) != b"precious".ljust(4096)
    else:
        name = dict(dest="destination", source="source")[data]
        assert (error, lines[0]) == (
            errno.EBUSY,
            f"3 {TEXT}Metadata device and {name} device are the same (-EBUSY)",
        )
        assert disks[data].read(0, 16) == bytes(4096) + b"precious".ljust(4096)
        assert "Invalid feature argument" in load(line + " 1 nonsense")[1][0]
    load.device.remove()
    disks[data].write(0, bytes(2 * 4096))


def test_same_source_and_destination_are_accepted(impl, load, disks):
    """Useless, but nothing is lost: accepted, as by C."""
    data = boxes.pattern("both", SIZE)
    disks["dest"].write(0, data)
    assert load("{meta} {dest} {dest} 8 1 no_hydration") == (0, [])
    clone = load.device
    clone.resume()
    clone.write(11, b"x" * 512)
    data = data[: 11 * 512] + b"x" * 512 + data[12 * 512 :]
    clone.message("enable_hydration")
    wait.until(lambda: "8/8" in clone.status(), "all is hydrated")
    assert clone.read(0, SIZE) == disks["dest"].read(0, SIZE) == data
    clone.remove()


def test_read_only_source(impl, load, disks):
    """The source is opened for reading only, so it may be a read-only device."""
    _read_only(disks["source"], True)
    try:
        assert load(GOOD + " 1 no_hydration") == (0, [])
        load.device.resume()
        load.device.write(0, bytes(512))
        load.device.remove()
    finally:
        _read_only(disks["source"], False)


def _read_only(disk, value):
    disk.close()  # the test's own writable descriptor
    fd = os.open(disk.path, os.O_RDONLY)
    fcntl.ioctl(fd, 0x125D, struct.pack("=i", value))  # BLKROSET
    os.close(fd)


@pytest.mark.parametrize("which", ["dest", "source"])
def test_too_small_device(impl, load, disks, clone_box, same, which, log):
    """One sector short: refused when the first table is loaded, and for a later table at resume
    only.
    """
    small = clone_box.mapped(f"0 {SIZE - 1} linear {disks[which].dev} 0")
    parts = dict(meta="{meta}", dest="{dest}", source="{source}") | {which: small.dev}
    line = " ".join(parts.values()) + " 8 1 no_hydration"

    def clean(lines, device):
        return [
            re.sub(r"0x\w+", "#", text)
            .replace(small.kernel_name, "<small>")
            .replace(small.dev, "<small>")
            .replace(device.kernel_name, "<clone>")
            .replace(device.dev, "<clone>")
            for text in lines
        ]

    error, lines = load(line)
    assert error == EINVAL
    lines = clean(lines, load.device)
    assert "too small for target: start=0, len=64, dev_size=63" in lines[0]
    same(lines, "first load")
    load.device.remove()

    disks["meta"].write(0, bytes(4096))
    assert load(GOOD + " 1 no_hydration")[0] == 0
    device = load.device
    device.resume()
    device.write(8, boxes.pattern("new", 8))
    mark = log.mark()
    names = {key: disks[key].dev for key in ("meta", "dest", "source")}
    device.suspend()
    device.load(f"0 {SIZE} clone {line.format(**names)}")
    with pytest.raises(OSError) as refused:
        device.resume()
    later = clean(log.dm(mark), device)
    assert refused.value.errno == EINVAL
    assert any("too small for target" in text for text in later)
    same(later, "later load")
    # The old table continues to work.
    if device.suspended:
        device.resume()
    assert device.read(8, 8) == boxes.pattern("new", 8)
    assert dm.Status(device.status()).hydrated == 1


def test_offset_and_second_target(impl, clone_box):
    """A clone after another target and before a linear one: sectors count from the start of its own
    line.
    """
    trio = clone_box.trio(mib=1)
    other = clone_box.ram(1)
    device = clone_box.mapped(
        f"0 24 linear {other.dev} 0",
        f"24 1024 clone {trio.meta.dev} {trio.dest.dev} {trio.source.dev} 8 1 no_hydration",
        f"1048 100 linear {other.dev} 24",
    )
    new = boxes.pattern("new", 3)
    device.write(24 + 13, new)
    assert device.read(24, 1024) == trio.data[: 13 * 512] + new + trio.data[16 * 512 : 1024 * 512]
    assert dm.Status(device.specs()[1][3]).hydrated == 1
    assert trio.dest.read(8, 8) == trio.data[8 * 512 : 13 * 512] + new
    device.message("hydration_threshold", "64", sector=30)
    device.message("enable_hydration", sector=30)
    boxes.wait.until(lambda: dm.Status(device.specs(noflush=True)[1][3]).full, "hydrated")
    assert (
        trio.dest.read(1024, 1024) == trio.stale[1024 * 512 : 2048 * 512]
    ), "wrote past the end of the target"
    assert not any(other.read(0, 24)), "wrote into the neighbour"


def test_read_only_table(impl, clone_box):
    """A read-only table still opens metadata and destination for writing, and hydrates."""
    trio = clone_box.trio(mib=1)
    device = clone_box.clone(trio.meta, trio.dest, trio.source, 8, "1 no_hydration", start=False)
    device.load(device.line, read_only=True)
    device.resume()
    assert device.read_only
    with pytest.raises(OSError):
        device.write(0, bytes(512))
    assert device.read(0, 64) == trio.data[: 64 * 512]
    device.hydrate()
    device.wait_full()
    trio.check(trio.dest)
