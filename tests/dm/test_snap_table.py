"""snapshot and snapshot-origin: table lines, every refusal with its text and errno in C's order,
echoes, limits.
"""

import errno
import itertools
import os
import re

import pytest

from lib import box as boxes
from lib import cow, dm, modules
from lib.box import assert_same, pattern

SIZE = 2048  # sectors of each disk
EINVAL, ENOENT, EBUSY, ENXIO = errno.EINVAL, errno.ENOENT, errno.EBUSY, errno.ENXIO
NO_STORE = "Couldn't create exception store"
NOT_READ = "Failed to read snapshot metadata"
NO_PAIR = "Snapshot cow pairing for exception table handover failed"


@pytest.fixture(scope="module")
def disks(guest):
    """An origin and a COW device that know no discard, for which C's limits go wrong."""
    box = boxes.Box()
    yield {name: box.ram(1, discard=False) for name in ("origin", "cow", "other")}
    box.close()


@pytest.fixture
def load(disks, impl, box, log):
    """Loads a table line into a new device and gives (errno or 0, what device-mapper logged)."""
    names = {name: disk.dev for name, disk in disks.items()}

    def attempt(arguments, kind="snapshot", device=None, read_only=False):
        attempt.device = device = device or box.mapped()
        mark = log.mark()
        try:
            device.load(
                f"0 {SIZE} {kind} {arguments.format(**names, me=device.dev)}", read_only=read_only
            )
            error = 0
        except OSError as refused:
            error = refused.errno
        return error, [
            line.replace(device.dev, "<dev>")
            for line in log.dm(mark)
            if "error adding target" not in line
        ]

    disks["cow"].fill(bytes(SIZE * 512))
    return attempt


def refusal(lines):
    """What dm printed for a refused table, which is the last line."""
    found = [line for line in lines if "device-mapper: table: " in line]
    assert found == lines[-1:], lines
    return found[0].removeprefix("3 device-mapper: table: <dev>: ")


def reasons(lines):
    """The errors and warnings that the target itself printed."""
    return [line for line in lines if "device-mapper: table: " not in line]


GOOD = "{origin} {cow} P 8"
# label: (arguments, errno or None for C's, text, what only ours says before)
REFUSED = {
    **{
        f"arguments: {words}": (words, EINVAL, "requires 4 or more arguments", None)
        for words in ("", "{origin}", "{origin} {cow}", "{origin} {cow} P", "a b c")
    },
    **{
        f"features: {words}": (
            f"{GOOD} {words}",
            EINVAL,
            "Invalid number of feature arguments",
            None,
        )
        for words in (
            "1",
            "3 discard_zeroes_cow discard_zeroes_cow discard_zeroes_cow",
            "2 discard_zeroes_cow",
            "x",
            "-1",
            "1x discard_zeroes_cow",
            "discard_zeroes_cow",
            "+1 discard_zeroes_cow",
        )
    },
    **{
        f"feature {words}": (f"{GOOD} {words}", EINVAL, "Unrecognised feature requested", None)
        for words in (
            "1 discard_zeroes",
            "1 1",
            "2 discard_zeroes_cow x",
            "1 discard_zeroes_cow_",
            "2 x discard_passdown_origin",
        )
    },
    **{
        f"passdown: {words}": (
            f"{GOOD} {words}",
            EINVAL,
            "discard_passdown_origin feature depends on discard_zeroes_cow",
            None,
        )
        for words in (
            "1 discard_passdown_origin",
            "2 discard_passdown_origin DISCARD_passdown_origin",
            "2 discard_passdown_origin x",
        )
    },
    "origin missing": ("/dev/none {cow} P 8", ENOENT, "Cannot get origin device", None),
    "origin number free": ("240:77 {cow} P 8", None, "Cannot get origin device", None),
    "origin no device": ("/dev {cow} P 8", None, "Cannot get origin device", None),
    "origin is the snapshot": ("{me} {cow} P 8", EINVAL, "Cannot get origin device", None),
    "COW missing": ("{origin} /dev/none P 8", ENOENT, "Cannot get COW device", None),
    "COW number free": ("{origin} 240:77 P 8", None, "Cannot get COW device", None),
    "COW is the snapshot": ("{origin} {me} P 8", EINVAL, "Cannot get COW device", None),
    **{
        f"type {word}": (
            f"{{origin}} {{cow}} {word} 8",
            EINVAL,
            NO_STORE,
            "Exception store type is not P or N",
        )
        for word in ("X", "0", "8", "-P", "\\ P", "O")
    },
    **{
        f"type {word}": (
            f"{{origin}} {{cow}} {word} 8",
            EINVAL,
            NO_STORE,
            "Unsupported persistent store option",
        )
        for word in ("PX", "pn", "persistent", "PXO", "P0")
    },
    **{
        f"{kind} {word}": (
            f"{{origin}} {{cow}} {kind} {word}",
            EINVAL,
            NO_STORE,
            "Invalid chunk size",
        )
        for kind, word in itertools.product(
            "PN",
            (
                "4294967296",
                "4294967304",
                "18446744073709551624",
                "8k",
                "-1",
                "-0",
                "x",
                "0x8",
                "8.0",
                "\\ 8",
                "8\\ ",
                "+",
                "++8",
            ),
        )
    },
    **{
        f"{kind} {word}": (
            f"{{origin}} {{cow}} {kind} {word}",
            EINVAL,
            NO_STORE,
            "Chunk size is not a power of 2",
        )
        for kind, word in itertools.product("PN", ("3", "9", "24", "010", "4194303", "4294967295"))
    },
    **{
        f"{kind} {word}": (
            f"{{origin}} {{cow}} {kind} {word}",
            EINVAL,
            NO_STORE,
            "Chunk size is too high",
        )
        for kind, word in itertools.product("PN", ("4194304", "2147483648"))
    },
    "N 0": ("{origin} {cow} N 0", EINVAL, "Chunk size not set", None),
    "N 00": ("{origin} {cow} N 00", EINVAL, "Chunk size not set", None),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(impl, load, disks, same, case):
    arguments, error, text, reason = REFUSED[case]
    got, lines = load(arguments)
    assert got == error if error else got
    assert refusal(lines) == f"snapshot: {text} (-{errno.errorcode[got]})"
    same((got, refusal(lines)))
    if impl == "rust" and reason:
        assert f"3 device-mapper: snapshots: {reason}" in reasons(lines)
    assert not any(
        load.device.info().flags & flag for flag in (1 << 5, 1 << 6)
    ), "a refused table was kept"
    assert not any(disks["cow"].read(0, 64)), "a refused table wrote"


@pytest.mark.parametrize("which", ["origin", "cow"])
def test_device_in_use(impl, load, disks, same, which):
    """A device that somebody else claims."""
    claim = os.open(disks[which].path, os.O_RDWR | os.O_EXCL)
    try:
        error, lines = load(GOOD)
    finally:
        os.close(claim)
    assert error == EBUSY
    assert (
        refusal(lines)
        == f"snapshot: Cannot get {'COW' if which == 'cow' else which} device (-EBUSY)"
    )
    same(refusal(lines))
    assert load(GOOD) == (0, [])


def test_first_error_wins(impl, load, disks, same):
    """Every pair of faults that can stand in one line: the one that C looks at first is reported."""
    faults = [  # in the order in which they must be found: (which argument, its value, text, what ours says before)
        ("count", "3", "Invalid number of feature arguments", None),
        ("feature", "bad", "Unrecognised feature requested", None),
        (
            "feature",
            "discard_passdown_origin",
            "discard_passdown_origin feature depends on discard_zeroes_cow",
            None,
        ),
        ("origin", "/dev/none", "Cannot get origin device", None),
        ("cow", "/dev/none", "Cannot get COW device", None),
        ("type", "X", NO_STORE, "Exception store type is not P or N"),
        ("size", "8k", NO_STORE, "Invalid chunk size"),
        ("size", "12", NO_STORE, "Chunk size is not a power of 2"),
        ("size", "4194304", NO_STORE, "Chunk size is too high"),
        ("type", "PX", NO_STORE, "Unsupported persistent store option"),
        ("content", None, NOT_READ, None),
    ]
    seen = []
    for first, second in itertools.combinations(faults, 2):
        if first[0] == second[0]:
            continue
        words = dict(
            origin="{origin}",
            cow="{cow}",
            type="P",
            size="8",
            count="1",
            feature="discard_zeroes_cow",
        )
        disks["cow"].write(0, bytes(512))
        for argument, value, _, _ in (second, first):
            if argument == "content":
                disks["cow"].write(0, b"x" * 512)
            else:
                words[argument] = value
        error, lines = load(" ".join(words.values()))
        assert error and first[2] in refusal(lines), f"{first} and {second}: {lines}"
        if impl == "rust" and first[3]:
            assert f"3 device-mapper: snapshots: {first[3]}" in reasons(
                lines
            ), f"{first} and {second}: {lines}"
        seen.append((error, refusal(lines)))
    same(seen)


# What is accepted: arguments behind the devices, what TABLE makes of them, and the first status.
ACCEPTED = {
    **{f"{kind} 8": ("P 8", "16/2048 16") for kind in "Pp"},
    **{
        f"{kind} 8": ("PO 8", "16/2048 16") for kind in ("PO", "po", "Po", "pO", "POx", "poverflow")
    },
    **{f"{kind} 8": ("N 8", "0/2048 0") for kind in ("N", "n", "Nxyz", "NO", "none")},
    "P 0": ("P 32", "64/2048 64"),
    "PO 00": ("PO 32", "64/2048 64"),
    "P 1": ("P 1", "2/2048 2"),
    "P 64": ("P 64", "128/2048 128"),
    "P 1024": ("P 1024", "2048/2048 2048"),
    "P +8": ("P 8", "16/2048 16"),
    "P 008": ("P 8", "16/2048 16"),
    "N 1": ("N 1", "0/2048 0"),
    "N 2097152": ("N 2097152", "0/2048 0"),
    "P 8 0": ("P 8", "16/2048 16"),
    "P 8 000": ("P 8", "16/2048 16"),
    "P 8 1 discard_zeroes_cow": ("P 8 1 discard_zeroes_cow", "16/2048 16"),
    "P 8 1 Discard_Zeroes_COW": ("P 8 1 discard_zeroes_cow", "16/2048 16"),
    "P 8 2 discard_zeroes_cow DISCARD_ZEROES_COW": ("P 8 1 discard_zeroes_cow", "16/2048 16"),
    "PO 8 2 discard_zeroes_cow discard_passdown_origin": (
        "PO 8 2 discard_zeroes_cow discard_passdown_origin",
        "16/2048 16",
    ),
    "N 8 2 discard_passdown_origin discard_zeroes_cow": (
        "N 8 2 discard_zeroes_cow discard_passdown_origin",
        "0/2048 0",
    ),
}
EXTRA = {
    "P 8 0 junk": ("P 8", "16/2048 16"),
    "N 8 0 0 0 0": ("N 8", "0/2048 0"),
    "P 8 1 discard_zeroes_cow discard_passdown_origin": ("P 8 1 discard_zeroes_cow", "16/2048 16"),
}


@pytest.mark.parametrize("words", ACCEPTED | EXTRA)
def test_accepted(impl, load, disks, same, words):
    """TABLE is what a tool would have written; ours warns of arguments that nobody reads."""
    echo, status = (ACCEPTED | EXTRA)[words]
    error, lines = load("{origin} {cow} " + words)
    assert error == 0
    warned = words in EXTRA and impl == "rust"
    assert lines == (["4 device-mapper: snapshots: extra arguments are ignored"] if warned else [])
    table = f"{disks['origin'].dev} {disks['cow'].dev} {echo}"
    assert load.device.table(inactive=True) == table
    assert load.device.specs(inactive=True)[0][3] == status
    load.device.resume()
    assert (load.device.table(), load.device.status()) == (table, status)
    same((echo, status))


def test_paths_are_echoed_as_numbers(impl, load, disks):
    assert load(f"{disks['origin'].path} {disks['cow'].path} P 8") == (0, [])
    assert load.device.table(inactive=True) == f"{disks['origin'].dev} {disks['cow'].dev} P 8"


def test_version(impl, same):
    versions = dm.target_versions()
    same((versions["snapshot"], versions["snapshot-origin"]))


def test_aliases(impl, rust_module):
    """By which dm asks for a target that is not there."""
    file = rust_module if impl == "rust" else modules.c_file("snapshot-origin")
    aliases = modules.run("modinfo", "-F", "alias", file).stdout.split()
    assert "dm-snapshot-origin" in aliases
    assert impl == "c" or "dm-snapshot" in aliases


def test_no_messages(impl, load, log):
    assert load(GOOD) == (0, [])
    load.device.resume()
    mark = log.mark()
    with pytest.raises(OSError) as error:
        load.device.message("hello")
    assert error.value.errno == EINVAL
    assert [line for line in log.dm(mark) if "Target type does not support messages" in line]


def test_existing_store(impl, load, disks, same):
    """A chunk size of 0 takes that of the store; another one than the store's is overridden, with a
    warning.
    """
    for chunk, data in cow.metadata(16, cow.numbered([5, 3], 16)).items():
        disks["cow"].write(chunk * 16, data)
    for word, warned in ("0", False), ("16", False), ("8", True), ("64", True), ("1", True):
        error, lines = load("{origin} {cow} P " + word)
        assert error == 0
        text = f"chunk size 16 in device metadata overrides table chunk size of {word}."
        assert lines == ([f"4 device-mapper: persistent snapshot: {text}"] if warned else [])
        assert load.device.table(inactive=True).endswith(" P 16")
        load.device.resume()
        assert load.device.table().endswith(" P 16")
        assert load.device.status() == "64/2048 32"
        same((lines, load.device.status()), word)
        load.device.remove()


@pytest.mark.parametrize("which", ["origin", "cow"])
def test_large_logical_blocks(impl, load, box, disks, same, which):
    """Chunks that are smaller than the blocks of a device are refused, also those of a store."""
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


def test_no_discard(impl, box, disks):
    """Without the features, and over devices of which one knows no discard."""
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


def test_cow_is_the_origin(impl, load, disks, same):
    """With a read-only table; see the next one."""
    error, lines = load("{cow} {cow} P 8", read_only=True)
    assert (error, lines) == (EINVAL, [f"3 device-mapper: table: <dev>: {TWINS}"])
    same(lines)
    load.device.remove()
    assert disks["cow"].is_free()


@pytest.mark.only("rust")
def test_cow_is_the_origin_writable(impl, load, disks, box):
    """C opens the device again for writing and goes on with the first handle, which is gone."""
    error, lines = load("{cow} {cow} P 8")
    assert (error, lines) == (EINVAL, [f"3 device-mapper: table: <dev>: {TWINS}"])
    error, lines = load("{origin} {origin} X 8")
    assert (error, refusal(lines)) == (EINVAL, TWINS)
    assert not any(disks["cow"].read(0, 64))
    # The device that failed is not spoilt for the next table.
    assert load(GOOD, device=load.device) == (0, [])
    load.device.remove()
    assert disks["cow"].is_free() and disks["origin"].is_free()


@pytest.mark.only("rust")
def test_origin_is_written_by_another_line(impl, disks, box):
    """C opens the origin for reading. device-mapper opens it again for the other line, and C goes
    on with what is gone.
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


def test_origin_takes_no_writes(impl, disks, load):
    """A snapshot only reads it."""
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
def test_cow_of_two_origins(impl, load, disks, box):
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
    # The other way round: a linear device over the same disk is another device.
    around = box.mapped(f"0 1024 linear {disks['cow'].dev} 1024")
    assert load("{other} " + f"{around.dev} P 8") == (0, [])
    load.device.remove()
    assert disks["cow"].read(0, 1024) == before[: 1024 * 512]
    first.remove()
    assert load("{other} {cow} P 8") == (0, [])


def clean(lines, *devices):
    """Names of devices and addresses taken out."""
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
    """One sector short: refused by dm itself, after the store was made."""
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
    """A store needs a header and an area; with the third chunk there is room for an exception."""
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
    same(snap.event, "events")


def test_read_only(impl, box, same):
    """A read-only table: a store is made, reads work, dm refuses writes, writes to the origin are
    still copied.
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


def test_second_table(impl, load, same, disks):
    """Of the tables with one origin and COW device, one may be live and one may wait for its
    exceptions.
    """
    first = box_of(load, GOOD)
    error, lines = load(GOOD)
    assert (error, refusal(lines)) == (EINVAL, f"snapshot: {NO_PAIR} (-EINVAL)")
    same(lines, "new device")
    error, lines = load(GOOD, device=first)
    assert (error, refusal(lines)) == (EINVAL, f"snapshot: {NO_PAIR} (-EINVAL)")
    same(lines, "same device")
    # What is looked at before, and what after.
    assert NO_STORE in refusal(load("{origin} {cow} P 7")[1])
    disks["cow"].write(0, b"x" * 512)
    assert NO_PAIR in refusal(load(GOOD)[1])
    assert NO_PAIR in refusal(load("{origin} {cow} N 0")[1])
    disks["cow"].write(0, bytes(512))
    first.clear()
    assert load(GOOD, device=first) == (0, [])
    first.resume()
    # A table that waits does not read the store, and does not know its chunk size yet.
    before = disks["cow"].content()
    assert load("{origin} {cow} P 16", device=first) == (0, [])
    same(first.table(inactive=True).split()[2:], "table that waits")
    assert NO_PAIR in refusal(load(GOOD)[1])
    assert disks["cow"].content() == before
    first.clear()
    assert load(GOOD) == (0, [])
    load.device.remove()


def box_of(load, line):
    """The device of a line that must be accepted."""
    assert load(line) == (0, [])
    return load.device


def test_begin(impl, box, same):
    """A snapshot behind another target: chunks are those of the whole device, and so are the
    sectors of the origin.
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
def test_unaligned_begin(impl, load, box, disks, log, begin):
    """C takes chunks for one that are two."""
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


ORIGIN_REFUSED = {
    **{
        words: (words, EINVAL, "origin: incorrect number of arguments")
        for words in ("", "{origin} {cow}", "a b c")
    },
    "missing": ("/dev/none", ENOENT, "Cannot get target device"),
    "number free": ("240:77", None, "Cannot get target device"),
    "itself": ("{me}", EINVAL, "Cannot get target device"),
}


@pytest.mark.parametrize("case", ORIGIN_REFUSED)
def test_origin_refused(impl, load, same, case):
    arguments, error, text = ORIGIN_REFUSED[case]
    got, lines = load(arguments, "snapshot-origin")
    assert got == error if error else got
    assert lines == [
        f"3 device-mapper: table: <dev>: snapshot-origin: {text} (-{errno.errorcode[got]})"
    ]
    same((got, lines))


def test_origin(impl, load, disks):
    """It says nothing but where it is."""
    assert load("{origin}", "snapshot-origin") == (0, [])
    front = load.device
    assert front.table(inactive=True) == disks["origin"].dev
    front.resume()
    assert (front.table(), front.status()) == (disks["origin"].dev, "")
    assert load(disks["origin"].path, "snapshot-origin") == (0, [])
    assert load.device.table(inactive=True) == disks["origin"].dev


def test_origin_behind_another_target(impl, box):
    """Sectors of the whole device here too."""
    origin, other = box.ram(1), box.ram(1)
    origin.fill(pattern("origin", SIZE))
    front = box.mapped(f"0 100 linear {other.dev} 0", f"100 1000 snapshot-origin {origin.dev}")
    assert front.read(100, 1000) == pattern("origin", SIZE)[100 * 512 : 1100 * 512]
    front.write(133, pattern("new", 20))
    assert origin.read(133, 20) == pattern("new", 20)
    assert not any(other.content())
