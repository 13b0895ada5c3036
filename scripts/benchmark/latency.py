"""Disks with latency, and first writes to them: how fast, and what reaches each disk."""

import collections
import contextlib
import functools
import time

from lib import box as boxes
from lib import cow, dm, eras, modules

from .base import MIB, SECTORS, Base
from .snapshot import origin_with_snapshots
from .table import Table

MS = 1_000_000  # in nanoseconds
PLACE = 32  # MiB of a device that belong to one job
# Behind each other in a first write to an origin: read, copy, flush, record, write. In one to an
# era: bitset, flush, superblock, flush, write.
WAITS = 5


class Job(collections.namedtuple("Job", "size way depth count place")):
    """First writes: each block once."""

    @property
    def blocks(self):
        """The blocks of 4 KiB that it writes."""
        return self.count * (256 if self.size == "1m" else 1)


JOBS = {
    "4k random, depth 1": Job("4k", "randwrite", 1, 64, 0),
    "4k random, depth 32": Job("4k", "randwrite", 32, 1024, 1),
    "4k random, depth 128": Job("4k", "randwrite", 128, 2048, 2),
    "4k sequential, depth 32": Job("4k", "write", 32, 1024, 3),
    "1m sequential, depth 8": Job("1m", "write", 8, PLACE, 4),
}
RANDOM = {name: job for name, job in JOBS.items() if "random" in name}
CLUSTERED = JOBS | {"4k in random runs of 16, depth 32": Job("4k", "randwrite:16", 32, 2048, 5)}

# A target to measure: `make` is a context in which there is the device, `disks` are {name: disks of
# one kind}, and `check(device, turn, job, blocks)` verifies it after a job, when `blocks` have been
# written in all.
Subject = collections.namedtuple("Subject", "name make jobs disks check")
# `counts` are what reached a disk of each kind, per 1000 writes: {"origin reads": 1000}.
Found = collections.namedtuple("Found", "speed p99 counts")


class SlowDisk(dm.Mapped):
    """A linear device over a disk with a write cache, each request of which takes `ms`
    milliseconds. As any device of LVM2 it claims FUA, whether the disk has that or not.
    """

    def __init__(self, box, mib, ms, fua=True):
        self.disk = box.ram(mib, cache=True, latency=int(ms * MS), fua=fua)
        super().__init__(f"0 {self.disk.sectors} linear {self.disk.dev} 0")
        box.own(self)

    def stats(self):
        """Those of the disk, when it has been idle for a while: what is done ahead or late is
        counted too.
        """
        last, still = None, 0
        while still < 3:
            time.sleep(0.02)
            now = self.disk.stats()
            last, still = now, still + 1 if repr(now) == repr(last) else 0
        return last


def with_disks(part):
    """Calls a part with each latency and with a box for its disks, which are given back then."""

    def run(self):
        for ms in self.options.ms:
            with contextlib.closing(boxes.Box()) as box:
                part(self, box, ms)

    return run


class Latency(Base):
    @with_disks
    def snapshot_latency(self, box, ms):
        """First writes to an origin. `bound` is depth / (waits * measured wait); `program` does the
        same I/O without a target; `thin` is an origin with snapshots in a thin pool.
        """
        subjects, (origin, cows) = self.snapshots(box, ms)
        wait = self.wait(origin)
        tables = self.tables("Origin, first writes", ms, wait)
        for subject in subjects:
            for name, job in subject.jobs.items():
                row = f"{subject.name}, {name}"
                tables[0].add(row, "bound", job.depth / WAITS / wait)
                tables[0].add(row, "program", self.program(job, origin, subject.disks["COW"]))
        if not modules.run("modprobe", "dm-thin-pool", check=False).returncode:
            self.thin_pools(box, ms, subjects, tables)
        self.first_writes(subjects, tables)

    @with_disks
    def era_latency(self, box, ms):
        """First writes to an era, and how many blocks it then reports."""
        subjects, origin, reported = self.eras(box, ms)
        tables = self.tables("Era, first writes, blocks of 4 KiB", ms, self.wait(origin))
        self.bare(subjects, tables, origin)
        self.first_writes(subjects, tables, reported)

    @with_disks
    def clone_latency(self, box, ms):
        """First writes to a clone, and its hydration."""
        subjects, dest = self.clones(box, ms)
        tables = self.tables("Clone, first writes", ms, self.wait(dest))
        self.bare(subjects, tables, dest)
        self.first_writes(subjects, tables)
        hydration = Table(f"Hydration in regions of 64 KiB, {ms:g} ms", "MiB/s")
        for turn in self.turns():
            with subjects[-1].make() as device:
                device.message("hydration_threshold", "64")
                device.message("hydration_batch_size", "16")
                start = time.monotonic()
                device.message("enable_hydration")
                device.wait_full(600)
                hydration.add("all", turn, MIB / (time.monotonic() - start))
        self.show(hydration)

    def counts(self):
        """What reaches the disks by first writes: the same on every machine, if not in every
        run.
        """
        for fua in False, True:
            with contextlib.closing(boxes.Box()) as box:
                subjects = [
                    *self.snapshots(box, 1, fua)[0],
                    *self.eras(box, 1, fua)[0],
                    *self.clones(box, 1, fua)[0],
                ]
                table = Table(
                    f"First writes on disks {'with' if fua else 'without'} FUA",
                    "what reaches each disk, per 1000 writes",
                    less=True,
                )
                self.first_writes(subjects, [None, None, table])

    # What is measured

    def slow(self, box, mib, ms, fua=True):
        """A disk with latency. The first write to each page of a disk in memory takes longer, so
        all are written.
        """
        disk = SlowDisk(box, mib, ms, fua)
        self.job(disk, "--bs=1m", "--rw=write", "--iodepth=8")
        return disk

    def first_writes(self, subjects, tables, more=None):
        """Fills and shows the tables of speeds, 99th percentiles and counts."""
        for turn in self.turns():
            for subject in subjects:
                with subject.make() as device:
                    blocks = 0
                    for name, job in subject.jobs.items():
                        found = self.write(device, job, subject.disks)
                        blocks += job.blocks
                        subject.check(device, turn, name, blocks)
                        self.enter(tables, f"{subject.name}, {name}", turn, found)
        self.show(*filter(None, tables), *([more] if more else []))

    def write(self, device, job, disks):
        before = {name: [disk.stats() for disk in same] for name, same in disks.items()}
        result = self.job(
            device,
            f"--bs={job.size}",
            f"--rw={job.way}",
            f"--iodepth={job.depth}",
            f"--offset={job.place * PLACE}m",
            f"--size={PLACE}m",
            f"--number_ios={job.count}",
        )["write"]
        assert result["total_ios"] == job.count, result
        counts = {}
        for name, same in disks.items():
            done = [disk.stats() - start for disk, start in zip(same, before[name])]
            for kind in done[0].FIELDS:
                number = sum(getattr(one, kind) for one in done) / len(same)
                counts[f"{name} {kind.replace('_', ' ')}"] = number * 1000 / job.count
        p99 = result["clat_ns"]["percentile"]["99.000000"] / MS
        return Found(result["iops"], p99, counts)

    def wait(self, disk):
        """The measured duration of a 4 KiB write to a disk, in seconds."""
        return 1 / self.write(disk, JOBS["4k random, depth 1"], {}).speed

    @staticmethod
    def tables(title, ms, wait):
        title = f"{title}, {ms:g} ms (measured: {wait * 1000:.2f} ms)"
        return (
            Table(title, "writes/s"),
            Table(f"{title}, 99th percentile", "ms", less=True),
            Table(f"{title}, what reaches each disk", "per 1000 writes", less=True),
        )

    @staticmethod
    def enter(tables, row, turn, found):
        speed, p99, counts = tables
        if speed:
            speed.add(row, turn, found.speed)
            p99.add(row, turn, found.p99)
        for kind, value in found.counts.items():
            if kind.endswith("flushes") or not speed:
                counts.add(f"{row}: {kind}", turn, value)

    def bare(self, subjects, tables, disk):
        """The same jobs on the disk alone."""
        for subject in subjects:
            for name, job in subject.jobs.items():
                found = self.write(disk, job, {})
                self.enter(tables, f"{subject.name}, {name}", "linear", found)

    # Targets

    def snapshots(self, box, ms, fua=True):
        numbers = self.options.snapshots
        origin = self.slow(box, MIB, ms, fua)
        # All jobs together copy less than 50 MiB.
        cows = [self.slow(box, 64, ms, fua) for _ in range(max(numbers))]

        def check(device, turn, job, blocks):
            """No chunk is lost."""
            for snapshot in device.snapshots:
                assert snapshot.exceptions() == blocks, (turn, job, snapshot.status(), blocks)

        subjects = [
            Subject(
                f"{number} snapshot{'s' if number > 1 else ''}",
                functools.partial(origin_with_snapshots, origin, cows[:number]),
                JOBS,
                {"origin": [origin], "COW": cows[:number]},
                check,
            )
            for number in numbers
        ]
        return subjects, (origin, cows)

    def eras(self, box, ms, fua=True):
        meta, origin = self.slow(box, 16, ms, fua), self.slow(box, MIB, ms, fua)
        reported = Table("Blocks that an era reports", "per 100 written", less=True)
        written, before = {}, [0]  # by C in the first turn

        @contextlib.contextmanager
        def make():
            meta.write(0, bytes(4096))
            meta.close()
            before[0] = 0
            device = eras.Era(meta, origin, 8)
            try:
                yield device
            finally:
                device.remove()

        def check(device, turn, job, blocks):
            """Blocks of random runs are written twice if the runs overlap."""
            found = len(device.since(1))
            new, before[0] = found - before[0], found
            exact = written.setdefault(job, new)
            assert job not in JOBS or exact == JOBS[job].blocks, (turn, job, exact)
            assert new >= exact if turn == "Rust" else new == exact, (turn, job, new, exact)
            reported.add(job, turn, new * 100 / exact)

        disks = {"metadata": [meta], "origin": [origin]}
        return [Subject("era", make, CLUSTERED, disks, check)], origin, reported

    def clones(self, box, ms, fua=True):
        meta, dest, source = (self.slow(box, mib, ms, fua) for mib in (16, MIB, MIB))
        hydrated = {}

        @contextlib.contextmanager
        def make(region):
            meta.write(0, bytes(4096))
            meta.close()
            device = dm.Clone(meta, dest, source, region, "1 no_hydration")
            try:
                yield device
            finally:
                device.remove()

        def check(device, turn, job, blocks):
            wanted = hydrated.setdefault((device.region, job), device.hydrated())
            assert device.hydrated() == wanted, (turn, job, device.hydrated(), wanted)

        disks = {"metadata": [meta], "destination": [dest], "source": [source]}
        return [
            Subject(
                f"clone, regions of {region // 2} KiB",
                functools.partial(make, region),
                jobs,
                disks,
                check,
            )
            for region, jobs in ((8, CLUSTERED), (128, RANDOM))
        ], dest

    # Beside the targets

    def program(self, job, origin, cows):
        """Writes per second of a program that does the I/O of first writes in batches of the
        depth: reads, copies, a flush and then records on each COW device, writes.
        """
        chunks = job.depth * (256 if job.size == "1m" else 1)
        records, kind = -(-chunks // cow.per_area(8)), "rand" if "rand" in job.way else ""
        phases = [
            ([origin], f"{kind}read", job.size, job.depth, ()),
            (cows, "write", job.size, job.depth, ()),
            (cows, "write", "4k", records, (f"--fdatasync={records}",)),
            ([origin], job.way, job.size, job.depth, ()),
        ]
        words = [f"--size={PLACE}m"]
        for disks, way, size, depth, more in phases:
            for number, disk in enumerate(disks):
                words += [
                    "--name=phase",
                    *([] if number else ["--stonewall"]),
                    f"--filename={disk.path}",
                    f"--offset={job.place * PLACE if disk is origin else 0}m",
                    f"--rw={way}",
                    f"--bs={size}",
                    f"--number_ios={job.count // job.depth * depth}",
                    f"--iodepth={depth}",
                    f"--iodepth_batch={depth}",
                    f"--iodepth_batch_complete_min={depth}",
                    *more,
                ]
        results, seconds = iter(self.jobs(None, *words)), 0
        for disks, *_ in phases:
            seconds += max(next(results)["job_runtime"] for _ in disks) / 1000
        return job.count / seconds

    def thin_pools(self, box, ms, subjects, tables):
        meta, data = self.slow(box, 16, ms), self.slow(box, 2 * MIB, ms)
        for subject in subjects:
            with self.thin(meta, data, len(subject.disks["COW"])) as device:
                for name, job in subject.jobs.items():
                    found = self.write(device, job, {})
                    self.enter(tables, f"{subject.name}, {name}", "thin", found)

    @contextlib.contextmanager
    def thin(self, meta, data, number):
        """A volume in a thin pool with blocks of 64 KiB, written before its snapshots were
        taken.
        """
        meta.write(0, bytes(4096))
        meta.close()
        with contextlib.ExitStack() as stack:
            pool = dm.Mapped(
                f"0 {data.sectors} thin-pool {meta.dev} {data.dev} 128 0 1 skip_block_zeroing"
            )
            stack.callback(pool.remove)
            pool.message("create_thin", "0")
            device = dm.Mapped(f"0 {SECTORS} thin {pool.dev} 0")
            stack.callback(device.remove)
            self.job(device, "--bs=1m", "--rw=write", "--iodepth=8", f"--size={MIB}m")
            device.suspend()
            for snapshot in range(1, number + 1):
                pool.message("create_snap", str(snapshot), "0")
            device.resume()
            yield device
