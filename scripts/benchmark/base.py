"""What all benchmarks share: the devices, fio, and turns."""

import contextlib
import hashlib
import json
import os
import subprocess
import time

from lib import box as boxes
from lib import dm, modules

from .table import Report, Table

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
        self.report = Report(
            options.json,
            {
                "date": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
                "kernel": " ".join(os.uname()[i] for i in (2, 3, 4)),
                "cpus": os.cpu_count(),
                "module": hashlib.sha256(self.rust.read_bytes()).hexdigest()[:12],
                "parameters": vars(options),
            },
        )
        self.part = None
        modules.run("modprobe", "-a", "dm-mod", "configfs", "loop")
        modules.run("modprobe", "brd", "rd_nr=0")
        modules.run("modprobe", "null_blk", "nr_devices=0")
        self.box = boxes.Box()
        self.source, self.dest = self.box.ram(MIB), self.box.ram(MIB)
        self.meta = self.box.ram(16)

    def run(self, part):
        self.part = part
        getattr(self, part)()

    def show(self, *tables):
        self.report.show(self.part, *tables)

    def turns(self, rounds=None):
        """The turns of all rounds: in each, C, dm-rust, and C again, for its distance from
        itself.
        """
        for _ in range(rounds or self.options.rounds):
            for turn in ("C", "Rust", "C again"):
                modules.use("rust" if turn == "Rust" else "c", self.rust, *self.options.set)
                yield turn

    def compare(self, title, unit, cases, measure, less=False):
        """A table of cases {row: arguments of `measure`}."""
        table = Table(title, unit, less)
        for turn in self.turns():
            for row, arguments in cases.items():
                table.add(row, turn, measure(*arguments))
        self.show(table)

    def compare_with_linear(self, title, unit, sizes, make):
        """`make(size)` is a context in which there is a device with units of `size` sectors."""
        table = Table(title, "MiB/s")
        for turn in self.turns():
            if turn == "C":
                with self.linear() as device:
                    base = {name: self.fio(device, size, way) for name, size, way in PATTERNS}
            for units in sizes:
                with make(units) as device:
                    for name, size, way in PATTERNS:
                        row = f"{unit} of {units // 2} KiB, {name}"
                        table.add(row, turn, self.fio(device, size, way))
                        if turn == "C":
                            table.add(row, "linear", base[name])
        self.show(table)

    def fio(self, device, size, way, seconds=None):
        """Throughput in MiB/s."""
        return speed(
            self.job(
                device,
                f"--bs={size}",
                f"--rw={way}",
                f"--size={MIB}m",
                "--iodepth=8",
                "--time_based",
                "--norandommap",
                f"--runtime={seconds or self.options.seconds}",
            )
        )

    def job(self, device, *words):
        """The result of an fio job."""
        return self.jobs(device, *words, "--name=bench")[0]

    def jobs(self, device, *words):
        """The results of fio jobs; options before the first name apply to all of them."""
        command = [
            "fio",
            *([f"--filename={device.path}"] if device else []),
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


def speed(result):
    """MiB/s of an fio job."""
    return (result["read"]["bw_bytes"] + result["write"]["bw_bytes"]) / (1 << 20)
