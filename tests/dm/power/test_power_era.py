"""Power cuts under an era: whatever a cut leaves, each change on the origin is in the list.

A block that holds what an operation wrote is marked in the era of that time or in a later one,
because the mark is durable before the write is submitted. That is judged at each flush and FUA
write and in between, for many of the states that a cut may leave: the metadata by an independent
reader, sometimes by era_check and by an era device that continues from there.
"""

import pytest

from lib import eras, logwrites, metadata, modules
from lib.box import pattern
from lib.logwrites import Recorder, Replay, Violation, split, tag, tagged

META_SECTORS = 512


class Clock:
    """The era in which each operation began, and the last era that a message has returned."""

    def __init__(self):
        self.eras = {}
        self.reset()

    def reset(self):
        self.least = 0

    def take(self, mark):
        """e = a message returned with this era."""
        assert mark[0] == "e"
        self.least = int(mark[1:])


class Work:
    """A recorded era, and random steps on it."""

    def __init__(self, box, rng, size):
        modules.run("modprobe", "-a", "dm-log-writes")
        self.box, self.rng, self.size = box, rng, size
        self.rec = Recorder(box, 5, meta_sectors=META_SECTORS)
        self.sectors = self.rec.sectors
        self.blocks = self.sectors // size
        self.meta = split(bytes(metadata.BLOCK)) + split(
            pattern("garbage", META_SECTORS - metadata.SECTORS)
        )
        self.dest = split(pattern("origin", self.sectors))
        self.clock, self.serial = Clock(), 0
        self.rec.start(self.meta, self.dest)
        self.create()

    def create(self):
        self.era = self.box.own(
            eras.Era(self.rec.meta, self.rec.dest, self.size, length=self.blocks * self.size)
        )
        self.now()

    def now(self):
        self.rec.mark(f"e{self.era.era}")

    def run(self, steps):
        kinds = {
            self.write: 10,
            self.fua: 3,
            self.flush: 2,
            self.discard: 2,
            self.checkpoint: 4,
            self.snapshot: 1.5,
            self.suspend: 1,
            self.resize: 0.7,
            self.recreate: 0.5,
            self.at_once: 3,
        }
        for step in self.rng.choices(list(kinds), list(kinds.values()), k=steps):
            step()
        self.era.remove()
        return self.rec.entries()

    def begin(self):
        """A range, and data that tells its operation and the era in which that began."""
        self.serial += 1
        self.clock.eras[self.serial] = self.era.era
        count = self.rng.choice((1, 3, 8, 9, 40))
        first = self.rng.randrange(self.blocks * self.size - count)
        return first, tagged(self.serial, self.rng.randbytes(count * 512))

    def write(self):
        self.era.write(*self.begin())

    def fua(self):
        logwrites.write_fua(self.era.path, *self.begin())

    def flush(self):
        self.era.flush()

    def discard(self):
        first, data = self.begin()
        self.era.discard(first, len(data) // 512)

    def checkpoint(self):
        self.era.checkpoint()
        self.now()

    def snapshot(self):
        if self.era.look().snapshot:
            self.era.drop()
        else:
            self.era.take()
            self.now()

    def suspend(self):
        self.era.suspend(noflush=self.rng.random() < 0.5)
        self.era.resume()
        self.now()

    def resize(self):
        self.blocks = self.rng.randrange(
            self.sectors // self.size // 2, self.sectors // self.size + 1
        )
        self.era.swap(
            f"0 {self.blocks * self.size} era {self.rec.meta.dev} {self.rec.dest.dev} {self.size}"
        )
        self.now()

    def recreate(self):
        self.era.remove()
        self.create()

    def at_once(self):
        """Writes from several threads, while an era ends."""
        jobs = [self.box.background(self.era.write, *self.begin()) for _ in range(4)]
        self.checkpoint()
        for job in jobs:
            job.result()


class Judge:
    """Decides whether a state is allowed."""

    def __init__(self, work):
        self.work, self._known = work, {}

    def image(self, state):
        meta = b"".join(state.meta)
        if meta not in self._known:
            if not any(meta[: metadata.BLOCK]):
                self._known[meta] = None
            else:
                try:
                    self._known[meta] = eras.Metadata(meta)
                except metadata.Damaged as error:
                    raise Violation(f"{state}: {error}") from error
        return self._known[meta]

    def check(self, state, least):
        image = self.image(state)
        found = image.eras() if image else []
        now = image.era if image else 0
        if now < least:
            raise Violation(f"{state}: era {now}, but {least} was promised")
        for sector, data in enumerate(state.dest):
            number = tag(data)
            if number is None:
                continue
            block = sector // self.work.size
            if block >= len(found):
                continue  # cut off
            if found[block] < self.work.clock.eras[number]:
                raise Violation(
                    f"{state}: block {block} holds operation {number} of era "
                    f"{self.work.clock.eras[number]}, "
                    f"but is said to be of era {found[block]}"
                )
        return image


class Survey:
    def __init__(self, work, entries):
        self.work, self.entries, self.judge = work, entries, Judge(work)
        self.cuts = self.marks = self.states = self.checked = self.opened = 0
        self.meta, self.origin = work.box.ram(1), work.box.ram(1)

    def run(self, open_share=0.05, check_share=0.1):
        rng, seen = self.work.rng, set()
        replay = Replay(self.entries, self.work.clock, self.work.meta, self.work.dest)
        for cut, writes, mark in replay.cuts():
            self.cuts += 1
            self.marks += mark
            for state in (
                replay.states(cut, writes, rng) if mark else [replay.state(cut, "all", writes)]
            ):
                key = hash((*map(id, state.meta), *map(id, state.dest)))
                if key in seen:
                    continue
                seen.add(key)
                self.states += 1
                image = self.judge.check(state, self.work.clock.least)
                if image and rng.random() < check_share:
                    self.put(state)
                    eras.tool("era_check", self.meta.path)
                    self.checked += 1
                if image and rng.random() < open_share:
                    self.open(state, image)
        return self

    def put(self, state):
        self.meta.fill(b"".join(state.meta))
        self.meta.close()

    def open(self, state, image):
        """An era continues from the state: nothing is forgotten, and the next era has begun."""
        self.put(state)
        length = image.blocks * self.work.size if image.blocks else self.work.sectors
        era = self.work.box.own(eras.Era(self.meta, self.origin, self.work.size, length=length))
        assert era.era == image.era + 1, f"{state}"
        era.write(0, pattern("later", 1))
        if era.look().snapshot:
            era.drop()
        assert era.since(1) == image.since(1) | {0}, f"{state}"
        era.remove()
        assert eras.read(self.meta).since(image.era + 1) == {0}, f"{state}"
        self.opened += 1

    def __str__(self):
        return (
            f"{self.cuts} cut points, {self.marks} of them flush and FUA marks, {self.states} "
            "end states, "
            f"{self.checked} given to era_check, {self.opened} opened"
        )


@pytest.mark.parametrize("size", [8, 24])
def test_power_cuts(impl, box, rng, request, size):
    """Random work from the format on; then all that a cut may leave."""
    print(f"--seed {request.config.seed}")
    work = Work(box, rng, size)
    survey = Survey(work, work.run(26)).run()
    print(survey)
    assert survey.marks > 50 and survey.checked and survey.opened


def test_wrong_order_is_found(impl, box, rng):
    """The judge rejects the same log if the metadata is never flushed, or if its writes are
    missing.
    """
    work = Work(box, rng, 8)
    work.run(0)
    work = Work(box, rng, 8)
    entries = work.run(15)
    Survey(work, entries).run(0, 0)
    late = [entry for entry in entries if not (entry.flush and entry.where == "meta")]
    with pytest.raises(Violation):
        Survey(work, late).run(0, 0)
