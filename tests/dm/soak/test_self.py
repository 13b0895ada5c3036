"""The soak itself: it finds a wrong device, explains it by a few events that fail again, and names
the seed.
"""

import errno
import re

import pytest
from hypothesis import strategies as st

import clone
import engine
from engine import Driver, Plan, Soak, event
from lib import box as boxes

SECTORS = 64


class Wrong:
    """A device that loses the first write to a sector after a discard of it."""

    def __init__(self):
        self.data, self.discarded = [0] * SECTORS, set()

    def write(self, sector, value):
        if sector in self.discarded:
            self.discarded.remove(sector)
        else:
            self.data[sector] = value

    def discard(self, sector):
        self.data[sector] = 0
        self.discarded.add(sector)


class OverWrong(Driver):
    TARGET = "wrong"
    SETUP = {"size": st.integers(0, 3)}

    def __init__(self, box, setup, tally):
        super().__init__(box, setup, tally)
        self.device, self.want, self.writes = self.make(), [0] * SECTORS, 0

    def make(self):
        return Wrong()

    def sectors(self, start, count):
        return range(start, min(SECTORS, start + count))

    @event(5, start=st.integers(0, SECTORS - 1), count=st.integers(0, 8))
    def write(self, start, count):
        self.writes += 1
        for sector in self.sectors(start, count):
            self.want[sector] = self.writes
            self.device.write(sector, self.writes)

    @event(2, start=st.integers(0, SECTORS - 1), count=st.integers(0, 8))
    def discard(self, start, count):
        for sector in self.sectors(start, count):
            self.want[sector] = 0
            self.device.discard(sector)

    @event(5, start=st.integers(0, SECTORS - 1), count=st.integers(0, 8))
    def read(self, start, count):
        for sector in self.sectors(start, count):
            assert self.device.data[sector] == self.want[sector], f"sector {sector} differs"

    @event(10, flag=st.booleans())
    def something_else(self, flag):
        return None if flag else engine.IDLE


class Once(OverWrong):
    """Fails once and never again, like a race."""

    failed = False

    def read(self, start, count):
        try:
            super().read(start, count)
        except AssertionError:
            if not Once.failed:
                Once.failed = True
                raise

    read.event = OverWrong.read.event


class NoBox:
    def close(self):
        pass


def failing_batch(driver, seconds=300):
    """(seed, report) of the first batch that fails."""
    for seed in range(50):
        report = Soak(driver, NoBox, seconds).batch(seed)
        if report:
            return seed, report
    raise AssertionError("1000 runs of a wrong device passed")


def events_in(report):
    return Plan.parse(re.search(r"^again: --events '(.*)'$", report, re.M).group(1))


def test_a_wrong_device_is_found_and_explained():
    seed, report = failing_batch(OverWrong)
    assert (
        f"seed {seed}: a run of wrong failed" in report and "failed again in 3 runs of 3" in report
    )
    plan = events_in(report)
    assert sorted(name for name, _ in plan.events) == ["discard", "read", "write"], report
    assert all(engine.spell(*step) in report for step in plan.events)
    assert "sector" in report and "KERNEL LOG" in report and "soak: read(" in report
    again = Soak(OverWrong, NoBox).replay(plan, 0)
    assert again and "differs" in again
    assert Soak(OverWrong, NoBox).batch(seed) == report, "the seed did not repeat the batch"


def test_a_failure_that_does_not_come_again_is_reported_as_it_was():
    Once.failed = False
    seed, report = failing_batch(Once, seconds=2)
    assert f"seed {seed}:" in report and "failed again in 0 runs of 3" in report
    assert len(events_in(report).events) >= engine.EVENTS_PER_RUN[0]


def test_reduction_ends_when_its_time_is_over():
    seed, _ = failing_batch(OverWrong)
    report = Soak(OverWrong, NoBox, seconds=0).batch(seed)
    assert "found in 0 runs" in report and len(events_in(report).events) >= engine.EVENTS_PER_RUN[0]


class Right(OverWrong):
    TARGET = "right"

    class Device(Wrong):
        def write(self, sector, value):
            self.data[sector] = value

    def make(self):
        return self.Device()


class Lazy(Right):
    """One of its events never has anything to do."""

    @event(3)
    def never(self):
        return engine.IDLE


def test_time_alone_is_not_enough(monkeypatch):
    """Without any time each event happens nevertheless; an event that does not is reported."""
    soak = Soak(Right, NoBox)
    assert soak.go(engine.seeds(1), 0) is None
    assert soak.runs >= engine.LEAST_RUNS and not soak.missing() and soak.is_enough
    monkeypatch.setattr(engine, "OVERTIME", 0.2)
    report = Soak(Lazy, NoBox).go(engine.seeds(1), 0)
    assert "soak of right" in report and "never never happened" in report


# The driver of the clone target, over clones that lie. Each list passes over a clone that does not.

SETUP = {
    "region": 0,
    "short": 1,
    "cache": False,
    "hydration": False,
    "passdown": True,
    "on_read": False,
    "zero": False,
    "threshold": 0,
    "batch": 0,
}
OPTIONS = {key: SETUP[key] for key in clone.OPTIONS}
WRITE = ["write", {"start": 100, "count": 30, "fua": False, "now": True}]
READ = ["read", {"start": 120, "count": 3, "now": True}]
FLUSH = ["flush", {"now": True}]
DISCARD = ["discard", {"start": 80, "count": 300, "now": True}]
RECREATE = ["recreate", {"suspended": False} | OPTIONS]
STATUS = ["status", {"noflush": True}]
DEAD_METADATA = ["fault", {"layer": "meta", "kind": "error_writes", "start": 0, "count": 0}]


def nothing(*_, **__):
    pass


def fails(*_, **__):
    raise OSError(errno.EIO, "no reason")


def forgets(driver):
    """The metadata goes back to what it was when the device was created."""
    device, disk = driver.clone, driver.trio.meta_disk
    before, remove = disk.content(), device.remove

    def removed():
        remove()
        disk.fill(before)

    device.remove = removed


def writes_to_the_source(driver):
    device, disk = driver.clone, driver.trio.source_disk
    write = device.write
    device.write = lambda sector, data, fua=False: (
        write(sector, data, fua),
        disk.write(sector, data),
    )


def counts_down(driver):
    device, status = driver.clone, driver.clone.status
    device.status = lambda *flags: status(*flags).replace(
        f" {driver.least}/512", f" {max(0, driver.least - 1)}/512"
    )


LIES = {  # name: (what it does to the driver, events, words of the failure)
    "loses a write": (
        lambda driver: setattr(driver.clone, "write", nothing),
        [WRITE, READ],
        "sectors are wrong|written",
    ),
    "loses a discard": (
        lambda driver: setattr(driver.clone, "discard", nothing),
        [WRITE, DISCARD],
        "left data behind|discard",
    ),
    "fails a read": (
        lambda driver: setattr(driver.clone, "read", fails),
        [READ],
        "read .* failed without a reason",
    ),
    "fails a flush": (
        lambda driver: setattr(driver.clone, "flush", fails),
        [WRITE, FLUSH],
        "flush .* failed without a reason",
    ),
    "ignores a message": (
        lambda driver: setattr(driver.clone, "message", nothing),
        [["message", {"words": "hydration_threshold 16"}]],
        "threshold",
    ),
    "forgets what it wrote": (forgets, [WRITE, RECREATE], "on disk"),
    "acknowledges a flush for nothing": (
        lambda driver: setattr(driver.clone, "flush", nothing),
        [WRITE, DEAD_METADATA, FLUSH, RECREATE],
        "not on disk",
    ),
    "writes to the source": (writes_to_the_source, [WRITE], "the source was written to"),
    "counts down": (counts_down, [WRITE, STATUS], "at least"),
}


@pytest.mark.only("rust")
@pytest.mark.parametrize("lie", LIES)
def test_the_model_of_clone_notices_one_that(impl, lie):
    wrong, events, words = LIES[lie]
    made = []

    class Lying(clone.Clone):
        def make(self, options):
            super().make(options)
            if not made:
                wrong(self)
            made.append(self)

    plan = Plan("clone", SETUP, events)
    failure = Soak(Lying, boxes.Box).run(plan)
    assert failure and re.search(words, str(failure.error)), failure and failure.report()
    honest = Soak(clone.Clone, boxes.Box).run(plan)
    assert not honest, honest.report()
