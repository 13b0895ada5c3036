"""Faults that the kernel injects: the n-th allocation on behalf of the module, the n-th request of
a disk.

A *series* repeats one part of a scenario with a failure at the n-th chance, n = 1, 2, ..., until
the part has fewer than n chances. The scenarios are in tests/dm/faults, one file per target.

    kind       what fails
    slab       the n-th kmalloc or cache allocation with the module on its stack, in any task or
               worker
    pages      the n-th page allocation, likewise
    ROLE       the n-th request of the disk in this role ("metadata", ...), including flushes
    ROLE-torn  the same with a disk that is striped over two: the n-th piece of a block fails, the
               others are written
    ROLE-dead  all requests of the disk from the one that would pass its n-th block; only flushes
               still succeed

The kernel counts chances since boot, cannot restart the count, and fails each chance whose number
is a multiple of `interval`. So the number must be known: after a fault it is the interval, which
stays set for the next fault.
"""

import errno
import re
import signal
import struct
import time
from pathlib import Path

from . import modules
from .disk import split

DEBUG = Path("/sys/kernel/debug")
SECONDS_PER_REPETITION = 60
_FOREVER = 1 << 30


class Attribute:
    """A fault attribute of the kernel."""

    def __init__(self, name, **more):
        self.folder = DEBUG / name
        assert (
            self.folder.is_dir()
        ), f"{self.folder} is missing: run with scripts/vm --kernel uml (or debug)"
        self.put(verbose=0, probability=0, space=0, task_filter="N", **more)
        self.fires = 0

    def put(self, **values):
        for name, value in values.items():
            (self.folder / name.replace("_", "-")).write_text(str(value))

    def get(self, name):
        return int((self.folder / name).read_text())

    @property
    def left(self):
        return self.get("times")

    def arm(self, n):
        """Makes the n-th chance from now on fail."""
        interval = self.get("interval")
        # At boot the interval is 1; the kernel counts only while it is above 1.
        self.put(interval=(interval if interval > 1 else 0) + n, times=1, probability=100)

    def fired(self):
        return self.left == 0

    def disarm(self, work):
        """Stops the faults. If none has occurred the count is unknown: `work` is then repeated
        until it fails.
        """
        fired = self.fired()
        while not self.fired():
            try:
                work()
            except OSError:
                assert self.fired(), "failed without a fault"
        self.put(probability=0)
        return fired


def text_range(module):
    """[start, end) of the code of a loaded module, from the addresses of its sections and their
    sizes in the file.
    """
    elf = Path(module).read_bytes()
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", elf, table + i * size) for i in range(count)]
    ranges = []
    for name, _, flags, _, _, length in headers:
        at = headers[names][4] + name
        name = elf[at : elf.index(b"\0", at)].decode()
        if flags & 4 and length and not name.startswith(".init"):
            start = int(Path("/sys/module", modules.RUST_MODULE, "sections", name).read_text(), 16)
            ranges.append((start, start + length))
    assert ranges
    return min(start for start, _ in ranges), max(end for _, end in ranges)


def kernel_function(*names):
    """[start, end) of a function of the kernel. If the compiler has inlined it, the range of its
    callers, which are the other names; they are adjacent, in one file.
    """
    symbols = sorted(
        (int(address, 16), symbol)
        for address, _, symbol, *_ in (
            line.split() for line in Path("/proc/kallsyms").read_text().splitlines()
        )
    )
    here = [at for at, symbol in symbols if symbol == names[0]] or [
        at for at, symbol in symbols if symbol in names[1:]
    ]
    assert here, f"the kernel has none of {names}"
    first, last = min(here), max(here)
    assert last - first < 1 << 16, f"{names} are not together"
    return first, next(at for at, _ in symbols if at > last)


class Fault:
    """A kind of fault, as the runner uses it."""

    lasting = False  # nothing works again before the fault is removed

    def __init__(self, scenario):
        self.scenario = scenario

    def count(self):
        """The number of failures since it was armed."""
        return int(self.attribute.fired())

    def disarm(self):
        """Returns whether there was a failure."""
        return self.attribute.disarm(self.work)


class Allocation(Fault):
    """An allocation fails whose stack contains the code of the module, whether the module makes it
    or others do for the module.

    One function of the kernel can be excluded: by default that of kmemleak, whose allocations would
    double the number. A scenario may exclude another one. Where the kernel has no better unwinder
    it scans the stack word by word, so remains of earlier calls may look like the module; then
    callers fail, which they may.
    """

    def __init__(self, scenario, name, **more):
        super().__init__(scenario)
        start, end = (
            kernel_function(scenario.CALLER) if scenario.CALLER else text_range(scenario.module)
        )
        no_start, no_end = kernel_function(*scenario.EXCEPT.get(scenario.part, ["__alloc_object"]))
        self.attribute = Attribute(
            name,
            require_start=hex(start),
            require_end=hex(end),
            reject_start=hex(no_start),
            reject_end=hex(no_end),
            stacktrace_depth=32,
            ignore_gfp_wait="N",
            **more,
        )

    def arm(self, n):
        self.attribute.arm(n)

    def work(self):
        self.scenario.allocate()


class Request(Fault):
    """A request of a disk fails."""

    def __init__(self, scenario, role):
        super().__init__(scenario)
        self.disks = scenario.disks[role]
        self.attribute = Attribute("fail_make_request")

    def select(self, value):
        for disk in self.disks:
            Path(f"/sys/block/{disk.kernel_name}/make-it-fail").write_text(value)

    def arm(self, n):
        self.select("1")
        self.attribute.arm(n)

    def work(self):
        self.disks[0].read(0, 1)

    def disarm(self):
        fired = super().disarm()
        self.select("0")
        return fired


class Death(Request):
    """A disk dies: after a number of blocks every read and write fails.

    A flush has no size, so it succeeds without effect.
    """

    lasting = True
    BLOCK = 4096

    def arm(self, n):
        self.select("1")
        self.count_was = self.attribute.get("interval")
        # Requests pass while they are smaller than the rest of `space`.
        self.attribute.put(
            interval=1, times=_FOREVER, space=(n - 1) * self.BLOCK + 1, probability=100
        )

    def count(self):
        return _FOREVER - self.attribute.left

    def disarm(self):
        fired = self.count() > 0
        self.attribute.put(probability=0, times=0, space=0, interval=self.count_was)
        self.select("0")
        return fired


def make(kind, scenario):
    if kind == "slab":
        return Allocation(scenario, "failslab", cache_filter="N")
    if kind == "pages":
        return Allocation(scenario, "fail_page_alloc", min_order=0, ignore_gfp_highmem="N")
    role, _, how = kind.partition("-")
    return (Death if how == "dead" else Request)(scenario, role)


class Step:
    """A call of a scenario. `may` are the errors that it may report when a fault hits it. Then the
    call is repeated and must succeed; without `again` that is left to the next repetition.
    """

    def __init__(self, call, may=(), again=True):
        self.call, self.name, self.may, self.again = (
            call,
            call.__name__.replace("_", " "),
            set(may),
            again,
        )


class Stuck(Exception):
    """Raised under a lasting fault: nothing more can be done before the fault is removed."""


class Scenario:
    """Work with one target. The file of a target defines:

    target          its name
    TESTS           {name of a test: [(part, kind of fault), ...]}
    CALLER          a function of the kernel whose allocations fail instead of the module's
    EXCEPT          {part: [the kernel's function whose allocations do not fail, and its callers]}
    PIECE           sectors that fail alone where longer requests are torn
    EVERY           {(part, kind): k}: only every k-th chance fails, unless the series runs alone
    disks           {role: [disks in memory]}, made by __init__(box, module, part, kind, log)
    begin()         without faults: a new start
    steps()         what is done under faults: a list of Step
    excused(error)  whether an error after the only fault is a documented consequence of the state
    end(hit)        without faults: checks what must hold; `hit` is the number of failures
    enough()        whether the series needs no higher n, although it has not ended
    complete(series, said)  checks what all repetitions together must have met; `said` is the
                    kernel's log
    allocate()      makes the module allocate
    close()
    """

    CALLER = None
    EXCEPT = {}
    EVERY = {}
    fault = None

    def enough(self):
        return False

    def complete(self, series, said):
        pass

    def assemble(self, disks):
        """The disk, or a device that alternates between two disks every PIECE sectors: a longer
        request is then split in two.
        """
        if len(disks) == 1:
            return disks[0]
        return self.box.mapped(
            f"0 {sum(disk.sectors for disk in disks)} striped 2 {self.PIECE} "
            + " ".join(f"{disk.dev} 0" for disk in disks)
        )


class Series:
    """A part of a scenario under one kind of fault."""

    def __init__(self, scenario):
        self.scenario = scenario
        self.fault = scenario.fault = make(scenario.kind, scenario)
        self.title = f"{scenario.target} {scenario.part} {scenario.kind}"
        self.failed = {}  # step: how many times it reported an error
        self.repetitions = self.unseen = self.last = 0

    def run(self, only=None, every=1):
        """Tries each n, every `every`-th n, or only one. Ends when there were not n chances twice
        in a row: their number may vary a little.
        """
        start = time.monotonic()
        n, ends = only or 1, 0
        while ends < 2:
            if self.repeat(n):
                self.last, ends = n, 0
            else:
                ends += 1
            if only or self.scenario.enough():
                break
            n += every
        steps = ", ".join(f"{name} {count}" for name, count in self.failed.items())
        print(
            f"{self.title}: {self.repetitions} repetitions, "
            f"{time.monotonic() - start:.0f} s; {self.unseen} without an error; errors: {steps}"
        )
        return self

    def repeat(self, n):
        """Runs one repetition; returns whether there was a failure."""
        signal.alarm(SECONDS_PER_REPETITION)
        self.repetitions += 1
        self.name, self.trace = "beginning", []
        try:
            self.scenario.begin()
            self.fault.arm(n)
            try:
                self.under_fault()
            finally:
                hit = self.fault.count()
                self.fault.disarm()
            self.name = "end"
            self.scenario.end(hit)
        except BaseException as error:
            where = " > ".join(self.trace) or "nothing"
            error.add_note(
                f"{self.title}, n = {n}, in step '{self.name}' after {where}\n"
                f"repeat: FAULT='{self.title} {n}' "
                "python3 -m pytest --impl=rust tests/dm/faults -k 'series or loading'"
            )
            raise
        self.unseen += bool(hit) and not any("=" in name for name in self.trace)
        return bool(hit)

    def under_fault(self):
        for step in self.scenario.steps():
            self.name = step.name
            before = self.fault.count()
            try:
                error = self.attempt(step)
            except Stuck:
                assert self.fault.lasting
                return
            if error is None:
                continue
            hit = self.fault.count()
            assert hit, f"failed with {errno.errorcode[error.errno]} before any fault"
            assert (
                error.errno in step.may
            ), f"{errno.errorcode[error.errno]} is not an error that it may report"
            if self.fault.lasting or not step.again:
                continue
            if hit > before:  # the fault occurred in this step, and not again
                error = self.attempt(step)
            assert error is None or self.scenario.excused(
                error
            ), f"failed with {errno.errorcode[error.errno]} after the only fault"

    def attempt(self, step):
        try:
            step.call()
        except OSError as error:
            self.trace.append(f"{step.name} = {errno.errorcode[error.errno]}")
            self.failed[step.name] = self.failed.get(step.name, 0) + 1
            return error
        self.trace.append(step.name)
        return None


class Model:
    """What each sector of a device may hold: `now`, and `kept` if everything is lost that was not
    flushed.
    """

    def __init__(self, content, *others):
        pieces = [split(content)] + [split(other) for other in others]
        self.now = [{sector} for sector in pieces[0]]
        self.kept = [{sector} for sector in pieces[0]]
        self.ever = [set(sectors) for sectors in zip(*pieces)]  # what the device below may hold

    def trying(self, at, data):
        """The data may arrive, whatever is reported."""
        for n, sector in enumerate(split(data), at):
            for which in self.now, self.kept, self.ever:
                which[n].add(sector)

    def wrote(self, at, data, fua=False):
        for n, sector in enumerate(split(data), at):
            self.now[n] = {sector}
            if fua:
                self.kept[n] = {sector}

    def may_hold_anything(self, at, count):
        for n in range(at, at + count):
            self.now[n] |= self.ever[n]
            self.kept[n] |= self.ever[n]

    def flushed(self):
        self.kept = [set(sectors) for sectors in self.now]

    def lost(self):
        """What had not been flushed was lost."""
        for now, kept in zip(self.now, self.kept):
            now |= kept

    def check(self, content, where):
        got = split(content)
        assert len(got) == len(self.now), f"{where}: {len(got)} sectors"
        bad = [n for n, sector in enumerate(got) if sector not in self.now[n]]
        notes = [
            f"{n} "
            f"({'zeros' if not any(got[n]) else 'older' if got[n] in self.ever[n] else 'unknown'})"
            for n in bad[:8]
        ]
        assert not bad, f"{where}: {len(bad)} sectors hold what they may not: {', '.join(notes)}"


class Leaks:
    """kmemleak, from the creation of this object on. It ignores objects younger than five
    seconds.
    """

    file = DEBUG / "kmemleak"
    AGE = 5.1

    def __init__(self):
        assert (
            self.file.exists()
        ), "kmemleak is missing: run with scripts/vm --kernel uml (or debug)"
        self.file.write_text("clear")

    def check(self):
        """Fails with kmemleak's text. An object must be unreferenced and unchanged in two scans."""
        time.sleep(self.AGE)
        self.file.write_text("scan")
        self.file.write_text("scan")
        text = self.file.read_text()
        assert not text, f"leaks:\n{text}"


def bufio_memory():
    """Bytes in buffers of all metadata: zero, unless a client was leaked."""
    return int(Path("/sys/module/dm_bufio/parameters/current_allocated_bytes").read_text())


def switched(lines):
    """Whether a target logged a change of its mode."""
    return any(re.search(r"Switching to (read-only|fail) mode", line) for line in lines)
