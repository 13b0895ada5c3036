"""snapshot-merge: an origin gets the contents of one of its snapshots while it is in use."""

import errno
import random
import subprocess
import threading
from pathlib import Path

import pytest

from lib import cow, dm, modules, snaps, wait
from lib.box import assert_same, pattern
from lib.chance import take_steps
from lib.disk import in_flight
from lib.snaps import Family, Gate, Snapshot, Valve, fails, merge_line
from test_snap_table import (
    ACCEPTED,
    EXTRA,
    NO_PAIR,
    NO_STORE,
    NOT_READ,
    REFUSED,
    disks,
    load,  # noqa: F401
    reasons,
    refusal,
)

NO_MERGE = "Snapshot exception store does not support snapshot-merge."
SECOND = "A snapshot is already merging."


class Said:
    """What device-mapper says from here on."""

    def __init__(self, log):
        self._log, self._mark = log, log.mark()

    def count(self, text):
        return sum(line.endswith(text) for line in self._log.dm(self._mark))


@pytest.fixture
def said(log):
    return Said(log)


def soon(family, call, *args):
    """What must not wait. It is done by another thread, so that a test which is wrong about it can
    end.
    """
    return family.box.background(call, *args).result()


def scatter(rng, number, size, sectors=4096):
    """Chunks of the origin, in random order; never two behind each other, so that C merges each by
    itself.
    """
    return rng.sample(range(0, sectors // size, 2), number)


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
def test_accepted(impl, load, disks, same, words):
    """A table without exceptions is at its end at once."""
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


def test_bad_store(load, disks, same):
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


def test_versions(impl, rust_module, same):
    versions = dm.target_versions()
    assert versions["snapshot-merge"] == (1, 5, 0)
    same(versions["snapshot-merge"])
    file = rust_module if impl == "rust" else modules.c_file("snapshot-merge")
    assert "dm-snapshot-merge" in modules.run("modinfo", "-F", "alias", file).stdout.split()


def test_words(family, same):
    """Of the table that waits, of the one that is live, and of the source."""
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


def test_no_messages(family, said):
    front = family.merge(family.store(8, []), direct=True)
    fails(front.message, "hello", code=errno.EINVAL)
    assert said.count("Target type does not support messages")


def test_between_other_targets(impl, box):
    """A merge behind another target: chunks are those of the whole device."""
    family, other = Family(box), box.ram(1)
    snapshot = family.store(8, cow.numbered([20, 50, 21], 8))
    family.origin.remove()
    front = box.mapped(
        f"0 64 linear {other.dev} 0", merge_line(snapshot).replace("0 4096 ", "64 1024 ")
    )
    wait.until(lambda: front.specs()[1][3] == "16/8192 16", lambda: f"merged ({front.specs()})")
    assert_same(front.read(64, 1024), bytes(snapshot.expected[64 * 512 : 1088 * 512]))
    assert_same(family.disk.content(), bytes(snapshot.expected))


# The second merge


@pytest.mark.parametrize("state", ["merging", "at its end", "loaded"])
def test_second_merge(family, log, state):
    """With a source, on another device or on the same."""
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
def test_second_merge_without_source(family, log, state):
    """Whose snapshot is not there. C loads it."""
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
def test_merges_of_two_origins(impl, box, rng):
    """They have nothing to do with each other."""
    families = [Family(box) for _ in range(3)]
    for family in families:
        family.merge(family.store(8, cow.numbered(scatter(rng, 200, 8), 8)), direct=True)
    for family in families:
        family.merged()


# What is merged


def merges():
    for size in (1, 8):
        epa = cow.per_area(size)
        yield from ((size, count, "random") for count in (0, 1, 5, epa - 1, epa, epa + 1, 2 * epa))
        yield from ((size, 2 * epa, order) for order in ("rising", "falling"))
    yield from ((128, count, "random") for count in (0, 1, 31))
    yield 1, 1000, "random"


@pytest.mark.parametrize("size, count, order", merges())
def test_merge(family, rng, size, count, order):
    """All areas, however full; with a snapshot beside it."""
    family.snap("P", 16)
    olds = sorted(rng.sample(range(4096 // size), count), reverse=order == "falling")
    if order == "random":
        rng.shuffle(olds)
    front = family.merge(family.store(size, cow.numbered(olds, size)), direct=True)
    family.check(front)
    family.merged()


@pytest.mark.parametrize("kind, size", [("P", 8), ("PO", 1), ("P", 64)])
def test_handover(family, rng, kind, size):
    """What the snapshot has in memory; then the same device is an origin again, and another
    snapshot is merged.
    """
    for turn in range(3):
        snapshot, other = family.snap(kind, size), family.snap("P", 8)
        for n in range(40):
            at, count = rng.randrange(4000), rng.randrange(1, 90)
            family.write(rng.choice((snapshot, family.origin)), at, rng.randbytes(count * 512))
        front = family.merge(snapshot)
        family.check(front)
        family.merged()
        family.end_merge()
        family.check()
        family.close(other)


@pytest.mark.parametrize(
    "sectors, size", [(4096 - 5, 8), (4096 - 63, 64), (4096 - 1, 128), (4096 - 127, 128)]
)
def test_short_last_chunk(impl, box, sectors, size):
    family = Family(box, sectors=sectors)
    family.snap("P", 8)
    last = sectors // size
    family.merge(family.store(size, cow.numbered([last, 3, last - 2, last - 1], size)), direct=True)
    family.merged()
    family.end_merge()
    family.merge(family.store(size, cow.numbered([last - 1, last], size)), direct=True)
    family.merged()


@pytest.mark.only("rust")
@pytest.mark.parametrize("size", [1, 8, 128])
@pytest.mark.parametrize("where", ["first", "middle", "last", "all"])
def test_useless_records(family, size, where):
    """Chunks behind the origin's end, and records that repeat another one: they are cleared and
    nothing is copied.
    """
    good = cow.numbered([3, 9, 1, 10, 11], size)
    end = 4096 // size
    news = [cow.data_at(n, size) for n in range(5, 12)]
    useless = list(zip((end, end + 1, 1 << 50, (1 << 63) - 1, (1 << 64) - 1), news))
    repeated = [(3, news[5]), (20, good[0][1]), (3, good[1][1])]
    records = {
        "first": useless + good,
        "middle": good[:3] + useless + good[3:] + repeated + [(12, news[6])],
        "last": good + useless + repeated,
        "all": useless,
    }[where]
    snapshot = family.store(size, records)
    assert len(snapshot.copied) == {"all": 0, "middle": 6}.get(where, 5)
    family.snap("P", 8)
    family.check(family.merge(snapshot, direct=True))
    family.merged()


@pytest.mark.only("rust")
def test_area_of_useless_records(family):
    """A whole one, behind another and in front of a third."""
    epa = cow.per_area(1)
    olds = [n if n // epa != 1 else 5000 + n for n in range(3 * epa + 3)]
    family.merge(family.store(1, cow.numbered(olds, 1)), direct=True)
    family.merged()


@pytest.mark.parametrize("size", [1, 8])
@pytest.mark.parametrize("areas, more", [(1, 0), (2, 0), (1, 1), (2, -1)])
def test_status_of_the_first_step(family, same, size, areas, more):
    """Also with an area that is just full, and of which the next one is empty."""
    valve = family.real = Valve(family.box, family.disk)
    count = areas * cow.per_area(size) + more
    snapshot = family.store(size, cow.numbered(range(min(count, family.sectors // size)), size))
    front = family.merge(snapshot, direct=True, before=lambda: valve.hold("writes"))
    wait.until(lambda: in_flight(valve), "the first step is at the origin")
    same(front.status())
    valve.release()
    family.merged()


@pytest.mark.parametrize("size", [1, 8])
def test_gaps(family, rng, size):
    """Chunks of the COW device may have been taken in any order."""
    olds = rng.sample(range(500), 100)
    family.snap("P", 64)
    family.check(family.merge(family.store(size, cow.scattered(olds, size, rng)), direct=True))
    family.merged()


# Other snapshots


@pytest.mark.parametrize(
    "size, others", [(8, ()), (8, (8,)), (8, (1, 64)), (1, (16, 8, 64)), (64, (1, 8, 32, 64))]
)
@pytest.mark.parametrize("direct", [False, True])
def test_other_snapshots(family, rng, size, others, direct):
    """They keep what they show. What they have not copied yet they get first."""
    for other in others:
        family.snap(rng.choice(("P", "PO", "N")), other)
    snapshot = family.snap("P", size)
    for n in range(60):
        at, count = rng.randrange(4000), rng.randrange(1, 90)
        family.write(
            rng.choice((snapshot, family.origin, *family.snapshots)), at, rng.randbytes(count * 512)
        )
    front = family.merge(snapshot, direct)
    family.check()
    for n in range(30):
        at, count = rng.randrange(4000), rng.randrange(1, 90)
        family.write(rng.choice((front, *family.snapshots)), at, rng.randbytes(count * 512))
        family.read(rng.choice((front, *family.snapshots)), rng.randrange(4000), 90)
    family.merged()
    family.end_merge()
    for other in list(family.snapshots):
        if other.kind != "N":
            family.reopen(other)
    family.check()


@pytest.mark.parametrize("kind", ["P", "PO", "N"])
def test_other_snapshot_becomes_full(family, rng, kind):
    """It is lost; the merge and the others go on."""
    full, other = family.snap(kind, 8, room=20), family.snap("P", 8)
    family.merge(family.store(8, cow.numbered(scatter(rng, 200, 8), 8)), direct=True)
    full.wait_status("Invalid")
    family.snapshots.remove(full)
    family.merged()


@pytest.mark.parametrize("layer", ["COW read", "COW"])
def test_other_snapshot_fails(family, rng, layer):
    """A COW device of another snapshot has nothing to do with it."""
    bad = family.snap("P", 8)
    family.write(bad, 0, pattern("own", 8))
    (bad.cow.error_reads if layer == "COW read" else bad.cow.error)((24, bad.cow.sectors))
    family.merge(family.store(8, cow.numbered(scatter(rng, 50, 8), 8)), direct=True)
    if layer == "COW":
        bad.wait_status("Invalid")
        family.snapshots.remove(bad)
    family.origin.wait_merged()
    bad.cow.heal()
    family.merged()


def reload_others(family, rng, suspended):
    others = [family.snap("P", 8), family.snap("N", 1)]
    front = family.merge(family.store(1, cow.numbered(scatter(rng, 800, 1), 1)), direct=True)
    for turn in range(12):
        other = rng.choice(others)
        if suspended:
            front.suspend()
        other.swap(other.line, noflush=turn % 2)
        if suspended:
            front.resume()
        family.write(other, 100 * turn, pattern(f"own {turn}", 10))
        for device in other, front:
            family.read(device, rng.randrange(3500), 500)
    family.merged()


def test_other_snapshot_is_reloaded(family, rng):
    """Again and again, while the device that merges is suspended."""
    reload_others(family, rng, True)


@pytest.mark.only("rust")
def test_other_snapshot_is_reloaded_alone(family, rng):
    """While the device that merges works. C starts its next step when neither the old table nor the
    new one is asked what is to be copied.
    """
    reload_others(family, rng, False)


# Reads and writes during a merge


class Chaos(snaps.Chaos):
    """A merge, and steps that a seed chooses."""

    def __init__(self, impl, family, rng, others, turns):
        super().__init__(family, rng, others)
        self.impl, self.turns = impl, turns

    def any(self):
        return self.rng.choice([self.family.origin] * 4 + self.family.snapshots)

    def range(self, most=600):
        count = self.rng.choice((1, 1, 2, 8, self.rng.randrange(1, most)))
        return self.rng.randrange(self.family.sectors - count + 1), count

    def write(self):
        start, count = self.range()
        self.family.write(
            self.any(), start, self.rng.randbytes(count * 512), fua=self.rng.random() < 0.2
        )

    def write_chunks(self):
        size = self.family.merging.size
        count = self.rng.choice((1, 1, 2, 10))
        start = self.rng.randrange(self.family.sectors // size - count) * size
        self.family.write(self.family.origin, start, self.rng.randbytes(count * size * 512))

    def suspend(self):
        device = self.any()
        device.suspend(noflush=self.rng.random() < 0.5, lockfs=self.rng.random() < 0.2)
        device.resume()

    def again(self):
        self.family.again()

    def reload(self):
        """Another snapshot, of which there may be none. C loses copies unless nothing is merged
        meanwhile.
        """
        front, suspended = self.family.origin, self.impl == "c" or self.rng.random() < 0.5
        for other in self.rng.sample(self.family.snapshots, min(1, len(self.family.snapshots))):
            if suspended:
                front.suspend()
            other.swap(other.line)
            if suspended:
                front.resume()

    def run(self):
        weights = {
            self.read: 6,
            self.write: 6,
            self.write_chunks: 6,
            self.flush: 1,
            self.zero: 1,
            self.suspend: 2,
            self.again: 1,
            self.reload: 1,
        }
        take_steps(self.rng, weights, self.turns)
        self.family.merged()


@pytest.mark.parametrize(
    "size, others, sectors",
    [
        (8, (), 4096),
        (1, (8,), 4096 - 1),
        (8, (64, 1), 4096 - 27),
        (64, (8, 16, 1, 128), 4096),
        (1, (1, 32), 4096),
    ],
)
def test_random_steps(impl, box, rng, size, others, sectors):
    family = Family(box, sectors=sectors)
    chaos = Chaos(impl, family, rng, others, 100)
    number = sectors // size * 3 // 4
    family.merge(
        family.store(size, cow.numbered(rng.sample(range(sectors // size), number), size)),
        direct=True,
    )
    chaos.run()


@pytest.mark.crowd
@pytest.mark.parametrize("size, others", [(64, (8,)), (8, ()), (1, (8, 64))])
def test_threads(family, rng, size, others):
    """Threads that share every chunk, each with sectors of its own, until everything is merged."""
    for other in others:
        family.snap("P", other)
    olds = rng.sample(range(4096 // size), min(4096 // size * 3 // 4, 700))
    snapshot, threads, stop = family.store(size, cow.numbered(olds, size)), 8, threading.Event()
    front = family.merge(snapshot, direct=True)

    def work(number, seed):
        """Owns the sectors n with n % 8 == number, and prefers those that are merged early."""
        own = random.Random(seed)
        device = family.snapshots[number % len(others)] if others and number == 7 else front
        for turn in range(100_000):
            if stop.is_set() and turn > 40:
                return
            chunk = (
                olds[-1 - int(len(olds) * own.random() ** 2)] * size
                if own.random() < 0.8
                else own.randrange(4096)
            )
            sector = min(chunk + own.randrange(size), 4095) // threads * threads + number
            if own.random() < 0.6:
                family.write(device, sector, own.randbytes(512), fua=own.random() < 0.1)
            else:
                family.read(device, sector, 1)

    workers = [family.box.background(work, number, rng.random()) for number in range(threads)]
    try:
        front.wait_merged()
    finally:
        stop.set()
    for worker in workers:
        worker.result()
    family.merged()


def test_flush_reaches_both(impl, box):
    """What was written went to the COW device, or to the origin."""
    family = Family(box, cache=True)
    snapshot = family.store(8, cow.numbered([5], 8))
    before = snapshot.cow.lower
    front = family.merge(snapshot, direct=True)
    family.merged()
    marks = family.disk.stats(), before.stats()
    front.flush()
    for disk, mark in zip((family.disk, before), marks):
        assert (disk.stats() - mark).flushes == 1


def discards(family, size):
    snapshot = family.store(size, cow.numbered([1, 3], size), extra="1 discard_zeroes_cow")
    front = family.merge(snapshot, direct=True, before=snapshot.cow.hold)
    soon(family, front.discard, 0, 4 * size)
    soon(family, front.discard, size, size)
    snapshot.cow.release()
    front.discard(0, 4 * size)
    family.merged()
    front.discard(0, 4 * size)
    family.merging = snapshot
    family.merged()


def test_discard(family):
    """It ends, and changes nothing."""
    discards(family, 512)


@pytest.mark.only("rust")
@pytest.mark.parametrize("size", [8, 64])
def test_discard_of_small_chunks(family, size):
    """For which C's limits go wrong."""
    discards(family, size)


def test_no_discard(family):
    front = family.merge(family.store(8, cow.numbered([1, 3], 8)), direct=True)
    assert front.queue("discard_max_bytes") == 0
    fails(front.discard, 0, 8, code=errno.EOPNOTSUPP)
    family.merged()


# Merging held at each kind of I/O


class Parts:
    """A family whose devices keep back one kind of I/O of a merge. The COW device has its first
    area in front.
    """

    KINDS = "COW read", "origin write", "origin flush", "record write", "record read"

    def __init__(self, box):
        self.family = Family(box, cache=True)
        self.real = self.family.real = Valve(box, self.family.disk)
        self.front, self.below = Gate(box, box.ram(1, cache=True)), Gate(
            box, box.ram(8, cache=True)
        )
        self.back = Valve(box, self.below)
        self.cow = box.mapped(
            f"0 16 linear {self.front.dev} 0", f"16 16000 linear {self.back.dev} 0"
        )

    def hold(self, what):
        device, kind = {
            "COW read": (self.back, "reads"),
            "origin write": (self.real, "writes"),
            "origin flush": (self.real, "flushes"),
            "record write": (self.front, None),
            "record read": (self.front, None),
        }[what]
        device.hold(*[kind] if kind else [])
        return device


@pytest.fixture
def parts(impl, box):
    return Parts(box)


@pytest.mark.parametrize("what", Parts.KINDS)
@pytest.mark.parametrize("others", [0, 2])
def test_held(parts, what, others):
    """A write into what is being merged waits and then is there; reads go on, and show what the
    snapshot showed.
    """
    family, held = parts.family, None
    for _ in range(others):
        other = family.snap("P", 8)
        family.write(other, 0, pattern("copied", 4096))  # so nothing is to be copied
    olds = list(range(100, 110))
    if what == "record read":
        olds = [*range(200, 456), *olds]
    snapshot = family.store(8, cow.numbered(olds, 8), cow_device=parts.cow)

    def hold():
        nonlocal held
        held = parts.hold(what)

    front = family.merge(snapshot, direct=True, before=hold)
    wait.until(lambda: in_flight(held), f"{what} is held")
    fresh = {
        8 * 109 + 2: pattern("new", 3),
        8 * 108: pattern("new", 8),
        8 * 101 + 4: pattern("new", 20),
    }
    writers = []
    if what not in ("record read", "origin write"):
        soon(
            family, family.write, front, 8, pattern("elsewhere", 20)
        )  # not in the COW: goes to the origin
    if what != "record read":
        writers = [family.writer(front, at, data) for at, data in fresh.items()]
        # The last one is in pieces, of which each waits by itself.
        wait.until(lambda: in_flight(front) >= 3, "the writes are on their way")
    if what == "COW read":
        soon(family, family.read, front, 0, 800)
    else:
        for _ in range(5):
            soon(family, family.check, front)
    for other in family.snapshots:
        soon(family, family.check, other)
    assert not any(writer.done for writer in writers)
    assert not front.merged
    held.release()
    for writer in writers:
        writer.result()
    family.merged()


def test_merge_waits_for_writes(impl, box):
    """A chunk to which a write is on its way is not copied before it has ended; nobody else waits
    for it.
    """
    family, disk, chunk = Family(box), box.ram(8), Valve(box, box.ram(1))
    real = family.real = Valve(box, family.disk)
    cow_device = box.mapped(
        f"0 16 linear {disk.dev} 0", f"16 8 linear {chunk.dev} 0", f"24 16000 linear {disk.dev} 24"
    )
    snapshot = family.store(8, cow.numbered(range(100, 400), 8), cow_device=cow_device)
    front = family.merge(snapshot, direct=True, before=lambda: real.hold("writes"))
    wait.until(lambda: in_flight(real), "the first step is at the origin")
    chunk.hold("writes")
    start = front.look().allocated
    writer = family.box.background(front.write, 800, pattern("late", 5))
    wait.until(lambda: in_flight(chunk), "the write is at the COW")
    real.release()
    wait.until(lambda: front.look().allocated < start, "the first step has been made")
    soon(family, family.write, front, 8, pattern("elsewhere", 8))
    soon(family, family.read, front, 808, 3000)
    assert not writer.done and not front.merged
    chunk.release()
    writer.result()
    family.wrote(front, 800, pattern("late", 5))
    family.merged()


def test_merge_waits_for_copies(family):
    """Another snapshot has its copy before the origin is written to."""
    other = family.snap("P", 8)
    snapshot = family.store(8, cow.numbered(range(100, 110), 8))

    def hold():
        other.cow.hold()

    begun = family.box.background(family.merge, snapshot, True, hold)  # with C the resume waits
    wait.until(lambda: family.merging and in_flight(other.cow), "copies are on their way")
    assert family.disk.content() == family.data
    other.cow.release()
    begun.result()
    family.merged()


@pytest.mark.only("rust")
def test_large_run_is_merged_in_steps(impl, box):
    """Chunks that follow each other in the origin and in the COW: C merges them in one step, during
    which all writes to them wait.
    """
    size, chunks = 128, 48 * 16
    family = Family(box, sectors=size * chunks)
    valve = family.real = Valve(box, family.disk)
    snapshot = family.store(size, cow.numbered(range(chunks), size))
    front = family.merge(snapshot, direct=True, before=lambda: valve.hold("writes"))
    wait.until(lambda: in_flight(valve), "the first step is at the origin")
    late = family.box.background(front.write, size * chunks - 8, pattern("late", 8))
    soon(family, family.write, front, 0, pattern("early", 8))  # 48 MiB before what is merged first
    soon(family, family.write, front, size * 8 + 3, pattern("early", 800))
    assert not late.done
    valve.release()
    late.result()
    family.wrote(front, size * chunks - 8, pattern("late", 8))
    family.merged()


# Suspend, resume, reload, remove


@pytest.mark.parametrize("others", [0, 2])
def test_suspend_and_resume(family, rng, others):
    """It goes on where it was, however often."""
    for _ in range(others):
        family.snap("P", 8)
    front = family.merge(family.store(1, cow.numbered(scatter(rng, 1800, 1), 1)), direct=True)
    for turn in range(150):
        front.suspend(noflush=rng.random() < 0.5, lockfs=rng.random() < 0.1)
        if turn % 10 == 0:
            before = front.status()
            family.real.read(rng.randrange(4000), 90)
            assert front.status() == before
        front.resume()
        if turn % 3 == 0:
            family.write(front, rng.randrange(4000), pattern(f"w{turn}", rng.randrange(1, 90)))
        if turn % 7 == 0:
            family.read(front, 0, 4096)
    family.merged()


def test_suspend_is_bounded(parts, rng):
    """It waits for the step that has begun, and for no other."""
    family = parts.family
    snapshot = family.store(1, cow.numbered(scatter(rng, 640, 1), 1))
    front = family.merge(snapshot, direct=True, before=lambda: parts.real.hold("writes"))
    wait.until(lambda: in_flight(parts.real), "the first step is at the origin")
    suspend = family.box.background(front.suspend, True)
    soon(family, family.real.read, 0, 100)
    assert not suspend.done
    parts.real.release()
    suspend.result()
    usage = front.look()
    assert usage.allocated > cow.data_at(640 - 2 * 32, 1), f"{usage.allocated} sectors are left"
    front.resume()
    family.merged()


def back_to_snapshot(family, reload=True):
    """The device that merges becomes a plain origin, if it is reloaded, and another one what the
    snapshot was.
    """
    front, old = family.origin, family.merging
    snapshot = family.box.own(Snapshot(old.origin, old.cow, old.kind, old.size, start=False))
    snapshot.load(snapshot.line)
    if reload:
        front.load(front.plain_line)
    front.suspend()
    snapshot.resume()
    front.resume()
    family.merging, front.line = None, front.plain_line
    snapshot.expected, front.expected = front.expected, bytearray(front.content())
    family.snapshots.append(snapshot)
    for each in family.snapshots[
        :
    ]:  # not everything has come to them, and some of it is on its way until they are removed
        if each is not snapshot:
            each = family.reopen(each)
        each.copied = set(cow.Store(each.cow).taken)
    return snapshot


@pytest.mark.parametrize("size, number", [(1, 1800), (8, 250)])
def test_back_to_a_snapshot(family, rng, size, number):
    """And then a merge again, several times. What is left in the COW is found, and there is room
    for more.
    """
    family.snap("P", 16)
    family.merge(family.store(size, cow.numbered(scatter(rng, number, size), size)), direct=True)
    for turn in range(4):
        snapshot = back_to_snapshot(family)
        if turn % 2:
            family.check()
        for n in range(10):
            device = rng.choice((family.origin, *family.snapshots))
            family.write(device, rng.randrange(4000), pattern(f"w{turn} {n}", rng.randrange(1, 90)))
        family.check()
        if turn % 2:
            snapshot = family.reopen(snapshot)
            family.check()
        family.merge(snapshot, direct=turn == 2)
    family.merged()


@pytest.mark.parametrize("size, number", [(1, 1800), (8, 250)])
def test_resumed_without_its_store(family, rng, said, size, number):
    """The store has gone to a snapshot. What merged is a plain origin for it, and merges nothing."""
    front = family.merge(
        family.store(size, cow.numbered(scatter(rng, number, size), size)), direct=True
    )
    snapshot = back_to_snapshot(family, reload=False)
    assert front.status() == "Invalid"
    assert said.count("snapshots: Snapshot is invalid: can't merge") == 1
    for n in range(20):
        family.write(
            rng.choice((front, snapshot)),
            rng.randrange(4000),
            pattern(f"w{n}", rng.randrange(1, 90)),
        )
    family.check()
    front.suspend()
    front.resume()
    front.swap(front.plain_line)
    family.check()
    family.merge(snapshot)
    family.merged()


@pytest.mark.only("rust")
def test_store_with_copies_on_their_way(family):
    """A snapshot is merged while it still gets what the merge of another one has asked for. C ends
    that with the first.
    """
    other = family.snap("P", 8)
    front = family.merge(
        family.store(8, cow.numbered(range(100, 110), 8)), direct=True, before=other.cow.hold
    )
    wait.until(lambda: in_flight(other.cow), "copies are on their way")
    front.swap(front.plain_line)
    family.merging, front.expected, other.copied = (
        None,
        bytearray(family.data),
        set(range(100, 110)),
    )
    merge = family.box.background(family.merge, other)
    wait.until(lambda: family.merging, "the merge is about to begin")
    writer = family.box.background(front.write, 840, pattern("late", 8))
    for _ in range(20):
        soon(family, family.real.read, 0, 8)
    assert not merge.done and not writer.done
    other.cow.release()
    merge.result()
    writer.result()
    family.wrote(front, 840, pattern("late", 8))
    family.merged()


@pytest.mark.crowd
@pytest.mark.only("rust")
def test_snapshot_that_is_taken_meanwhile(family):
    """While another one still copies the last of what the step that has begun will overwrite. With
    C taking it waits for that.
    """
    other, olds = family.snap("P", 8), range(100, 140, 2)
    family.write(other, 800, pattern("own", 8 * 35))
    family.merge(family.store(8, cow.numbered(olds, 8)), direct=True, before=other.cow.hold)
    wait.until(lambda: in_flight(other.cow), "copies are on their way")
    new = family.box.own(Snapshot(family.real, family.cow(8)))
    new.expected, new.copied = bytearray(family.data), set(olds)
    family.snapshots.append(new)
    other.cow.release()
    family.merged()


@pytest.mark.only("rust")
@pytest.mark.parametrize("size", [1, 8])
def test_back_to_a_snapshot_with_gaps(family, rng, size):
    """New exceptions take chunks behind all that are in use. C counts records, and takes some that
    are.
    """
    for number in (300, 300 if size == 8 else 40):
        valve = family.real = Valve(family.box, family.disk)
        olds = rng.sample(range(4096 // size), number)
        snapshot = family.store(size, cow.scattered(olds, size, rng, 3))
        front = family.merge(snapshot, direct=True, before=lambda: valve.hold("writes"))
        wait.until(lambda: in_flight(valve), "the first step is at the origin")
        suspend = family.box.background(front.suspend)
        valve.release()
        suspend.result()
        snapshot = back_to_snapshot(family)
        news = [new for _, new in cow.Store(snapshot.cow).records]
        assert 0 < len(news) < number
        assert snapshot.look().allocated > max(news) * size
        for n in range(60):
            family.write(snapshot, n * 64 + 13, pattern(f"own {n}", 5))
        family.read(snapshot, 0, 4096)
        store = cow.Store(snapshot.cow)
        assert not store.repeated and store.taken.keys() == snapshot.copied
        snapshot = family.reopen(snapshot)
        family.read(snapshot, 0, 4096)
        family.merge(snapshot)
        family.merged()
        family.end_merge()


@pytest.mark.parametrize("others", [0, 2])
def test_remove_and_again(family, rng, others):
    """It is removed in the middle and started anew from what is on the disk."""
    for _ in range(others):
        family.snap("P", 8)
    snapshot = family.store(1, cow.numbered(scatter(rng, 1500, 1), 1))
    family.merge(snapshot, direct=True)
    for turn in range(15):
        family.write(family.origin, rng.randrange(4000), pattern(f"w{turn}", rng.randrange(1, 90)))
        family.again()
        family.read(family.origin, 0, 4096)
    family.merged()


@pytest.mark.crowd
def test_removal_with_a_step_on_its_way(family, rng):
    """It waits for this step; what follows is still there."""
    family.layered()
    snapshot = family.store(1, cow.numbered(scatter(rng, 320, 1), 1))
    front = family.merge(snapshot, direct=True, before=lambda: family.real.hold())
    wait.until(lambda: in_flight(family.real), "the first step is at the origin")
    removal = family.box.background(front.remove)
    wait.until(lambda: not dm.Mapped.exists(front.name), "the device is gone")
    assert not removal.done
    family.real.release()
    removal.result()
    assert cow.Store(snapshot.cow).records
    family.again()
    family.merged()


def test_reload_of_errors(family, rng):
    """What `dmsetup remove --force` does, in the middle; then it begins again."""
    snapshot = family.store(1, cow.numbered(scatter(rng, 640, 1), 1))
    front = family.merge(snapshot, direct=True)
    front.load(f"0 {family.sectors} error")
    front.suspend(noflush=True)
    front.resume()
    fails(front.read, 0, 8)
    family.again()
    family.merged()


# Handover


def test_live_source(family, said):
    """The destination goes live only when the source is suspended, and the source not any more when
    it is loaded.
    """
    snapshot, front = family.snap("P", 8), family.origin
    family.write(snapshot, 80, pattern("own", 100))
    front.load(merge_line(snapshot))
    front.suspend()
    fails(front.resume, code=errno.EINVAL)
    assert said.count("Unable to perform snapshot handover until source is suspended.") == 1
    assert front.suspended
    family.write(snapshot, 800, pattern("own", 100))
    family.read(snapshot, 0, 4096)
    snapshot.suspend()
    fails(snapshot.resume, code=errno.EINVAL)
    assert said.count("Unable to resume snapshot source until handover completes.") == 1
    family.merge_begins(front, snapshot)
    front.resume()
    assert snapshot.status() == "Invalid"
    snapshot.resume()
    fails(snapshot.read, 80, 8)
    family.check(front)
    snapshot.remove()
    family.merged()


def test_loaded_table_is_dropped(family):
    """The snapshot stays what it was, and can be merged later."""
    snapshot = family.snap("P", 8)
    for turn in range(3):
        family.write(snapshot, 80 * turn, pattern(f"own {turn}", 100))
        family.origin.load(merge_line(snapshot))
        family.write(family.origin, 1000 * turn, pattern(f"new {turn}", 100))
        if turn:
            family.origin.suspend()
        family.origin.clear()
        if turn:
            family.origin.resume()
        family.check()
    family.merge(snapshot)
    family.merged()


@pytest.mark.parametrize("how", ["remove", "replace"])
@pytest.mark.parametrize("kind", ["P", "PO"])
def test_source_is_gone(impl, family, said, kind, how):
    """Before the handover. Ours reads what is on the disk; with C it is Invalid, though the disk is
    good.
    """
    other, snapshot = family.snap("P", 16), family.snap(kind, 8)
    for n in range(300):
        family.write(snapshot, 8 * n, pattern(f"own {n}", 8))
    front = family.box.own(family.origin)
    front.load(merge_line(snapshot))
    front.suspend()
    if how == "remove":
        snapshot.remove()
    else:
        snapshot.swap(f"0 4096 error")
    if impl == "c":
        assert said.count("Cancelling snapshot handover.") == 1
        front.resume()
        assert front.status() == "Invalid"
        return
    family.merge_begins(front, snapshot)
    front.resume()
    assert front.table() == f"{family.real.dev} {snapshot.cow.dev} {kind} 8"
    family.check(front, other)
    family.merged()


@pytest.mark.only("rust")
def test_source_is_gone_and_its_store_cannot_be_read(family):
    """Then the device stays suspended, and can be resumed when it can."""
    snapshot, front = family.snap("P", 8), family.origin
    family.write(snapshot, 80, pattern("own", 100))
    front.load(merge_line(snapshot))
    front.suspend()
    snapshot.remove()
    snapshot.cow.error_reads((0, 16))
    with pytest.raises(OSError):
        front.resume()
    assert front.suspended
    snapshot.cow.heal()
    family.merge_begins(front, snapshot)
    front.resume()
    family.check(front)
    family.merged()


@pytest.mark.only("rust")
def test_overflow_is_no_matter(family, said):
    """A snapshot that is full shows numbers as soon as it is merged, so the end can be seen."""
    snapshot = family.snap("PO", 8, room=10)
    for n in range(8):
        family.write(snapshot, 80 * n, pattern(f"own {n}", 8))
    fails(snapshot.write, 2000, bytes(512))
    assert snapshot.status() == "Overflow"
    front = family.merge(snapshot)
    assert front.look().total == 80
    family.check(front)
    family.merged()


@pytest.mark.parametrize("how", ["handover", "direct", "direct without other"])
def test_invalid_store(impl, family, said, how):
    """Everything goes to the origin, and other snapshots get their copies."""
    if how != "direct without other":
        family.snap("P", 8)
    snapshot = family.snap("P", 8, room=5)
    family.write(snapshot, 80, pattern("own", 8))
    family.write(family.origin, 800, pattern("too much", 80))
    snapshot.wait_status("Invalid")
    origin, snapshot.copied = family.origin.expected[:], set()
    family.merge(snapshot, direct=how != "handover")
    family.origin.expected = origin
    assert family.origin.status() == "Invalid"
    assert said.count("snapshots: Snapshot is invalid: can't merge") == 1
    family.check()
    events = family.origin.event
    for at in (80, 3000, 4090):
        family.write(family.origin, at, pattern("on", 6))
    family.origin.flush()
    for _ in range(3):
        family.origin.suspend()
        family.origin.resume()
    assert family.origin.status() == "Invalid" and family.origin.event == events
    family.end_merge()
    family.check()
    assert snapshot.header_valid() == 0


# Errors

HALF = 150  # records of the second area
ERRORS = {  # a device, what of it fails, what the log says
    "COW read": ("cow", "error_reads", "Read error: shutting down merge."),
    "origin write": ("real", "error_writes", "Write error: shutting down merge."),
    "origin flush": ("real", "error_writes", "Flush after merge failed: shutting down merge"),
    "record write": ("cow", "error_writes", "Write error in exception store: shutting down merge"),
    "record read": ("cow", "error_reads", "Read error in exception store: shutting down merge"),
}


class Failing:
    """A merge with two areas of records, of which a step fails: the first, one in the middle, or
    one in the first area.
    """

    def __init__(self, box, rng, what, when, others=()):
        # Without a cache no flush comes to a device.
        self.family, self.what, self.when = (
            Family(box, cache=what == "origin flush").layered(),
            what,
            when,
        )
        self.name, self.how, self.text = ERRORS[what]
        for size in others:
            self.family.snap("P", size)
        self.olds = rng.sample(range(2, 500), 256 + HALF)
        self.store = self.family.store(8, cow.numbered(self.olds, 8))
        self.tail = self.olds[{"first": -1, "middle": 256 + HALF // 2, "later": 100}[when]]

    def range(self):
        if self.what == "COW read":
            at = cow.data_at(self.olds.index(self.tail), 8) * 8
        elif self.what == "origin write":
            at = self.tail * 8
        elif self.what == "origin flush":
            return 4095, 4096  # nothing else is there
        elif self.what == "record read" or self.when == "later":
            at = cow.area_at(0, 8) * 8
        else:
            at = cow.area_at(1, 8) * 8
        return at, at + 8

    def fail(self):
        device = self.family.real if self.name == "real" else self.store.cow
        getattr(device, self.how)(self.range())

    def heal(self):
        self.family.real.heal()
        self.store.cow.heal()

    def begin(self, direct=True):
        return self.family.merge(self.store, direct, before=self.fail)


# Not all are possible: an area is read when what is behind it has been merged, and a flush fails at
# once.
CASES = [
    (what, when)
    for what in ERRORS
    for when in ("first", "middle", "later")
    if (what, when)
    not in (
        ("record write", "middle"),
        ("origin flush", "middle"),
        ("origin flush", "later"),
        ("record read", "first"),
        ("record read", "middle"),
    )
]


@pytest.mark.parametrize("what, when", CASES)
def test_error(impl, box, rng, said, what, when):
    """The merge stops and says so, everything can be read and written. When the cause is gone, and
    the device is made anew, it goes on to the end.
    """
    fail_and_cure(impl, box, rng, said, what, when, "again")


@pytest.mark.only("rust")
@pytest.mark.parametrize("cure", ["resume", "handover"])
@pytest.mark.parametrize("what, when", CASES)
def test_resume_after_an_error(impl, box, rng, said, what, when, cure):
    """C goes on with memory that is not what is on the disk: it copies the COW's header, or forgets
    an area.
    """
    fail_and_cure(impl, box, rng, said, what, when, cure)


def fail_and_cure(impl, box, rng, said, what, when, cure):
    failing = Failing(box, rng, what, when, others=(8, 32))
    family, front = failing.family, failing.begin()
    events = 0 if impl == "c" else 1
    front.wait_status("Merge failed")
    assert said.count(f"snapshots: {failing.text}") == 1
    wait.until(lambda: front.event == events, "an event")
    failing.heal()
    assert front.status() == "Merge failed"
    for _ in range(2):
        family.check()
        for n, old in enumerate((failing.tail, failing.olds[-1], failing.olds[0], 501)):
            family.write(front, old * 8 + n, pattern(f"on {n}", 4 + 8 * n), fua=n % 2 > 0)
        family.write(front, 0, pattern("on", 8))
        front.flush()
    assert front.status() == "Merge failed" and front.event == events
    if cure == "again":
        family.again()
    elif cure == "resume":
        front.suspend()
        assert front.status() == "Merge failed"
        front.resume()
    else:
        snapshot = back_to_snapshot(family)
        family.check(snapshot, family.origin)
        family.merge(snapshot)
    family.merged()
    assert said.count(f"snapshots: {failing.text}") == 1


@pytest.mark.only("rust")
@pytest.mark.parametrize("what, when", CASES)
def test_error_again_and_again(impl, box, rng, said, what, when):
    """Resumed while the cause is still there: it fails again, nothing is lost, and at last it ends."""
    failing = Failing(box, rng, what, when)
    family, front = failing.family, failing.begin()
    for turn in range(4):
        front.wait_status("Merge failed")
        assert said.count(f"snapshots: {failing.text}") == turn + 1
        wait.until(lambda: front.event == turn + 1, "an event")
        if what != "COW read":
            family.check(front)
        front.suspend(noflush=turn % 2 > 0)
        if turn == 3:
            failing.heal()
        front.resume()
    family.merged()


def test_error_in_the_header_is_none(family, rng):
    """A merge does not touch it."""
    snapshot = family.store(8, cow.numbered(scatter(rng, 50, 8), 8))
    family.merge(snapshot, direct=True, before=lambda: snapshot.cow.error_writes((0, 8)))
    family.merged()


@pytest.mark.parametrize("what", ["COW read", "origin write", "origin flush", "record write"])
def test_event_of_an_error(impl, box, rng, what):
    """Who waits for it is woken. C tells nobody."""
    failing = Failing(box, rng, what, "first")
    failing.begin().wait_status("Merge failed")
    if impl == "rust":
        wait.until(lambda: failing.family.origin.event == 1, "an event")
    failing.heal()
    failing.family.again()
    failing.family.merged()


@pytest.mark.only("rust")
def test_event_at_the_end(family, rng):
    """Who waits for it is woken; nothing else raises one."""
    family.layered()
    for number in (100, 0, 1):
        snapshot = family.store(8, cow.numbered(scatter(rng, number, 8), 8))
        front = family.merge(snapshot, direct=True, before=lambda: family.real.hold())
        if number:
            waiter = family.box.background(front.wait_event, front.event)
            wait.until(lambda: in_flight(family.real), "the first step is at the origin")
            assert not waiter.done
        family.real.release()
        if number:
            assert waiter.result() == 1
            assert front.merged
        family.merged()
        assert front.event <= 1
        family.end_merge()


@pytest.mark.only("rust")
@pytest.mark.parametrize("what", ["COW read", "origin write", "origin flush"])
def test_queued_writes_succeed(impl, box, said, what):
    """Those that wait for a step which fails: what they write to is in the COW. C fails them."""
    family = Family(box, cache=True)
    real = family.real = Valve(box, Gate(box, family.disk))
    below = real.lower
    back = Gate(box, box.ram(8, cache=True))
    valve = Valve(box, back)
    snapshot = family.store(8, cow.numbered(range(100, 111), 8), cow_device=valve)
    held, kind = {
        "COW read": (valve, "reads"),
        "origin write": (real, "writes"),
        "origin flush": (real, "flushes"),
    }[what]
    front = family.merge(snapshot, direct=True, before=lambda: held.hold(kind))
    wait.until(lambda: in_flight(held), f"{what} is held")
    writers = [
        family.writer(front, 8 * (100 + n) + 2 - n % 2, pattern(f"queued {n}", 1 + n % 2 * 7))
        for n in range(10)
    ]
    wait.until(lambda: in_flight(front) >= 10, "the writes are on their way")
    assert not any(writer.done for writer in writers)
    if what == "COW read":
        back.error_reads()
    else:
        below.error_writes(*[(4095, 4096)] if what == "origin flush" else [])
    held.release()
    for writer in writers:
        writer.result()
    front.wait_status("Merge failed")
    assert said.count(f"snapshots: {ERRORS[what][2]}") == 1
    (back if what == "COW read" else below).heal()
    family.check(front)
    front.suspend()
    front.resume()
    family.merged()


@pytest.mark.only("rust")
@pytest.mark.parametrize("area", ["alone", "with everything"])
def test_queued_writes_when_the_record_fails(parts, area, said):
    """Nobody knows whether the records are there: writes to their chunks fail until the records can
    be written.
    """
    family, front_part = parts.family, parts.front
    snapshot = family.store(8, cow.numbered(range(100, 110), 8), cow_device=parts.cow)
    front = family.merge(snapshot, direct=True, before=front_part.hold)
    wait.until(lambda: in_flight(front_part), "the record is held")
    writers = [
        family.box.background(front.write, 8 * (100 + n), pattern("queued", 1 + n % 2 * 7))
        for n in range(10)
    ]
    wait.until(lambda: in_flight(front) >= 10, "the writes are on their way")
    if area == "with everything":
        parts.below.error()
    front_part.error_writes()
    for writer in writers:
        fails(writer.result)
    front.wait_status("Merge failed")
    fails(front.write, 8 * 105, pattern("again", 8))
    family.write(front, 8, pattern("elsewhere", 8))
    front_part.heal()
    parts.below.heal()
    family.check(front)
    family.write(front, 8 * 105, pattern("at last", 8))
    assert front.status() == "Merge failed"
    front.suspend()
    front.resume()
    family.merged()


@pytest.mark.only("rust")
@pytest.mark.parametrize("how", [("--nolockfs",), ("--nolockfs", "--noflush")])
def test_interrupted_suspend(impl, box, rng, how):
    """A suspend that is given up: the merge goes on. With C it stands still until the next resume."""
    family = Family(box)
    stuck = Gate(box, family.disk)
    family.real = box.mapped(
        f"0 4000 linear {family.disk.dev} 0", f"4000 96 linear {stuck.dev} 4000"
    )
    olds = [old for old in scatter(rng, 1500, 1) if old < 4000]
    snapshot = family.store(1, cow.numbered(olds, 1))
    front = family.merge(snapshot, direct=True, before=snapshot.cow.hold)
    for turn in range(2):
        stuck.hold()
        reader = box.background(front.read, 4000, 8)
        wait.until(lambda: in_flight(stuck), "the read is held")
        process = subprocess.Popen(["dmsetup", "suspend", *how, front.name])
        try:
            wait.until(lambda: in_ioctl(process.pid), "it suspends")
            if turn == 0:
                snapshot.cow.release()
            wait.until(lambda: state(process.pid) == "S", "it waits for the read")
            assert turn or not front.merged
        finally:
            process.kill()
        assert process.wait(wait.DEADLINE) < 0, "it was suspended"
        assert not front.suspended
        stuck.release()
        assert reader.result() == family.data[4000 * 512 : 4008 * 512]
        family.check(front)
    family.merged()


def state(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def in_ioctl(pid):
    """Whether a process waits, in the kernel, with device-mapper open."""
    try:
        fds = [link.readlink() for link in Path(f"/proc/{pid}/fd").iterdir()]
    except FileNotFoundError:
        return False
    return Path("/dev/mapper/control") in fds and state(pid) in "DS"
