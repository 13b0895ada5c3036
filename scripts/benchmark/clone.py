"""Benchmarks of the clone target."""

import contextlib
import time

from lib import dm, modules

from .base import GIB, MIB, SECTORS, Base, compare, heading, ratio, row


class Clone(Base):
    @contextlib.contextmanager
    def clone(self, region, extra="1 no_hydration", fresh=True, full=False):
        if fresh:
            self.meta.write(0, bytes(4096))
        device = dm.Clone(self.meta, self.dest, self.source, region, extra, length=SECTORS)
        try:
            if full:
                device.hydrate(threshold=1024, batch=256)
                device.wait_full(600)
            yield device
        finally:
            device.remove()

    def hydrated(self):
        """A fully hydrated clone against linear, regions of 4 and 64 KiB."""
        self.compare_with_linear(
            "Hydrated clone", "region", (8, 128), lambda region: self.clone(region, full=True)
        )

    def unhydrated(self):
        """Reads from the source, and first writes: to whole regions (without a copy) and to parts
        (with a copy).
        """
        cases = [
            ("read 4k random", "4k", "randread", 8),
            ("read 1m random", "1m", "randread", 8),
            ("first write, whole 4 KiB regions", "4k", "randwrite", 8),
            ("first write, 1m over 4 KiB regions", "1m", "write", 8),
            ("first write, 4k in 64 KiB regions", "4k", "randwrite", 128),
        ]

        def measure(case, impl):
            name, size, way, region = case
            with self.clone(region) as device:
                return self.fio(device, size, way)

        found = self.rounds(cases, measure)
        print("\nUnhydrated clone without background hydration, MiB/s")
        compare(cases, found, lambda case: case[0], "MiB/s")

    def hydration(self):
        """Background hydration of the whole device, without other I/O."""
        cases = [(8, 1, 1), (8, 256, 64), (128, 1, 1), (128, 64, 16)]

        def measure(case, impl):
            region, threshold, batch = case
            with self.clone(region) as device:
                device.message("hydration_threshold", str(threshold))
                device.message("hydration_batch_size", str(batch))
                start = time.monotonic()
                device.message("enable_hydration")
                device.wait_full(600)
                return MIB / (time.monotonic() - start)

        found = self.rounds(cases, measure)
        print("\nHydration throughput, MiB/s")
        compare(
            cases,
            found,
            lambda c: f"{c[0] // 2} KiB regions, threshold {c[1]}, batch {c[2]}",
            "MiB/s",
        )

    def opening(self):
        """Opening metadata of 1 TiB in regions of 4 KiB, blank and formatted, and its status."""
        size = self.options.gib * GIB
        big = [dm.Mapped(f"0 {size} zero"), dm.Mapped(f"0 {size} zero")]
        meta = self.box.ram(128)
        times = {}
        try:
            for impl in ("c", "rust"):
                modules.use(impl, self.rust)
                meta.write(0, bytes(4096))
                device = dm.Mapped()
                for what in ("format", "open"):
                    start = time.monotonic()
                    device.load(
                        f"0 {size} clone {meta.dev} {big[0].dev} {big[1].dev} 8 1 no_hydration"
                    )
                    times[what, impl] = time.monotonic() - start
                    device.resume()
                    if what == "open":
                        start = time.monotonic()
                        for _ in range(20):
                            device.status()
                        times["status", impl] = (time.monotonic() - start) / 20
                    device.remove()
                    device = dm.Mapped()
                device.remove()
        finally:
            for device in big:
                device.remove()
        print(f"\n{self.options.gib} GiB in regions of 4 KiB ({size >> 3} regions), seconds")
        heading("what", "C", "Rust", "C/Rust")
        for what in ("format", "open", "status"):
            c, rust = times[what, "c"], times[what, "rust"]
            row(what, f"{c:.4f}", f"{rust:.4f}", ratio(c, rust))
