"""Benchmarks of the snapshot targets."""

import array
import contextlib
import functools
import random
import statistics
import time

from lib import cow, dm, modules, snaps

from .base import MIB, SECTORS, Base, heading, ratio, row


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
        with contextlib.ExitStack() as stack:
            snapshots = []
            for disk in self.cows[:number]:
                cow.put(disk, size, image or {0: bytes(4096)})
                disk.close()
                snapshots.append(snaps.Snapshot(self.dest, disk, size=size, length=SECTORS))
                stack.callback(snapshots[-1].remove)
            origin = snaps.Origin(self.dest)
            stack.callback(origin.remove)
            origin.snapshots = snapshots
            yield origin

    @contextlib.contextmanager
    def snapshot(self, size, image):
        with self.origin(1, size, image) as origin:
            yield origin.snapshots[0]

    def beside_linear(self, cases):
        """Runs the jobs of each case on linear, on C and on dm-rust once per round, for a third of
        the time, since there are many; no job accesses a block twice. cases: [(call that makes the
        device, {row: job})].
        """
        found = {}

        def run(device, jobs):
            words = [word for job in jobs for word in ("--name=bench", "--stonewall", *job.split())]
            results = self.jobs(
                device, f"--size={MIB}m", f"--runtime={self.options.seconds / 3}", *words
            )
            return [
                (result["read"]["bw_bytes"] + result["write"]["bw_bytes"]) / (1 << 20)
                for result in results
            ]

        _ = self.cows  # created before the measurements
        for _ in range(self.options.rounds):
            jobs = list(dict.fromkeys(job for _, rows in cases for job in rows.values()))
            with self.linear() as device:
                base = dict(zip(jobs, run(device, jobs)))
            for impl in ("c", "rust"):
                modules.use(impl, self.rust)
                for make, rows in cases:
                    with make() as device:
                        for name, speed in zip(rows, run(device, rows.values())):
                            found.setdefault((name, impl), []).append(speed)
                            found.setdefault((name, "linear"), []).append(base[rows[name]])
        heading("what", "linear", "C", "Rust", "C/linear", "Rust/linear", "Rust/C")
        for name in dict.fromkeys(name for name, _ in found):
            line, c, rust = (
                statistics.median(found[name, impl]) for impl in ("linear", "c", "rust")
            )
            row(
                name,
                f"{line:.1f}",
                f"{c:.1f}",
                f"{rust:.1f}",
                ratio(c, line),
                ratio(rust, line),
                ratio(rust, c),
            )

    def snapshot_first(self):
        """First writes to an origin: each chunk once."""
        print("\nOrigin, first writes, 4k random, chunks of 4 KiB, MiB/s")
        self.beside_linear(
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
            ]
        )

    def snapshot_again(self):
        """Writes to an origin whose chunks have all been copied."""
        image = cow.metadata(8, cow.numbered(range(SECTORS // 8), 8))
        print("\nOrigin, all copied, chunks of 4 KiB, MiB/s")
        self.beside_linear(
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
            ]
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
        print("\nSnapshot, which chunks have been copied, and their size; MiB/s")
        self.beside_linear(cases)

    def snapshot_metadata(self):
        """The cost of exceptions besides their data: bytes of metadata, and reads of the origin."""
        cases = [
            (size, depth, number)
            for size in (8, 128)
            for depth, number in ((1, 1), (32, 1), (32, 8))
        ]
        found = {}
        for impl in ("c", "rust"):
            modules.use(impl, self.rust)
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
                found[size, depth, number, impl] = (
                    written / exceptions - size
                ) * 512, read / exceptions / size
        print(
            "\nOrigin, first writes, 4k random: metadata on each COW device, "
            "and how often a chunk is read, per exception"
        )
        heading("what", "C, bytes", "Rust, bytes", "C/Rust", "C, reads", "Rust, reads")
        for size, depth, number in cases:
            (c, c_reads), (rust, reads) = (
                found[size, depth, number, impl] for impl in ("c", "rust")
            )
            row(
                f"chunks of {size // 2} KiB, depth {depth}, snapshots: {number}",
                f"{c:.0f}",
                f"{rust:.0f}",
                ratio(c, rust),
                f"{c_reads:.2f}",
                f"{reads:.2f}",
            )

    def snapshot_opening(self):
        """Loading a million exceptions, and the memory that they take."""
        count, chunks, found = 1 << 20, self.options.gib << 18, {}
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
                for _ in range(self.options.rounds):
                    for impl in ("c", "rust"):
                        modules.use(impl, self.rust)
                        device, before = dm.Mapped(), kernel_memory()
                        start = time.monotonic()
                        device.load(f"0 {chunks * 8} snapshot {origin.dev} {store.dev} P 8")
                        found.setdefault((f"{words}, seconds", impl), []).append(
                            time.monotonic() - start
                        )
                        found.setdefault((f"{words}, MiB of memory", impl), []).append(
                            (kernel_memory() - before) / (1 << 20)
                        )
                        device.remove()
        finally:
            origin.remove()
        print(f"\nLoading {count} exceptions, chunks of 4 KiB")
        heading("what", "C", "Rust", "C/Rust")
        for what in dict.fromkeys(what for what, _ in found):
            c, rust = (statistics.median(found[what, impl]) for impl in ("c", "rust"))
            row(what, f"{c:.2f}", f"{rust:.2f}", ratio(c, rust))

    def snapshot_merge(self):
        """Merging, and the longest write to chunks that are merged; finally on disks with slow
        flushes.
        """
        found, cases = {}, [
            (size, words) for size in (8, 128) for words in ("in order", "at random")
        ]
        slow = [
            dm.Mapped(f"0 {SECTORS} delay {disk.dev} 0 0 {disk.dev} 0 0 {disk.dev} 0 4")
            for disk in (self.box.ram(MIB, cache=True), self.box.ram(MIB, cache=True))
        ]
        for _ in range(self.options.rounds):
            for impl in ("c", "rust"):
                modules.use(impl, self.rust)
                for size, words in cases:
                    count = min(SECTORS // size, 1 << 14) // 2
                    for stalls in False, True:
                        seconds, stall = self.merge(
                            self.dest, self.cows[0], size, words, count, stalls
                        )
                        speed = count * size / 2048 / seconds
                        for what, value in (
                            (("MiB/s", speed),)
                            if not stalls
                            else (("longest write, ms", stall * 1000),)
                        ):
                            found.setdefault((size, words, what, impl), []).append(value)
                seconds, _ = self.merge(*slow, 8, "at random", 512)
                found.setdefault(("slow", impl), []).append(512 / seconds)
        for device in slow:
            device.remove()
        print("\nMerging")
        heading("what", "C", "Rust", "Rust/C")
        for size, words in cases:
            for what in "MiB/s", "longest write, ms":
                c, rust = (
                    statistics.median(found[size, words, what, impl]) for impl in ("c", "rust")
                )
                row(
                    f"chunks of {size // 2} KiB, {words}: {what}",
                    f"{c:.1f}",
                    f"{rust:.1f}",
                    ratio(rust, c),
                )
        c, rust = (statistics.median(found["slow", impl]) for impl in ("c", "rust"))
        row(
            "chunks of 4 KiB, at random, flushes of 4 ms: chunks/s",
            f"{c:.0f}",
            f"{rust:.0f}",
            ratio(rust, c),
        )

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
