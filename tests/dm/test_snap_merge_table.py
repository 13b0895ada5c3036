"""snapshot-merge: table lines, each refusal with its message and errno, and second merges of an
origin.
"""

import errno

import pytest

from lib import cow, dm, wait
from lib.box import assert_same, pattern
from lib.merges import scatter
from lib.snap_lines import ACCEPTED, EXTRA, NOT_READ, NO_PAIR, NO_STORE, REFUSED, reasons, refusal
from lib.expect import fails
from lib.snaps import Family, merge_line

NO_MERGE = "Snapshot exception store does not support snapshot-merge."
SECOND = "A snapshot is already merging."


# Table lines

# C refuses to merge a transient store since 7.2.12.
TRANSIENT = "N 8", "n 8", "Nxyz 64", "N 2097152", "N 8 0 junk", "N 8 1 discard_zeroes_cow"
MERGE_REFUSED = {
    case: (arguments, error, NO_MERGE if case in ("N 0", "N 00") else text, reason)
    for case, (arguments, error, text, reason) in REFUSED.items()
} | {
    **{
        f"type {word}": ("{origin} {cow} " + word, errno.EINVAL, NO_MERGE, None)
        for word in TRANSIENT
    },
    "N 8, origin missing": ("/dev/none {cow} N 8", errno.ENOENT, "Cannot get origin device", None),
    "N 8, COW missing": ("{origin} /dev/none N 8", errno.ENOENT, "Cannot get COW device", None),
    "N 8, feature": (
        "{origin} {cow} N 8 1 bad",
        errno.EINVAL,
        "Unrecognised feature requested",
        None,
    ),
    "N 7": ("{origin} {cow} N 7", errno.EINVAL, NO_STORE, "Chunk size is not a power of 2"),
}


@pytest.mark.parametrize("case", MERGE_REFUSED)
def test_refused(impl, load, disks, same, probe, case):
    arguments, error, text, reason = MERGE_REFUSED[case]
    accepted = case.removeprefix("type ") in TRANSIENT and probe(
        "C merges a transient store", lambda: not load("{origin} {cow} N 8", "snapshot-merge")[0]
    )
    if accepted and impl == "c":
        return
    got, lines = load(arguments, "snapshot-merge")
    assert got == error if error else got
    assert refusal(lines) == f"snapshot-merge: {text} (-{errno.errorcode[got]})"
    if not accepted:
        same((got, refusal(lines)))
    if impl == "rust" and reason:
        assert f"3 device-mapper: snapshots: {reason}" in reasons(lines)
    assert not any(
        load.device.info().flags & flag for flag in (1 << 5, 1 << 6)
    ), "a refused table was kept"
    assert not any(disks["cow"].read(0, 64)), "a refused table wrote"


@pytest.mark.parametrize("words", [words for words in ACCEPTED | EXTRA if words[0] in "Pp"])
def test_empty_store_is_merged_at_once(impl, load, disks, same, words):
    """A table without exceptions is merged at once."""
    echo, status = (ACCEPTED | EXTRA)[words]
    error, lines = load("{origin} {cow} " + words, "snapshot-merge")
    assert error == 0
    warned = words in EXTRA and impl == "rust"
    assert lines == (["4 device-mapper: snapshots: extra arguments are ignored"] if warned else [])
    table = f"{disks['origin'].dev} {disks['cow'].dev} {echo}"
    device = load.device
    assert device.specs(table=True, inactive=True) == [(0, 2048, "snapshot-merge", table)]
    assert device.specs(inactive=True)[0][3] == status
    device.resume()
    assert (device.table(), device.status()) == (table, status)
    device.swap(f"0 2048 linear {disks['origin'].dev} 0")
    assert device.table() == f"{disks['origin'].dev} 0"
    same((echo, status))


def test_unreadable_store_is_refused(load, disks, same):
    for content, error in (
        (b"x" * 512, errno.ENXIO),
        (cow.header(8, version=2), errno.EINVAL),
        (cow.header(3), errno.EINVAL),
    ):
        disks["cow"].write(0, content.ljust(512, b"\0"))
        got, lines = load("{origin} {cow} P 8", "snapshot-merge")
        assert (got, refusal(lines)) == (
            error,
            f"snapshot-merge: {NOT_READ} (-{errno.errorcode[error]})",
        )
        same(lines, str(content[:16]))


def test_versions(impl, same):
    versions = dm.target_versions()
    assert versions["snapshot-merge"] == (1, 5, 0)
    same(versions["snapshot-merge"])


def test_status_and_table_lines(family, same):
    """Of the loaded table, of the live one, and of the source."""
    snapshot, seen = family.snap("PO", 16), []
    for n in range(5):
        family.write(snapshot, 80 * n, pattern(f"own {n}", 20))
    family.origin.load(merge_line(snapshot))
    assert family.origin.table(inactive=True) == f"{family.real.dev} {snapshot.cow.dev} PO 0"

    def look():
        seen.append(
            [
                (kind, text.replace(family.real.dev, "<origin>").replace(snapshot.cow.dev, "<cow>"))
                for device in (family.origin, snapshot)
                if not device.gone
                for inactive in (False, True)
                for table in (False, True)
                for _, _, kind, text in device.specs(True, table, inactive)
            ]
        )

    look()
    family.origin.clear()
    family.merge(snapshot, before=look)
    family.merged()
    look()
    assert seen[-1] == [
        ("snapshot-merge", "32/8192 32"),
        ("snapshot-merge", "<origin> <cow> PO 16"),
    ]
    same(seen)


def test_messages_are_refused(family, said):
    front = family.merge(family.store(8, []), direct=True)
    fails(front.message, "hello", code=errno.EINVAL)
    assert said.count("Target type does not support messages")


def test_merge_after_another_target(impl, box):
    """A merge after another target: chunks count from the start of the device."""
    family, other = Family(box), box.ram(1)
    snapshot = family.store(8, cow.numbered([20, 50, 21], 8))
    family.origin.remove()
    front = box.mapped(
        f"0 64 linear {other.dev} 0", merge_line(snapshot).replace("0 4096 ", "64 1024 ")
    )
    wait.until(lambda: front.specs()[1][3] == "16/8192 16", lambda: f"merged ({front.specs()})")
    assert_same(front.read(64, 1024), bytes(snapshot.expected[64 * 512 : 1088 * 512]))
    assert_same(family.disk.content(), bytes(snapshot.expected))


# A second merge


@pytest.mark.parametrize("state", ["merging", "at its end", "loaded"])
def test_second_merge_is_refused(family, log, state):
    """With a source, on another device or on the same one."""
    first, second, third = (family.snap("P", size) for size in (8, 16, 8))
    family.write(first, 80, pattern("own", 800))
    family.write(second, 800, pattern("own", 80))
    if state == "loaded":
        family.origin.load(merge_line(first))
    else:
        family.merge(first)
        if state == "at its end":
            family.origin.wait_merged()
    device = family.box.mapped()
    for snapshot in (second, third):
        mark = log.mark()
        fails(device.load, merge_line(snapshot), code=errno.EINVAL)
        assert [line for line in log.dm(mark) if f"snapshot-merge: {SECOND} (-EINVAL)" in line]
    mark = log.mark()
    fails(
        family.origin.load,
        family.origin.line if state != "loaded" else merge_line(first),
        code=errno.EINVAL,
    )
    wanted = NO_PAIR if state == "loaded" else SECOND
    assert [line for line in log.dm(mark) if f"snapshot-merge: {wanted} (-EINVAL)" in line]
    if state == "loaded":
        family.origin.clear()
        family.merge(first)
    family.merged()
    family.end_merge()
    family.merge(second)
    family.merged()


@pytest.mark.only("rust")
@pytest.mark.parametrize("state", ["merging", "loaded"])
def test_second_merge_without_source_is_refused(family, log, state):
    """The snapshot of the second merge has no device. C loads it."""
    first, second = family.store(8, cow.numbered(range(0, 400, 2), 8)), family.store(
        8, cow.numbered([7], 8)
    )
    second.remove()
    if state == "loaded":
        first.remove()
        family.origin.load(merge_line(first))
    else:
        family.merge(first, direct=True)
    device, mark = family.box.mapped(), log.mark()
    fails(device.load, merge_line(second), code=errno.EINVAL)
    assert [line for line in log.dm(mark) if f"snapshot-merge: {SECOND} (-EINVAL)" in line]
    if state == "loaded":
        family.origin.clear()
        family.merge(first, direct=True)
    family.merged()
    fails(device.load, merge_line(second), code=errno.EINVAL)
    family.end_merge()
    device.load(merge_line(second))


@pytest.mark.crowd
def test_two_origins_merge_independently(impl, box, rng):
    """Merges of different origins are independent."""
    families = [Family(box) for _ in range(3)]
    for family in families:
        family.merge(family.store(8, cow.numbered(scatter(rng, 200, 8), 8)), direct=True)
    for family in families:
        family.merged()
