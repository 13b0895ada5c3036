"""Power cuts under an origin and its snapshots: whatever a cut leaves, each snapshot is right, or
says that it is invalid.

lib/logwrites.py describes what a disk may do. Origin and COW devices are slices of one log, each
with its own flushes. A snapshot shows what the origin held when it was taken, and what was written
to it since, as far as that is acknowledged; each other sector holds one of the contents written
since, or the one before. That is judged from the bytes, by lib/cow.py, at each flush and FUA mark
and in between; some of the states are opened by the implementation under test, and in the end by C.
"""

import errno
import random

import pytest

from lib import cow, wait
from lib.logwrites import Replay, Violation, split
from snap_judge import Survey
from snap_work import FILLING, INVALID, SECTORS, TAKEN, Work


@pytest.fixture(autouse=True)
def seed(request):
    """Shown with a failure."""
    print(f"--seed {request.config.seed}")


def fails_if_full(job, through):
    """The result of a write. Writes to the snapshot find no room."""
    try:
        job.result()
    except OSError as error:
        assert through and error.errno == errno.EIO


@pytest.mark.parametrize(
    "sizes, extra", [((8,), ""), ((1, 16), ""), ((16, 8), "1 discard_zeroes_cow")]
)
def test_power_cuts(impl, box, rng, rust_module, sizes, extra):
    """Random work from the first table on, while a second snapshot is taken; then all that a cut
    may leave.
    """
    rng = random.Random(f"{rng.random()} {sizes}")
    work = Work(box, rng, impl, sizes, extra="" if impl == "c" else extra)
    kinds = {work.write: 1, work.flush: 1, work.burst: 1}
    for n in range(len(sizes)):
        work.take(n)
        for step in rng.choices(list(kinds), k=4 if n < len(sizes) - 1 else 0):
            step()
    survey = Survey(work, work.run(20)).run(share=0.07)
    print(survey)
    survey.by_c(rust_module)
    assert survey.marks > 50 and survey.opened


@pytest.mark.only(
    "rust"
)  # C writes back stale records that a torn area has left after the last one
def test_cut_after_cut(impl, box, rng):
    """Repeated cuts, each followed by work on what it left; in the end everything is there."""
    work = Work(box, rng, impl, (2, 8))
    for n in range(len(work.sizes)):
        work.take(n)
    for _ in range(8):
        work.write()
        survey = Survey(work, work.run(rng.randrange(8)))
        # The first cut comes after both snapshots were taken.
        ready = max(
            (n for n, entry in enumerate(survey.entries) if (entry.mark or "").startswith(TAKEN)),
            default=0,
        )
        ends = [n for n, entry in enumerate(survey.entries) if n > ready and entry.mark is None]
        survey.entries = survey.entries[: rng.choice(ends) + 1]
        for states in filter(None, survey.at_cuts()):
            state = rng.choice(states)
            shown = survey.judge.check(state)
        work.go_on_from(state, shown)
    for device, content in zip([work.origin, *work.snapshots], work.model.contents):
        assert split(device.content()) == content
    work.end()


@pytest.mark.only("rust")  # C writes the header without waiting for the first area
@pytest.mark.parametrize("size", [1, 8, 64])
def test_creation(impl, box, rng, rust_module, size):
    """Cuts during the creation of a store on a device that is not blank: there is none yet, or an
    empty one.
    """
    work = Work(box, rng, impl, (size,))
    work.take(0)
    survey = Survey(work, work.end()).run(share=1)
    print(survey)
    survey.by_c(rust_module)
    assert survey.opened > 5


@pytest.mark.parametrize("together", [1, 5, 40])
def test_exceptions_across_an_area(impl, box, rng, rust_module, together):
    """Exceptions one at a time, a few at a time, or many by one write, across the end of an
    area.
    """
    work, goal = Work(box, rng, impl, (1,)), (1 if together == 1 else 2) * cow.per_area(1) + 2
    work.take(0)
    chunks = list(range(0, SECTORS - 40, 40 if together == 40 else 1))
    rng.shuffle(chunks)
    while work.snapshots[0].exceptions() < goal:
        if together == 40:
            work.put_at(chunks.pop(), 40)
            continue
        jobs = [work.background_put(chunks.pop(), 1) for _ in range(together)]
        for job in jobs:
            job.result()
    survey = Survey(work, work.end()).run(share=0.05)
    print(survey)
    survey.by_c(rust_module)
    assert survey.marks > 10


@pytest.mark.only("rust")  # C writes back stale records after the last one
def test_torn_records(impl, box, rng):
    """A batch of records in three sectors, any of which may be missing after a cut. A record that
    was lost never comes back, however many exceptions follow.
    """
    work = Work(box, rng, impl, (4,))
    work.take(0)
    work.put_at(0, 80)
    work.put_at(400, 200)
    survey = Survey(work, work.end())
    (torn,) = [
        n
        for n, entry in enumerate(survey.entries)
        if entry.where == "meta" and entry.fua and len(entry.sectors) == 3
    ]
    survey.entries = survey.entries[: torn + 1]
    replay = Replay(survey.entries, work.model, **work.images)
    for cut, writes, _ in replay.cuts():
        if cut.startswith(f"before {torn}:"):
            break
    *others, (where, sectors) = writes
    for mask in range(8):
        there = [pair for n, pair in enumerate(sectors) if mask >> n & 1]
        state = replay.state(cut, f"sectors {mask:03b} of the records", [*others, (where, there)])
        survey.open(state, survey.judge.check(state), work.model.phases, further=70)


@pytest.mark.only("rust")  # C lets writes go on before the header is durable
@pytest.mark.parametrize("kind, through", [("P", 0), ("P", 1), ("PO", 0), ("PO", 1)])
def test_full_cow(impl, box, rng, rust_module, kind, through):
    """The COW device fills up, by writes to the origin or to the snapshot, one after the other and
    concurrent ones. The disks then show that the snapshot is invalid, or all that it must contain.
    """
    work = Work(box, rng, impl, (8,), room=cow.needed(12, 8), kind=kind)
    work.take(0)
    (snapshot,) = work.snapshots
    chunks = rng.sample(range(SECTORS // 8), 40)
    for _ in range(10):
        work.put_at(chunks.pop() * 8 + 2, 3)
    before = snapshot.event
    if (kind, through) != ("PO", 1):
        work.mark(FILLING, 0)
    held = rng.choice((work.rec.meta, work.rec.dest))
    held.suspend(noflush=True)
    jobs = [
        work.background_put(chunks.pop() * 8 + 1, rng.choice((2, 7, 30)), through) for _ in range(4)
    ]
    work.pause()
    held.resume()
    for job in jobs:
        fails_if_full(job, through)
    if (kind, through) == ("PO", 1):
        # The snapshot works on, until a write to the origin finds no room either.
        assert snapshot.status() == "Overflow"
        work.flush(0)
        work.mark(FILLING, 0)
    for _ in range(3):
        work.put_at(chunks.pop() * 8, 20, 0)
    wait.until(
        lambda: snapshot.event > before + (kind == "PO" and through),
        "an event of the end",
    )
    assert snapshot.status() == "Invalid"
    work.mark(INVALID, 0)
    work.put_at(chunks.pop() * 8, 20, 0)
    work.flush(0)
    survey = Survey(work, work.end()).run(share=0.2)
    print(survey)
    survey.by_c(rust_module)
    assert survey.marks > 30


def without_flushes(entries):
    """The log of a snapshot that never flushes its COW device."""
    return [entry for entry in entries if not (entry.flush and entry.where == "meta")]


def without_fua(entries):
    """The log of a snapshot that writes headers and records without FUA."""
    for entry in entries:
        if entry.where == "meta":
            entry.fua = False
    return entries


def header_first(entries):
    """The log of a store whose header is written before its first area."""
    n = next(n for n, entry in enumerate(entries) if entry.where == "meta" and entry.fua)
    return [entries[n], *entries[:n], *entries[n + 1 :]]


def successor_last(entries):
    """The log of a store whose second area is zeroed after the first one is full."""
    area = cow.area_at(1, 1)
    n, clears = next(
        (n, entry)
        for n, entry in enumerate(entries)
        if entry.where == "meta" and not entry.fua and (area, bytes(512)) in entry.sectors
    )
    end = next(
        m for m in range(n + 1, len(entries)) if entries[m].where == "meta" and entries[m].fua
    )
    return [*entries[:n], *entries[n + 1 : end + 1], clears, *entries[end + 1 :]]


@pytest.mark.only("rust")
@pytest.mark.parametrize(
    "size, wrong",
    [(1, without_flushes), (1, without_fua), (16, header_first), (1, successor_last)],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_wrong_order_is_found(impl, box, rng, size, wrong):
    """The judge rejects the same log in another order, and the effects of other writes."""
    work = Work(box, rng, impl, (size,))
    work.take(0)
    for _ in range(3):
        work.put_at(rng.randrange(SECTORS // 40) * 40, 40)
    entries = work.end()
    Survey(work, entries).run(0)
    with pytest.raises(Violation):
        Survey(work, wrong(entries)).run(0)
