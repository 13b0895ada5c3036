"""snapshot-merge: a step of the merge fails, and the merge continues when the cause is removed."""

import pytest

from lib import cow, wait
from lib.box import pattern
from lib.disk import in_flight
from lib.merges import back_to_snapshot, scatter
from lib.expect import fails
from lib.snaps import Family, Gate, Valve

HALF = 150  # records of the second area
ERRORS = {  # a device, what of it fails, what is logged
    "COW read": ("cow", "error_reads", "Read error: shutting down merge."),
    "origin write": ("real", "error_writes", "Write error: shutting down merge."),
    "origin flush": ("real", "error_writes", "Flush after merge failed: shutting down merge"),
    "record write": ("cow", "error_writes", "Write error in exception store: shutting down merge"),
    "record read": ("cow", "error_reads", "Read error in exception store: shutting down merge"),
}


class Failing:
    """A merge with two areas of records, one step of which fails: the first one, one in the middle,
    or one in the first area.
    """

    def __init__(self, box, rng, what, when, others=()):
        # Without a cache no flush reaches a device.
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


# Not all are possible: an area is read after everything later was merged, and a flush fails at
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
def test_merge_stops_on_an_error(impl, box, rng, said, what, when):
    """The merge stops and says so; everything can be read and written. When the cause is removed
    and the device created again, the merge continues to the end.
    """
    fail_and_cure(impl, box, rng, said, what, when, "again")


@pytest.mark.only("rust")
@pytest.mark.parametrize("cure", ["resume", "handover"])
@pytest.mark.parametrize("what, when", CASES)
def test_merge_continues_after_an_error(impl, box, rng, said, what, when, cure):
    """C continues with memory that differs from the disk: it copies the COW device's header, or
    forgets an area.
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
        family.recreate_merge()
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
def test_repeated_errors_lose_nothing(impl, box, rng, said, what, when):
    """Resumed before the cause is removed: the merge fails again, nothing is lost, and it ends at
    last.
    """
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


def test_unwritable_header_does_not_stop_a_merge(family, rng):
    """A merge does not write the header."""
    snapshot = family.store(8, cow.numbered(scatter(rng, 50, 8), 8))
    family.merge(snapshot, direct=True, before=lambda: snapshot.cow.error_writes((0, 8)))
    family.merged()


@pytest.mark.parametrize("what", ["COW read", "origin write", "origin flush", "record write"])
def test_error_raises_an_event(impl, box, rng, what):
    """A process that waits for an event is woken. C raises none."""
    failing = Failing(box, rng, what, "first")
    failing.begin().wait_status("Merge failed")
    if impl == "rust":
        wait.until(lambda: failing.family.origin.event == 1, "an event")
    failing.heal()
    failing.family.recreate_merge()
    failing.family.merged()


@pytest.mark.only("rust")
def test_end_raises_one_event(family, rng):
    """A process that waits for an event is woken; nothing else raises one."""
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
def test_queued_writes_succeed_after_a_failed_step(impl, box, said, what):
    """Writes that wait for a failing step: their chunks still have exceptions. C fails these
    writes.
    """
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
    wait.until(lambda: in_flight(front) >= 10, "the writes are in flight")
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
def test_queued_writes_fail_with_the_record(parts, area, said):
    """Whether the records are on the disk is unknown: writes to their chunks fail until the records
    can be written.
    """
    family, front_part = parts.family, parts.front
    snapshot = family.store(8, cow.numbered(range(100, 110), 8), cow_device=parts.cow)
    front = family.merge(snapshot, direct=True, before=front_part.hold)
    wait.until(lambda: in_flight(front_part), "the record is held")
    writers = [
        family.box.background(front.write, 8 * (100 + n), pattern("queued", 1 + n % 2 * 7))
        for n in range(10)
    ]
    wait.until(lambda: in_flight(front) >= 10, "the writes are in flight")
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
