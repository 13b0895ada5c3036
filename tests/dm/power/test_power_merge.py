"""Power cuts under a merge: whatever a cut leaves, the merge continues from there and ends with
what the snapshot held and what was written since, and another snapshot of the origin still shows
what it did.

The log has the origin, the COW device that is merged, and that of another snapshot. At each flush
and FUA mark, and in between, the end states are judged from the bytes; in some of them the merge is
completed by the implementation under test, and by C.
"""

import random

import pytest
from snap_judge import Image, Survey
from snap_work import COWS, SECTORS, TAKEN, Model, Work

from lib import cow, modules
from lib.box import assert_same, pattern
from lib.chance import take_steps
from lib.logwrites import Recorder, Violation, split
from lib.snaps import Origin, Snapshot

MERGED, OTHER = 0, 2  # numbers of the devices: the merged origin, and another snapshot of it


class Merge(Origin):
    """The records on a COW device."""

    def __init__(self, origin, device, size):
        super().__init__(origin, SECTORS, start=False)
        self.load(f"0 {SECTORS} snapshot-merge {origin.dev} {device.dev} P {size}")
        self.resume()


class MergeWork(Work):
    """A merge that begins with the log, and random steps on it and on another snapshot."""

    def __init__(self, box, rng, impl, sizes, count, flush_ms=4):
        modules.run("modprobe", "-a", "dm-log-writes")
        self.box, self.rng, self.impl, self.sizes, self.kind, self.extra = (
            box,
            rng,
            impl,
            sizes,
            "P",
            "",
        )
        size, other = sizes
        self.records = cow.numbered(rng.sample(range(SECTORS // size), count), size)
        lengths = [cow.needed(SECTORS // size, size) * size for size in sizes]
        self.rec = Recorder(box, flush_ms, **dict(zip(("meta_sectors", "other"), lengths)))
        data = split(pattern("origin", SECTORS))
        shown, image = list(data), split(pattern("chunks", lengths[0]))
        for chunk, content in cow.metadata(size, self.records).items():
            image[chunk * size : (chunk + 1) * size] = split(content)
        for old, new in self.records:
            shown[old * size : (old + 1) * size] = image[new * size : (new + 1) * size]
        empty = split(bytes(lengths[1] * 512))
        for chunk, content in cow.metadata(other, []).items():
            empty[chunk * other : (chunk + 1) * other] = split(content)
        self.start(
            {"dest": data, **dict(zip(COWS, (image, empty)))}, Model([shown, data, data], TAKEN)
        )

    def start(self, images, model):
        self.images, self.model = images, model
        self.rec.start(*(images[name] for name in self.rec.slices))
        self.snapshots = [
            None,
            self.box.own(Snapshot(self.rec.dest, self.cows[1], size=self.sizes[1], length=SECTORS)),
        ]
        self.begin_merge()

    def begin_merge(self):
        self.origin = self.box.own(Merge(self.rec.dest, self.cows[0], self.sizes[0]))

    def run(self, steps):
        kinds = {
            self.write: 8,
            self.write_chunks: 4,
            self.fua: 3,
            self.flush: 3,
            self.burst: 4,
            self.suspend: 3,
            self.again: 1,
            self.status: 1,
        }
        take_steps(self.rng, kinds, steps)
        self.origin.wait_merged()
        self.write(MERGED)
        return self.end()

    def device(self, number=None):
        return (
            self.rng.choice(self.devices)
            if number is None
            else (number, dict(self.devices)[number])
        )

    def flush(self, number=None, upto=None):
        super().flush(OTHER if number else number, upto)

    def again(self):
        """Removes the device; another one continues the merge."""
        self.origin.remove()
        self.begin_merge()


class MergeSurvey(Survey):
    def __init__(self, work, entries):
        super().__init__(work, entries)
        self.judge.check = self.check
        self.merged = set()

    def check(self, state):
        """Returns the content of the merged origin and of the other snapshot."""
        work = self.work
        store = cow.Store(Image(state.images[COWS[0]]))
        if store.records != work.records[: len(store.records)]:
            raise Violation(f"{state}: unexpected records: {store.records}")
        self.merged.add(len(store.records))
        shown = []
        for number, name in (MERGED, COWS[0]), (OTHER, COWS[1]):
            store, image = cow.Store(Image(state.images[name])), state.images[name]
            content = list(state.dest)
            for old, new in store.taken.items():
                content[old * store.size : (old + 1) * store.size] = image[
                    new * store.size : (new + 1) * store.size
                ]
            self.judge._compare(state, number, content, store)
            shown.append(content)
        return shown

    def open(self, state, shown, phases, further=0):
        """The merge continues to its end."""
        disks, work = self.disks(), self.work
        for name, disk in disks.items():
            disk.fill(b"".join(state.images[name]))
        other = work.box.own(
            Snapshot(disks["dest"], disks[COWS[1]], size=work.sizes[1], length=SECTORS)
        )
        merge = work.box.own(Merge(disks["dest"], disks[COWS[0]], work.sizes[0]))
        assert_same(merge.content(), b"".join(shown[0]), where=f"{state}: while it is merged")
        merge.wait_merged()
        assert_same(other.content(), b"".join(shown[1]), where=f"{state}: the other snapshot")
        merge.remove()
        other.remove()
        assert_same(disks["dest"].content(), b"".join(shown[0]), where=f"{state}: merged")
        assert not cow.Store(disks[COWS[0]]).records, f"{state}: records are left"


@pytest.mark.parametrize(
    "sizes, count", [((1, 8), 200), ((2, 1), 150), ((8, 8), 200), ((16, 1), 5)]
)
def test_power_cuts_of_a_merge(impl, box, rng, rust_module, sizes, count):
    rng = random.Random(f"{rng.random()} {sizes}")
    work = MergeWork(box, rng, impl, sizes, count)
    survey = MergeSurvey(work, work.run(25)).run(share=0.06)
    print(survey, f"and {len(survey.merged)} numbers of records")
    survey.by_c(rust_module)
    assert survey.marks > 20 and survey.opened and 0 in survey.merged
