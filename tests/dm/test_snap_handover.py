"""Handover of exceptions when two resumes, or a resume and a removal, run concurrently; also beside
a merge.
"""

import errno

import pytest

from lib import cow, delay, wait
from lib.box import assert_same, pattern
from lib.disk import in_flight
from lib.expect import fails
from lib.handover import load_destination, succeeds, write_both
from lib.snaps import Gate, Snapshot, Valve, Watch

pytestmark = pytest.mark.only("rust")

IN_USE = "Unable to perform snapshot handover until source is suspended."
WAITED = "Unable to resume snapshot source until handover completes."
CANCELLED = "Cancelling snapshot handover."


def denied(log, device, text):
    mark = log.mark()
    fails(device.resume, code=errno.EINVAL)
    assert log.said(text, mark)


@pytest.mark.delays
def test_snapshot_goes_live_beside_a_merge_that_begins(family):
    """The snapshot found no merge; one begins before it is live. It must not go live in the middle
    of a batch of which it has no copies: what it shows when it is live must never change.
    """
    valve = family.real = Valve(family.box, family.disk)
    store = family.store(8, cow.numbered(range(100, 140), 8))
    new = family.box.own(Snapshot(family.real, family.cow(8), start=False))
    new.load(new.line)

    def look():
        new.resume()
        return new.content()

    with delay.held("snapshot: merge paused, not yet live") as point:
        looking = family.box.background(look)
        point.wait()
        front = family.merge(store, direct=True, before=lambda: valve.hold("writes"))
        wait.until(lambda: in_flight(valve), "a batch is in flight to the origin")
    for _ in range(50):  # time to go live, if it would go live now
        family.box.background(front.read, 0, 8).result()
        if looking.done:
            break
    valve.release()
    shown = looking.result()
    front.wait_merged()
    assert_same(new.content(), shown, where="the snapshot after the merge")
    family.merged()


@pytest.mark.delays
def test_no_handover_from_a_source_being_resumed(family, log):
    """The live table is past its preresume, so a loaded table can no longer take over from it. It
    once could, and the table in use failed all its I/O.
    """
    first = family.snap("P", 8)
    write_both(family, first, 0)
    first.suspend()
    with delay.held("between preresume and resume") as point:
        resuming = family.box.background(first.resume)
        point.wait()
        second = load_destination(family, first)
        denied(log, second, IN_USE)
        point.release()
        resuming.result()
    denied(log, second, IN_USE)
    write_both(family, first, 1)
    first.suspend()
    denied(log, first, WAITED)
    second.resume()
    succeeds(family, first, second)
    write_both(family, second, 2)


@pytest.mark.delays
def test_no_handover_from_a_merge_being_resumed(family, log):
    """The same with a merge: it would continue on the store of the live snapshot."""
    valve = family.real = Valve(family.box, family.disk)
    store = family.store(8, cow.numbered(range(0, 500, 2), 8))
    front = family.merge(store, direct=True, before=lambda: valve.hold("writes"))
    wait.until(lambda: in_flight(valve), "a batch is in flight to the origin")
    suspend = family.box.background(front.suspend)
    valve.release()
    suspend.result()
    with delay.held("between preresume and resume") as point:
        resuming = family.box.background(front.resume)
        point.wait()
        second = family.box.own(
            Snapshot(store.origin, store.cow, store.kind, store.size, start=False)
        )
        second.load(second.line)
        denied(log, second, IN_USE)
        point.release()
        resuming.result()
    second.remove()
    family.merged()


def test_handover_after_another_target_refused_to_resume(family, log):
    """The live table could have been resumed, but another one beside it could not. It is not in
    use, so its exceptions can be taken over after it was refused itself.
    """
    family.origin
    first, beside = family.cow(8), family.cow(8)
    lines = [
        f"0 2048 snapshot {family.real.dev} {first.dev} P 8",
        f"2048 2048 snapshot {family.real.dev} {beside.dev} P 8",
    ]
    both = family.box.mapped(*lines)

    def other(device):
        snapshot = family.box.own(Snapshot(family.real, device, start=False))
        snapshot.load(snapshot.line)
        return snapshot

    next_beside = other(beside)
    both.suspend()
    for _ in range(2):
        denied(log, both, WAITED)
    next_first = other(first)
    denied(log, next_first, IN_USE)
    denied(log, both, WAITED)
    for device in (next_first, next_beside):
        device.remove()
    both.resume()
    both.write(0, pattern("own", 8))
    both.suspend()
    next_first, next_beside = other(first), other(beside)
    next_first.resume()
    next_beside.resume()
    assert next_first.read(0, 8) == pattern("own", 8)
    both.remove()


def test_reload_after_another_target_refused_to_resume(family, log):
    """The same, and then the device gets a new table, which takes over, including what is in memory
    only.
    """
    family.origin
    first, beside = family.cow(8), family.cow(8)
    line = f"0 2048 snapshot {family.real.dev} {first.dev} N 8"
    both = family.box.mapped(line, f"2048 2048 snapshot {family.real.dev} {beside.dev} P 8")
    both.write(0, pattern("own", 8))
    next_beside = family.box.own(Snapshot(family.real, beside, start=False))
    next_beside.load(next_beside.line)
    both.suspend()
    denied(log, both, WAITED)
    both.load(line)
    both.resume()
    assert both.read(0, 8) == pattern("own", 8)
    next_beside.resume()


@pytest.mark.delays
def test_handover_from_a_source_being_removed(family, log):
    """The removal waits for I/O in flight, and another table takes over: then that one owns the
    store. The removal once waited until nothing at all was in flight, and discarded the ownership
    of the other table.
    """
    parts = [Gate(family.box, family.box.ram(4)) for _ in range(2)]
    first_part, rest = parts
    device = family.box.mapped(f"0 24 linear {first_part.dev} 0", f"24 8000 linear {rest.dev} 24")
    device.lower = device
    first = family.snap("P", 8, cow=device)
    second = load_destination(family, first)
    for part in parts:
        part.hold()
    writers = [family.writer(family.origin, 800, pattern("new", 8))]
    wait.until(lambda: in_flight(first_part), "a copy is in flight")
    first.suspend()
    mark = log.mark()
    with delay.held("snapshot: leaving, not yet idle") as point:
        removal = family.box.background(first.remove)
        point.wait()
        second.resume()
        succeeds(family, first, second)
    writers.append(family.writer(family.origin, 1600, pattern("new", 8)))
    wait.until(lambda: in_flight(rest), "another copy is in flight")
    first_part.release()
    removal.result()
    assert in_flight(rest) and not writers[1].done
    assert not log.said(CANCELLED, mark)
    rest.release()
    for writer in writers:
        writer.result()
    write_both(family, second, 1)
    watch = Watch(second, log)
    rest.error_writes((24, 8000))
    family.write(family.origin, 3600, pattern("new", 8))
    watch.ended(Watch.FAILED)


@pytest.mark.delays
def test_source_removed_before_the_resume(family, log):
    """The destination has found that it does not have to read the disk, and the source is removed
    before it is live.
    """
    first = family.snap("P", 8)
    write_both(family, first, 0)
    second = load_destination(family, first)
    first.suspend()
    family.origin.suspend()
    mark = log.mark()
    with delay.held("between preresume and resume") as point:
        resuming = family.box.background(second.resume)
        point.wait()
        first.remove()
        assert log.said(CANCELLED, mark)
        point.release()
        resuming.result()
    succeeds(family, first, second)
    family.origin.resume()
    write_both(family, second, 1)
    second = family.reopen(second)
    write_both(family, second, 2)


@pytest.mark.delays
def test_header_of_an_invalid_store_is_written_once(family, log):
    """A record fails that the old table has begun to write, while the new table waits to write
    another. Both find that the store is invalid; once this was reported twice.
    """
    lower = Gate(family.box, family.box.ram(4, cache=True))
    valve = Valve(family.box, lower)
    first = family.snap("P", 8, cow=valve)
    second = load_destination(family, first)
    valve.hold("flushes")
    writers = [family.writer(family.origin, 800, pattern("new", 8))]
    wait.until(lambda: in_flight(valve), "a record is in flight")
    first.suspend()
    second.resume()
    succeeds(family, first, second)
    writers.append(family.writer(family.origin, 1600, pattern("new", 8)))
    wait.until(
        lambda: lower.read(24, 8) == second.expected[1600 * 512 : 1608 * 512],
        "the next one has its data",
    )
    watch = Watch(second, log)
    lower.error_writes((8, 16))
    with delay.held("snapshot: lost, header not yet written") as point:
        valve.release()
        point.wait()
        for writer in writers:
            writer.result()
        second.wait_status("Invalid")
        lower.heal()
        watch.ended(Watch.FAILED)
    first.remove()
    second.swap(f"0 {second.length} error")  # everything that it had to do is done
    watch.silent()
