"""Benchmarks of the snapshot targets."""

import array
import contextlib
import functools
import random
import time

from lib import cow, dm, snaps

from .base import MIB, SECTORS, Base, speed
from .table import Table


@contextlib.contextmanager
def origin_with_snapshots(disk, cows, size=8, image=None):
    """An origin on a disk, with a snapshot on each COW device, which is blank or has an image. The
    snapshots come first: C loses chunks if the origin is there before them.
    """
    with contextlib.ExitStack() as stack:
        snapshots = []
        for store in cows:
            cow.put(store, size, image or {0: bytes(4096)})
            store.close()
            snapshots.append(snaps.Snapshot(disk, store, size=size, length=SECTORS))
            stack.callback(snapshots[-1].remove)
        origin = snaps.Origin(disk)
        stack.callback(origin.remove)
        origin.snapshots = snapshots
        yield origin


class Snapshot(Base):
    @functools.cached_property
    def cows(self):
        """COW devices. Everything that is read from them and from the origin was written before."""
        self.dest.fill(bytes(MIB << 20))
        self.dest.close()
        disks = [self.box.ram(MIB * 5 // 4) for _ in range(8)]
        disks[0].fill(bytes(disks[0].sectors * 512))
        return disks

    @contextlib.contextmanager
    def origin(self, number=1, size=8, image=None):
        """An origin with `number` snapshots in chunks of `size` sectors; their COW devices are
        blank, or have an image.
        """
        with origin_with_snapshots(self.dest, self.cows[:number], size, image) as origin:
            yield origin

    @contextlib.contextmanager
    def snapshot(self, size, image):
        with self.origin(1, size, image) as origin:
            yield origin.snapshots[0]

    def beside_linear(self, title, cases):
        """Runs the jobs of each case on linear once per round and on the targets in each turn, for
        a third of the time, since there are many; no job accesses a block twice. cases: [(call that
        makes the device, {row: job})].
        """
        table = Table(title, "MiB/s")

        def run(device, jobs):
            words = [word for job in jobs for word in ("--name=bench", "--stonewall", *job.split())]
            options = f"--size={MIB}m", f"--runtime={self.options.seconds / 3}"
            return map(speed, self.jobs(device, *options, *words))

        _ = self.cows  # created before the measurements
        jobs = list(dict.fromkeys(job for _, rows in cases for job in rows.values()))
        for turn in self.turns():
            if turn == "C":
                with self.linear() as device:
                    base = dict(zip(jobs, run(device, jobs)))
            for make, rows in cases:
                with make() as device:
                    for name, value in zip(rows, run(device, rows.values())):
                        table.add(name, turn, value)
                        if turn == "C":
                            table.add(name, "linear", base[rows[name]])
        self.show(table)

    def snapshot_first(self):
        """First writes to an origin: each chunk once."""
        self.beside_linear(
            "Origin, first writes, 4k random, chunks of 4 KiB",
            [
                (
                    functools.partial(self.origin, number),
                    {
                        f"snapshots: {number}, depth 1": (
                            f"--bs=4k --rw=randwrite --iodepth=1 --size={MIB // 4}m"
                        ),
                        f"snapshots: {number}, depth 32": (
                            "--bs=4k --rw=randwrite --iodepth=32 "
                            f"--offset={MIB // 4}m --size={MIB * 3 // 4}m"
                        ),
                    },
                )
                for number in (0, 1, 2, 4, 8)
            ],
        )

    def snapshot_again(self):
        """Writes to an origin whose chunks have all been copied."""
        image = cow.metadata(8, cow.numbered(range(SECTORS // 8), 8))
        self.beside_linear(
            "Origin, all copied, chunks of 4 KiB",
            [
                (
                    functools.partial(self.origin, number, image=image),
                    {
                        f"snapshots: {number}, 4k random write, depth 1": (
                            "--bs=4k --rw=randwrite --iodepth=1"
                        ),
                        f"snapshots: {number}, 4k random write, depth 32": (
                            "--bs=4k --rw=randwrite --iodepth=32"
                        ),
                        f"snapshots: {number}, 1m sequential write": (
                            "--bs=1m --rw=write --iodepth=8"
                        ),
                    },
                )
                for number in (1, 8)
            ],
        )

    def snapshot_copied(self):
        """A snapshot whose chunks have been copied, all in ascending or random order, or every
        other one.
        """
        cases = []
        for size in (8, 128):
            chunks = range(SECTORS // size)
            shuffled = random.Random(1).sample(chunks, len(chunks))
            for words, olds in (
                ("all, in order", chunks),
                ("all, at random", shuffled),
                ("every other one", chunks[::2]),
            ):
                cases.append(
                    (
                        functools.partial(
                            self.snapshot, size, cow.metadata(size, cow.numbered(olds, size))
                        ),
                        {
                            f"{words}, {size // 2} KiB: {bs} random {way}": (
                                f"--bs={bs} --rw=rand{way} --iodepth=8"
                            )
                            for bs in ("4k", "1m")
                            for way in ("read", "write")
                        },
                    )
                )
        self.beside_linear("Snapshot, which chunks have been copied, and their size", cases)

    def snapshot_metadata(self):
        """The cost of exceptions besides their data: bytes of metadata, and reads of the origin."""
        cases = [
            (size, depth, number)
            for size in (8, 128)
            for depth, number in ((1, 1), (32, 1), (32, 8))
        ]
        title = "Origin, first writes, 4k random, per exception"
        size_table = Table(f"{title}: metadata on each COW device", "bytes", less=True)
        read_table = Table(f"{title}: how often a chunk is read", "reads", less=True)
        for turn in self.turns(1):
            for size, depth, number in cases:
                with self.origin(number, size) as origin:
                    before, source = self.cows[0].stats(), self.dest.stats()
                    self.job(
                        origin,
                        "--bs=4k",
                        "--rw=randwrite",
                        "--io_size=2m",
                        f"--size={MIB}m",
                        f"--iodepth={depth}",
                    )
                    exceptions = origin.snapshots[0].exceptions()
                    written = (self.cows[0].stats() - before).write_sectors
                    read = (self.dest.stats() - source).read_sectors
                row = f"chunks of {size // 2} KiB, depth {depth}, snapshots: {number}"
                size_table.add(row, turn, (written / exceptions - size) * 512)
                read_table.add(row, turn, read / exceptions / size)
        self.show(size_table, read_table)

    def snapshot_opening(self):
        """Loading a million exceptions, and the memory that they take."""
        count, chunks = 1 << 20, self.options.gib << 18
        title = f"Loading {count} exceptions, chunks of 4 KiB"
        times, memory = Table(title, "seconds", less=True), Table(title, "MiB", less=True)
        most = cow.per_area(8)
        store = self.box.ram((cow.needed(count, 8) >> 8) + 1, discard=False)
        store.write(0, cow.header(8).ljust(512, b"\0"))
        origin = dm.Mapped(f"0 {chunks * 8} zero")
        try:
            for words, factor in ("in order", 1), ("at random", 0x9E3779B1):
                records = array.array("Q", bytes(16 * count))
                records[::2] = array.array(
                    "Q", [number * factor % chunks for number in range(count)]
                )
                for area in range(count // most):
                    here, first = records[area * most * 2 : (area + 1) * most * 2], cow.data_at(
                        area * most, 8
                    )
                    here[1::2] = array.array("Q", range(first, first + most))
                    store.write(cow.area_at(area, 8) * 8, here.tobytes())
                store.close()
                for turn in self.turns():
                    device, before = dm.Mapped(), kernel_memory()
                    start = time.monotonic()
                    device.load(f"0 {chunks * 8} snapshot {origin.dev} {store.dev} P 8")
                    times.add(words, turn, time.monotonic() - start)
                    memory.add(words, turn, (kernel_memory() - before) / (1 << 20))
                    device.remove()
        finally:
            origin.remove()
        self.show(times, memory)

    def snapshot_merge(self):
        """Merging, and the longest write to chunks that are merged; finally on disks with slow
        flushes.
        """
        cases = [(size, words) for size in (8, 128) for words in ("in order", "at random")]
        speeds = Table("Merging", "MiB/s")
        stalls = Table("Merging, longest write to chunks that are merged", "ms", less=True)
        slow_speeds = Table("Merging at random on disks with flushes of 4 ms", "chunks of 4 KiB/s")
        slow = [
            dm.Mapped(f"0 {SECTORS} delay {disk.dev} 0 0 {disk.dev} 0 0 {disk.dev} 0 4")
            for disk in (self.box.ram(MIB, cache=True), self.box.ram(MIB, cache=True))
        ]
        for turn in self.turns():
            for size, words in cases:
                row = f"chunks of {size // 2} KiB, {words}"
                count = min(SECTORS // size, 1 << 14) // 2
                disks = self.dest, self.cows[0]
                seconds, _ = self.merge(*disks, size, words, count)
                speeds.add(row, turn, count * size / 2048 / seconds)
                _, stall = self.merge(*disks, size, words, count, writes=True)
                stalls.add(row, turn, stall * 1000)
            seconds, _ = self.merge(*slow, 8, "at random", 512)
            slow_speeds.add("512 chunks", turn, 512 / seconds)
        for device in slow:
            device.remove()
        self.show(speeds, stalls, slow_speeds)

    @staticmethod
    def merge(origin, disk, size, words, count, writes=False):
        """Merges `count` chunks from a COW device, with or without writes to some of them; returns
        the seconds of the merge and of the longest write.
        """
        olds = (
            list(range(count))
            if words == "in order"
            else random.Random(1).sample(range(SECTORS // size), count)
        )
        cow.put(disk, size, cow.metadata(size, cow.numbered(olds, size)))
        disk.close()
        device, stalls, start = dm.Mapped(), [0], time.monotonic()
        try:
            device.load(f"0 {SECTORS} snapshot-merge {origin.dev} {disk.dev} P {size}")
            start = time.monotonic()
            device.resume()
            while True:
                if snaps.Usage(device.status()).is_empty:
                    return time.monotonic() - start, max(stalls)
                for chunk in olds[:: len(olds) // 64] if writes else ():
                    before = time.monotonic()
                    device.write(chunk * size, bytes(4096))
                    stalls.append(time.monotonic() - before)
                if not writes:
                    time.sleep(0.002)
        finally:
            device.remove()


def kernel_memory():
    """Bytes of kernel memory in slabs and mapped pages."""
    with open("/proc/meminfo") as file:
        lines = dict(line.split(":") for line in file)
    return sum(int(lines[name].split()[0]) << 10 for name in ("SUnreclaim", "VmallocUsed"))
