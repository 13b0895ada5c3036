"""Judges the states that a power cut may leave of an origin and its snapshots, from their bytes and
by opening them.
"""

from lib import cow, logwrites, modules
from lib.box import assert_same, pattern
from lib.logwrites import Replay, Violation
from lib.snaps import Origin, Snapshot
from snap_work import ABSENT, COWS, FILLING, LOADED, LOADING, INVALID, SECTORS, TAKEN


class Image:
    """A device that is a list of sectors."""

    def __init__(self, image):
        self.image, self.sectors = image, len(image)

    def read(self, sector, count):
        return b"".join(self.image[sector : sector + count])


class Judge:
    """Decides from the bytes whether a state is allowed."""

    def __init__(self, work):
        self.work, self.model = work, work.model

    def check(self, state):
        """Returns the store and the content of each snapshot, or None for one that is absent,
        invalid or not made.
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
            if phase not in (FILLING, INVALID):
                raise Violation(f"{what}: invalid for no reason")
            return None
        if phase == INVALID:
            raise Violation(f"{what}: its status said Invalid, and the header does not")
        try:
            store = cow.Store(Image(image))
        except cow.Damaged as damage:
            raise Violation(f"{what}: {damage}") from damage
        if store.records != cow.numbered([old for old, _ in store.records], store.size):
            raise Violation(f"{what}: records are not in the order of chunks: {store.records}")
        if store.repeated or phase in (LOADING, LOADED) and store.records:
            raise Violation(f"{what}: unexpected records: {store.repeated or store.records}")
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
    """Judges each end state of a log, and opens some of them."""

    def __init__(self, work, entries):
        self.work, self.entries, self.judge = work, entries, Judge(work)
        self.cuts = self.marks = self.states = self.opened = 0
        self.kept, self._seen, self._disks = [], set(), None

    def at_cuts(self):
        """Lists of the end states at each cut point, without states that were seen before."""
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
        """Opens one state at a `share` of the cut points. C opens some of these again in the
        end.
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
        """Lets C open some of the states that were opened."""
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
        """Snapshots over the state show what was judged, also after `further` writes to them and to
        the origin.
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
        invalid = {n for n in present if not shown[n] and any(state.images[COWS[n]][0])}
        for n, device in opened.items():
            size = work.sizes[n]
            status = (
                "Invalid"
                if n in invalid
                else (
                    shown[n][0].status()
                    if shown[n]
                    else f"{2 * size}/{disks[COWS[n]].sectors} {2 * size}"
                )
            )
            assert device.status() == status, f"{state}: snapshot {n}"
        if further:
            self.write(disks, opened, wanted, invalid, further)
        for n, device in opened.items():
            if n not in invalid:
                assert_same(device.content(), bytes(wanted[n]), where=f"{state}: snapshot {n}")
            device.remove()
            if further and n not in invalid:
                check_store(disks, n, wanted[n], f"{state}: snapshot {n}, written to and removed")
            elif not further and any(state.images[COWS[n]][0]):
                same = disks[COWS[n]].content() == b"".join(state.images[COWS[n]])
                assert same, f"{state}: read, and the store has changed"

    def write(self, disks, opened, wanted, invalid, turns):
        """Makes many exceptions, so that stale records after the last one would come back."""
        rng, front = self.work.rng, self.work.box.own(Origin(disks["dest"]))
        for turn in range(turns):
            first, data = rng.randrange(SECTORS - 8), pattern(f"later {turn}", rng.randrange(1, 8))
            if self.room(opened, invalid) < 10:
                break
            n = rng.choice([*opened, None])
            if n in invalid:
                continue
            (front if n is None else opened[n]).write(first, data)
            if n is not None:
                wanted[n][first * 512 : first * 512 + len(data)] = data
        front.remove()

    @staticmethod
    def room(opened, invalid):
        """A lower bound for the number of exceptions that still fit."""
        looks = [(device.look(), device.size) for n, device in opened.items() if n not in invalid]
        return min(((look.total - look.allocated) // size for look, size in looks), default=100)

    def __str__(self):
        return (
            f"{self.cuts} cut points, {self.marks} of them flush and FUA marks, {self.states} "
            "end states, "
            f"{self.opened} opened"
        )


def check_store(disks, n, wanted, where):
    """Checks the contents of the devices below, without the module's help."""
    image = disks[COWS[n]].content()
    content, store = bytearray(disks["dest"].content()), cow.Store(image)
    step = store.size * 512
    for old, new in store.taken.items():
        content[old * step : (old + 1) * step] = image[new * step : (new + 1) * step]
    assert_same(bytes(content), bytes(wanted), where=where)
