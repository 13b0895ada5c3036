"""The devices of one test, and their removal whatever happened to the test."""

import random
import shutil
import tempfile

from . import dm, wait
from .disk import Jam, Loop, Ram, RamPool

_KINDS = {}


def pattern(tag, sectors):
    """Bytes in which each sector differs from every other one, and from those of any other tag."""
    if (tag, sectors) not in _KINDS:
        _KINDS[tag, sectors] = random.Random(f"{tag}/{sectors}").randbytes(sectors * 512)
    return _KINDS[tag, sectors]


class Trio:
    """Source, destination and metadata with known content, ready for a clone."""

    def __init__(self, box, mib, meta_mib, cache, discard, sectors=None):
        self.box = box
        self.sectors = sectors or mib * 2048
        self.source_disk = box.ram(mib)
        self.dest_disk = box.ram(mib, cache=cache, discard=discard)
        self.meta_disk = box.ram(meta_mib, cache=cache)
        self.source, self.dest, self.meta = self.source_disk, self.dest_disk, self.meta_disk
        self.data = pattern("source", mib * 2048)
        self.stale = pattern("destination", mib * 2048)
        self.source_disk.fill(self.data)
        self.dest_disk.fill(self.stale)
        self.expected = bytearray(self.data[: self.sectors * 512])

    def layered(self, *which):
        """Puts devices that can be held or made to fail between the clone and the named disks."""
        for name in which:
            setattr(self, name, self.box.layered(getattr(self, f"{name}_disk")))
        return self

    def clone(self, region=8, extra="1 no_hydration", **more):
        return self.box.clone(
            self.meta, self.dest, self.source, region, extra, length=self.sectors, **more
        )

    def wrote(self, sector, data):
        """Records in the model what was written to the clone."""
        self.expected[sector * 512 : sector * 512 + len(data)] = data

    def write(self, clone, sector, data, **how):
        clone.write(sector, data, **how)
        self.wrote(sector, data)

    def discard(self, clone, start, count):
        """Discards, and records it in the model: whole regions then read as zeros from these disks.
        Of a region that is covered in part, a discard may zero each sector inside the range; C
        zeroes none.
        """
        clone.discard(start, count)
        end, region = start + count, clone.region
        first = min(-(-start // region) * region, end)
        last = max(end // region * region, first)
        self.wrote(first, bytes((last - first) * 512))
        for a, b in ((start, first), (last, end)):
            if a == b:
                continue
            got = clone.read(a, b - a)
            for at in range(0, len(got), 512):
                sector, before = got[at : at + 512], bytes(
                    self.expected[a * 512 + at : a * 512 + at + 512]
                )
                assert sector == before or not any(
                    sector
                ), f"discard at {start}+{count} damaged {a + at // 512}"
            self.wrote(a, got)

    def check(self, device, where=None):
        """Compares a device with the model; a failure says which sectors differ and what they
        hold.
        """
        assert_same(device.content(self.sectors), bytes(self.expected), self, where or device.path)

    def check_source(self):
        assert self.source_disk.content() == self.data, "the source was written to"


def assert_same(got, want, trio=None, where="device"):
    if got == want:
        return
    assert len(got) == len(want), f"{where}: {len(got)} bytes instead of {len(want)}"
    bad = [
        n
        for n in range(len(want) // 512)
        if got[n * 512 : n * 512 + 512] != want[n * 512 : n * 512 + 512]
    ]
    notes = []
    for n in bad[:8]:
        sector = got[n * 512 : n * 512 + 512]
        kind = "zeros" if not any(sector) else "something else"
        if trio is not None:
            if sector == trio.data[n * 512 : n * 512 + 512]:
                kind = "source data"
            elif sector == trio.stale[n * 512 : n * 512 + 512]:
                kind = "what the destination held before"
        notes.append(f"{n}: {kind}")
    raise AssertionError(
        f"{where}: {len(bad)} sectors differ, first {bad[0]}, last {bad[-1]}; " + ", ".join(notes)
    )


class Box:
    pool = RamPool()

    def __init__(self):
        self._disks = []
        self._mapped = []
        self._threads = []
        self._folders = []
        self._jams = []

    # Creation

    def ram(self, mib, **kind):
        disk = self.pool.take(mib, **kind)
        self._disks.append(disk)
        return disk

    def loop(self, size, blocksize=512):
        disk = Loop(self.folder(), size, blocksize)
        self._disks.append(disk)
        return disk

    def jam(self, disk):
        """A disk whose requests are soon used up while the device below it is held."""
        jam = Jam(self.layered(disk))
        self._jams.append(jam)
        return jam

    def folder(self):
        if not self._folders:
            self._folders.append(tempfile.mkdtemp(dir="/dev/shm"))
        return self._folders[0]

    def own(self, device):
        """Registers a mapped device above all others: it is removed before them."""
        if device in self._mapped:
            self._mapped.remove(device)
        self._mapped.append(device)
        return device

    def mapped(self, *lines, **how):
        return self.own(dm.Mapped(*lines, **how))

    def layered(self, disk, **how):
        return self.own(dm.Layered(disk, **how))

    def clone(self, *parts, **how):
        return self.own(dm.Clone(*parts, **how))

    def trio(self, mib=4, meta_mib=1, cache=False, discard=True, sectors=None):
        return Trio(self, mib, meta_mib, cache, discard, sectors)

    def background(self, call, *args, **kwargs):
        thread = wait.Background(call, *args, **kwargs)
        self._threads.append(thread)
        return thread

    # Removal

    def close(self):
        """Releases held devices, waits for threads, and removes everything from the top down."""
        problems = []
        for device in self._mapped:
            if not device.gone:
                self._try(problems, self._let_go, device)
        for thread in self._threads:
            self._try(problems, thread.join)
        for device in reversed(self._mapped):
            if not any(device is jam.lower for jam in self._jams):
                self._try(problems, device.remove)
        for jam in self._jams:
            self._try(problems, jam.remove)
            self._try(problems, jam.lower.remove)
        for disk in reversed(self._disks):
            self._try(problems, self.pool.give_back if isinstance(disk, Ram) else Loop.remove, disk)
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)
        assert not problems, "clean-up: " + "; ".join(problems)

    @staticmethod
    def _let_go(device):
        if getattr(device, "held", False):
            device.release()
        if device.suspended:
            device.resume()

    @staticmethod
    def _try(problems, call, *args):
        try:
            call(*args)
        except Exception as error:
            problems.append(f"{getattr(call, '__qualname__', call)}: {error}")
