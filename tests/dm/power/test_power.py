"""Power cuts at each flush and FUA mark of a recorded run: whatever a cut leaves can be opened, is
right, and keeps promises.

lib/logwrites.py describes what a disk may do. The clone must keep each write that a flush or its
own FUA acknowledged. Each other sector holds one of the contents written since, or the one before.
A discarded region may also hold zeros or, if it was never hydrated, what the destination held. In
the same state each region that the metadata calls hydrated holds that data on the destination.
"""

import errno
import random
import time

import pytest

from lib import logwrites, metadata, modules, wait
from lib.box import pattern
from lib.chance import take_steps
from lib.logwrites import Checker, Model, Openers, Recorder, Replay, Violation, split, tagged

SLOTS = 16  # of the device: writes of a burst go to different ones


@pytest.fixture(autouse=True)
def seed(request):
    """Shown with a failure."""
    print(f"--seed {request.config.seed}")


class Work:
    """A recorded clone, and random steps that the model follows."""

    def __init__(self, box, rng, region=8, passdown=True, impl="rust", flush_ms=10):
        modules.run("modprobe", "-a", "dm-log-writes")
        self.box, self.rng, self.region, self.passdown, self.impl = box, rng, region, passdown, impl
        self.extra = "1 no_hydration" if passdown else "2 no_hydration no_discard_passdown"
        self.rec = Recorder(box, flush_ms)
        self.sectors = self.rec.sectors
        data = pattern("source", self.sectors)
        self.source = split(data)
        self.rec.source.lower.fill(data)
        # Only the first block of the metadata is blank.
        self.meta = split(bytes(metadata.BLOCK)) + split(
            pattern("garbage", self.rec.meta_sectors - metadata.SECTORS)
        )
        self.dest = split(pattern("destination", self.sectors))
        self.model = Model(self.source, self.dest, passdown)
        self.start()

    def start(self):
        self.discarded = []  # since the last flush
        self.rec.start(self.meta, self.dest)
        self.create()

    def go_on_from(self, state, content):
        """Starts again from what a power cut left."""
        self.meta, self.dest = state.meta, state.dest
        self.model = Model(content, state.dest, self.passdown, self.model.last + 1)
        self.start()

    def create(self):
        self.clone = self.box.clone(
            self.rec.meta,
            self.rec.dest,
            self.rec.source,
            self.region,
            self.extra,
            length=self.sectors,
        )

    def run(self, steps):
        """Takes random steps; returns the log."""
        kinds = {
            self.write: 8,
            self.write_regions: 4,
            self.fua: 4,
            self.flush: 4,
            self.discard: 2,
            self.copies: 3,
            self.burst: 4,
            self.collide: 2,
            self.suspend: 1,
            self.status: 1,
            self.reload: 0.4,
            self.recreate: 0.4,
        }
        if self.impl == "c":
            del kinds[self.collide]  # C loses the second write (W1)
        take_steps(self.rng, kinds, steps)
        return self.end()

    def end(self):
        self.clone.remove()
        return self.rec.entries()

    # Writes

    def range(self, regions, sectors=None):
        """A random range of whole regions or sectors."""
        unit = self.region if regions else 1
        sectors = sectors or self.sectors
        count = self.rng.randrange(1, max(2, self.rng.choice((4, 40)) // unit + 1)) * unit
        return self.rng.randrange((sectors - count) // unit + 1) * unit, count

    def begin(self, first, count):
        """Records a write before it starts; returns its number and data."""
        data = tagged(self.model.last + 1, self.rng.randbytes(count * 512))
        number = self.model.add("write", first, split(data))
        self.rec.mark(f"b{number}")
        return number, data

    def put(self, first, number, data, fua=False, flush=False):
        """Writes. With FUA or a flush after it, the write is acknowledged; what else the flush
        covers is left open.
        """
        if fua:
            logwrites.write_fua(self.clone.path, first, data)
        else:
            self.clone.write(first, data)
        if flush:
            self.clone.flush()
        if fua or flush:
            self.rec.mark(f"f{number}")

    def write(self, regions=False, fua=False):
        first, count = self.range(regions)
        if fua and any(first < end and start < first + count for start, end in self.discarded):
            self.flush()  # the log does not tell which of the two came first
        self.put(first, *self.begin(first, count), fua)

    def write_regions(self):
        self.write(regions=True)

    def fua(self):
        self.write(regions=self.rng.random() < 0.5, fua=True)

    def flush(self, upto=None):
        """What was written before is acknowledged."""
        known = len(self.discarded)
        upto = self.model.last if upto is None else upto
        self.clone.flush()
        self.rec.mark(f"a{upto}")
        del self.discarded[:known]

    def discard(self):
        if self.impl == "c":
            self.clone.wait_quiet()  # W1 again
        self.clone.discard(*self.begin_discard(*self.range(self.rng.random() < 0.8)))

    def begin_discard(self, first, count):
        self.rec.mark(f"b{self.model.add('discard', first, count)}")
        self.discarded.append((first, first + count))
        return first, count

    # Concurrent steps

    def copies(self):
        """Background copies end while a flush is in flight."""
        self.rec.source.hold()
        self.clone.hydrate(threshold=self.rng.choice((1, 3, 8)), batch=self.rng.choice((1, 4)))
        if not self.clone.look().full:
            self.clone.wait_hydrating()
        self.clone.message("disable_hydration")
        flush = self.box.background(self.flush) if self.rng.random() < 0.7 else None
        self.pause()
        self.rec.source.release()
        if flush:
            flush.result()

    def burst(self):
        """Writes, with and without FUA, and flushes, while a device below is held for a moment."""
        if self.discarded:
            self.flush()
        before = self.model.last
        held = self.rng.choice((self.rec.meta, self.rec.meta, self.rec.dest, self.rec.source))
        held.suspend(noflush=True)
        jobs = []
        for slot in self.rng.sample(range(SLOTS), self.rng.randrange(2, 6)):
            size = self.sectors // SLOTS
            first, count = self.range(self.rng.random() < 0.5, size)
            number, data = self.begin(first + slot * size, count)
            jobs.append(
                self.box.background(
                    self.put,
                    first + slot * size,
                    number,
                    data,
                    **self.rng.choice(({}, {"fua": True}, {"flush": True})),
                )
            )
            if self.rng.random() < 0.5:
                jobs.append(
                    self.box.background(self.flush, before)
                )  # which promises nothing of the burst
            self.pause()
        held.resume()
        for job in jobs:
            job.result()

    def collide(self):
        """A discard meets the copy that a write to a part of the region waits for; another part is
        written after it.
        """
        if self.discarded:
            self.flush()
        region = self.rng.randrange(self.sectors // self.region) * self.region
        cut = self.rng.randrange(1, self.region)
        self.rec.source.hold()
        first = self.box.background(self.put, region, *self.begin(region, cut))
        self.pause()
        discard = self.begin_discard(region, self.region)
        write = self.begin(region + cut, self.region - cut)
        second = self.box.background(self.discard_and_put, discard, region + cut, write)
        self.pause()
        self.rec.source.release()
        first.result()
        second.result()

    def discard_and_put(self, discard, first, write):
        self.clone.discard(*discard)
        self.put(first, *write, flush=self.rng.random() < 0.5)

    def pause(self):
        """Lets other threads run, for a random time."""
        time.sleep(self.rng.choice((0, 0.001, 0.003)))

    # Suspends, new tables, removals

    def status(self):
        self.clone.status(noflush=False)

    def suspend(self):
        self.clone.suspend(noflush=self.rng.random() < 0.5)
        self.clone.resume()

    def reload(self):
        self.clone.swap(self.clone.line)

    def recreate(self):
        self.clone.remove()
        self.create()


class Survey:
    """Judges each end state of a log by the contents of the devices, and opens a clone over some of
    them.

    With KASAN, opening one takes a tenth of a second, judging one a hundredth of that.
    """

    def __init__(self, work, entries, openers=None):
        self.work, self.entries, self.openers = work, entries, openers
        self.checker = Checker(work.source, work.model, work.region)
        self.cuts = self.marks = self.states = self.opened = self.hydrated = 0
        self._seen = set()

    def at_cuts(self):
        """Lists of the end states at each cut point, without states that were seen before."""
        replay = Replay(self.entries, self.work.model, self.work.meta, self.work.dest)
        for cut, writes, mark in replay.cuts():
            self.cuts += 1
            self.marks += mark
            states = (
                replay.states(cut, writes, self.work.rng)
                if mark
                else [replay.state(cut, "all", writes)]
            )
            yield [state for state in states if self._new(state)]

    def _new(self, state):
        key = hash((*map(id, state.meta), *map(id, state.dest)))
        if key in self._seen:
            return False
        self._seen.add(key)
        return True

    def run(self, share=0.4):
        """Opens one state at a `share` of the cut points."""
        try:
            for states in self.at_cuts():
                self.states += len(states)
                judged = [(state, *self.checker.check(state)) for state in states]
                if self.openers and judged and self.work.rng.random() < share:
                    further = self.work.rng.random() < 0.05
                    self.openers.check(*self.work.rng.choice(judged), further)
                    self.opened += 1
                    self.hydrated += further
        finally:
            if self.openers:
                self.openers.finish()
        return self

    def __str__(self):
        return (
            f"{self.cuts} cut points, {self.marks} of them flush and FUA marks, {self.states} "
            "end states, "
            f"{self.opened} opened, {self.hydrated} of them hydrated"
        )


@pytest.mark.parametrize("region, passdown", [(8, True), (32, True), (8, False)])
def test_power_cuts(impl, clone_box, rng, region, passdown):
    """Random work from the format on; then all that a cut may leave, at each flush and FUA mark and
    in between.
    """
    rng = random.Random(f"{rng.random()} {region} {passdown}")
    work = Work(clone_box, rng, region, passdown, impl)
    survey = Survey(work, work.run(45), Openers(8, clone_box, work.rec, region)).run()
    print(survey)
    assert survey.marks > 50


def test_cut_after_cut(impl, clone_box, rng):
    """Repeated cuts, each followed by work on what it left; in the end everything is hydrated and
    right.
    """
    work = Work(clone_box, rng, 16, True, impl)
    for _ in range(8):
        work.write()
        work.flush()  # so that there is something to cut, whatever the seed chooses
        survey = Survey(work, work.run(rng.randrange(1, 12)))
        first = next(n for n, entry in enumerate(survey.entries) if entry.mark is None)
        survey.entries = survey.entries[: rng.randrange(first, len(survey.entries)) + 1]
        for states in filter(None, survey.at_cuts()):
            state = rng.choice(states)
            _, content = survey.checker.check(state)
        work.go_on_from(state, content)
    work.clone.hydrate()
    work.clone.wait_full()
    got = split(work.clone.content())
    work.clone.remove()
    assert got == work.model.start == split(work.rec.dest.content())


def test_format(impl, clone_box, rng):
    """Cuts during the format, between load and resume, and at the first commit: formatted again, or
    complete.
    """
    work = Work(clone_box, rng, 8, True, impl)
    work.write()
    work.flush()
    survey = Survey(work, work.end(), Openers(4, clone_box, work.rec, 8)).run(share=1)
    print(survey)
    assert survey.opened > 10


def record_region_that_finishes_in_a_commit(box, rng, impl):
    """Region 3 is flushed. While the destination is flushed, region 4 is filled, and then region 5,
    for which a second flush arrives before the commit goes on. All bits are in one word; the second
    flush must not end with this commit.
    """
    work = Work(box, rng, 8, True, impl, flush_ms=200)
    work.put(24, *work.begin(24, 8))
    begun = work.rec.logged()
    work.rec.meta.suspend(noflush=True)
    flush = box.background(work.flush)
    time.sleep(0.05)  # if the flush has not begun by then, region 4 is flushed with region 3
    work.put(32, *work.begin(32, 8))
    wait.until(lambda: work.rec.logged() >= begun + 2, "the destination is flushed")
    work.put(40, *work.begin(40, 8))
    second = box.background(work.flush)
    work.pause()
    work.rec.meta.resume()
    flush.result()
    second.result()
    return work, work.end()


def test_region_that_finishes_in_a_commit(impl, clone_box, rng):
    """A commit does not mark a region that is filled between the flush of the destination and the
    superblock.
    """
    work, entries = record_region_that_finishes_in_a_commit(clone_box, rng, impl)
    survey = Survey(work, entries, Openers(4, clone_box, work.rec, 8)).run(share=1)
    print(survey)
    between = objections = 0
    for state in (state for states in Survey(work, entries).at_cuts() for state in states):
        if {3} <= survey.checker.hydrated(state.meta) <= {3, 4} and state.dest[40:48] == work.dest[
            40:48
        ]:
            between += 1
            # The log with both bits set, as if the commit had taken the word from the map.
            with pytest.raises(Violation, match="stale"):
                survey.checker.check(state, also={5})
            objections += 1
    assert between == objections > 0


@pytest.mark.parametrize(
    "wrong", [logwrites.without_flushes, logwrites.with_late_flushes], ids=lambda f: f.__name__
)
def test_wrong_order_is_found(impl, clone_box, rng, wrong):
    """The check rejects the same log if the destination is not flushed, or only after the
    superblock.
    """
    work = Work(clone_box, rng, 8, True, impl)
    entries = work.run(25)
    Survey(work, entries).run()
    with pytest.raises(Violation, match=r"\(hydrated\): stale"):
        Survey(work, wrong(entries)).run()


def test_torn_superblock(impl, clone_box, rng):
    """Torn within sectors, which no disk does: refused, unless nothing is missing. Never worse."""
    work = Work(clone_box, rng, 8, True, impl)
    for _ in range(2):
        work.write()
        work.flush()
    blocks = [
        b"".join(data for _, data in entry.sectors[: metadata.SECTORS])
        for entry in work.end()
        if entry.where == "meta" and entry.sectors and entry.sectors[0][0] == 0
    ]
    old, new = blocks[-2:]
    meta = clone_box.ram(1)
    for at in range(4, 204, 8):
        for torn in (old[:at] + new[at:], new[:at] + old[at:]):
            if torn in (old, new):
                continue
            meta.fill(torn)
            with pytest.raises(OSError) as refused:
                clone_box.clone(meta, work.rec.disk, work.rec.source, 8, "1 no_hydration")
            assert refused.value.errno == errno.EILSEQ
            assert meta.read(0, 8) == torn
