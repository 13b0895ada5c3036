"""Rounds in which several threads load, suspend, resume and remove the same devices concurrently,
with I/O.

In each round a seed chooses the players: each is a list of calls in a thread of its own. All begin
at once. Threads sleep at the delay points of the module, and one thread is held at such a point
until the others have made some steps, so that narrow races do not depend on luck. In a duet the
first player is the one that is held, and the other begins then. The classes of the scenarios say
what must hold in any order. A call may fail with the errors that its player names; that is counted.
"""

import collections
import faulthandler
import itertools
import sys
import threading
import time

from lib import delay, dm, wait
from lib.disk import split

DEADLINE = 60
STEPS = 1, 2, 3, 5, 8, 8  # while one thread is held, the others make so many steps
# ... or until none has made a step for so long (s) beyond the time of their I/O: they wait for the
# held one.
STILL = 0.1


class Writer:
    """Writes to sectors that no other writer uses, and reads them back, until told to stop.
    `may[sector]` is what each may hold: one content if the last write to it was acknowledged.
    """

    def __init__(self, crowd, device, sectors, name):
        self.crowd, self.device, self.sectors, self.name = crowd, device, list(sectors), name
        self.may = {}
        self.serial = itertools.count(1)
        self.current = None  # (sector, data) of the write in flight
        self.bears_errors = False
        self.before = lambda sector: None  # called before each write
        self.also = lambda sector: ()  # what else a sector may hold

    def run(self, rng, stop):
        for n in itertools.count():
            if stop.is_set() and n > 2:
                return
            sector = rng.choice(self.sectors)
            try:
                if rng.random() < 0.7:
                    self.write(sector)
                elif rng.random() < 0.2:
                    self.device.flush()
                    self.crowd.count("flush")
                else:
                    self.read(sector)
            except OSError as error:
                assert self.bears_errors, f"{self.name}: {error} at sector {sector}"
                self.crowd.count("I/O that failed")
                time.sleep(0.005)

    def write(self, sector):
        data = (b"%s %d/%d " % (self.name.encode(), next(self.serial), sector)).ljust(512, b".")
        self.before(sector)
        self.may[sector] = self.may.get(sector, frozenset((None,))) | {data}
        self.current = sector, data
        self.device.write(sector, data)
        self.current = None
        self.may[sector] = frozenset((data,))
        self.crowd.count("write")

    def read(self, sector):
        got = self.device.read(sector, 1)
        self.crowd.count("read")
        may = self.may.get(sector)
        assert may is None or self.is_good(
            sector, got
        ), f"{self.name}: sector {sector} holds {got[:30]}, not {shown(may)}"

    def is_good(self, sector, data):
        may = self.may[sector]
        return None in may or data in may or data in self.also(sector)

    def check(self, got, where):
        """Checks that this content of the device has what was acknowledged. Sectors of which
        nothing is known may hold anything.
        """
        for sector, may in self.may.items():
            assert self.is_good(
                sector, got[sector]
            ), f"{where}: sector {sector} of {self.name} holds {got[sector][:30]}, not {shown(may)}"


def shown(may):
    return " or ".join(str(data[:30]) if data else "the old content" for data in may)


class Crowd:
    """The rounds of one scenario, which defines:

    NAME        its name
    begin(rng)  makes the devices of a round, sets `writers`, and returns the players:
                {name: [(call, errors)]}
    settle()    resumes everything: nothing is suspended afterwards
    check()     checks what must hold
    close()     removes what the round has made
    """

    NAME = None
    LEAST = {}  # what must have happened, and how often
    HOLDS = ()  # delay points at which a thread is held
    duet = None  # (the player that begins, the point where it is held first, number of steps)
    slow = 0.0  # how long an I/O may take (s)

    def __init__(self, make_box, tally=None):
        self.make_box = make_box
        self.tally = collections.Counter() if tally is None else tally
        self.lock = threading.Lock()
        self.rounds = self.steps = 0

    def count(self, what):
        with self.lock:
            self.tally[what] += 1

    def carry_out(self, *calls):
        """Steps of a player."""
        for call, *args in calls:
            call(*args)
            self.steps += 1

    def hold(self, rng, start, over):
        """Holds one thread after the other until the players have ended."""
        is_first = True
        while not over.is_set():
            name, count = rng.choice(self.HOLDS), rng.choice(STEPS)
            if is_first and self.duet:
                _, name, count = self.duet
            with delay.held(name) as point:
                if is_first:
                    start.wait(DEADLINE)
                is_first = False
                while not point.is_taken() and not over.is_set():
                    time.sleep(0.001)
                self.count(f"held at {name}" if not over.is_set() else "no thread held")
                self.may_begin.set()
                last, end, since = self.steps, self.steps + count, time.monotonic()
                still = STILL + 3 * self.slow
                while self.steps < end and time.monotonic() < since + still and not over.is_set():
                    if self.steps > last:
                        last, since = self.steps, time.monotonic()
                    time.sleep(0.001)

    def perform(self, name, calls, start):
        """Makes the calls of one player."""
        start.wait(DEADLINE)
        is_first = self.duet and name == self.duet[0]
        if self.duet and not is_first:
            self.may_begin.wait(DEADLINE)
        try:
            self.play(name, calls)
        finally:
            if is_first:
                self.may_begin.set()

    def play(self, name, calls):
        for call, errors in calls:
            what = f"{name}: {call.__name__}"
            try:
                call()
            except OSError as error:
                assert error.errno in errors, f"{what}: {error}"
                self.count(f"{what}, refused")
            else:
                self.count(what)
            self.steps += 1

    def round(self, rng):
        self.rounds += 1
        self.box = self.make_box()
        # Prints stacks if the kernel does not return.
        faulthandler.dump_traceback_later(3 * DEADLINE, file=sys.__stderr__)
        try:
            self.writers, self.duet, self.may_begin = [], None, threading.Event()
            cast = self.begin(rng)
            start = threading.Barrier(len(cast) + len(self.writers) + bool(self.HOLDS))
            stop, over = threading.Event(), threading.Event()

            def write(writer, rng):
                start.wait(DEADLINE)
                writer.run(rng, stop)

            jobs = [
                self.box.background(self.perform, name, calls, start)
                for name, calls in cast.items()
            ]
            io = [
                self.box.background(write, writer, type(rng)(rng.random()))
                for writer in self.writers
            ]
            holding = (
                [self.box.background(self.hold, type(rng)(rng.random()), start, over)]
                if self.HOLDS
                else []
            )
            try:
                try:
                    for job in jobs:
                        job.result(DEADLINE)
                finally:
                    over.set()
                for job in holding:
                    job.result(DEADLINE)
                self.settle()
            finally:
                stop.set()
            for job in io:
                job.result(DEADLINE)
            self.check()
            self.close()
        finally:
            faulthandler.cancel_dump_traceback_later()
            self.box.close()

    def missing(self):
        return [
            f"{what}: {self.tally[what]}, not {least}"
            for what, least in self.LEAST.items()
            if self.tally[what] < least
        ]

    @staticmethod
    def awake(device):
        """Resumes a device. Returns whether its table went live; if that was refused, the device
        fails all I/O from now on.
        """
        try:
            device.resume()
            return True
        except OSError:
            device.load(f"0 {device.length} error")
            device.resume()
            return False

    def one_of(self, rng, count, *choices):
        """A list of calls."""
        return [rng.choice(choices) for _ in range(count)]

    @staticmethod
    def content(device, sectors):
        return split(device.content(sectors))


def named(name, call):
    """The call, counted under another name."""

    def named_call():
        return call()

    named_call.__name__ = name
    return named_call


def no_table(device):
    """Whether the device has no table, and so nothing to resume."""
    return not device.info().flags & (dm._ACTIVE | dm._INACTIVE)


def until_quiet(condition, what):
    return wait.until(condition, what, DEADLINE)
