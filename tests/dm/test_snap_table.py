"""snapshot and snapshot-origin: table lines, each refusal with its message and errno in C's order,
echoes, limits.
"""

import errno
import itertools
import os
from errno import EBUSY, EINVAL, ENOENT

import pytest

from lib import cow, dm
from lib.snap_lines import (
    ACCEPTED,
    EXTRA,
    GOOD,
    NOT_READ,
    NO_PAIR,
    NO_STORE,
    REFUSED,
    reasons,
    refusal,
)


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
    """A device that is claimed elsewhere."""
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
    """Each pair of mistakes that fit into one line: the one that C checks first is reported."""
    # In the order of the checks: (which argument, its value, message, what dm-rust logs before).
    faults = [
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


@pytest.mark.parametrize("words", ACCEPTED | EXTRA)
def test_accepted(impl, load, disks, same, words):
    """TABLE is what a tool would have written; dm-rust warns of arguments that are ignored."""
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


def test_messages_are_refused(impl, load, log):
    assert load(GOOD) == (0, [])
    load.device.resume()
    mark = log.mark()
    with pytest.raises(OSError) as error:
        load.device.message("hello")
    assert error.value.errno == EINVAL
    assert [line for line in log.dm(mark) if "Target type does not support messages" in line]


def test_existing_store(impl, load, disks, same):
    """A chunk size of 0 means that of the store; a size unlike the store's is overridden, with a
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


def test_one_live_and_one_loaded_table(impl, load, same, disks):
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
    # What is checked before, and what after.
    assert NO_STORE in refusal(load("{origin} {cow} P 7")[1])
    disks["cow"].write(0, b"x" * 512)
    assert NO_PAIR in refusal(load(GOOD)[1])
    assert NO_PAIR in refusal(load("{origin} {cow} N 0")[1])
    disks["cow"].write(0, bytes(512))
    first.clear()
    assert load(GOOD, device=first) == (0, [])
    first.resume()
    # A loaded table that waits does not read the store, and does not know its chunk size yet.
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


def test_origin_status_and_table(impl, load, disks):
    """The status is empty, and the table is the device number."""
    assert load("{origin}", "snapshot-origin") == (0, [])
    front = load.device
    assert front.table(inactive=True) == disks["origin"].dev
    front.resume()
    assert (front.table(), front.status()) == (disks["origin"].dev, "")
    assert load(disks["origin"].path, "snapshot-origin") == (0, [])
    assert load.device.table(inactive=True) == disks["origin"].dev
