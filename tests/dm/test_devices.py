"""The devices below a target: how they are opened, tables that open one twice, and which cgroup I/O
on them is charged to.
"""

import errno
import os
from contextlib import contextmanager
from pathlib import Path

import pytest

from lib import modules, wait
from lib.box import pattern

MIB = 2048
stock = pytest.mark.skipif(
    os.environ.get("DM_RUST_KERNEL", "stock") != "stock",
    reason="needs kprobes and cgroups, which are in the stock kernel; make test runs it there",
)


# One device, several times in a table


def _sound(log, *disks):
    """device-mapper found each device that was put, and no device stays in use."""
    found = [
        line
        for line in log.lines()
        if "not in table devices list" in line or "call missing" in line
    ]
    assert not found
    assert all(disk.is_free() for disk in disks)


def _snapshot(box, x):
    """A snapshot reads x."""
    parts = [box.ram(1)]
    return parts, f"snapshot {x.dev} {parts[0].dev} N 8"


def _clone(box, x):
    """A clone reads x."""
    parts = [box.ram(1), box.ram(1)]
    return parts, f"clone {parts[0].dev} {parts[1].dev} {x.dev} 8 1 no_hydration"


def _clone_to(box, x):
    """A clone writes to x."""
    parts = [box.ram(1), box.ram(1)]
    return parts, f"clone {parts[0].dev} {x.dev} {parts[1].dev} 8 1 no_hydration"


def _era(box, x):
    """An era writes to x."""
    parts = [box.ram(1)]
    return parts, f"era {parts[0].dev} {x.dev} 8"


@pytest.mark.only("rust")
@pytest.mark.parametrize("writer", [_clone_to, _era])
@pytest.mark.parametrize("reader", [_snapshot, _clone])
@pytest.mark.parametrize("read_only", [True, False])
def test_read_by_one_line_written_by_another(impl, box, log, read_only, reader, writer):
    """device-mapper opens the device again and frees what it had given to the first line, which C
    continues to use.
    """
    x = box.ram(1)
    x.fill(pattern("x", MIB))
    (left, first), (right, second) = reader(box, x), writer(box, x)
    lines = f"0 {MIB} {first}", f"{MIB} {MIB} {second}"
    table = box.mapped()
    table.load(*lines, read_only=read_only)
    assert x.dev in table.specs(table=True, inactive=True)[0][3]
    table.resume()
    assert table.read(80, 8) == pattern("x", MIB)[80 * 512 : 88 * 512]
    if not read_only:
        table.write(MIB + 88, pattern("new", 8))
        assert x.read(88, 8) == pattern("new", 8)
    # The same once more while this table is live; it is refused in the end.
    with pytest.raises(OSError):
        table.load(*lines, f"{2 * MIB} 8 nonsense", read_only=read_only)
    assert table.read(80, 8) == pattern("x", MIB)[80 * 512 : 88 * 512]
    table.remove()
    _sound(log, x, *left, *right)


@pytest.mark.only("rust")
def test_read_and_written_by_one_line(impl, box, log):
    """A constructor that opens a device for reading, and then for reading and writing."""
    x = box.ram(1)
    table = box.mapped()
    for _ in range(2):
        with pytest.raises(OSError) as refused:
            table.load(f"0 {MIB} snapshot {x.dev} {x.dev} P 8")
        assert refused.value.errno == errno.EINVAL
    table.remove()
    _sound(log, x)


# How a device is opened

WRITE = 1 << 1


def _probe(root, line):
    fd = os.open(root / "kprobe_events", os.O_WRONLY | os.O_APPEND)  # Python's own mode would seek
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


@contextmanager
def _openings():
    """What device-mapper opens within the context: a list of (number, mode), complete at the
    end.
    """
    root = Path("/sys/kernel/tracing")
    if not (root / "kprobe_events").exists():
        modules.run("mount", "-t", "tracefs", "tracefs", root)
    event, found = root / "events/dm_rust_test/opens", []
    _probe(
        root,
        "p:dm_rust_test/opens bdev_file_open_by_dev number=%di:u32 mode=%si:u32 holder=%dx:u64\n",
    )
    try:
        (root / "trace").write_text("")
        (event / "enable").write_text("1")
        try:
            yield found
        finally:
            (event / "enable").write_text("0")
        for line in (root / "trace").read_text().splitlines():
            if not line.startswith("#") and " opens: " in line:
                fields = dict(word.split("=") for word in line.split() if "=" in word)
                # Opens without a holder are not device-mapper's: dm-rust opens its metadata once
                # more.
                if int(fields["holder"]):
                    found.append((int(fields["number"]), int(fields["mode"])))
    finally:
        _probe(root, "-:dm_rust_test/opens\n")


LINES = {
    "snapshot": ("{origin} {cow} N 8", "origin", "cow"),
    "snapshot-merge": ("{origin} {cow} P 8", "origin", "cow"),
    "snapshot-origin": ("{origin}", "origin"),
    "clone": ("{meta} {dest} {source} 8 1 no_hydration", "meta", "dest", "source"),
    "era": ("{meta} {origin} 8", "meta", "origin"),
}


@stock
def test_modes(impl, box, same):
    """A device that is only read is opened for reading, because opening it for writing has effects
    on some drivers.
    """
    disks = {name: box.ram(1) for name in ("origin", "cow", "meta", "dest", "source")}
    writes = {}
    for kind, (line, *roles) in LINES.items():
        names = {name: disk.dev for name, disk in disks.items()}
        numbers = {
            os.major(n) << 20 | os.minor(n): name
            for name in roles
            for n in [os.stat(disks[name].path).st_rdev]
        }
        for read_only in False, True:
            for disk in disks.values():
                disk.discard(0, 8)
                disk.close()
            table = box.mapped()
            with _openings() as opened:
                table.load(f"0 {MIB} {kind} {line.format(**names)}", read_only=read_only)
            table.remove()
            writes[kind, read_only] = [numbers[number] for number, mode in opened if mode & WRITE]
            assert sorted(numbers[number] for number, _ in opened) == sorted(roles)
    assert writes == {
        ("snapshot", False): ["cow"],
        ("snapshot", True): [],
        ("snapshot-merge", False): ["origin", "cow"],
        ("snapshot-merge", True): ["origin"],
        ("snapshot-origin", False): ["origin"],
        ("snapshot-origin", True): [],
        ("clone", False): ["meta", "dest"],
        ("clone", True): ["meta", "dest"],
        ("era", False): ["meta", "origin"],
        ("era", True): ["meta", "origin"],
    }
    same(writes, "opened for writing")


# Which cgroup I/O is charged to

WRITES = 24


class Group:
    """A cgroup whose I/O is counted."""

    ROOT = Path("/sys/fs/cgroup")

    def __init__(self):
        if not (self.ROOT / "cgroup.controllers").exists():
            modules.run("mount", "-t", "cgroup2", "cgroup2", self.ROOT)
        (self.ROOT / "cgroup.subtree_control").write_text("+io +memory")
        self._folder = self.ROOT / "dm_rust_test"
        self._folder.mkdir()

    def remove(self):
        wait.until(
            lambda: not (self._folder / "cgroup.procs").read_text(), "its processes have ended"
        )
        self._folder.rmdir()

    def run(self, script):
        """Runs Python in the cgroup. `write(path, sectors, flags)` writes 4 KiB at each of these
        sectors.
        """
        text = f"open('{self._folder}/cgroup.procs', 'w').write('0')\n{_WRITER}\n{script}"
        modules.run("python3", "-c", text)

    def written(self, disk):
        """Bytes that the cgroup has written to a disk."""
        for line in (self._folder / "io.stat").read_text().splitlines():
            number, *words = line.split()
            if number == disk.dev:
                return int(dict(word.split("=") for word in words)["wbytes"])
        return 0


_WRITER = """
import mmap, os
def write(path, sectors, flags):
    fd = os.open(path, os.O_RDWR | flags)
    data = mmap.mmap(-1, 4096)
    data[:] = b"charged!" * 512
    for sector in sectors:
        assert os.pwrite(fd, data, sector * 512) == 4096
    return fd
"""


@pytest.fixture
def group():
    group = Group()
    yield group
    group.remove()


def _origin_and_snapshot(box):
    origin, store = box.ram(4), box.ram(4)
    snap = box.mapped(f"0 {4 * MIB} snapshot {origin.dev} {store.dev} N 16")
    return box.mapped(f"0 {4 * MIB} snapshot-origin {origin.dev}"), snap, origin, store


@stock
def test_first_writes_are_charged_to_the_writer(impl, box, group):
    """A write that a target delays is charged to the cgroup of its writer, not to the thread that
    submits it.
    """
    front, snap, origin, store = _origin_and_snapshot(box)
    pair = box.ram(1), box.ram(4)
    era = box.mapped(f"0 {4 * MIB} era {pair[0].dev} {pair[1].dev} 16")
    meta, dest, source = box.ram(1), box.ram(4), box.ram(4)
    clone = box.mapped(f"0 {4 * MIB} clone {meta.dev} {dest.dev} {source.dev} 16 1 no_hydration")
    # Each write goes to a part of a chunk, block or region of its own.
    sectors = [16 * n for n in range(WRITES)]
    apart = [16 * n for n in range(WRITES, 2 * WRITES)]
    charged = {}
    for name, device, disk, where in (
        ("origin", front, origin, sectors),
        ("snapshot", snap, store, apart),
        ("era", era, pair[1], sectors),
        ("clone", clone, dest, sectors),
    ):
        device.close()
        group.run(f"write('{device.path}', {where}, os.O_DIRECT)")
        charged[name] = group.written(disk) // 4096
    if impl == "c":
        # C's clone sets the device of a bio only when it submits it.
        del charged["clone"]
    assert charged == dict.fromkeys(charged, WRITES)


@stock
@pytest.mark.only("rust")
def test_writeback_is_charged_to_the_writer(impl, box, group):
    """Writes to a file, or to the cache of a device, are charged to the writer, although other
    threads write them back.
    """
    front, _, origin, _ = _origin_and_snapshot(box)
    front.close()
    fd = os.open(front.path, os.O_RDWR)  # the last close would write everything back
    try:
        group.run(f"write('{front.path}', {[16 * n for n in range(WRITES)]}, 0)")
        assert not group.written(origin)
        os.fsync(fd)
    finally:
        os.close(fd)
    assert group.written(origin) == WRITES * 4096
