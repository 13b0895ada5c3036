"""Snapshots: the devices, and a family of them: an origin, its snapshots, and what each of them
must show.

origin (snapshot-origin)     snapshot ── COW device: a Gate, which can hold or fail
          └── real ────────────┘              └── disk
               └── disk
"""

import re
from pathlib import Path

from . import cow, dm, wait
from .box import assert_same, pattern
from .expect import fails

STATUS = re.compile(r"(?P<allocated>\d+)/(?P<total>\d+) (?P<metadata>\d+)")


class Gate(dm.Mapped):
    """A device over a disk that can be held or made to fail, as Layered can. I/O that it holds
    counts as in flight: dm counts a bio when it reaches a table, and the table that holds it is
    that of a device below.
    """

    def __init__(self, box, lower, sectors=None):
        self.lower, below = lower, box.layered(lower, sectors=sectors)
        self.hold, self.release, self.heal = below.hold, below.release, below.heal
        self.error, self.error_reads, self.error_writes = (
            below.error,
            below.error_reads,
            below.error_writes,
        )
        super().__init__(f"0 {below.length} linear {below.dev} 0")
        box.own(self)


class Valve(dm.Mapped):
    """A device over another one that can hold back one kind of request: reads, writes or flushes.
    These count as in flight, as with a Gate.
    """

    KINDS = "reads", "writes", "flushes"
    LONG = 1_000_000_000  # ms; what is delayed is submitted with the next table

    def __init__(self, box, lower):
        self.lower, self.held = lower, False
        self._below = box.mapped(f"0 {lower.sectors} linear {lower.dev} 0")
        super().__init__(f"0 {lower.sectors} linear {self._below.dev} 0")
        box.own(self)

    def hold(self, kind):
        self.held = True
        delays = " ".join(
            f"{self.lower.dev} 0 {self.LONG if which == kind else 0}" for which in self.KINDS
        )
        self._below.swap(f"0 {self.lower.sectors} delay {delays}", noflush=True)

    def release(self):
        self.held = False
        self._below.swap(f"0 {self.lower.sectors} linear {self.lower.dev} 0", noflush=True)


class Usage:
    """The INFO status of a working snapshot: three numbers of sectors."""

    def __init__(self, text):
        match = STATUS.fullmatch(text)
        assert match, f"not the status of a snapshot that works: {text!r}"
        self.allocated, self.total, self.metadata = (
            int(match[name]) for name in ("allocated", "total", "metadata")
        )

    @property
    def is_empty(self):
        """Whether there are no exceptions."""
        return self.allocated == self.metadata


class Stored(dm.Mapped):
    """A device whose status is that of an exception store."""

    def look(self):
        return Usage(self.status())

    def wait_status(self, word):
        wait.until(lambda: self.status() == word, lambda: f"status {word} ({self.status()})")


class Snapshot(Stored):
    """A snapshot of an origin, with its exceptions on a COW device. `copied` are the chunks that
    must have one.
    """

    def __init__(self, origin, cow, kind="P", size=8, extra="", length=None, start=True, name=None):
        self.origin, self.cow, self.kind, self.size, self.extra = origin, cow, kind, size, extra
        self.length = length if length is not None else origin.sectors
        self.expected, self.copied = None, set()
        self.line = f"0 {self.length} snapshot {origin.dev} {cow.dev} {kind} {size} {extra}".strip()
        super().__init__(*([self.line] if start else []), name=name)

    def exceptions(self):
        """The number of chunks that have a place on the COW device, including pending
        exceptions.
        """
        chunks = self.look().allocated // self.size
        if self.kind.upper().startswith("N"):
            return chunks
        return sum(not cow.is_metadata(chunk, self.size) for chunk in range(2, chunks))

    def header_valid(self):
        """The `valid` field of the header on the disk below."""
        magic, valid, _, _ = cow.HEADER.unpack_from(self.cow.lower.read(0, 1))
        assert magic == cow.MAGIC
        return valid


class Origin(Stored):
    """The device through which an origin is written while it has snapshots, or while a snapshot is
    merged into it.
    """

    def __init__(self, real, length=None, start=True, name=None):
        self.real = real
        self.length = length if length is not None else real.sectors
        self.line = self.plain_line = f"0 {self.length} snapshot-origin {real.dev}"
        super().__init__(*([self.line] if start else []), name=name)

    @property
    def merged(self):
        """Whether the merge has ended."""
        return self.look().is_empty

    def wait_merged(self):
        """Waits while the merge makes progress, which may take long on a busy machine."""
        while not self.merged:
            status = self.status()
            wait.until(
                lambda: self.merged or self.status() != status, f"the merge goes on ({status})"
            )


def merge_end(status):
    """How a merge has ended, from its status: "merged", "Merge failed", or None."""
    if status == "Merge failed":
        return status
    return "merged" if Usage(status).is_empty else None


def merge_line(snapshot):
    return (
        f"0 {snapshot.length} snapshot-merge "
        f"{snapshot.origin.dev} {snapshot.cow.dev} "
        f"{snapshot.kind} {snapshot.size} {snapshot.extra}".strip()
    )


class Merge(Origin):
    """A device that merges a snapshot whose own device is gone, as after a reboot."""

    def __init__(self, snapshot, start=True, name=None):
        super().__init__(snapshot.origin, snapshot.length, start=False, name=name)
        self.line = merge_line(snapshot)
        if start:
            self.load(self.line)
            self.resume()


class Chaos:
    """A family, and steps that a seed chooses. A subclass chooses devices (`any`) and sectors
    (`range`).
    """

    def __init__(self, family, rng, sizes):
        self.family, self.rng = family, rng
        for size in sizes:
            family.snap(rng.choice(("P", "PO", "N")), size)

    def read(self):
        self.family.read(self.any(), *self.range(2048))

    def flush(self):
        self.any().flush()

    def zero(self):
        device, (start, count) = self.any(), self.range(300)
        device.zero(start, count)
        self.family.wrote(device, start, bytes(count * 512))


class Family:
    """An origin with known content and its snapshots. `expected` of each device is what it must
    read as. A snapshot whose content is no longer checked is removed from `snapshots`.
    """

    def __init__(self, box, sectors=4096, cache=False, real=None):
        self.box, self.cache, self.sectors = box, cache, sectors
        self.data = pattern("origin", self.sectors)
        if real:
            self.disk = real
        else:
            self.disk = box.ram(-(-sectors // 2048), cache=cache)
            self.disk.fill(self.data)
        self.real = self.disk if self.disk.sectors == sectors else Gate(box, self.disk, sectors)
        self.snapshots = []
        self.merging = None  # the snapshot that is merged into the origin
        self._origin = None

    def layered(self):
        """Puts a device that can be held or made to fail under the origin and its snapshots."""
        self.real = Gate(self.box, self.disk, self.sectors)
        return self

    @property
    def origin(self):
        if self._origin is None:
            self._origin = self.box.own(Origin(self.real))
            self._origin.expected = bytearray(self.data)
        return self._origin

    def cow(self, size, room=None):
        """An empty COW device, large enough for the whole origin or of `room` chunks."""
        mib = max(-(-self.sectors // 2048) * 2, -(-(room or 0) * size // 2048))
        return Gate(self.box, self.box.ram(mib, cache=self.cache), room and room * size)

    def snap(self, kind="P", size=8, extra="", room=None, cow=None, length=None):
        """Takes a snapshot of what the origin holds now."""
        return self._open(
            Snapshot(
                self.real,
                cow or self.cow(size, room),
                kind,
                size,
                extra,
                length or self.sectors,
                start=False,
            ),
            self.origin.expected,
            (),
        )

    def _open(self, snapshot, expected, copied):
        """Loads the table while the origin is live and resumes it while the origin is suspended, as
        LVM2 does.
        """
        self.box.own(snapshot)
        snapshot.expected, snapshot.copied = expected[: snapshot.length * 512], set(copied)
        snapshot.load(snapshot.line)
        if not self.origin.suspended:
            self.origin.suspend()
        snapshot.resume()
        self.origin.resume()
        self.snapshots.append(snapshot)
        return snapshot

    def close(self, snapshot):
        """Removes a snapshot, while the origin is suspended."""
        self.origin.suspend()
        snapshot.remove()
        self.snapshots.remove(snapshot)
        self.origin.resume()

    def reopen(self, snapshot):
        """Removes a snapshot and creates it again over its COW device, without a write to the
        origin in between.
        """
        self.origin.suspend()
        snapshot.remove()
        self.snapshots.remove(snapshot)
        kept = (
            (self.origin.expected, ())
            if snapshot.kind == "N"
            else (snapshot.expected, snapshot.copied)
        )
        return self._open(
            Snapshot(
                self.real,
                snapshot.cow,
                snapshot.kind,
                snapshot.size,
                snapshot.extra,
                snapshot.length,
                start=False,
            ),
            *kept,
        )

    # Merging

    def store(self, size, records, kind="P", cow_device=None, extra=""):
        """A snapshot that exists on its COW device only, with contents unlike the origin's."""
        snapshot = Snapshot(
            self.real, cow_device or self.cow(size), kind, size, extra, self.sectors, start=False
        )
        self.box.own(snapshot)
        data = {new: pattern(f"chunk {new % 97}", size) for _, new in records}
        cow.put(snapshot.cow, size, data | cow.metadata(size, records))
        snapshot.expected, snapshot.copied = self.origin.expected[:], set()
        for old, new in cow.Store(snapshot.cow).taken.items():
            if old * size < self.sectors:
                at, data = (
                    old * size * 512,
                    pattern(f"chunk {new % 97}", size)[: (self.sectors - old * size) * 512],
                )
                snapshot.expected[at : at + len(data)] = data
                snapshot.copied.add(old)
        return snapshot

    def merge(self, snapshot, direct=False, before=lambda: None):
        """Begins to merge a snapshot into the origin and returns the device of the origin: by
        handover, in LVM2's order, or directly, as after a reboot. `before` is called when
        everything is ready.
        """
        if direct:
            snapshot.remove()
            self.begin_merge_of(Merge(snapshot, start=False), snapshot)
            self.origin.load(self.origin.line)
        else:
            self.origin.load(merge_line(snapshot))
            snapshot.load(f"0 {snapshot.length} error")
            snapshot.suspend()
            self.origin.suspend()
            self.begin_merge_of(self.origin, snapshot)
        before()
        self.origin.resume()
        if not direct:
            snapshot.resume()
            snapshot.remove()
        return self.origin

    def begin_merge_of(self, front, snapshot):
        """From here on the origin has the contents of the snapshot. Other snapshots get the
        overwritten chunks sooner or later.
        """
        front.line = merge_line(snapshot)
        if front is not self._origin:
            self.origin.remove()
        self._origin = self.box.own(front)
        self.merging, front.expected = snapshot, snapshot.expected
        if snapshot in self.snapshots:
            self.snapshots.remove(snapshot)
        for other in self.snapshots:
            for chunk in snapshot.copied:
                first, end = chunk * snapshot.size, min((chunk + 1) * snapshot.size, other.length)
                other.copied.update(range(first // other.size, -(-end // other.size)))

    def recreate_merge(self, before=lambda: None):
        """Removes the merging device and creates it again."""
        self.merging.expected = self.origin.expected
        return self.merge(self.merging, direct=True, before=before)

    def merged(self):
        """Waits for the end of the merge, and checks all devices."""
        snapshot, size = self.merging, self.merging.size
        self.origin.wait_merged()
        assert self.origin.status() == f"{2 * size}/{snapshot.cow.sectors} {2 * size}"
        store = cow.Store(snapshot.cow)
        assert store.valid == 1 and not store.records and not store.tail.strip(b"\0")
        areas = (snapshot.cow.sectors // size - 1) // (cow.per_area(size) + 1)
        assert not cow.left(
            snapshot.cow, size, min(areas, len(snapshot.copied) // cow.per_area(size) + 2)
        )
        self.merging = None
        self.check()

    def end_merge(self):
        """Makes the origin a plain one again, as LVM2 does at last."""
        self.merging, self.origin.line = None, self.origin.plain_line
        self.origin.swap(self.origin.line)

    def wrote(self, device, sector, data):
        """Records in the model what was written to the origin or to a snapshot."""
        device.expected[sector * 512 : sector * 512 + len(data)] = data
        end = sector + len(data) // 512
        for snapshot in self.snapshots if device is self._origin else [device]:
            snapshot.copied.update(
                range(sector // snapshot.size, -(-min(end, snapshot.length) // snapshot.size))
            )

    def write(self, device, sector, data, **how):
        device.write(sector, data, **how)
        self.wrote(device, sector, data)

    def writer(self, device, sector, data, **how):
        """A write in a thread of its own; the model changes when it ends."""
        return self.box.background(self.write, device, sector, data, **how)

    def read(self, device, sector, count):
        """Reads and compares."""
        want = device.expected[sector * 512 : (sector + count) * 512]
        assert_same(
            device.read(sector, count),
            want,
            where=f"{self.name(device)}: {count} sectors at {sector}",
        )

    def discard(self, snapshot, start, count):
        """Discards, and records it in the model. A copied chunk that is covered as a whole becomes
        zeros; in one that is covered in part each sector may become zeros or stay. Other chunks
        change only with the origin, if discards are passed down.
        """
        snapshot.discard(start, count)
        end, size = start + count, snapshot.size
        if "passdown" in snapshot.extra:
            self._zero(self.origin, start, end)
            for other in self.snapshots:
                for at in range(start, end):
                    if at // other.size not in other.copied:
                        self._zero(other, at, at + 1)
        for chunk in range(start // size, -(-end // size)):
            first, last = max(start, chunk * size), min(end, (chunk + 1) * size)
            if chunk not in snapshot.copied:
                continue
            if last - first < size:
                got = snapshot.read(first, last - first)
                for at in range(first, last):
                    sector = got[(at - first) * 512 : (at - first + 1) * 512]
                    if not any(sector):
                        self._zero(snapshot, at, at + 1)
            else:
                self._zero(snapshot, first, last)

    @staticmethod
    def _zero(device, start, end):
        device.expected[start * 512 : end * 512] = bytes((end - start) * 512)

    def name(self, device):
        if device is self._origin:
            return "origin"
        return f"snapshot {self.snapshots.index(device)} ({device.kind} {device.size})"

    def check(self, *devices):
        """Compares devices (default: all) with the model; unless a merge runs, also the records on
        the COW devices and the disk of the origin.
        """
        for device in devices or [self.origin, *self.snapshots]:
            assert_same(device.content(), device.expected, where=self.name(device))
            if device is not self._origin and not self.merging and device.status() != "Overflow":
                assert device.exceptions() == len(device.copied), self.name(device)
                if not device.kind.upper().startswith("N"):
                    store = cow.Store(
                        device.cow if device.cow.sectors > 8 else device.cow.content()
                    )
                    assert store.taken.keys() == device.copied, self.name(device)
        if not devices and not self.merging:
            assert_same(
                self.disk.content(self.sectors), self.origin.expected, where="disk of the origin"
            )


class Watch:
    """What is reported about a snapshot from here on."""

    FULL, FAILED = "Unable to allocate exception.", "Error reading/writing."

    def __init__(self, snapshot, log):
        self.snapshot, self._log = snapshot, log
        self.events, self._mark = snapshot.event, log.mark()

    def said(self, text):
        """The number of log lines that end with a text."""
        return self._log.said(text, self._mark)

    def ended(self, reason, header=0):
        """The snapshot has become Invalid: one event, one line in the log, I/O fails, and the
        header says so.
        """
        snapshot = self.snapshot
        snapshot.wait_status("Invalid")
        wait.until(lambda: snapshot.event == self.events + 1, "an event")
        assert self.said(f"snapshots: Invalidating snapshot: {reason}") == 1
        if snapshot.kind != "N":
            assert snapshot.header_valid() == header
        fails(snapshot.read, 0, 8)
        fails(snapshot.write, 8, bytes(4096))
        fails(snapshot.write, 8, bytes(512))
        snapshot.flush()

    def silent(self):
        """Nothing more was reported since it became Invalid."""
        assert self.snapshot.event == self.events + 1
        assert (
            sum(
                self.said(f"Invalidating snapshot: {reason}") for reason in (self.FULL, self.FAILED)
            )
            == 1
        )


def parameter(impl, name):
    """The file of a module parameter."""
    return Path("/sys/module", "dm_snapshot" if impl == "c" else "dm_rust", "parameters", name)


def chunk_of(data, chunk, size):
    return bytes(data[chunk * size * 512 : (chunk + 1) * size * 512])
