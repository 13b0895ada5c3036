"""Runs of random events: drawn from a seed, carried out, and shortened when they fail. Independent
of the targets.

A *plan* is everything that a run depends on except time: a setup and a list of events, each a name
with arguments. Each event means something in each state, so any part of a list is a list too. A
*batch* is a few plans drawn from one seed.
"""

import collections
import faulthandler
import json
import os
import random
import signal
import sys
import time

import hypothesis
from hypothesis import strategies as st

from lib import kmsg

RUNS_PER_BATCH = 20
# Of each target, whatever the time is. It may exceed its share by so much to reach these.
LEAST_RUNS = 2
OVERTIME = 240
EVENTS_PER_RUN = 20, 60
SECONDS_PER_RUN = 300
# Returned by an event that had nothing to do.
IDLE = "idle"


def event(weight, **arguments):
    """Marks a method of a driver as an event: its weight, and the strategy of each argument."""

    def mark(method):
        method.event = weight, arguments
        return method

    return mark


class Driver:
    """A device under test with its model. Creating the driver sets it up; methods marked as events
    may be called in any order.

    An event returns None if it was carried out, or a word for a different outcome, which is
    counted: IDLE if it had nothing to do, "failed" for a legitimate error, for example. It raises
    what is not legitimate. The driver may count other things in its tally, by (what, outcome).
    """

    TARGET = None
    SETUP = {}

    def __init__(self, box, setup, tally):
        self.box, self.setup, self.tally = box, setup, tally

    def check(self):
        """What holds after each event."""

    def finish(self):
        """What holds at the end, when all devices work."""

    @classmethod
    def events(cls):
        """{name: (weight, {argument: strategy})}"""
        found = {}
        for base in reversed(cls.__mro__):
            found |= {
                name: method.event
                for name, method in vars(base).items()
                if hasattr(method, "event")
            }
        return found

    @classmethod
    def plans(cls):
        """The strategy of all plans."""
        kinds = cls.events()
        choice = st.sampled_from(
            [name for name, (weight, _) in kinds.items() for _ in range(weight)]
        )

        @st.composite
        def one(draw):
            name = draw(choice)
            return [name, {key: draw(value) for key, value in kinds[name][1].items()}]

        least, most = EVENTS_PER_RUN
        return st.builds(
            lambda setup, events: Plan(cls.TARGET, setup, events),
            st.fixed_dictionaries(cls.SETUP),
            st.lists(one(), min_size=least, max_size=most),
        )

    @classmethod
    def tours(cls, wanted=()):
        """The strategy of plans with each event once, and the wanted ones four times, in any
        order.
        """
        kinds = cls.events()
        names = [*kinds, *wanted, *wanted, *wanted]

        @st.composite
        def events(draw):
            return [
                [name, {key: draw(value) for key, value in kinds[name][1].items()}]
                for name in draw(st.permutations(names))
            ]

        return st.builds(
            lambda setup, events: Plan(cls.TARGET, setup, events),
            st.fixed_dictionaries(cls.SETUP),
            events(),
        )


class Plan:
    def __init__(self, target, setup, events):
        self.target, self.setup = target, setup
        self.events = events

    def __str__(self):
        """A line that --events accepts."""
        return json.dumps({"target": self.target, "setup": self.setup, "events": self.events})

    @classmethod
    def parse(cls, text):
        if os.path.exists(text):
            with open(text) as file:
                text = file.read()
        value = json.loads(text)
        return cls(value["target"], value["setup"], value["events"])

    def steps(self):
        """The events in readable form."""
        return [spell(name, arguments) for name, arguments in self.events]


def spell(name, arguments):
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"


def say(text):
    """Writes to the kernel log, where it stands beside the kernel's messages and survives the
    guest.
    """
    with open("/dev/kmsg", "w") as file:
        file.write(f"soak: {text}\n")


class Failure:
    """A plan that failed: at which event, how, and what the kernel logged."""

    def __init__(self, plan, error, log):
        self.plan, self.at, self.error, self.log = plan, error.at, error, log

    @property
    def stuck(self):
        """The devices could not be removed, so later runs prove nothing."""
        return hasattr(self.error, "stuck")

    def report(self):
        steps = self.plan.steps()
        marks = ["  -> " if n == self.at else "     " for n in range(len(steps))]
        setup = spell("setup", self.plan.setup)
        where = "at the end" if self.at >= len(steps) else f"in event {self.at + 1} of {len(steps)}"
        return "\n".join(
            [f"{type(self.error).__name__} {where}: {self.error}", "", f"     {setup}"]
            + [mark + step for mark, step in zip(marks, steps)]
            + ["", "again: --events " + quote(str(self.plan))]
        )


def kernel_log(failure):
    return "\n\nKERNEL LOG of the shortest\n\n" + "\n".join(failure.log) if failure.log else ""


def quote(text):
    return "'" + text.replace("'", "'\\''") + "'"


def perform(driver, plan, box, tally=None, log=None):
    """Carries out one run. Raises the first failure, with the number of the event as `error.at`."""
    tally = collections.Counter() if tally is None else tally
    at = -1
    error = None
    try:
        subject = driver(box, plan.setup, tally)
        subject.check()
        for at, (name, arguments) in enumerate(plan.events):
            say(spell(name, arguments))
            outcome = getattr(subject, name)(**arguments)
            tally[name, outcome or "done"] += 1
            subject.check()
        at = len(plan.events)
        say("end")
        subject.finish()
    except Exception as caught:
        caught.at = max(at, 0)
        error = caught
    try:
        box.close()
    except Exception as left:
        left.at = len(plan.events)
        left.stuck = True
        if error is None:
            error = left
        else:
            error.stuck = True
            error.add_note(f"and then: {left}")
    if error is None and log is not None and log.bad():
        error = AssertionError("the kernel complained: " + log.bad()[0])
        error.at = len(plan.events)
    if error is not None:
        raise error


def too_long(*_):
    raise TimeoutError(f"the run took more than {SECONDS_PER_RUN} s")


class Soak:
    """Batches over one driver, until one fails."""

    def __init__(self, driver, make_box, seconds=300, least=1.0):
        self.driver, self.make_box = driver, make_box
        self.least = least  # the share of the events that must have happened
        self.seconds = seconds  # for shortening a failing plan
        self.runs, self.spent, self.tally = 0, 0.0, collections.Counter()

    def run(self, plan, tally=None):
        """Carries out a plan, and returns its Failure or None. A run that hangs is ended, and
        reports its position.
        """
        log, start = kmsg.Log(), time.monotonic()
        # Two ways out of a hang: an exception and, if the kernel does not return, at least a
        # message.
        signal.signal(signal.SIGALRM, too_long)
        signal.alarm(SECONDS_PER_RUN)
        faulthandler.dump_traceback_later(SECONDS_PER_RUN + 30, file=sys.__stderr__)
        try:
            perform(self.driver, plan, self.make_box(), tally, log)
        except Exception as error:
            return Failure(plan, error, log.lines())
        finally:
            faulthandler.cancel_dump_traceback_later()
            signal.alarm(0)
            self.spent += time.monotonic() - start
            log.close()

    def missing(self):
        """The events that were not carried out yet, or had nothing to do."""
        met = {name for (name, outcome), count in self.tally.items() if count and outcome != IDLE}
        return [name for name in self.driver.events() if name not in met]

    @property
    def is_enough(self):
        return self.runs >= LEAST_RUNS and len(self.missing()) <= (1 - self.least) * len(
            self.driver.events()
        )

    def go(self, seeds, seconds):
        """Runs batches for some time, and until each event has happened; returns the report of a
        failure, or None.
        """
        start = time.monotonic()
        end, last = start + seconds, start + seconds + OVERTIME
        while time.monotonic() < end or not self.is_enough:
            if time.monotonic() > last:
                return (
                    f"soak of {self.driver.TARGET}: {self.runs} runs in {self.spent:.0f} s, "
                    "which is too little: "
                    f"{', '.join(self.missing()) or 'nothing'} never happened"
                )
            seed = next(seeds)
            report = not self.is_enough and self.batch(seed, tour=True) or self.batch(seed, end)
            if report:
                return report
        return None

    def batch(self, seed, end=float("inf"), runs=RUNS_PER_BATCH, tour=False):
        """Some runs from a seed until `end`, or one run with each event; returns the report of a
        failure, or None.
        """
        failures, drawn = [], 0

        def attempt(plan):
            nonlocal drawn
            drawn += 1
            # The first plan that is drawn is always the simplest one, so all tours would be the
            # same.
            if failures or time.monotonic() > end or tour and drawn == 1:
                return
            self.runs += 1
            say(
                f"run {self.runs} of {self.driver.TARGET}, seed {seed}: "
                f"{spell('setup', plan.setup)}"
            )
            failure = self.run(plan, self.tally)
            if failure:
                failures.append(failure)

        # Hypothesis draws the plans. It could shrink them too, but takes hundreds of runs where
        # Reducer takes dozens, and gives up on failures that occur only sometimes.
        plans = self.driver.tours(self.missing()) if tour else self.driver.plans()
        settings = hypothesis.settings(
            max_examples=2 if tour else runs,
            database=None,
            deadline=None,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        hypothesis.seed(seed)(settings(hypothesis.given(plans)(attempt)))()
        return self.explain(failures[0], f"seed {seed}") if failures else None

    def replay(self, plan, end):
        """Carries out the plan until it fails or the time is over, at least once."""
        while True:
            self.runs += 1
            say(f"run {self.runs} of {plan.target}, given: {spell('setup', plan.setup)}")
            failure = self.run(plan, self.tally)
            if failure:
                return failure.report() + kernel_log(failure)
            if time.monotonic() > end:
                return None

    def explain(self, first, origin):
        """The report of a failure: the shortest list that fails too, and the first one."""
        reducer = Reducer(self.run, self.seconds)
        shortest = reducer.reduce(first)
        again = 0 if first.stuck else sum(self.run(shortest.plan) is not None for _ in range(3))
        text = (
            f"{origin}: a run of {self.driver.TARGET} failed\n\nTHE SHORTEST event list found "
            f"in {reducer.runs} "
            f"runs; it failed again in {again} runs of 3\n\n" + shortest.report()
        )
        if shortest is not first:
            text += "\n\nTHE FIRST\n\n" + first.report()
        return text + kernel_log(shortest)


class Reducer:
    """Shortens a failing plan: fewer events, then simpler arguments. Any failure counts, and an
    attempt that passes although it could fail (a race) only costs length. If the first plan does
    not fail again at once, each attempt gets three runs.
    """

    def __init__(self, run, seconds):
        self.run, self.end = run, time.monotonic() + seconds
        self.runs, self.tries, self.passed = 0, 1, set()

    def reduce(self, failure):
        self.best = failure
        if failure.stuck:
            return failure
        if not self.fails(failure.plan.events[: failure.at + 1]):
            self.tries = 3
            self.passed.clear()
        size = len(self.best.plan.events) // 2
        while size:
            size = size if self.drop(size) else size // 2
        self.simplify()
        return self.best

    def fails(self, events, setup=None):
        """Tries events. If they fail they are the best from now on, without those after the
        failure.
        """
        plan = Plan(self.best.plan.target, setup or self.best.plan.setup, events)
        if str(plan) in self.passed:
            return False
        for _ in range(self.tries):
            if time.monotonic() > self.end or self.best.stuck:
                return False
            self.runs += 1
            say(f"shorter: {spell('setup', plan.setup)}")
            failure = self.run(plan)
            if failure:
                failure.plan = Plan(plan.target, plan.setup, events[: failure.at + 1])
                self.best = failure
                return True
        self.passed.add(str(plan))
        return False

    def drop(self, size):
        """Leaves out `count` events in a row, from the end to the start; returns whether any could
        be left out.
        """
        shorter = False
        at = len(self.best.plan.events)
        while at > 0:
            at = max(0, min(at, len(self.best.plan.events)) - size)
            events = self.best.plan.events
            shorter |= self.fails(events[:at] + events[at + size :])
        return shorter

    def simplify(self):
        """Replaces arguments by simpler ones: numbers by smaller ones, true by false."""
        setup = self.best.plan.setup
        for key in setup:
            for value in simpler(setup[key]):
                if self.fails(self.best.plan.events, self.best.plan.setup | {key: value}):
                    break
        for n in range(len(self.best.plan.events)):
            for key, old in (
                self.best.plan.events[n][1].items() if n < len(self.best.plan.events) else ()
            ):
                for value in simpler(old):
                    name, arguments = self.best.plan.events[n]
                    events = list(self.best.plan.events)
                    events[n] = [name, arguments | {key: value}]
                    if self.fails(events) or n >= len(self.best.plan.events):
                        break


def simpler(value):
    """Simpler values than this one, the simplest first. Each event accepts numbers down to 0."""
    if value is True:
        return [False]
    if isinstance(value, int) and value:
        return sorted({0, 1, value // 8, value // 2} - {value})
    return []


def seeds(seed):
    """The seed itself, then others that follow from it: so a batch is repeated by its own seed."""
    yield seed
    more = random.Random(seed)
    while True:
        yield more.randrange(1 << 32)
