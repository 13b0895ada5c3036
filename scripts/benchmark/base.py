"""What all benchmarks share: the devices, fio, rounds, and tables of results."""

import contextlib
import json
import statistics
import subprocess

from lib import box as boxes
from lib import dm, modules

MIB = 200
SECTORS = MIB * 2048
PATTERNS = [
    (f"{size} {kind} {way}", size, ("" if kind == "sequential" else "rand") + way)
    for size in ("4k", "1m")
    for kind in ("sequential", "random")
    for way in ("read", "write")
]
GIB = 1 << 21  # in sectors


class Base:
    def __init__(self, options):
        self.options = options
        self.rust = modules.rust_file()
        assert self.rust, "dm_rust.ko was not found: build it with 'make'"
        modules.run("modprobe", "-a", "dm-mod", "configfs", "loop")
        modules.run("modprobe", "brd", "rd_nr=0")
        modules.run("modprobe", "null_blk", "nr_devices=0")
        self.box = boxes.Box()
        self.source, self.dest = self.box.ram(MIB), self.box.ram(MIB)
        self.meta = self.box.ram(16)

    def compare_with_linear(self, title, unit, sizes, make):
        """C and dm-rust alternately, as ratios to linear. `make(size)` is a context in which there
        is a device with units of `size` sectors.
        """
        results, base = {}, {}
        for _ in range(self.options.rounds):
            with self.linear() as device:
                for name, size, way in PATTERNS:
                    base.setdefault(name, []).append(self.fio(device, size, way))
            for impl in ("c", "rust"):
                modules.use(impl, self.rust)
                for units in sizes:
                    with make(units) as device:
                        for name, size, way in PATTERNS:
                            results.setdefault((name, units, impl), []).append(
                                self.fio(device, size, way)
                            )
        print(f"\n{title}, MiB/s and ratio to linear")
        heading("pattern", unit, "linear", "C", "Rust", "C/linear", "Rust/linear", "Rust/C")
        for units in sizes:
            for name, _, _ in PATTERNS:
                line, c, rust = (
                    statistics.median(v)
                    for v in (base[name], results[name, units, "c"], results[name, units, "rust"])
                )
                row(
                    name,
                    f"{units // 2} KiB",
                    f"{line:.0f}",
                    f"{c:.0f}",
                    f"{rust:.0f}",
                    ratio(c, line),
                    ratio(rust, line),
                    ratio(rust, c),
                )

    def fio(self, device, size, way, seconds=None):
        """Throughput in MiB/s."""
        result = self.job(
            device,
            f"--bs={size}",
            f"--rw={way}",
            f"--size={MIB}m",
            "--iodepth=8",
            "--time_based",
            "--norandommap",
            f"--runtime={seconds or self.options.seconds}",
        )
        return (result["read"]["bw_bytes"] + result["write"]["bw_bytes"]) / (1 << 20)

    def job(self, device, *words):
        """The result of an fio job."""
        return self.jobs(device, *words, "--name=bench")[0]

    def jobs(self, device, *words):
        """The results of fio jobs; options before the first name apply to all of them."""
        command = [
            "fio",
            f"--filename={device.path}",
            "--direct=1",
            "--ioengine=libaio",
            "--randrepeat=1",
            "--verify_state_save=0",
            "--output-format=json",
            *words,
        ]
        return json.loads(
            subprocess.run(command, check=True, capture_output=True, cwd="/tmp").stdout
        )["jobs"]

    @contextlib.contextmanager
    def linear(self):
        device = dm.Mapped(f"0 {SECTORS} linear {self.dest.dev} 0")
        try:
            yield device
        finally:
            device.remove()

    def rounds(self, rows, measures):
        """Measures each row on each implementation once per round; returns the medians."""
        found = {}
        for _ in range(self.options.rounds):
            for impl in ("c", "rust"):
                modules.use(impl, self.rust)
                for row in rows:
                    found.setdefault((row, impl), []).append(measures(row, impl))
        return {key: statistics.median(values) for key, values in found.items()}


def ratio(a, b):
    return f"{a / b:.2f}" if b else "-"


def row(*cells):
    print("| " + " | ".join(cells) + " |", flush=True)


def heading(*cells):
    row(*cells)
    row(*["---"] * len(cells))


def compare(cases, found, name, unit):
    heading("what", f"C {unit}", f"Rust {unit}", "Rust/C")
    for case in cases:
        c, rust = found[case, "c"], found[case, "rust"]
        row(name(case), f"{c:.1f}", f"{rust:.1f}", ratio(rust, c))
