"""device-mapper through its ioctls: no process for each call, and the exact errno of each.

The main test and the demo use dmsetup. Everything else uses this module, because starting a process
takes a third of a second in an emulated guest.
"""

import errno
import fcntl
import itertools
import os
import re
import struct
from pathlib import Path

from . import wait
from .disk import Block

_HEADER = struct.Struct("=3I I I I i I I I Q 128s 129s 7s")  # struct dm_ioctl
_SPEC = struct.Struct("=Q Q i I 16s")  # struct dm_target_spec
# Python releases the GIL during an ioctl only if the buffer has at most 1024 bytes, and many of
# these ioctls block.
_ROOM = 1024 - _HEADER.size
_MORE_ROOM = 16384

(
    _VERSION,
    _REMOVE_ALL,
    _LIST,
    _CREATE,
    _REMOVE,
    _RENAME,
    _SUSPEND,
    _STATUS,
    _WAIT,
    _LOAD,
    _CLEAR,
    _DEPS,
    _TABLE,
    _LIST_VERSIONS,
    _MESSAGE,
) = range(15)

_READ_ONLY = 1 << 0
_SUSPENDED = 1 << 1
_STATUS_TABLE = 1 << 4
_ACTIVE = 1 << 5
_INACTIVE = 1 << 6
_BUFFER_FULL = 1 << 8
_SKIP_LOCKFS = 1 << 10
_NOFLUSH = 1 << 11
_QUERY_INACTIVE = 1 << 12
_DATA_OUT = 1 << 16
_DEFERRED_REMOVE = 1 << 17

# No udev rules for these devices, so that only the test opens them (DM_UDEV_DISABLE_* << 16).
_NO_RULES = (0x0002 | 0x0004 | 0x0008 | 0x0010) << 16

_control = None


class Answer:
    """The header and the data that an ioctl returned."""

    def __init__(self, raw):
        (
            _,
            _,
            _,
            self.size,
            self.start,
            self.targets,
            self.opens,
            self.flags,
            self.event,
            _,
            self.dev,
            self.name,
            _,
            _,
        ) = _HEADER.unpack_from(raw)
        self.data = bytes(raw[self.start : self.size]) if self.start <= self.size else b""

    def specs(self):
        """(start, length, type, text) of each target, from a status or table query."""
        found, offset = [], 0
        for _ in range(self.targets):
            start, length, _, following, kind = _SPEC.unpack_from(self.data, offset)
            text = self.data[offset + _SPEC.size :]
            found.append(
                (start, length, kind.rstrip(b"\0").decode(), text[: text.index(b"\0")].decode())
            )
            offset = following
        return found


def _ioctl(command, name="", flags=0, data=b"", targets=0, event=0, room=_ROOM):
    global _control
    if _control is None:
        _control = os.open("/dev/mapper/control", os.O_RDWR)
    raw = bytearray(_HEADER.size + max(room, len(data)))
    _HEADER.pack_into(
        raw,
        0,
        4,
        0,
        0,
        len(raw),
        _HEADER.size,
        targets,
        0,
        flags,
        event,
        0,
        0,
        name.encode(),
        b"",
        b"",
    )
    raw[_HEADER.size : _HEADER.size + len(data)] = data
    fcntl.ioctl(_control, 3 << 30 | _HEADER.size << 16 | 0xFD << 8 | command, raw)
    answer = Answer(raw)
    if answer.flags & _BUFFER_FULL and room < _MORE_ROOM and command != _WAIT:
        return _ioctl(command, name, flags, data, targets, event, _MORE_ROOM)
    return answer


def target_versions():
    """{'clone': (1, 0, 0), ...}: the targets that are registered."""
    data, offset, found = _ioctl(_LIST_VERSIONS).data, 0, {}
    while offset + 16 <= len(data):
        following, *version = struct.unpack_from("=4I", data, offset)
        text = data[offset + 16 :]
        found[text[: text.index(b"\0")].decode()] = tuple(version)
        if not following:
            break
        offset += following
    return found


def table(*lines):
    """A table from lines such as '0 16 linear 8:0 0'; a line may also hold several, separated by
    newlines.
    """
    rows = [row.split(None, 3) for line in lines for row in str(line).splitlines() if row.strip()]
    return [(int(row[0]), int(row[1]), row[2], row[3] if len(row) > 3 else "") for row in rows]


def _pack(rows):
    data = b""
    for start, length, kind, args in rows:
        text = args.encode() + b"\0"
        size = (_SPEC.size + len(text) + 7) & ~7
        data += (_SPEC.pack(start, length, 0, size, kind.encode()) + text).ljust(size, b"\0")
    return data


_serial = itertools.count()


class Mapped(Block):
    """A mapped device. It is created empty; `load` and `resume` give it a table, as dmsetup
    does.
    """

    def __init__(self, *lines, name=None, read_only=False):
        self.name = name or f"t{next(_serial)}"
        answer = _ioctl(_CREATE, self.name)
        self.minor = (answer.dev & 0xFF) | (answer.dev >> 12 & ~0xFF)
        self.major = answer.dev >> 8 & 0xFFF
        self.gone = False
        super().__init__(f"/dev/dm-{self.minor}")
        if lines:
            try:
                self.load(*lines, read_only=read_only)
                self.resume()
            except BaseException:
                self.remove()
                raise

    @property
    def dev(self):
        return f"{self.major}:{self.minor}"  # known before the device has a node in /dev

    def load(self, *lines, read_only=False):
        rows = table(*lines)
        _ioctl(_LOAD, self.name, _READ_ONLY if read_only else 0, _pack(rows), len(rows))

    def resume(self):
        _ioctl(_SUSPEND, self.name, event=_NO_RULES)

    def suspend(self, noflush=False, lockfs=False):
        _ioctl(
            _SUSPEND,
            self.name,
            _SUSPENDED | (_NOFLUSH if noflush else 0) | (0 if lockfs else _SKIP_LOCKFS),
        )

    def swap(self, *lines, noflush=False):
        """Suspend, load, resume: the only order in which C's clone loses nothing."""
        self.suspend(noflush)
        self.load(*lines)
        self.resume()

    def clear(self):
        """Drops a table that was loaded and not resumed."""
        _ioctl(_CLEAR, self.name)

    def message(self, *words, sector=0):
        _ioctl(
            _MESSAGE, self.name, data=struct.pack("=Q", sector) + " ".join(words).encode() + b"\0"
        )

    def ask(self, *words):
        """Sends a message that has an answer."""
        answer = _ioctl(
            _MESSAGE, self.name, data=struct.pack("=Q", 0) + " ".join(words).encode() + b"\0"
        )
        assert answer.flags & _DATA_OUT, "no answer"
        return answer.data.rstrip(b"\0").decode()

    def info(self):
        return _ioctl(_STATUS, self.name)

    @property
    def event(self):
        """The number of events of the device."""
        return self.info().event

    @property
    def suspended(self):
        return bool(self.info().flags & _SUSPENDED)

    def wait_event(self, since):
        """Blocks until the event counter exceeds `since`; returns it."""
        return _ioctl(_WAIT, self.name, event=since).event

    def specs(self, noflush=False, table=False, inactive=False):
        flags = (
            (_NOFLUSH if noflush else 0)
            | (_STATUS_TABLE if table else 0)
            | (_QUERY_INACTIVE if inactive else 0)
        )
        return _ioctl(_TABLE, self.name, flags).specs()

    def status(self, noflush=True):
        """The text of the first target."""
        return self.specs(noflush)[0][3]

    def table(self, inactive=False):
        return self.specs(table=True, inactive=inactive)[0][3]

    def remove(self, deadline=wait.DEADLINE):
        """Removes the device; waits while a udev rule or a thread that ends uses it."""
        if self.gone:
            return
        self.close()

        def removed():
            try:
                _ioctl(_REMOVE, self.name, event=_NO_RULES)
                return True
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return True
                if error.errno != errno.EBUSY:
                    raise
                return False

        wait.until(removed, f"{self.name} is not in use any more", deadline)
        self.gone = True

    def remove_once(self):
        """Tries once to remove the device, and raises the kernel's error."""
        self.close()
        _ioctl(_REMOVE, self.name, event=_NO_RULES)
        self.gone = True

    def remove_deferred(self):
        _ioctl(_REMOVE, self.name, _DEFERRED_REMOVE, event=_NO_RULES)

    @staticmethod
    def exists(name):
        try:
            _ioctl(_STATUS, name)
            return True
        except OSError:
            return False


def leftovers():
    """The names of all mapped devices."""
    data, offset, names = _ioctl(_LIST).data, 0, []
    while offset + 12 < len(data):
        dev, following = struct.unpack_from("=QI", data, offset)
        if not dev:
            break
        text = data[offset + 12 :]
        names.append(text[: text.index(b"\0")].decode())
        if not following:
            break
        offset += following
    return names


class Layered(Mapped):
    """A linear device over a disk that can be made to fail, as a whole or in ranges of sectors, and
    that can be held.

    A held device (`hold`) queues all I/O until `release`: I/O is in flight for exactly as long as a
    test wants.
    """

    def __init__(self, lower, sectors=None, name=None):
        self.lower = lower
        self.length = sectors or lower.sectors
        super().__init__(f"0 {self.length} linear {lower.dev} 0", name=name)

    def _linear(self, start, end):
        return f"{start} {end - start} linear {self.lower.dev} {start}"

    def _with(self, ranges, bad):
        lines, at = [], 0
        for start, end in sorted(ranges):
            if at < start:
                lines.append(self._linear(at, start))
            lines.append(bad(start, end))
            at = end
        if at < self.length:
            lines.append(self._linear(at, self.length))
        self.swap(*lines, noflush=True)

    def error(self, *ranges):
        """All I/O to the ranges of sectors fails (default: everywhere)."""
        self._with(ranges or [(0, self.length)], lambda a, b: f"{a} {b - a} error")

    def error_writes(self, *ranges):
        """Writes to the ranges fail, including flushes; reads do not."""
        self._with(
            ranges or [(0, self.length)],
            lambda a, b: f"{a} {b - a} flakey {self.lower.dev} {a} 0 1 1 error_writes",
        )

    def error_reads(self, *ranges):
        self._with(
            ranges or [(0, self.length)],
            lambda a, b: f"{a} {b - a} flakey {self.lower.dev} {a} 0 1 1 error_reads",
        )

    def heal(self):
        self._with([], None)

    def hold(self):
        self.suspend(noflush=True)

    def release(self):
        if not self.gone and self.suspended:
            self.resume()


STATUS = re.compile(
    r"(?P<block>\d+) (?P<used>\d+)/(?P<blocks>\d+) (?P<region>\d+) "
    r"(?P<hydrated>\d+)/(?P<regions>\d+) "
    r"(?P<hydrating>\d+) (?P<features>\d+(?: [a-z_]+)*) [46] "
    r"hydration_threshold (?P<threshold>\d+) "
    r"hydration_batch_size (?P<batch>\d+)(?: max_failures \d+)? (?P<mode>rw|ro)"
)


class Status:
    """The INFO status of a clone, parsed."""

    def __init__(self, text):
        match = STATUS.fullmatch(text)
        assert match, f"not a clone status: {text!r}"
        for key, value in match.groupdict().items():
            setattr(self, key, value if key in ("features", "mode") else int(value))
        count, *words = self.features.split(" ")
        assert int(count) == len(words), text
        self.features = words
        self.full = self.hydrated == self.regions


class Clone(Mapped):
    """A clone device over (metadata, destination, source)."""

    def __init__(self, meta, dest, source, region, extra="", length=None, start=True, name=None):
        self.parts = meta, dest, source
        self.length = length if length is not None else source.sectors
        self.region = region
        self.regions = -(-self.length // region)
        self.line = (
            f"0 {self.length} clone {meta.dev} {dest.dev} {source.dev} {region} {extra}".strip()
        )
        super().__init__(*([self.line] if start else []), name=name)

    def look(self, noflush=True):
        return Status(self.status(noflush))

    def hydrated(self):
        return self.look().hydrated

    def wait_full(self, deadline=wait.DEADLINE):
        """Waits until every region is hydrated and no copy is in flight."""
        return wait.until(
            lambda: (s := self.look()).full and not s.hydrating and s,
            lambda: f"fully hydrated ({self.status()})",
            deadline,
        )

    def wait_hydrating(self, least=1):
        return wait.until(
            lambda: (s := self.look()).hydrating >= least and s,
            lambda: f"{least} regions in flight ({self.status()})",
        )

    def wait_quiet(self):
        """Waits until no copy is in flight."""
        return wait.until(
            lambda: not (s := self.look()).hydrating and s,
            lambda: f"no copy in flight ({self.status()})",
        )

    def hydrate(self, threshold=None, batch=None):
        """Enables the background hydration, as fast as possible."""
        self.message("hydration_threshold", str(threshold or max(256, self.regions)))
        self.message("hydration_batch_size", str(batch or 64))
        self.message("enable_hydration")

    def to_linear(self):
        """Replaces the clone by its destination, as the documentation of dm-clone says."""
        self.swap(f"0 {self.length} linear {self.parts[1].dev} 0")


def sysfs(device, name):
    return Path(f"/sys/dev/block/{device.dev}/{name}").read_text().strip()
