"""Benchmarks of the clone target."""

import contextlib
import time

from lib import dm, modules

from .base import GIB, MIB, SECTORS, Base
from .table import Table


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
        cases = {
            "read 4k random": ("4k", "randread", 8),
            "read 1m random": ("1m", "randread", 8),
            "first write, whole 4 KiB regions": ("4k", "randwrite", 8),
            "first write, 1m over 4 KiB regions": ("1m", "write", 8),
            "first write, 4k in 64 KiB regions": ("4k", "randwrite", 128),
        }

        def measure(size, way, region):
            with self.clone(region) as device:
                return self.fio(device, size, way)

        self.compare("Unhydrated clone without background hydration", "MiB/s", cases, measure)

    def hydration(self):
        """Background hydration of the whole device, without other I/O."""
        cases = {
            f"{region // 2} KiB regions, threshold {threshold}, batch {batch}": (
                region,
                threshold,
                batch,
            )
            for region, threshold, batch in ((8, 1, 1), (8, 256, 64), (128, 1, 1), (128, 64, 16))
        }

        def measure(region, threshold, batch):
            with self.clone(region) as device:
                device.message("hydration_threshold", str(threshold))
                device.message("hydration_batch_size", str(batch))
                start = time.monotonic()
                device.message("enable_hydration")
                device.wait_full(600)
                return MIB / (time.monotonic() - start)

        self.compare("Hydration", "MiB/s", cases, measure)

    def opening(self):
        """Opening metadata of 1 TiB in regions of 4 KiB, blank and formatted, and its status."""
        size = self.options.gib * GIB
        big = [dm.Mapped(f"0 {size} zero"), dm.Mapped(f"0 {size} zero")]
        meta = self.box.ram(128)
        table = Table(
            f"{self.options.gib} GiB in regions of 4 KiB ({size >> 3} regions)",
            "seconds",
            less=True,
        )
        try:
            for turn in self.turns(1):
                meta.write(0, bytes(4096))
                device = dm.Mapped()
                for what in ("format", "open"):
                    start = time.monotonic()
                    device.load(
                        f"0 {size} clone {meta.dev} {big[0].dev} {big[1].dev} 8 1 no_hydration"
                    )
                    table.add(what, turn, time.monotonic() - start)
                    device.resume()
                    if what == "open":
                        start = time.monotonic()
                        for _ in range(20):
                            device.status()
                        table.add("status", turn, (time.monotonic() - start) / 20)
                    device.remove()
                    device = dm.Mapped()
                device.remove()
        finally:
            for device in big:
                device.remove()
        self.show(table)
