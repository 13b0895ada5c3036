"""snapshot and snapshot-origin: tables over each other, suspend and resume, removal, and the
modules.
"""

import errno
import random
import threading

import pytest

from lib import dm, modules, wait
from lib.box import assert_same, pattern
from lib.disk import in_flight
from lib.expect import fails
from lib.handover import load_destination, succeeds, write_both
from lib.snaps import Family, Gate, Snapshot, Watch

# Status and table


@pytest.mark.parametrize("kind", ["P", "po", "N", "POx", "nothing"])
@pytest.mark.parametrize("size", [8, 64])
def test_status_and_table(family, same, kind, size):
    """Status and table are C's, of the live and of the loaded table, at each step of a reload."""
    snapshot, seen = family.snap(kind, size), []

    def look():
        texts = [snapshot.status(), snapshot.table(), snapshot.specs(noflush=False)[0][3]]
        try:
            texts += [snapshot.specs(inactive=True)[0][3], snapshot.table(inactive=True)]
        except IndexError:
            texts.append("nothing loaded")
        seen.append(
            [
                text.replace(family.real.dev, "<origin>").replace(snapshot.cow.dev, "<cow>")
                for text in texts
            ]
        )

    look()
    write_both(family, snapshot, 0)
    look()
    snapshot.load(snapshot.line)
    look()
    assert seen[-1][-1] == seen[-1][1].rpartition(" ")[0] + " 0"
    write_both(family, snapshot, 1)
    snapshot.suspend()
    look()
    snapshot.resume()
    look()
    write_both(family, snapshot, 2)
    look()
    same(seen)


def test_origin_status_and_table(family, same):
    assert family.origin.status() == ""
    assert family.origin.table() == family.real.dev
    family.snap()
    assert family.origin.status() == ""


# Tables over each other


@pytest.mark.parametrize(
    "kind, size, noflush", [("P", 8, False), ("PO", 64, True), ("P", 1, True), ("N", 8, False)]
)
def test_reload(family, kind, size, noflush):
    """The new table knows what is on the COW device, including what arrived after it was loaded."""
    snapshot, _ = family.snap(kind, size), family.snap("P", 16)
    for turn in range(4):
        write_both(family, snapshot, 3 * turn)
        snapshot.load(snapshot.line)
        write_both(family, snapshot, 3 * turn + 1)
        snapshot.suspend(noflush)
        family.write(family.origin, 3000 + 100 * turn, pattern("suspended", 20))
        snapshot.resume()
        write_both(family, snapshot, 3 * turn + 2)
    if kind != "N":
        family.reopen(snapshot)
        family.check()


def test_reload_with_the_other_kind(family, log, same):
    """The new table decides what happens when the COW device is full; that it is full is handed
    over.
    """
    snapshot = family.snap("P", 8, room=6)
    other = snapshot.line.replace(" P ", " PO ")
    snapshot.swap(other)
    assert snapshot.table().endswith(" PO 8")
    for n in range(4):
        family.write(snapshot, n * 8, pattern(f"own {n}", 8))
    fails(snapshot.write, 80, bytes(512))
    assert snapshot.status() == "Overflow"
    family.check()
    snapshot.swap(snapshot.line)
    same((snapshot.status(), snapshot.table().split(" ")[2:]))
    family.check()
    fails(snapshot.write, 0, bytes(512))
    watch = Watch(snapshot, log)
    family.write(family.origin, 80, pattern("new", 8))
    watch.ended(Watch.FULL)
    snapshot.swap(snapshot.line)
    assert snapshot.status() == "Invalid"
    fails(snapshot.read, 0, 8)


def test_destination_on_another_device(family, log, same):
    """The destination goes live only when the source is suspended; the source cannot be resumed
    while a destination is loaded.
    """
    first = family.snap("P", 8)
    write_both(family, first, 0)
    second = load_destination(family, first)
    assert second.table(inactive=True) == f"{family.real.dev} {first.cow.dev} P 0"
    mark = log.mark()
    fails(second.resume, code=errno.EINVAL)
    assert log.said("Unable to perform snapshot handover until source is suspended.", mark)
    write_both(family, first, 1)
    first.suspend()
    mark = log.mark()
    fails(first.resume, code=errno.EINVAL)
    assert log.said("Unable to resume snapshot source until handover completes.", mark)
    family.write(family.origin, 4000, pattern("suspended", 30))
    second.resume()
    succeeds(family, first, second)
    same((first.status(), first.table().split(" ")[2:], second.table().split(" ")[2:]))
    assert first.status() == "Invalid"
    first.resume()
    fails(first.read, 80, 8)
    fails(first.write, 80, bytes(4096))
    write_both(family, second, 2)
    first.remove()
    write_both(family, second, 3)
    second = family.reopen(second)
    write_both(family, second, 4)


def test_invalid_without_a_header(family, log):
    """The header could not record that the snapshot is invalid. A loaded destination knows it all
    the same.
    """
    first = family.snap("P", 8)
    write_both(family, first, 0)
    second, watch = load_destination(family, first), Watch(first, log)
    first.cow.error_writes((0, 16))
    family.write(family.origin, 800, pattern("new", 8))
    watch.ended(Watch.FAILED, header=1)
    first.cow.heal()
    family.close(first)
    second.resume()
    assert second.status() == "Invalid"
    fails(second.read, 0, 8)
    family.check()


def test_second_loaded_table_is_refused(family, log):
    """Refused, on this device and on another, until the first one is dropped."""
    snapshot = family.snap("P", 8)
    write_both(family, snapshot, 0)
    snapshot.load(snapshot.line)
    mark = log.mark()
    fails(snapshot.load, snapshot.line, code=errno.EINVAL)
    fails(load_destination, family, snapshot, code=errno.EINVAL)
    text = "snapshot: Snapshot cow pairing for exception table handover failed (-EINVAL)"
    assert sum(line.endswith(text) for line in log.dm(mark)) == 2
    write_both(family, snapshot, 1)
    snapshot.clear()
    write_both(family, snapshot, 2)
    snapshot.load(snapshot.line)
    snapshot.suspend()
    snapshot.resume()
    write_both(family, snapshot, 3)


def test_cleared_table_leaves_the_live_one(family):
    """Suspended or not, the live table continues."""
    snapshot = family.snap("P", 8)
    for turn in range(3):
        write_both(family, snapshot, turn)
        snapshot.load(snapshot.line)
        if turn:
            snapshot.suspend()
        snapshot.clear()
        if turn:
            snapshot.resume()
    write_both(family, snapshot, 3)


@pytest.mark.parametrize("how", ["remove", "replace"])
@pytest.mark.parametrize("kind", ["P", "PO"])
def test_source_removed_before_the_handover(impl, family, log, kind, how):
    """The source is removed before the destination goes live. dm-rust then reads the metadata; C
    becomes Invalid, though the disk is intact.
    """
    first = family.snap(kind, 8)
    write_both(family, first, 0)
    second = load_destination(family, first)
    family.origin.suspend()
    mark = log.mark()
    if how == "remove":
        first.remove()
    else:
        first.swap(f"0 {first.length} error")
    succeeds(family, first, second)
    assert log.said("Cancelling snapshot handover.", mark)
    if impl == "c":
        second.resume()
        family.origin.resume()
        assert second.status() == "Invalid"
        return
    second.resume()
    family.origin.resume()
    assert second.table() == f"{family.real.dev} {second.cow.dev} {kind} 8"
    write_both(family, second, 1)
    second = family.reopen(second)
    write_both(family, second, 2)


@pytest.mark.only("rust")
def test_cow_of_two_origins_is_refused(impl, box, log):
    """Certain corruption, which C accepts."""
    family, other = Family(box), Family(box)
    first = family.snap("P", 8)
    write_both(family, first, 0)
    second = box.own(Snapshot(other.real, first.cow, start=False))
    mark = log.mark()
    fails(second.load, second.line, code=errno.EBUSY)
    assert log.said("snapshot: COW device is in use by another snapshot (-EBUSY)", mark)
    write_both(family, first, 1)
    family.reopen(first)
    family.check()
    family.close(family.snapshots[0])
    second.load(second.line)
    second.resume()


def test_origin_reloaded_and_replaced(family):
    """The table of the origin is replaced; with a plain one nothing is copied, and nothing waits
    for it.
    """
    snapshot = family.snap("P", 8)
    for turn in range(2):
        write_both(family, snapshot, turn)
        family.origin.swap(family.origin.line)
    family.close(snapshot)
    family.origin.swap(f"0 {family.sectors} linear {family.real.dev} 0")
    family.write(family.origin, 80, pattern("plain", 2048))
    family.origin.swap(family.origin.line)
    write_both(family, family.snap("P", 16), 2)


def test_snapshots_stay_without_the_origin(family):
    """The device of the origin is removed and created again; its snapshots continue to work."""
    snapshot = family.snap("P", 8)
    write_both(family, snapshot, 0)
    family.origin.remove()
    family.write(snapshot, 1003, pattern("own", 20))
    assert_same(snapshot.content(), bytes(snapshot.expected))
    expected, family._origin = family._origin.expected, None
    family.origin.expected = expected
    write_both(family, snapshot, 1)


# Under load


@pytest.mark.crowd
def test_suspends_and_reloads_under_load(family, rng):
    """Threads write and read all the time, while devices are suspended in all ways, and tables
    replaced.
    """
    for kind, size in (("P", 8), ("PO", 64), ("N", 16)):
        family.snap(kind, size)
    devices, threads, stop = [family.origin, *family.snapshots], 8, threading.Event()

    def work(number, seed):
        """Owns the sectors n with n % 8 == number."""
        own, device = random.Random(seed), devices[number % len(devices)]
        for turn in range(10_000):
            if stop.is_set() and turn > 20:
                return
            sector = own.randrange(family.sectors // threads) * threads + number
            if own.random() < 0.7:
                family.write(device, sector, own.randbytes(512), fua=own.random() < 0.1)
            else:
                family.read(device, sector, 1)

    workers = [family.box.background(work, number, rng.random()) for number in range(threads)]
    for _ in range(25):
        device = rng.choice(devices)
        if rng.random() < 0.5:
            device.load(device.line)
        device.suspend(noflush=rng.random() < 0.5, lockfs=rng.random() < 0.2)
        device.resume()
    stop.set()
    for worker in workers:
        worker.result()
    family.check()
    for snapshot in list(family.snapshots):
        if snapshot.kind != "N":
            family.reopen(snapshot)
    family.check()


@pytest.mark.crowd
@pytest.mark.parametrize("noflush", [False, True])
@pytest.mark.parametrize("device", ["snapshot", "origin"])
def test_suspend_with_copies_in_flight(family, device, noflush):
    """A copy in flight ends, and its chunk has an exception, or it waits for the resume; no write
    is lost, and none fails.
    """
    snapshot = family.snap("P", 8)
    target = family.origin if device == "origin" else snapshot
    snapshot.cow.hold()
    writers = [
        family.writer(target, n * 16 + n % 3, pattern(f"w{n}", 2 if n % 2 else 8))
        for n in range(20)
    ]
    wait.until(lambda: in_flight(target) >= 20, "all are in flight")
    suspend = family.box.background(target.suspend, noflush)
    assert not any(writer.done for writer in writers)
    snapshot.cow.release()
    suspend.result()
    target.resume()
    for writer in writers:
        writer.result()
    family.check()
    family.reopen(snapshot)
    family.check()


@pytest.mark.crowd
@pytest.mark.parametrize("kind", ["P", "N"])
def test_removal_with_copies_in_flight(family, kind):
    """Chunks are being copied for the origin when its snapshot is removed: the removal waits for
    them, the origin continues.
    """
    snapshot = family.snap(kind, 8)
    snapshot.cow.hold()
    writers = [family.writer(family.origin, n * 16, pattern(f"w{n}", 3)) for n in range(20)]
    wait.until(lambda: in_flight(snapshot.cow) >= 20, "copies are at the COW")
    removal = family.box.background(snapshot.remove)
    wait.until(lambda: not dm.Mapped.exists(snapshot.name), "the device is gone")
    snapshot.cow.release()
    removal.result()
    for writer in writers:
        writer.result()
    family.snapshots.remove(snapshot)
    write_both(family, family.snap("P", 8), 0)


def test_forced_removal(family):
    """What `dmsetup remove --force` does, while the COW device does not answer: an error table,
    then the removal.
    """
    snapshot = family.snap("P", 8)
    snapshot.cow.hold()
    writers = [family.box.background(snapshot.write, n * 16, pattern("w", 3)) for n in range(5)]
    wait.until(lambda: in_flight(snapshot) >= 5, "all are in flight")
    snapshot.load(f"0 {family.sectors} error")
    swap = family.box.background(lambda: (snapshot.suspend(noflush=True), snapshot.resume()))
    assert not any(writer.done for writer in writers)
    snapshot.cow.release()
    swap.result()
    for writer in writers:
        writer.join()
        assert writer.error is None or writer.error.errno == errno.EIO
    fails(snapshot.read, 0, 8)
    snapshot.remove()
    family.snapshots.remove(snapshot)
    write_both(family, family.snap("P", 8), 0)


# Concurrent I/O, and the end of a snapshot


@pytest.mark.crowd
@pytest.mark.parametrize("kind", ["P", "N"])
def test_every_write_ends_once(impl, family, log, kind):
    """Hundreds of chunks are being copied, and writes wait for them, when the COW device fails:
    those to the snapshot fail, those to the origin succeed, and each one ends.
    """
    snapshot = family.snap(kind, 8)
    watch, origin = Watch(snapshot, log), family.origin
    snapshot.cow.hold()
    writers = [
        (origin, family.writer(origin, 1024 * n, pattern(f"large {n}", 1024))) for n in range(2)
    ]
    writers += [(snapshot, family.writer(snapshot, 2048 + 1, pattern("large", 1000)))]
    wait.until(
        lambda: in_flight(snapshot.cow) >= (64 if impl == "c" else 3), "copies are at the COW"
    )
    for n in range(16):
        writers += [
            (device, family.writer(device, at + n // 2 * 16 + n % 2, pattern(f"w{n}", 1)))
            for device, at in ((origin, 2048), (snapshot, 0), (origin, 3200), (snapshot, 3600))
        ]
    wait.until(lambda: in_flight(origin) >= 34 and in_flight(snapshot) >= 33, "all are in flight")
    assert not any(writer.done for _, writer in writers)
    snapshot.cow.error()
    for device, writer in writers:
        if device is origin:
            writer.result()
        else:
            fails(writer.result)
    watch.ended(Watch.FAILED, header=1)
    assert not in_flight(origin) and not in_flight(snapshot)
    family.snapshots.clear()
    family.check()
    watch.silent()


def test_event_is_immediate(family):
    """A process that waits for an event, like dmeventd, is woken."""
    snapshot = family.snap("P", 8, room=3)
    waiter = family.box.background(snapshot.wait_event, snapshot.event)
    family.write(family.origin, 0, pattern("new", 8))
    assert not waiter.done
    family.write(family.origin, 8, pattern("new", 8))
    waiter.result()
    assert snapshot.status() == "Invalid"


@pytest.mark.only("rust")
def test_invalid_when_the_header_says_so(family):
    """While the header is not on the disk, the status does not say Invalid."""
    front, back = Gate(family.box, family.box.ram(1, cache=True)), family.box.ram(1, cache=True)
    snapshot = family.snap(
        "P", 8, cow=family.box.mapped(f"0 8 linear {front.dev} 0", f"8 40 linear {back.dev} 0")
    )
    family.write(snapshot, 800, pattern("own", 32))
    front.hold()
    writer = family.writer(family.origin, 0, pattern("new", 8))
    wait.until(lambda: in_flight(front) >= 1, "the header is in flight")
    assert snapshot.status() != "Invalid" and not writer.done
    assert front.lower.read(0, 1)[4] == 1
    front.release()
    writer.result()
    snapshot.wait_status("Invalid")
    assert front.lower.read(0, 1)[4] == 0
    family.check(family.origin)


# Modules


def module(impl):
    return modules.C_MODULES["snapshot"] if impl == "c" else modules.RUST_MODULE


def test_repeated_use_leaks_nothing(impl, family):
    """Snapshots that are created, used and removed leave nothing behind: the disks can be claimed,
    the module has no more users.
    """
    users = modules.users(module(impl))
    cows = [family.cow(8) for _ in range(4)]
    for turn in range(5):
        made = [family.snap("PO" if n % 2 else "P", 8, cow=cow) for n, cow in enumerate(cows)]
        assert [snapshot.exceptions() for snapshot in made] == [0] * 4
        family.write(family.origin, 16 * turn, pattern(f"turn {turn}", 20))
        family.write(made[turn % 4], 4003, pattern(f"own {turn}", 20))
        if turn % 2:
            made[0].load(made[0].line)
        family.read(made[0], 0, 200)
        for snapshot in made:
            family.close(snapshot)
        for cow in cows:
            cow.write(0, bytes(4096))
    family.origin.remove()
    wait.until(lambda: modules.users(module(impl)) == users, "no user is left")
    for device in (*cows, family.disk):
        device.close()
        assert device.is_free()


def test_module_is_pinned(impl, family):
    """By a table, live or only loaded."""
    users = modules.users(module(impl))
    snapshot = family.box.own(Snapshot(family.real, family.cow(8), start=False))
    snapshot.load(snapshot.line)
    loaded = modules.users(module(impl))
    assert loaded == users + (2 if impl == "c" else 1)  # C counts the store too
    snapshot.resume()
    origin = family.origin
    assert modules.users(module(impl)) == loaded + 1
    assert modules.run("rmmod", module(impl), check=False).returncode != 0
    origin.remove()
    snapshot.remove()
    wait.until(lambda: modules.users(module(impl)) == users, "no user is left")


@pytest.mark.both
@pytest.mark.only("rust")
def test_c_and_dm_rust_alternate(impl, box, rng, rust_module):
    """A set of COW devices goes from C to dm-rust and back, with work in between."""
    family = Family(box)
    for kind, size in (("P", 8), ("PO", 64), ("P", 1)):
        family.snap(kind, size)
    try:
        for name in ("c", "rust") * 2:
            snapshots, expected = list(family.snapshots), family.origin.expected
            for device in (*snapshots, family.origin):
                device.remove()
            modules.use(name, rust_module)
            family._origin = None
            family.origin.expected = expected
            for snapshot in snapshots:
                family.reopen(snapshot)
            family.check()
            for _ in range(30):
                start, count = rng.randrange(3900), rng.choice((1, 8, rng.randrange(1, 190)))
                family.write(
                    rng.choice((family.origin, *family.snapshots)),
                    start,
                    rng.randbytes(count * 512),
                )
            family.check()
    finally:
        for device in (*family.snapshots, family.origin):
            device.remove()
        modules.use("rust", rust_module)
