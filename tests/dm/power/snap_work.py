"""Recorded work on an origin and its snapshots, and the model of what each of them may show after a
power cut.
"""

import time

from lib import cow, logwrites, modules
from lib.box import pattern
from lib.chance import take_steps
from lib.logwrites import Recorder, split, tagged
from lib.snaps import Origin, Snapshot

SECTORS = 2048  # of the origin
SLOTS = 16  # writes that are in flight together go to different ones
COWS = "meta", "other"  # the slices of the COW devices
# What is known of a snapshot.
ABSENT, LOADING, LOADED, TAKEN, FILLING, INVALID = (
    "absent",
    "loading",
    "loaded",
    "taken",
    "filling",
    "invalid",
)


class Model(logwrites.Model):
    """What the sectors of all devices may hold, in one row: first the origin's, then each
    snapshot's. Operations are numbered across all of them.
    """

    def __init__(self, contents, phase, first=1):
        """`contents` are those of all devices, `phase` is that of all snapshots."""
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
        """A snapshot begins with the content of the origin, which is durable since a flush."""
        for sector, at in zip(self.row(0), self.row(device)):
            ((_, data),) = self._history[sector]
            self._history[at] = [(0, data)]
            self.allowed[at] = (data,)

    def may(self, device):
        return self.allowed[device * SECTORS : (device + 1) * SECTORS]


def dirty_image(sectors, clean):
    """What a COW device holds before it is one: the first 4096 bytes are zeroed, as LVM2 does, or
    all.
    """
    return (
        split(bytes(sectors * 512))
        if clean
        else split(bytes(4096) + pattern("soil", sectors)[4096:])
    )


class Work:
    """A recorded origin with snapshots, and random steps that the model follows. Device 0 is the
    origin, the others are its snapshots.
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
        cows = {name: dirty_image(length, impl == "c") for name, length in zip(COWS, lengths)}
        data = split(pattern("origin", SECTORS))
        self.start({"dest": data, **cows}, Model([data] * (1 + len(sizes)), ABSENT))

    def start(self, images, model):
        """Everything is recorded from here on."""
        self.images, self.model = images, model
        self.rec.start(*(images[name] for name in self.rec.slices))
        self.snapshots = [None] * len(self.sizes)
        self.origin = self.box.own(Origin(self.rec.dest))

    def go_on_from(self, state, shown):
        """Starts again from what a power cut left."""
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
        """(number, device) of all devices that exist."""
        return [(n, device) for n, device in enumerate([self.origin, *self.snapshots]) if device]

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
            snapshot.flush()  # its header is durable only now
        self.mark(TAKEN, n)
        self.origin.resume()
        self.snapshots[n] = snapshot

    def run(self, steps):
        """Takes random steps; returns the log."""
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
        """A random range, of chunks of the device or of any other device."""
        unit = (
            self.sizes[number - 1]
            if whole and number
            else self.rng.choice(self.sizes) if whole else 1
        )
        count = max(1, self.rng.choice((1, 3, 20, 100)) // unit) * unit
        return self.rng.randrange((SECTORS - count) // unit + 1) * unit, count

    def begin(self, number, first, count):
        """Records a write before it starts; returns its number and data."""
        data = tagged(self.model.last + 1, self.rng.randbytes(count * 512))
        serial = self.model.add("write", number * SECTORS + first, split(data))
        self.rec.mark(f"b{serial}")
        return serial, data

    def put(self, device, first, serial, data, fua=False, flush=False):
        """Writes. With FUA, or a flush after it, the write is acknowledged; what else the flush
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
        """Writes at a given place."""
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
        """Writes to all devices, some to the same chunks, and flushes, while a device below is held
        for a moment.
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
        """Lets other threads run, for a random time."""
        time.sleep(self.rng.choice((0, 0.001, 0.003)))

    # Suspends, new tables, removals

    def status(self):
        for _, device in self.devices:
            device.status(noflush=False)

    def suspend(self):
        _, device = self.device()
        device.suspend(noflush=self.rng.random() < 0.5)
        device.resume()

    def reload(self):
        """Replaces the table of a device."""
        _, device = self.device()
        device.swap(device.line)

    def reopen(self):
        """Creates a snapshot again from its COW device."""
        n = self.rng.randrange(len(self.sizes))
        if self.snapshots[n]:
            self.origin.suspend()
            self.snapshots[n].remove()
            self.snapshots[n] = self.load(n)
            self.snapshots[n].resume()
            self.origin.resume()
