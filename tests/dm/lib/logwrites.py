"""Power cuts: dm-log-writes records what reaches the metadata and the destination; from that this
module derives what a power cut may leave.

One log has both, so that their order is known, and each has a log of its own as well:

    clone ┬─ metadata ──── its log-writes ─┐ slices of one     ┌─ disk with a volatile cache,
          └─ destination ─ its log-writes ─┘ log-writes device ┤  slow to flush
                                                               └─ log

The model of a disk: a sector (512 bytes) is old or new, never a mixture; nothing else is atomic, in
particular no block of the metadata. A flush makes durable what was written to its own slice before;
a write with FUA is durable when it ends. Any part of everything else may be missing. A torn
superblock needs no exception: the fields and the checksum are in its first sector, and the others
are zeros since the format.

The log has an ordinary write before the first flush that was sent after the write had ended, and a
flush or a FUA write where it ended. So each position is a moment, and everything before it had
ended by then. Two things are out of order. A write is logged after a FUA write that came later; the
numbers in the test's sectors correct that. And the flush of one slice takes the writes of all
slices along: if dm-delay lets a later flush of the other slice overtake it (one tick between two
polls is enough), such a write is logged after the flush that made it durable; the log of its slice
tells, see `in_time`. Where flushes of both slices overlap, more may count as durable than is: a
state is missed, but none is invented.
"""

import ctypes
import mmap
import os
import queue
import struct
from concurrent.futures import ThreadPoolExecutor

from . import metadata
from .disk import SECTOR, split

FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8
_MAGIC = 0x6A736677736872
ZERO = bytes(SECTOR)
_TAG = b"power op"


def tagged(number, data):
    """The data of the operation `number`; each sector contains the number."""
    head = _TAG + struct.pack("<Q", number)
    return b"".join(head + data[at + 16 : at + SECTOR] for at in range(0, len(data), SECTOR))


def tag(sector):
    return struct.unpack_from("<Q", sector, 8)[0] if sector.startswith(_TAG) else None


_libc = ctypes.CDLL(None, use_errno=True)
_SETUP, _DESTROY, _GETEVENTS, _SUBMIT = (
    (206, 207, 208, 209) if os.uname().machine == "x86_64" else (0, 1, 4, 2)
)


def _call(*args):
    got = _libc.syscall(*args)
    if got < 0:
        raise OSError(ctypes.get_errno(), "asynchronous I/O")
    return got


def write_fua(path, sector, data):
    """Writes with FUA and no flush: after a synchronous write the kernel sends a flush as well."""
    buffer = mmap.mmap(-1, len(data))
    buffer[:] = data
    fd = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
    context = ctypes.c_ulong(0)
    _call(_SETUP, 1, ctypes.byref(context))
    try:
        where = ctypes.c_char.from_buffer(buffer)
        # struct iocb: data, key, flags, opcode (write), priority, file, buffer, length, offset,
        # reserved, flags, event
        block = ctypes.create_string_buffer(
            struct.pack(
                "=QIIHhIQQqQII",
                0,
                0,
                os.RWF_DSYNC,
                1,
                0,
                fd,
                ctypes.addressof(where),
                len(data),
                sector * SECTOR,
                0,
                0,
                0,
            )
        )
        _call(_SUBMIT, context, ctypes.c_long(1), ctypes.byref(ctypes.pointer(block)))
        event = (ctypes.c_int64 * 4)()
        _call(_GETEVENTS, context, ctypes.c_long(1), ctypes.c_long(1), event, None)
        if event[2] != len(data):
            raise OSError(-event[2], f"FUA write of {len(data)} bytes: {event[2]}")
        del where
    finally:
        _call(_DESTROY, context)
        os.close(fd)


class Entry:
    """An entry of the log. `sectors` are pairs of a sector of its slice and the data written
    there.
    """

    def __init__(self, flags, where=None, sectors=(), mark=None):
        self.flush, self.fua = bool(flags & FLUSH), bool(flags & FUA)
        self.discard, self.mark = bool(flags & DISCARD), mark
        self.where, self.sectors = where, list(sectors)

    @property
    def is_ordinary(self):
        """Whether it becomes durable only by a flush."""
        return self.mark is None and not self.flush and not self.fua

    @property
    def place(self):
        return self.where, self.sectors[0][0], len(self.sectors)

    def __repr__(self):
        if self.mark is not None:
            return f"mark {self.mark}"
        kind = (
            "flush"
            if self.flush
            else "discard" if self.discard else "FUA write" if self.fua else "write"
        )
        if not self.sectors:
            return f"{kind} {self.where}"
        return f"{kind} {self.where} {self.sectors[0][0]}+{len(self.sectors)}"


class Recorder:
    """The devices under a target, each a slice of one disk, with a log of what reaches them."""

    FLUSHES_APART_MS = (
        None  # flushes go through devices of their own (`flushes`), and take so long before that
    )

    def __init__(self, box, flush_ms, mib=1, meta_sectors=128, **more):
        """`more` are further slices: their names and sizes in sectors."""
        self.box, self._flush_ms = box, flush_ms
        self.meta_sectors, self.sectors = meta_sectors, mib * 2048
        self.slices, self._length = {}, 0  # name: (first sector on the disk, sectors)
        for name, sectors in {"meta": meta_sectors, "dest": self.sectors, **more}.items():
            self.slices[name] = self._length, sectors
            self._length += -(-sectors // 2048) * 2048
        self.disk = box.ram(self._length // 2048, cache=True)
        self._log_disk = box.ram(64)
        self._own = {name: box.ram(64) for name in self.slices}
        self.source = box.layered(box.ram(mib))

    def start(self, *contents):
        """Fills the slices with lists of sectors; from here on everything is recorded."""
        for (first, _), content in zip(self.slices.values(), contents, strict=True):
            self.disk.fill(b"".join(content), first)
        at = f"{self.disk.dev} 0"
        self._slow = self.box.mapped(f"0 {self._length} delay {at} 0 {at} 0 {at} {self._flush_ms}")
        self.log = self.box.mapped(
            f"0 {self._length} log-writes {self._slow.dev} {self._log_disk.dev}"
        )
        # Not linear: with a linear device a flush would not show which slice it came through.
        self._parts = {
            name: self.box.mapped(f"0 {sectors} flakey {self.log.dev} {first} 1 0")
            for name, (first, sectors) in self.slices.items()
        }
        self.devices = {
            name: self.box.mapped(
                f"0 {sectors} log-writes {self._parts[name].dev} {self._own[name].dev}"
            )
            for name, (_, sectors) in self.slices.items()
        }
        self.tops, self.flushes = dict(self.devices), {}
        if self.FLUSHES_APART_MS is not None:
            for name, below in self.devices.items():
                through = self.flushes[name] = self.box.mapped(
                    f"0 {below.sectors} flakey {below.dev} 0 1 0"
                )
                self.tops[name] = self.box.mapped(
                    f"0 {below.sectors} delay {below.dev} 0 0 {below.dev} 0 0 "
                    f"{through.dev} 0 {self.FLUSHES_APART_MS}"
                )
        self.meta, self.dest = self.tops["meta"], self.tops["dest"]

    def mark(self, text):
        self.log.message("mark", text)

    def logged(self):
        """The number of entries in the log."""
        counts = []
        for log in (self.log, *self.devices.values()):
            words = log.status().split()
            assert len(words) == 2, f"dm-log-writes has given up: {words}"
            counts.append(int(words[0]))
        return counts[0]

    def entries(self):
        """Ends the recording; returns the entries."""
        self.logged()
        tops = [device for name, device in self.tops.items() if device is not self.devices[name]]
        for device in (
            *tops,
            *self.flushes.values(),
            *self.devices.values(),
            *self._parts.values(),
            self.log,
            self._slow,
        ):
            device.remove()
        own = {
            name: [
                Entry(flags, name, zip(range(at, at + len(data)), data))
                for flags, at, data in read(disk)
            ]
            for name, disk in self._own.items()
        }
        found = []
        for flags, sector, data in read(self._log_disk):
            if flags & MARK:
                found.append(Entry(flags, mark=data))
                continue
            where, (base, sectors) = [
                (name, bounds) for name, bounds in self.slices.items() if bounds[0] <= sector
            ][-1]
            assert sector + len(data) <= base + sectors, (sector, flags)
            found.append(
                Entry(flags, where, zip(range(sector - base, sector - base + len(data)), data))
            )
        return in_order(in_time(found, own))


def read(disk):
    """The (flags, sector, data) of a log except its last mark; the data of a mark is its text."""
    magic, version, count, size = struct.unpack_from("<QQQI", disk.read(0, 1))
    assert (magic, version, size) == (_MAGIC, 1, SECTOR), "not a log"
    found, at = [], 1
    for _ in range(count):
        sector, length, flags, extra = struct.unpack_from("<4Q", head := disk.read(at, 1))
        at += 1
        if flags & MARK:
            data = head[32 : 32 + extra].decode()
        elif flags & DISCARD:
            data = [ZERO] * length
        else:
            data = split(disk.read(at, length)) if length else []
            at += length
        found.append((flags, sector, data))
    assert found and found[-1][2] == "dm-log-writes-end", "the log has no end"
    return found[:-1]


def in_time(entries, own):
    """Moves ordinary writes that are logged after the flush which made them durable to before that
    flush, as the log of their slice tells.
    """
    due = (
        {}
    )  # (slice, first sector, sectors): the flushes of the slice that took such writes, in order
    for where, log in own.items():
        flushes = 0
        for entry in log:
            if entry.is_ordinary:
                due.setdefault(entry.place, []).append(flushes)
            flushes += entry.flush
    result, flushes = [], {
        where: [] for where in own
    }  # the positions of a slice's flushes in the result
    for entry in entries:
        if entry.is_ordinary:
            number = due[entry.place].pop(0)
            if number < len(flushes[entry.where]):
                at = flushes[entry.where][number]
                result.insert(at, entry)
                flushes = {
                    where: [n + (n >= at) for n in numbers] for where, numbers in flushes.items()
                }
                continue
        elif entry.flush:
            flushes[entry.where].append(len(result))
        result.append(entry)
    assert not any(due.values()), f"not in the common log: {due}"
    return result


def in_order(entries):
    """Drops from ordinary writes what a FUA write before them in the log had already replaced."""
    for n, entry in enumerate(entries):
        if not entry.fua or entry.flush:
            continue
        newer = {sector: number for sector, data in entry.sectors if (number := tag(data))}
        flushes = 0
        for later in entries[n + 1 :]:
            flushes += later.flush
            if flushes > 3:
                break
            if later.where == entry.where and not later.fua:
                later.sectors = [
                    (sector, data)
                    for sector, data in later.sectors
                    if not (sector in newer and tag(data) and tag(data) < newer[sector])
                ]
    return entries


class Model:
    """What each sector of the clone may hold, given the operations that began and those that were
    acknowledged.
    """

    def __init__(self, start, stale, passdown, first=1):
        """`start` is the content of the clone, `stale` that of the destination; operations are
        numbered from `first`.
        """
        self.start, self.stale, self.passdown, self.first = start, stale, passdown, first
        self._operations = []  # (kind, first sector, list of sectors or count)
        self.reset()

    @property
    def last(self):
        """The number of the last operation."""
        return self.first + len(self._operations) - 1

    def reset(self):
        self._history = [[(0, sector)] for sector in self.start]
        self.allowed = [(sector,) for sector in self.start]
        self._open = set()  # sectors with more than one possible content
        self._failed = set()  # operations with unknown effect

    def add(self, kind, first, what):
        self._operations.append((kind, first, what))
        return self.last

    def take(self, mark):
        """Follows a mark: b = begun, n = failed, a = acknowledged with everything before, f =
        acknowledged alone.
        """
        kind, number = mark[0], int(mark[1:])
        if kind == "b":
            self._begin(number)
        elif kind == "n":
            self._failed.add(number)
        elif kind == "a":
            for sector in list(self._open):
                self._settle(
                    sector,
                    [
                        i
                        for i, (op, data) in enumerate(self._history[sector])
                        if op <= number and data
                    ],
                )
        elif kind == "f":
            _, first, data = self._operations[number - self.first]
            for sector in range(first, first + len(data)):
                self._settle(
                    sector, [i for i, (op, _) in enumerate(self._history[sector]) if op == number]
                )
        else:
            raise AssertionError(mark)

    def _begin(self, number):
        kind, first, what = self._operations[number - self.first]
        for i, data in enumerate(what if kind == "write" else [None] * what):
            self._history[first + i].append((number, data))
            self._open.add(first + i)
            self._renew(first + i)

    def _settle(self, sector, durable):
        durable = [i for i in durable if self._history[sector][i][0] not in self._failed]
        if durable:
            del self._history[sector][: durable[-1]]
            if len(self._history[sector]) == 1:
                self._open.discard(sector)
            self._renew(sector)

    def _renew(self, sector):
        """After a discard: the old content, or zeros from the disk; in a region that was never
        hydrated, also what the destination held.
        """
        history = self._history[sector]
        contents = [data for _, data in history if data is not None]
        if len(contents) < len(history):
            if self.passdown:
                contents.append(ZERO)
            if history[0][0] == 0:
                contents.append(self.stale[sector])
        self.allowed[sector] = tuple(contents)


class State:
    """What a power cut may leave on all devices."""

    def __init__(self, cut, how, images):
        self.cut, self.how, self.images = cut, how, images
        self.meta, self.dest = images["meta"], images["dest"]

    def __repr__(self):
        return f"cut {self.cut}, {self.how}"


class Replay:
    """Goes through a log, maintains what is durable and what may be, and lets a model follow the
    marks.
    """

    def __init__(self, entries, model, meta, dest, **more):
        self.entries, self.model = entries, model
        self.durable = {
            name: list(image) for name, image in {"meta": meta, "dest": dest, **more}.items()
        }
        self.pending = {name: [] for name in self.durable}
        model.reset()

    def cuts(self):
        """Yields (name, sectors that may or may not have been written, whether it is at a flush or
        FUA) at each cut point.
        """
        for n, entry in enumerate(self.entries):
            if entry.mark is not None:
                self.model.take(entry.mark)
                continue
            if entry.flush or entry.fua:
                yield f"before {n}: {entry}", self._optional(entry), True
            if entry.flush:
                for sectors in self.pending[entry.where]:
                    self._apply(entry.where, sectors)
                self.pending[entry.where] = []
            elif entry.fua:
                self._apply(entry.where, entry.sectors)
                gone = {sector for sector, _ in entry.sectors}
                self.pending[entry.where] = [
                    [(s, d) for s, d in write if s not in gone]
                    for write in self.pending[entry.where]
                ]
            elif entry.sectors:
                self.pending[entry.where].append(entry.sectors)
            yield f"after {n}: {entry}", self._optional(), entry.flush or entry.fua

    def _optional(self, entry=None):
        writes = [
            (where, write) for where, pending in self.pending.items() for write in pending if write
        ]
        if entry is not None and entry.sectors:
            writes.append((entry.where, entry.sectors))
        return writes

    def _apply(self, where, sectors):
        image = self.durable[where]
        for sector, data in sectors:
            image[sector] = data

    def state(self, cut, how, writes):
        images = {where: list(image) for where, image in self.durable.items()}
        for where, sectors in writes:
            image = images[where]
            for sector, data in sectors:
                image[sector] = data
        return State(cut, how, images)

    def states(self, cut, writes, rng, single=6, random=3):
        """End states at a cut: nothing of what is pending, all of it, one slice alone, one write
        missing, torn, and random.
        """

        def made(how, chosen):
            return self.state(cut, how, chosen)

        yield made("nothing pending", [])
        if not writes:
            return
        yield made("all", writes)
        present = dict.fromkeys(where for where, _ in writes)
        if len(present) > 1:
            for only in present:
                yield made(f"all of {only}, nothing else", [w for w in writes if w[0] == only])
        if len(writes) > 1:
            for n in rng.sample(range(len(writes)), min(single, len(writes))):
                yield made(f"all but write {n}", writes[:n] + writes[n + 1 :])
            n = rng.randrange(len(writes))
            yield made(f"only write {n}", [writes[n]])
        # The first block of a slice has the root of everything else; it may have been written
        # several times.
        for where in present:
            rest = [(on, sectors) for on, sectors in writes if on != where or sectors[0][0]]
            if 0 < len(rest) < len(writes):
                yield made(f"all but the first place of {where}", rest)
        n = rng.randrange(len(writes))
        torn, (where, sectors) = list(writes), writes[n]
        torn[n] = where, [pair for pair in sectors if rng.random() < 0.5]
        yield made(f"write {n} torn, {len(torn[n][1])} of {len(sectors)} sectors", torn)
        for _ in range(random):
            share, seed = rng.random(), rng.random()
            yield made(
                f"random subset {seed}, share {share:.2f}",
                [
                    (where, [pair for pair in sectors if rng.random() < share])
                    for where, sectors in writes
                ],
            )


class Violation(AssertionError):
    """A power cut may leave a state that must not exist."""


def without_flushes(entries):
    """The log of a clone that never flushes its destination."""
    return [entry for entry in entries if not (entry.flush and entry.where == "dest")]


def with_late_flushes(entries):
    """The log of a clone that flushes its destination at the end of a commit, after the two flushes
    of the metadata.
    """
    result, late, flushes = [], [], 0
    for entry in entries:
        if entry.flush and entry.where == "dest":
            late.append(entry)
            flushes = 0
            continue
        result.append(entry)
        flushes += entry.flush
        # The acknowledgement of a flush that needed no commit has to wait for that flush too.
        if late and flushes == 2:
            result += late
            late = []
    return result + late


class Checker:
    """Judges end states by the contents of the devices alone: the metadata with an independent
    reader, then each sector.
    """

    def __init__(self, source, model, region):
        self.source, self.model, self.region = source, model, region
        self._known = {}

    def hydrated(self, meta):
        """The regions that the metadata calls hydrated; none if it is blank."""
        image = b"".join(meta)
        if image not in self._known:
            if not any(image[: metadata.BLOCK]):
                self._known[image] = frozenset()
            else:
                try:
                    self._known[image] = frozenset(metadata.Metadata(image).hydrated())
                except metadata.Damaged as error:
                    self._known[image] = error
        if isinstance(self._known[image], Exception):
            raise Violation(f"damaged metadata: {self._known[image]}")
        return self._known[image]

    def content(self, hydrated, dest):
        """The content that a clone over this state must have."""
        content = list(self.source)
        for region in hydrated:
            at = slice(region * self.region, (region + 1) * self.region)
            content[at] = dest[at]
        return content

    def check(self, state, also=()):
        """Returns the hydrated regions and the content; regions in `also` count as hydrated."""
        hydrated = self.hydrated(state.meta) | set(also)
        content = self.content(hydrated, state.dest)
        bad = [
            n for n, (data, may) in enumerate(zip(content, self.model.allowed)) if data not in may
        ]
        if bad:
            raise Violation(
                f"{state}: {len(bad)} sectors hold what they must not: "
                + ", ".join(self._explain(n, content[n], hydrated) for n in bad[:6])
            )
        return hydrated, content

    def _explain(self, sector, data, hydrated):
        def name(data):
            if tag(data) is not None:
                return f"operation {tag(data)}"
            return (
                "zeros"
                if data == ZERO
                else (
                    "source"
                    if data == self.source[sector]
                    else "stale" if data == self.model.stale[sector] else "garbage"
                )
            )

        where = "hydrated" if sector // self.region in hydrated else "not hydrated"
        return (
            f"{sector} ({where}): {name(data)}, not "
            f"{' or '.join(map(name, self.model.allowed[sector]))}"
        )


class Opener:
    """Writes end states to disks of its own and opens a clone over them."""

    def __init__(self, box, rec, region):
        self.box, self.source, self.region = box, rec.source, region
        self.sectors, meta_sectors = rec.sectors, rec.meta_sectors
        self._disks = {"meta": box.ram(1), "dest": box.ram(self.sectors // 2048)}
        self.meta = box.mapped(f"0 {meta_sectors} linear {self._disks['meta'].dev} 0")
        self.dest = self._disks["dest"]
        self._held = {"meta": [None] * meta_sectors, "dest": [None] * self.sectors}

    def _put(self, where, image):
        """Writes what differs, in runs."""
        held, disk = self._held[where], self._disks[where]
        n, end = 0, len(image)
        while n < end:
            if held[n] == image[n]:
                n += 1
                continue
            first = n
            while n < end and held[n] != image[n]:
                n += 1
            disk.write(first, b"".join(image[first:n]))
        self._held[where] = list(image)

    def _get(self, where):
        """Reads the disk into the record of its content."""
        self._held[where] = split(self._disks[where].read(0, len(self._held[where])))
        return self._held[where]

    def open(self, state):
        self._put("meta", state.meta)
        self._put("dest", state.dest)
        return self.box.clone(
            self.meta, self.dest, self.source, self.region, "1 no_hydration", length=self.sectors
        )

    def check(self, state, hydrated, content, hydrate):
        """A clone over the state knows the regions and reads as predicted, also after the rest is
        hydrated.
        """
        clone = self.open(state)
        status = clone.look()
        assert (status.mode, status.hydrated) == ("rw", len(hydrated)), f"{state}: {clone.status()}"
        self._compare(clone, content, f"{state}: opened")
        if hydrate:
            clone.hydrate()
            clone.wait_full()
            clone.flush()
            self._compare(clone, content, f"{state}: hydrated")
        clone.remove()
        meta = self._get("meta")
        if hydrate:
            assert (
                metadata.Metadata(b"".join(meta)).count == clone.regions
            ), f"{state}: metadata of a finished clone"
            self._compare(self.dest, content, f"{state}: the destination alone")
            self._get("dest")
        elif any(map(any, state.meta[:8])):
            assert (
                meta == state.meta
            ), f"{state}: opened, read and removed, and the metadata has changed"

    def _compare(self, device, content, what):
        got = device.read(0, self.sectors)
        if got != b"".join(content):
            bad = [n for n, (a, b) in enumerate(zip(split(got), content)) if a != b]
            raise Violation(
                f"{what}: {len(bad)} sectors are not as the metadata says, first {bad[:6]}"
            )


class Openers:
    """Several openers in parallel, since opening and removing is mostly waiting."""

    def __init__(self, count, *args):
        self._free = queue.SimpleQueue()
        for _ in range(count):
            self._free.put(Opener(*args))
        self._threads = ThreadPoolExecutor(count)
        self._jobs = []

    def check(self, *args):
        """Starts a check. The first failure of earlier checks is raised here, or by finish."""
        for job in [job for job in self._jobs if job.done()]:
            self._jobs.remove(job)
            job.result()
        self._jobs.append(self._threads.submit(self._check, self._free.get(), *args))

    def _check(self, opener, *args):
        try:
            opener.check(*args)
        finally:
            self._free.put(opener)

    def finish(self):
        self._threads.shutdown()
        for job in self._jobs:
            job.result()
