"""Block devices: direct I/O on any of them, and disks in memory that are quick to create and
remove.
"""

import ctypes
import errno
import fcntl
import itertools
import mmap
import os
import re
import stat
import struct
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from . import wait

SECTOR = 512
_BLKDISCARD = 0x1277
_BLKZEROOUT = 0x127F
_BLKROGET = 0x125E
_PUNCH_HOLE = 0x03  # punches a hole, and keeps the size


def split(data):
    """Splits bytes into sectors."""
    return [data[at : at + SECTOR] for at in range(0, len(data), SECTOR)]


class Block:
    """Direct I/O in sectors on a block device. Nothing is cached; each call is one system call."""

    def __init__(self, path):
        self.path = path
        self._fds = {}
        self._lock = threading.Lock()
        self._callers = []

    @contextmanager
    def _calling(self):
        """Marks this thread as being in a system call for I/O."""
        caller = threading.get_native_id()
        self._callers.append(caller)
        try:
            yield
        finally:
            self._callers.remove(caller)

    def blocked(self):
        """The number of threads of this process that sleep in I/O on the device."""
        return sum(map(_is_blocked, list(self._callers)))

    def _fd(self, mode=os.O_RDWR):
        with self._lock:
            if mode not in self._fds:
                self._fds[mode] = os.open(self.path, mode | os.O_DIRECT | os.O_CLOEXEC)
            return self._fds[mode]

    def close(self):
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def is_free(self):
        """Whether the device is not claimed."""
        try:
            os.close(os.open(self.path, os.O_RDWR | os.O_EXCL))
            return True
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            return False

    @property
    def dev(self):
        """major:minor, as table lines and `dmsetup table` have it."""
        info = os.stat(self.path)
        assert stat.S_ISBLK(info.st_mode), self.path
        return f"{os.major(info.st_rdev)}:{os.minor(info.st_rdev)}"

    @property
    def kernel_name(self):
        return os.path.basename(self.path)

    @property
    def sectors(self):
        return int(Path(f"/sys/dev/block/{self.dev}/size").read_text())

    def read(self, sector, count):
        buffer = mmap.mmap(-1, count * SECTOR)
        with self._calling():
            got = os.preadv(self._fd(os.O_RDONLY), [buffer], sector * SECTOR)
        assert got == count * SECTOR, f"short read at {sector}: {got} bytes"
        return buffer[:]

    def write(self, sector, data, fua=False):
        buffer = mmap.mmap(-1, len(data))
        buffer[:] = data
        with self._calling():
            put = os.pwritev(self._fd(), [buffer], sector * SECTOR, os.RWF_DSYNC if fua else 0)
        assert put == len(data), f"short write at {sector}: {put} bytes"

    def content(self, sectors=None, step=8192):
        total = sectors or self.sectors
        return b"".join(self.read(at, min(step, total - at)) for at in range(0, total, step))

    def fill(self, data, sector=0, step=8192):
        for at in range(0, len(data), step * SECTOR):
            self.write(sector + at // SECTOR, data[at : at + step * SECTOR])

    def flush(self):
        """fsync: the kernel sends a flush to the device."""
        with self._calling():
            os.fsync(self._fd())

    def discard(self, sector, count):
        with self._calling():
            fcntl.ioctl(
                self._fd(), _BLKDISCARD, struct.pack("=QQ", sector * SECTOR, count * SECTOR)
            )

    def zero(self, sector, count):
        """Zeroes sectors as `blkdiscard -z` does."""
        with self._calling():
            fcntl.ioctl(
                self._fd(), _BLKZEROOUT, struct.pack("=QQ", sector * SECTOR, count * SECTOR)
            )

    def punch(self, sector, count):
        """Zeroes sectors by one large request, if the device supports it; it may deallocate
        them.
        """
        fallocate = ctypes.CDLL(None, use_errno=True).fallocate
        fallocate.argtypes = ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong
        with self._calling():
            failed = fallocate(self._fd(), _PUNCH_HOLE, sector * SECTOR, count * SECTOR)
        if failed:
            raise OSError(ctypes.get_errno(), "fallocate", self.path)

    @property
    def read_only(self):
        return bool(
            struct.unpack("=i", fcntl.ioctl(self._fd(os.O_RDONLY), _BLKROGET, b"\0" * 4))[0]
        )

    def queue(self, name):
        return int(Path(f"/sys/dev/block/{self.dev}/queue/{name}").read_text())

    def stats(self):
        return Stats(Path(f"/sys/dev/block/{self.dev}/stat").read_text())


def _is_blocked(thread):
    """Whether a thread is in the same uninterruptible sleep twice in a row."""

    def look():
        text = Path(f"/proc/self/task/{thread}/status").read_text()
        return (
            re.search(r"^State:\tD", text, re.M)
            and re.search(r"^voluntary_ctxt_switches:.*", text, re.M).group()
        )

    try:
        first = look()
        time.sleep(0.001)
        return bool(first) and first == look()
    except FileNotFoundError:  # it has ended
        return False


def in_flight(device):
    """The number of requests that were sent to a device and have not ended.

    The kernel counts a bio that one of the targets keeps back only when it is submitted below;
    until then the thread that waits for it counts.
    """
    counted = sum(map(int, Path(f"/sys/dev/block/{device.dev}/inflight").read_text().split()))
    return max(counted, device.blocked())


class Stats:
    """/sys/block/*/stat. `reads` and `writes` are what arrived: completed requests plus those
    merged into them.
    """

    FIELDS = (
        "reads",
        "read_sectors",
        "writes",
        "write_sectors",
        "discards",
        "discard_sectors",
        "flushes",
    )

    def __init__(self, text):
        v = [int(word) for word in text.split()]
        self.reads, self.read_sectors = v[0] + v[1], v[2]
        self.writes, self.write_sectors = v[4] + v[5], v[6]
        self.discards, self.discard_sectors = v[11] + v[12], v[13]
        self.flushes = v[15]

    def __sub__(self, other):
        diff = object.__new__(Stats)
        for field in self.FIELDS:
            setattr(diff, field, getattr(self, field) - getattr(other, field))
        return diff

    def __repr__(self):
        return " ".join(f"{field}={getattr(self, field)}" for field in self.FIELDS)


_NULL_BLK = Path("/sys/kernel/config/nullb")


class Ram(Block):
    """A null_blk disk that keeps its data in memory. With `cache` it has a volatile write cache, so
    that flushes reach it; without `fua` the kernel flushes after a write with FUA. Each request
    takes `latency` nanoseconds, independent of all others.
    """

    _serial = itertools.count()

    def __init__(
        self,
        mib,
        discard=True,
        cache=False,
        blocksize=512,
        max_sectors=4096,
        fua=True,
        latency=0,
    ):
        name = f"nullt{next(self._serial)}"
        self._config = _NULL_BLK / name
        self._config.mkdir()
        try:
            for key, value in dict(
                size=mib,
                memory_backed=1,
                discard=int(discard),
                blocksize=blocksize,
                irqmode=2 if latency else 0,
                completion_nsec=latency,
                max_sectors=max_sectors,
                cache_size=mib if cache else 0,
                fua=int(fua),
                submit_queues=2,
                hw_queue_depth=256,
                power=1,
            ).items():
                (self._config / key).write_text(str(value))
        except BaseException:
            self._config.rmdir()
            raise
        super().__init__(f"/dev/{name}")

    def remove(self):
        self.close()
        with suppress(OSError):
            (self._config / "power").write_text("0")
        self._config.rmdir()


class RamPool:
    """Disks in memory that tests reuse: creating and removing them takes longer than most tests."""

    def __init__(self):
        self._free = {}

    def take(self, mib, **kind):
        key = mib, *sorted(kind.items())
        free = self._free.setdefault(key, [])
        disk = free.pop() if free else Ram(mib, **kind)
        disk.pool_key = key if kind.get("discard", True) else None
        return disk

    def give_back(self, disk):
        """Empties a disk for the next test; fails if the disk stays claimed."""
        disk.close()
        wait.until(lambda: disk.is_free(), f"{disk.path} is free")
        if disk.pool_key is None:
            disk.remove()
            return
        disk.discard(0, disk.sectors)
        disk.close()
        self._free[disk.pool_key].append(disk)

    def drain(self):
        for disks in self._free.values():
            while disks:
                disks.pop().remove()


_LOOP_CTL_GET_FREE = 0x4C82
_LOOP_CONFIGURE = 0x4C0A
_LOOP_CLR_FD = 0x4C01


class Loop(Block):
    """A loop device over a sparse file in memory, of any size and block size."""

    def __init__(self, folder, size, blocksize=512):
        self._file = Path(folder) / f"loop-{id(self)}"
        with open(self._file, "wb") as file:
            file.truncate(size)
        control = os.open("/dev/loop-control", os.O_RDWR)
        number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
        os.close(control)
        super().__init__(f"/dev/loop{number}")
        backing = os.open(self._file, os.O_RDWR)
        self._loop = os.open(self.path, os.O_RDWR)
        # struct loop_config: fd, block size, struct loop_info64 (232 bytes), 8 reserved words
        config = struct.pack("=II", backing, blocksize) + bytes(232 + 64)
        try:
            fcntl.ioctl(self._loop, _LOOP_CONFIGURE, config)
        except BaseException:
            os.close(self._loop)
            self._file.unlink()
            raise
        finally:
            os.close(backing)

    def remove(self):
        self.close()
        fcntl.ioctl(self._loop, _LOOP_CLR_FD)
        os.close(self._loop)
        self._file.unlink()


_NR_REQUESTS = 4  # the minimum of the block layer
_LO_FLAGS_DIRECT_IO = 16


class Jam(Block):
    """A request-based disk over another device, with so few requests that they are soon used up.
    The next thread that submits I/O then sleeps in the submission until the device below, which can
    be held, has answered.
    """

    def __init__(self, lower):
        self.lower = lower
        control = os.open("/dev/loop-control", os.O_RDWR)
        number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
        os.close(control)
        super().__init__(f"/dev/loop{number}")
        backing = os.open(lower.path, os.O_RDWR | os.O_DIRECT)
        self._loop = os.open(self.path, os.O_RDWR)
        # struct loop_config; lo_flags are at 52 of struct loop_info64
        config = struct.pack("=II52xI", backing, 512, _LO_FLAGS_DIRECT_IO).ljust(
            8 + 232 + 64, b"\0"
        )
        try:
            fcntl.ioctl(self._loop, _LOOP_CONFIGURE, config)
        finally:
            os.close(backing)
        queue = Path(f"/sys/block/loop{number}/queue")
        (queue / "scheduler").write_text("none")
        (queue / "nr_requests").write_text(str(_NR_REQUESTS))
        self._readers = []

    def jam(self, box):
        """Uses up all requests with reads, while the device below is held."""
        while len(self._readers) < _NR_REQUESTS:
            self._readers.append(box.background(self.read, 16 * len(self._readers), 8))
        wait.until(lambda: self.is_jammed, "all requests are used up")

    @property
    def is_jammed(self):
        return in_flight(self) == _NR_REQUESTS

    def remove(self):
        self.close()
        fcntl.ioctl(self._loop, _LOOP_CLR_FD)
        os.close(self._loop)


def requests(disk, call, *args):
    """The statistics of a disk for one call."""
    before = disk.stats()
    call(*args)
    return disk.stats() - before
