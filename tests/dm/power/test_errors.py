"""Errors and power cuts together: flushes of a device fail from the n-th on, or its n-th other
request, and then the power is cut.

After an error, less may be durable than can be read: the disk still has it in its cache. Code that
builds on what it reads loses what was durable before. Each series repeats a short work on a
recorded target with a fault at n = 1, 2, ..., which is followed by some more work, and judges what
a cut may leave at each flush and in between. A first repetition without a fault finds the number of
n. Flushes are counted on a device of their own, so that nothing else is.

A single failing flush may do no harm, because a second attempt follows with one that succeeds. So
once a single flush fails, and once several in a row.
"""

import errno
import random
import time
from types import SimpleNamespace

import pytest
import snap_judge
import snap_work
import test_power
import test_power_era
import test_power_merge

from lib import faults, logwrites, wait
from lib.logwrites import tagged
from lib.snaps import Origin, merge_end

# The number of n of each kind, unless all are tried: those of a clone take little time.
FLUSHES, OTHERS = {"clone": 100}, {"clone": 4}
FEW_FLUSHES, FEW_OTHERS = 4, 1
IN_A_ROW = 1, 6
# Longer than it takes to notice the first failure, so that the next flush is not missed.
FLUSH_MS = 20


class Flushes(faults.Request):
    """`count` flushes of a disk fail, from the n-th on."""

    def __init__(self, box, disk, count):
        super().__init__(SimpleNamespace(disks={"flushes": [disk]}), "flushes")
        self.box, self.more = box, count - 1

    def arm(self, n):
        super().arm(n)
        self.interval, self.over, self.is_going_on = self.attribute.get("interval"), False, False
        self.waiting = self.box.background(self.go_on) if self.more else None

    def go_on(self):
        """Arms the faults after the first one: the kernel does not count chances while each of them
        fails.
        """
        while not self.attribute.fired():
            if self.over:
                return
            time.sleep(0.001)
        self.is_going_on = True
        self.attribute.put(interval=1)
        self.attribute.put(times=self.more)

    def disarm(self):
        """Returns how many have failed."""
        self.over = True
        if self.waiting:
            self.waiting.result()
        if not self.is_going_on:
            return int(super().disarm())
        left = self.attribute.left
        self.attribute.put(probability=0, times=0, interval=self.interval)
        self.select("0")
        return self.more + 1 - left


class Repetition:
    """What each target adds: how the work begins, continues under faults and after them, and what
    judges the log.
    """

    ROLES = ()  # devices that fail
    # Whether flushes are counted apart, and fail in a row. Not where a flush and a write are one
    # request: the core of device-mapper then sends the write although its flush failed, and the log
    # does not tell what was written before it.
    APART = True

    def __init__(self, box, impl, seed):
        self.box, self.impl, self.seed = box, impl, seed
        self.errors = 0

    def attempt(self, call, *args, **kwargs):
        """I/O that may fail, since it meets a fault or a consequence of one."""
        model = getattr(self.work, "model", None)
        begun = model and model.last
        try:
            call(*args, **kwargs)
        except OSError as error:
            assert error.errno == errno.EIO, f"{call.__name__}: {error}"
            assert self.fault, f"{call.__name__} failed without a fault"
            self.errors += 1
            if model and model.last > begun:
                self.work.rec.mark(f"n{model.last}")

    def attempt_on(self, bears, call, *args, **kwargs):
        """I/O to a device that does or does not have the fault."""
        if bears:
            self.attempt(call, *args, **kwargs)
        else:
            call(*args, **kwargs)

    def run(self, role, n=None, in_a_row=None):
        """Returns (the number of faults, the entries of the log, which of them were made while the
        fault was armed).
        """
        self.fault, hit, self.role = None, 0, role
        self.begin()
        if n:
            rec = self.work.rec
            self.fault = (
                Flushes(self.box, rec.flushes[role], in_a_row)
                if in_a_row
                else faults.Request(SimpleNamespace(disks={role: [rec.tops[role]]}), role)
            )
            self.fault.arm(n)
        self.work.rec.mark("x")
        try:
            self.go_on()
        finally:
            if n:
                hit = self.fault.disarm()
        self.work.rec.mark("y")
        self.go_further()
        entries = self.end()
        first, last = (
            next(at for at, entry in enumerate(entries) if entry.mark == mark) for mark in "xy"
        )
        return (
            hit,
            [entry for entry in entries if entry.mark not in ("x", "y")],
            entries[first + 1 : last],
        )


class Clone(Repetition):
    ROLES = "meta", "dest"
    work = None

    def begin(self):
        if not self.work:
            self.work = test_power.Work(self.box, random.Random(self.seed), flush_ms=1)
        else:
            work = self.work
            work.rng.seed(self.seed)
            work.model = logwrites.Model(work.source, work.dest, work.passdown)
            work.start()
        self.step()

    def step(self):
        work = self.work
        for regions in True, False, True:
            self.attempt(work.write, regions)
        self.attempt(work.flush)
        self.attempt(work.write, fua=True)

    def go_on(self):
        for _ in range(3):
            self.step()

    def go_further(self):
        """Another table reads metadata again that has failed."""
        self.work.reload()
        fault = self.fault
        if self.role == "meta":
            self.fault = None  # now only a destination that cannot be flushed may fail
        self.step()
        self.fault = fault

    def end(self):
        return self.work.end()

    def judge(self, entries):
        return test_power.Survey(self.work, entries).run()


class Era(Repetition):
    ROLES = "meta", "dest"
    work = None
    number = 0
    is_first = False

    def begin(self):
        if not self.work:
            self.work = test_power_era.Work(self.box, random.Random(self.seed), 8)
        else:
            work = self.work
            work.rng.seed(self.seed)
            work.clock, work.serial, work.blocks = (
                test_power_era.Clock(),
                0,
                work.sectors // work.size,
            )
            work.rec.start(work.meta, work.dest)
            work.create()
        self.block = 0
        self.step()

    def write(self):
        """Writes to a block that was not written to in this era."""
        work = self.work
        work.serial += 1
        try:
            self.number = work.era.era
        except (
            AssertionError
        ):  # the status does not tell it while the metadata fails, until something succeeds again
            assert self.fault or self.is_first
        work.clock.eras[work.serial] = self.number
        self.block += 1
        self.is_first = False
        data = tagged(work.serial, work.rng.randbytes(512))
        work.era.write(self.block * 37 % work.blocks * work.size, data)

    def step(self):
        for _ in range(3):
            self.attempt(self.write)
        self.attempt(self.work.era.message, "checkpoint")
        self.attempt(self.write)
        self.attempt(self.work.flush)

    def go_on(self):
        for _ in range(2):
            self.step()

    def go_further(self):
        fault, self.fault, self.is_first = self.fault, None, True
        self.step()
        self.work.now()
        self.fault = fault

    def end(self):
        self.work.era.remove()
        return self.work.rec.entries()

    def judge(self, entries):
        return test_power_era.Survey(self.work, entries).run(0, 0)


class Snapshot(Repetition):
    APART = False
    ROLES = "meta", "other", "dest"
    work = None

    def begin(self):
        if not self.work:
            self.work = snap_work.Work(
                self.box, random.Random(self.seed), self.impl, (8, 16), flush_ms=1
            )
        else:
            work = self.work
            work.rng.seed(self.seed)
            work.start(
                work.images,
                snap_work.Model([work.images["dest"]] * 3, snap_work.ABSENT),
            )
        for n in range(2):
            self.work.take(n)
        self.step()
        # From here on snapshots that meet the fault may become invalid.
        for n, name in enumerate(snap_work.COWS):
            if self.role in (name, "dest"):
                self.work.mark(snap_work.FILLING, n)

    def step(self):
        """The origin fails only with its own disk, a snapshot only with its COW device or the
        origin.
        """
        work = self.work
        bears = {
            number: self.role in ("dest", name)
            for number, name in enumerate(("dest", *snap_work.COWS))
        }
        for number in 0, 1, 2, 0:
            self.attempt_on(bears[number], work.write, number)
            self.attempt_on(bears[number], work.write, number, whole=True)
        for number in range(3):
            self.attempt_on(bears[number], work.flush, number)

    def go_on(self):
        for _ in range(2):
            self.step()

    def go_further(self):
        self.step()

    def end(self):
        return self.work.end()

    def judge(self, entries):
        survey = snap_judge.Survey(self.work, entries)
        survey.run(share=0)
        return survey


class MergeSurvey(test_power_merge.MergeSurvey):
    role = None

    def check(self, state):
        """The other snapshot may become invalid if its device or the origin fails."""
        invalid = not any(state.images[snap_work.COWS[1]][0][4:8])
        compare = self.judge._compare
        if invalid and self.role in ("other", "dest"):
            self.judge._compare = (
                lambda state, number, *more: number == test_power_merge.OTHER
                or compare(state, number, *more)
            )
        try:
            return super().check(state)
        finally:
            self.judge._compare = compare


class Merge(Repetition):
    APART = False
    ROLES = "meta", "other", "dest"
    work = None

    class Work(test_power_merge.MergeWork):
        def begin_merge(self):
            """The merge begins later."""
            self.origin = None

    def begin(self):
        if not self.work:
            self.work = self.Work(
                self.box, random.Random(self.seed), self.impl, (8, 8), 40, flush_ms=1
            )
        else:
            work = self.work
            work.rng.seed(self.seed)
            work.start(work.images, snap_work.Model(work.model.contents, snap_work.TAKEN))

    def go_on(self):
        self.attempt(self.begin_merge)
        self.step()

    def begin_merge(self):
        work = self.work
        work.origin = device = self.box.own(Origin(work.rec.dest, snap_work.SECTORS, start=False))
        try:
            device.load(
                f"0 {snap_work.SECTORS} snapshot-merge {work.rec.dest.dev} {work.cows[0].dev} P "
                f"{work.sizes[0]}"
            )
            device.resume()
        except OSError:
            device.remove()
            work.origin = None
            raise

    def step(self):
        work = self.work
        for _ in range(3 if work.origin else 0):
            self.attempt_on(self.role != "other", work.write, test_power_merge.MERGED)
            self.attempt_on(self.role != "other", work.flush, test_power_merge.MERGED)
        self.attempt_on(self.role != "meta", work.write, test_power_merge.OTHER)
        self.attempt_on(self.role != "meta", work.flush, test_power_merge.OTHER)

    def go_further(self):
        """A failed merge begins again, and ends."""
        work = self.work
        for again in range(4):
            if again:
                work.origin.remove()
            if again or not work.origin:
                self.begin_merge()
            self.step()
            if (
                wait.until(
                    lambda: merge_end(work.origin.status()),
                    lambda: f"merged ({work.origin.status()})",
                )
                == "merged"
            ):
                break
        else:
            raise AssertionError("it fails though all devices work")
        self.attempt(work.write, test_power_merge.MERGED)

    def end(self):
        return self.work.end()

    def judge(self, entries):
        survey = MergeSurvey(self.work, entries)
        survey.role = self.role
        survey.run(share=0)
        assert 0 in survey.merged
        return survey


TARGETS = {"clone": Clone, "era": Era, "snapshot": Snapshot, "snapshot-merge": Merge}


def some(numbers, count):
    """`count` of the values, from the first to the last."""
    return sorted(
        {
            numbers[round(n * (len(numbers) - 1) / max(1, count - 1))]
            for n in range(min(count, len(numbers)))
        }
    )


def numbers(log, target, role, everything):
    """The n-th flushes that fail, and the n-th requests of other kinds. Reads are not in the log
    but count as chances, so with reads these numbers are approximate.
    """
    requests = [entry for entry in log if entry.mark is None and entry.where == role]
    flushes = [n for n, entry in enumerate(requests, 1) if entry.flush]
    if TARGETS[target].APART:
        flushes = list(range(1, len(flushes) + 1))
    others = [n for n, entry in enumerate(requests, 1) if not entry.flush]
    if everything:
        return flushes, others
    return some(flushes, FLUSHES.get(target, FEW_FLUSHES)), some(
        others, OTHERS.get(target, FEW_OTHERS)
    )


@pytest.mark.only("rust")
@pytest.mark.parametrize(
    "target, role",
    [(target, role) for target, target_class in TARGETS.items() for role in target_class.ROLES],
)
def test_error_and_power_cut(impl, box, request, monkeypatch, target, role):
    """Whatever fails, and whenever the power is cut afterwards: what was acknowledged before is
    durable.
    """
    if TARGETS[target].APART:
        monkeypatch.setattr(logwrites.Recorder, "FLUSHES_APART_MS", FLUSH_MS)
    rows = IN_A_ROW if TARGETS[target].APART else (None,)
    seed = f"{request.config.seed} {target}"
    print(f"--seed {request.config.seed}")
    repetition = TARGETS[target](box, impl, seed)
    _, entries, log = repetition.run(role)
    states = repetition.judge(entries).states
    flushes, others = numbers(log, target, role, request.config.getoption("--all-n"))
    hits = {}  # kind: the number of faults in each repetition
    for kind, in_a_row, chosen in *(
        (f"flush, {count or 1} in a row", count, flushes) for count in rows
    ), ("other", None, others):
        hits[kind] = []
        for n in chosen:
            try:
                hit, entries, _ = repetition.run(role, n, in_a_row)
                states += repetition.judge(entries).states
            except BaseException as error:
                error.add_note(
                    f"{target}: request {n} of {role} failed ({kind}); --seed {request.config.seed}"
                )
                raise
            hits[kind].append(int(hit))
    done = "; ".join(
        f"{kind}: "
        + " ".join(
            f"{n}:{count}" for n, count in zip(others if kind == "other" else flushes, counts)
        )
        for kind, counts in hits.items()
    )
    print(
        f"{target}, {role}: {sum(map(sum, hits.values()))} requests failed, {repetition.errors} "
        f"errors, {states} end states"
    )
    print(f"which n, and how many failed from there on: {done}")
    # The n-th flush occurs, as all earlier ones are as without faults; whether the last ones do may
    # depend on concurrent work.
    for count in rows:
        made = hits[f"flush, {count or 1} in a row"]
        assert sum(map(bool, made)) >= max(1, len(flushes) - 2), hits
        # An era continues; other targets may give up, and send no more flushes.
        assert target != "era" or max(made) > count / 2, hits
    assert any(hits["other"]) and states > 10 * sum(map(len, hits.values()))
