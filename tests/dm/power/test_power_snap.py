"""Power cuts under an origin and its snapshots: whatever a cut leaves, each snapshot is right, or
says that it is lost.

lib/logwrites.py says what a disk may do. Origin and COW devices are slices of one log, each with
flushes of its own. A snapshot shows what the origin held when it was taken, and what was written to
it since, as far as that is acknowledged; each other sector holds one of the contents written since,
or the one before. That is judged from the bytes, by lib/cow.py, at every flush and FUA mark and
between; some of the states are opened by the implementation under test, and in the end by C.
"""

import errno
import random
import time

import pytest

from lib import cow, logwrites, modules, wait
from lib.box import assert_same, pattern
from lib.chance import take_steps
from lib.logwrites import Recorder, Replay, Violation, split, tagged
from lib.snaps import Origin, Snapshot

SECTORS = 2048  # of the origin
SLOTS = 16  # writes that are on their way at once go to different ones
COWS = "meta", "other"  # the slices of the COW devices
# What is known of a snapshot.
ABSENT, LOADING, LOADED, TAKEN, FILLING, LOST = (
    "absent",
    "loading",
    "loaded",
    "taken",
    "filling",
    "lost",
)


@pytest.fixture(autouse=True)
def seed(request):
    """Shown with a failure."""
    print(f"--seed {request.config.seed}")


class Model(logwrites.Model):
    """What the sectors of all devices may hold, as if they stood in a row: first those of the
    origin, then those of each snapshot. Operations are numbered across all of them.
    """

    def __init__(self, contents, phase, first=1):
        """The contents are those of all devices, the phase that of all snapshots."""
        self.contents, self._phase = contents, phase
        start = sum(contents, [])
        super().__init__(start, start, True, first)

    def reset(self):
        super().reset()
        self.phases = [self._phase] * (len(self.contents) - 1)

    @staticmethod
    def row(device):
        return range(device * SECTORS, (device + 1) * SECTORS)

    def take(self, mark):
        """Follows a mark: those of the other model, `flush:NUMBER:DEVICE`, and PHASE:SNAPSHOT."""
        word, *numbers = mark.split(":")
        if not numbers:
            super().take(mark)
        elif word == "flush":
            number, row = int(numbers[0]), self.row(int(numbers[1]))
            for sector in [sector for sector in self._open if sector in row]:
                self._settle(
                    sector,
                    [
                        i
                        for i, (op, data) in enumerate(self._history[sector])
                        if op <= number and data
                    ],
                )
        else:
            self.phases[int(numbers[0])] = word
            if word == TAKEN:
                self._copy(int(numbers[0]) + 1)

    def _copy(self, device):
        """A snapshot begins with what the origin holds, and has held since a flush."""
        for sector, at in zip(self.row(0), self.row(device)):
            ((_, data),) = self._history[sector]
            self._history[at] = [(0, data)]
            self.allowed[at] = (data,)

    def may(self, device):
        return self.allowed[device * SECTORS : (device + 1) * SECTORS]


def soil(sectors, clean):
    """What a COW device holds before it is one: the first 4096 bytes are wiped, as LVM does, or
    all.
    """
    return (
        split(bytes(sectors * 512))
        if clean
        else split(bytes(4096) + pattern("soil", sectors)[4096:])
    )


class Work:
    """A recorded origin with snapshots, and random steps on them which the model knows. Devices
    have numbers: 0 is the origin, the others are its snapshots.
    """

    def __init__(self, box, rng, impl, sizes, room=None, kind="P", extra="", flush_ms=4):
        modules.run("modprobe", "-a", "dm-log-writes")
        self.box, self.rng, self.impl, self.sizes, self.kind, self.extra = (
            box,
            rng,
            impl,
            sizes,
            kind,
            extra,
        )
        lengths = [(room or cow.needed(SECTORS // size, size)) * size for size in sizes]
        self.rec = Recorder(box, flush_ms, **dict(zip(("meta_sectors", "other"), lengths)))
        # C would take garbage in the first area for records.
        cows = {name: soil(length, impl == "c") for name, length in zip(COWS, lengths)}
        data = split(pattern("origin", SECTORS))
        self.start({"dest": data, **cows}, Model([data] * (1 + len(sizes)), ABSENT))

    def start(self, images, model):
        """Everything is recorded from here on."""
        self.images, self.model = images, model
        self.rec.start(*(images[name] for name in self.rec.slices))
        self.snapshots = [None] * len(self.sizes)
        self.origin = self.box.own(Origin(self.rec.dest))

    def go_on_from(self, state, shown):
        """After a power cut."""
        contents = [state.dest, *(content for _, content in shown)]
        self.start(state.images, Model(contents, TAKEN, self.model.last + 1))
        for n in range(len(self.sizes)):
            self.snapshots[n] = self.load(n)
            self.snapshots[n].resume()

    def mark(self, word, number):
        self.rec.mark(f"{word}:{number}")

    @property
    def cows(self):
        return [self.rec.tops[name] for name in COWS[: len(self.sizes)]]

    @property
    def devices(self):
        """(number, device) of all that are there."""
        return [(n, it) for n, it in enumerate([self.origin, *self.snapshots]) if it]

    def load(self, n):
        snapshot = self.box.own(
            Snapshot(
                self.rec.dest,
                self.cows[n],
                self.kind,
                self.sizes[n],
                self.extra,
                SECTORS,
                start=False,
            )
        )
        snapshot.load(snapshot.line)
        return snapshot

    def take(self, n):
        """Takes a snapshot of what the origin holds now."""
        self.mark(LOADING, n)
        snapshot = self.load(n)
        if self.impl != "c":
            self.mark(LOADED, n)
        self.write(0)
        self.flush(0)
        self.origin.suspend()
        snapshot.resume()
        if self.impl == "c":
            snapshot.flush()  # only now its header is durable
        self.mark(TAKEN, n)
        self.origin.resume()
        self.snapshots[n] = snapshot

    def run(self, steps):
        """Takes random steps; gives the log."""
        kinds = {
            self.write: 8,
            self.write_chunks: 5,
            self.fua: 3,
            self.flush: 3,
            self.burst: 4,
            self.suspend: 1,
            self.reload: 1,
            self.reopen: 1,
            self.status: 0.5,
            **({self.discard: 3} if self.extra else {}),
        }
        take_steps(self.rng, kinds, steps)
        return self.end()

    def end(self):
        for _, device in reversed(self.devices):
            device.remove()
        return self.rec.entries()

    # I/O

    def device(self, number=None):
        return self.rng.choice(self.devices) if number is None else self.devices[number]

    def range(self, number, whole=False):
        """A random range: of chunks of the device, or of any other."""
        unit = (
            self.sizes[number - 1]
            if whole and number
            else self.rng.choice(self.sizes) if whole else 1
        )
        count = max(1, self.rng.choice((1, 3, 20, 100)) // unit) * unit
        return self.rng.randrange((SECTORS - count) // unit + 1) * unit, count

    def begin(self, number, first, count):
        """Notes a write before it starts; gives its number and data."""
        data = tagged(self.model.last + 1, self.rng.randbytes(count * 512))
        serial = self.model.add("write", number * SECTORS + first, split(data))
        self.rec.mark(f"b{serial}")
        return serial, data

    def put(self, device, first, serial, data, fua=False, flush=False):
        """Writes; with FUA, or a flush after it, the write is acknowledged. What else the flush
        covers is left open.
        """
        if fua:
            logwrites.write_fua(device.path, first, data)
        else:
            device.write(first, data)
        if flush:
            device.flush()
        if fua or flush:
            self.rec.mark(f"f{serial}")

    def write(self, number=None, fua=False, whole=False):
        number, device = self.device(number)
        first, count = self.range(number, whole)
        if self.extra:
            self.flush()  # the log does not tell whether a discard came before
        self.put(device, first, *self.begin(number, first, count), fua)

    def write_chunks(self):
        self.write(whole=True)

    def fua(self):
        self.write(fua=True, whole=self.rng.random() < 0.5)

    def put_at(self, first, count, number=None):
        """A write at a certain place."""
        number, device = self.device(number)
        self.put(device, first, *self.begin(number, first, count))

    def background_put(self, first, count, number=None):
        number, device = self.device(number)
        return self.box.background(self.put, device, first, *self.begin(number, first, count))

    def flush(self, number=None, upto=None):
        """What was written to the device before is acknowledged."""
        number, device = self.device(number)
        upto = self.model.last if upto is None else upto
        device.flush()
        self.rec.mark(f"flush:{upto}:{number}")

    def discard(self):
        number, device = self.rng.choice(self.devices[1:])
        first, count = self.range(number, self.rng.random() < 0.7)
        self.rec.mark(f"b{self.model.add('discard', number * SECTORS + first, count)}")
        device.discard(first, count)
        self.flush(number)

    def burst(self):
        """Writes to all devices, to the same chunks too, and flushes, while a device below stands
        still a moment.
        """
        before, width = self.model.last, self.rng.choice((3, 20, SECTORS // SLOTS))
        start = self.rng.randrange(SECTORS - SLOTS * width + 1)
        held = self.rng.choice([self.rec.dest, *self.cows])
        held.suspend(noflush=True)
        jobs = []
        for slot in self.rng.sample(range(SLOTS), self.rng.randrange(2, 8)):
            number, device = self.device()
            count = self.rng.randrange(1, width + 1)
            first = start + slot * width + self.rng.randrange(width - count + 1)
            how = self.rng.choice(({}, {}, {"fua": True}, {"flush": True}))
            jobs.append(
                self.box.background(
                    self.put, device, first, *self.begin(number, first, count), **how
                )
            )
            if self.rng.random() < 0.3:
                jobs.append(
                    self.box.background(self.flush, self.rng.randrange(len(self.devices)), before)
                )
            self.pause()
        held.resume()
        for job in jobs:
            job.result()

    def pause(self):
        """Lets others run, for so long as chance wants."""
        time.sleep(self.rng.choice((0, 0.001, 0.003)))

    # Life

    def status(self):
        for _, device in self.devices:
            device.status(noflush=False)

    def suspend(self):
        _, device = self.device()
        device.suspend(noflush=self.rng.random() < 0.5)
        device.resume()

    def reload(self):
        """Another table takes over."""
        _, device = self.device()
        device.swap(device.line)

    def reopen(self):
        """A snapshot is made anew from its COW device."""
        n = self.rng.randrange(len(self.sizes))
        if self.snapshots[n]:
            self.origin.suspend()
            self.snapshots[n].remove()
            self.snapshots[n] = self.load(n)
            self.snapshots[n].resume()
            self.origin.resume()


def fails_if_full(job, through):
    """The result of a write. Those to the snapshot find no room."""
    try:
        job.result()
    except OSError as error:
        assert through and error.errno == errno.EIO


class Image:
    """A device that is a list of sectors."""

    def __init__(self, image):
        self.image, self.sectors = image, len(image)

    def read(self, sector, count):
        return b"".join(self.image[sector : sector + count])


class Judge:
    """Says from the bytes whether a state is one that may be."""

    def __init__(self, work):
        self.work, self.model = work, work.model

    def check(self, state):
        """Gives what each snapshot shows: the store and the content. None for one that is absent,
        lost, or not made.
        """
        shown = []
        self._compare(state, 0, state.dest)
        for n, phase in enumerate(self.model.phases):
            shown.append(None if phase == ABSENT else self._snapshot(state, n, phase))
        return shown

    def _snapshot(self, state, n, phase):
        image, what = state.images[COWS[n]], f"{state}: snapshot {n}, {phase}"
        if not any(image[0][:4]):
            if phase != LOADING:
                raise Violation(f"{what}: no header")
            return None
        if not any(image[0][4:8]):
            if phase not in (FILLING, LOST):
                raise Violation(f"{what}: lost for no reason")
            return None
        if phase == LOST:
            raise Violation(f"{what}: it was said to be lost, and is not")
        try:
            store = cow.Store(Image(image))
        except cow.Damaged as damage:
            raise Violation(f"{what}: {damage}") from damage
        if store.records != cow.numbered([old for old, _ in store.records], store.size):
            raise Violation(f"{what}: records are not in the order of chunks: {store.records}")
        if store.repeated or phase in (LOADING, LOADED) and store.records:
            raise Violation(f"{what}: records that nobody made: {store.repeated or store.records}")
        content = list(state.dest)
        for old, new in store.taken.items():
            content[old * store.size : (old + 1) * store.size] = image[
                new * store.size : (new + 1) * store.size
            ]
        if phase in (TAKEN, FILLING):
            self._compare(state, n + 1, content, store)
        return store, content

    def _compare(self, state, device, content, store=None):
        allowed = self.model.may(device)
        bad = [n for n, (data, may) in enumerate(zip(content, allowed)) if data not in may]
        if bad:
            what = f"snapshot {device - 1}" if device else "origin"
            raise Violation(
                f"{state}: {what}: {len(bad)} sectors hold what they must not: "
                + ", ".join(self._explain(n, content[n], allowed[n], store) for n in bad[:6])
            )

    def _explain(self, sector, data, may, store):
        def name(data):
            number = logwrites.tag(data)
            return (
                f"operation {number}"
                if number is not None
                else (
                    "zeros"
                    if not any(data)
                    else "the first content" if data == self.model.start[sector] else "garbage"
                )
            )

        where = (
            ""
            if store is None
            else " (exception)" if sector // store.size in store.taken else " (origin)"
        )
        return f"{sector}{where}: {name(data)}, not {' or '.join(map(name, may))}"


class Survey:
    """Judges every end state of a log, and opens some of them."""

    def __init__(self, work, entries):
        self.work, self.entries, self.judge = work, entries, Judge(work)
        self.cuts = self.marks = self.states = self.opened = 0
        self.kept, self._seen, self._disks = [], set(), None

    def at_cuts(self):
        """Lists of the end states at each cut point, without those that were there before."""
        replay = Replay(self.entries, self.work.model, **self.work.images)
        phases = None
        for cut, writes, mark in replay.cuts():
            if phases != self.work.model.phases:  # the same bytes may mean something else
                phases = list(self.work.model.phases)
                self._seen.clear()
            self.cuts += 1
            self.marks += mark
            states = (
                replay.states(cut, writes, self.work.rng)
                if mark
                else [replay.state(cut, "all", writes)]
            )
            yield [state for state in states if self._new(state)]

    def _new(self, state):
        key = hash(tuple(id(sector) for image in state.images.values() for sector in image))
        if key in self._seen:
            return False
        self._seen.add(key)
        return True

    def run(self, share=0.1):
        """One state of such a share of the cut points is opened, and so are some of these by C in
        the end.
        """
        rng = self.work.rng
        for states in self.at_cuts():
            self.states += len(states)
            judged = [(state, self.judge.check(state)) for state in states]
            if judged and rng.random() < share:
                case = (*rng.choice(judged), list(self.work.model.phases))
                self.open(
                    *case, further=0 if self.work.impl == "c" else rng.choice((0, 0, 1, 6, 60))
                )
                self.opened += 1
                self.kept.append(case)
        return self

    def by_c(self, rust, count=6):
        """Opens some of the states that were opened with C too."""
        modules.use("c", rust)
        try:
            for case in self.work.rng.sample(self.kept, min(count, len(self.kept))):
                self.open(*case)
        finally:
            modules.use(self.work.impl, rust)

    def disks(self):
        if self._disks is None:
            box, slices = self.work.box, self.work.rec.slices
            rams = {name: box.ram(-(-sectors // 2048)) for name, (_, sectors) in slices.items()}
            self._disks = {
                name: box.mapped(f"0 {slices[name][1]} linear {ram.dev} 0")
                for name, ram in rams.items()
            }
        return self._disks

    def open(self, state, shown, phases, further=0):
        """Snapshots over the state say and show what was judged; and still do when they and the
        origin are written to, so many times.
        """
        disks, work = self.disks(), self.work
        for name, disk in disks.items():
            disk.fill(b"".join(state.images[name]))
        present = [n for n, phase in enumerate(phases) if phase != ABSENT]
        opened = {
            n: work.box.own(
                Snapshot(disks["dest"], disks[COWS[n]], work.kind, work.sizes[n], length=SECTORS)
            )
            for n in present
        }
        wanted = {n: bytearray(b"".join(shown[n][1] if shown[n] else state.dest)) for n in present}
        lost = {n for n in present if not shown[n] and any(state.images[COWS[n]][0])}
        for n, device in opened.items():
            size = work.sizes[n]
            status = (
                "Invalid"
                if n in lost
                else (
                    shown[n][0].status()
                    if shown[n]
                    else f"{2 * size}/{disks[COWS[n]].sectors} {2 * size}"
                )
            )
            assert device.status() == status, f"{state}: snapshot {n}"
        if further:
            self.write(disks, opened, wanted, lost, further)
        for n, device in opened.items():
            if n not in lost:
                assert_same(device.content(), bytes(wanted[n]), where=f"{state}: snapshot {n}")
            device.remove()
            if further and n not in lost:
                check_store(disks, n, wanted[n], f"{state}: snapshot {n}, written to and removed")
            elif not further and any(state.images[COWS[n]][0]):
                same = disks[COWS[n]].content() == b"".join(state.images[COWS[n]])
                assert same, f"{state}: read, and the store has changed"

    def write(self, disks, opened, wanted, lost, turns):
        """Many exceptions, so that all that stands behind the last record gets its chance."""
        rng, front = self.work.rng, self.work.box.own(Origin(disks["dest"]))
        for turn in range(turns):
            first, data = rng.randrange(SECTORS - 8), pattern(f"later {turn}", rng.randrange(1, 8))
            if self.room(opened, lost) < 10:
                break
            n = rng.choice([*opened, None])
            if n in lost:
                continue
            (front if n is None else opened[n]).write(first, data)
            if n is not None:
                wanted[n][first * 512 : first * 512 + len(data)] = data
        front.remove()

    @staticmethod
    def room(opened, lost):
        """The exceptions that still fit, at least."""
        looks = [(it.look(), it.size) for n, it in opened.items() if n not in lost]
        return min(((look.total - look.allocated) // size for look, size in looks), default=100)

    def __str__(self):
        return (
            f"{self.cuts} cut points, {self.marks} of them flush and FUA marks, {self.states} end states, "
            f"{self.opened} opened"
        )


def check_store(disks, n, wanted, where):
    """What is on the devices below, read without their help."""
    image = disks[COWS[n]].content()
    content, store = bytearray(disks["dest"].content()), cow.Store(image)
    step = store.size * 512
    for old, new in store.taken.items():
        content[old * step : (old + 1) * step] = image[new * step : (new + 1) * step]
    assert_same(bytes(content), bytes(wanted), where=where)


@pytest.mark.parametrize(
    "sizes, extra", [((8,), ""), ((1, 16), ""), ((16, 8), "1 discard_zeroes_cow")]
)
def test_power_cuts(impl, box, rng, rust_module, sizes, extra):
    """Random work from the first table on, a second snapshot is taken meanwhile; then all that a
    cut may leave.
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


@pytest.mark.only("rust")  # C writes records back that a torn area has left behind the last one
def test_cut_after_cut(impl, box, rng):
    """From what a cut left on to the next cut, again and again; in the end everything is there."""
    work = Work(box, rng, impl, (2, 8))
    for n in range(len(work.sizes)):
        work.take(n)
    for _ in range(8):
        work.write()
        survey = Survey(work, work.run(rng.randrange(8)))
        # The first cut comes when both snapshots are there.
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
    """Cuts while a store is made on a device that is not all blank: there is none yet, or an empty
    one.
    """
    work = Work(box, rng, impl, (size,))
    work.take(0)
    survey = Survey(work, work.end()).run(share=1)
    print(survey)
    survey.by_c(rust_module)
    assert survey.opened > 5


@pytest.mark.parametrize("together", [1, 5, 40])
def test_roll_over(impl, box, rng, rust_module, together):
    """Exceptions singly, a few at a time or many by one write, over the end of an area."""
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


@pytest.mark.only("rust")  # C writes back what stands behind the last record
def test_torn_records(impl, box, rng):
    """A batch of records in three sectors, of which any may be there without the others. What has
    become no record is never one again, however many follow.
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
def test_full(impl, box, rng, rust_module, kind, through):
    """The COW device gets full, by writes through the origin or the snapshot, one behind the other
    and at once. Whoever reads the disks then finds that the snapshot is lost, or all that it must
    show.
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
        # It goes on as what it is, until an origin write finds no room either.
        assert snapshot.status() == "Overflow"
        work.flush(0)
        work.mark(FILLING, 0)
    for _ in range(3):
        work.put_at(chunks.pop() * 8, 20, 0)
    wait.until(
        lambda: snapshot.event > before + (kind == "PO" and through),
        "an event says that it is lost",
    )
    assert snapshot.status() == "Invalid"
    work.mark(LOST, 0)
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
    """The log of a store whose second area is cleared when the first is full already."""
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
    ids=lambda it: getattr(it, "__name__", it),
)
def test_wrong_order_is_found(impl, box, rng, size, wrong):
    """The judge objects to the same log in another order, and to what a disk makes of other writes."""
    work = Work(box, rng, impl, (size,))
    work.take(0)
    for _ in range(3):
        work.put_at(rng.randrange(SECTORS // 40) * 40, 40)
    entries = work.end()
    Survey(work, entries).run(0)
    with pytest.raises(Violation):
        Survey(work, wrong(entries)).run(0)
