"""Benchmarks of the era target."""

import contextlib
import os
import statistics
import time

from lib import dm, eras, wait

from .base import GIB, MIB, Base, speed
from .table import Table


class Era(Base):
    @contextlib.contextmanager
    def era(self, size, meta=None, origin=None):
        meta = meta or self.meta
        meta.write(0, bytes(4096))
        meta.close()
        device = eras.Era(meta, origin or self.dest, size)
        try:
            yield device
        finally:
            device.remove()

    def era_marked(self):
        """An era whose blocks are all marked, blocks of 4 and 64 KiB, against linear."""

        @contextlib.contextmanager
        def marked(block):
            with self.era(block) as device:
                device.fill(bytes(MIB << 20))
                yield device

        self.compare_with_linear("Era, all blocks marked", "block", (8, 128), marked)

    def era_first(self):
        """First writes: each block once."""
        cases = {
            "4k random, depth 1, blocks of 4 KiB": ("4k", "randwrite", 1, 8, 8),
            "4k random, depth 32, blocks of 4 KiB": ("4k", "randwrite", 32, 32, 8),
            "4k sequential, depth 32, blocks of 4 KiB": ("4k", "write", 32, 32, 8),
            "4k random, depth 32, blocks of 64 KiB": ("4k", "randwrite", 32, 8, 128),
            "1m sequential, depth 8, blocks of 4 KiB": ("1m", "write", 8, MIB, 8),
        }

        def measure(size, way, depth, mib, block):
            with self.era(block) as device:
                return speed(
                    self.job(
                        device,
                        f"--bs={size}",
                        f"--rw={way}",
                        f"--size={MIB}m",
                        f"--io_size={mib}m",
                        f"--iodepth={depth}",
                    )
                )

        self.compare("Era, first writes", "MiB/s", cases, measure)

    @contextlib.contextmanager
    def large_era(self):
        """Blocks of 64 KiB on a device of zeros."""
        meta, zero = self.box.ram(640), dm.Mapped(f"0 {self.options.gib * GIB} zero")
        try:
            with self.era(128, meta, zero) as device:
                yield device
        finally:
            zero.remove()

    def era_checkpoint(self):
        """The duration of a checkpoint, alone and during first writes, and of these writes."""
        table = Table(f"Era of {self.options.gib} GiB in blocks of 64 KiB", "seconds", less=True)
        for turn in self.turns(1):
            start = time.monotonic()
            with self.large_era() as device:
                table.add("activation", turn, time.monotonic() - start)
                times = []
                for _ in range(10):
                    start = time.monotonic()
                    device.message("checkpoint")
                    times.append(time.monotonic() - start)
                table.add("checkpoint, idle", turn, statistics.median(times))
                work = wait.Background(
                    self.job,
                    device,
                    "--bs=4k",
                    "--rw=randwrite",
                    "--iodepth=1",
                    "--time_based",
                    "--runtime=4",
                    f"--size={self.options.gib}g",
                    "--norandommap",
                )
                times = []
                while not work.done:
                    start = time.monotonic()
                    device.message("checkpoint")
                    times.append(time.monotonic() - start)
                    time.sleep(0.1)
                table.add("checkpoint, during first writes", turn, statistics.median(times))
                latency = work.result()["write"]["clat_ns"]
                for what, nanoseconds in (
                    ("median", latency["percentile"]["50.000000"]),
                    ("99th percentile", latency["percentile"]["99.000000"]),
                    ("longest", latency["max"]),
                ):
                    table.add(f"first write, {what}", turn, nanoseconds / 1e9)
        self.show(table)

    def era_digestion(self):
        """CPU time until the machine is idle again after the end of eras, empty ones and one with
        marks.
        """
        table = Table(
            f"Era of {self.options.gib} GiB in blocks of 64 KiB, kernel until all is digested",
            "CPU seconds",
            less=True,
        )
        for turn in self.turns(1):
            with self.large_era() as device:
                quiet()
                for what, writes in (
                    ("three empty eras", 0),
                    ("an era with 4096 marks, and two empty ones", 4096),
                ):
                    if writes:
                        self.job(
                            device,
                            "--bs=4k",
                            "--rw=randwrite",
                            "--iodepth=32",
                            f"--size={self.options.gib}g",
                            "--norandommap",
                            f"--io_size={writes * 4}k",
                        )
                        quiet()
                    before = busy()
                    for _ in range(3):
                        device.message("checkpoint")
                    quiet()
                    table.add(what, turn, busy() - before)
        self.show(table)


def busy():
    """CPU seconds that the kernel has used so far."""
    with open("/proc/stat") as file:
        return int(file.readline().split()[3]) / os.sysconf("SC_CLK_TCK")


def quiet():
    """Waits until the kernel is almost idle."""
    while True:
        before = busy()
        time.sleep(1)
        if busy() - before < 0.05:
            return
