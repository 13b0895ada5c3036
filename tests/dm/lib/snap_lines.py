"""Table lines of the snapshot targets: refused ones and accepted ones, and the devices they are
tried on.
"""

import itertools
from errno import EINVAL, ENOENT

import pytest

from . import box as boxes

SIZE = 2048  # sectors of each disk
NO_STORE = "Couldn't create exception store"
NOT_READ = "Failed to read snapshot metadata"
NO_PAIR = "Snapshot cow pairing for exception table handover failed"


@pytest.fixture(scope="module")
def disks(guest):
    """An origin and a COW device without discard support, for which C's limits are wrong."""
    box = boxes.Box()
    yield {name: box.ram(1, discard=False) for name in ("origin", "cow", "other")}
    box.close()


@pytest.fixture
def load(disks, impl, box, log):
    """Loads a table line into a new device; returns (errno or 0, what device-mapper logged)."""
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
    """What dm logged for a refused table, which must be the last line."""
    found = [line for line in lines if "device-mapper: table: " in line]
    assert found == lines[-1:], lines
    return found[0].removeprefix("3 device-mapper: table: <dev>: ")


def reasons(lines):
    """The errors and warnings that the target itself logged."""
    return [line for line in lines if "device-mapper: table: " not in line]


GOOD = "{origin} {cow} P 8"
# label: (arguments, errno or None for C's, message, what only dm-rust logs before it)
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


# The accepted arguments after the devices: what TABLE makes of them, and the first status.
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
