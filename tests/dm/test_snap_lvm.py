"""LVM2 with thick snapshots: its commands, what lvs shows, and what each sector of each volume
holds.
"""

import os
import re
import signal
import subprocess

import pytest

from lib import dm, modules, wait
from lib.box import assert_same, pattern
from lib.disk import Block

MIB = 2048  # sectors
CONFIG = """
devices {{
    scan = "/dev"
    types = [ "nullb", 1 ]
    global_filter = [ "a|^{disk}$|", "r|.*|" ]
    use_devicesfile = 0
    obtain_device_list_from_udev = 0
    external_device_info_source = "none"
}}
global {{
    event_activation = 0
    use_lvmpolld = 0
    use_lvmlockd = 0
    locking_dir = "{folder}/lock"
}}
activation {{
    udev_sync = 0
    udev_rules = 0
    monitoring = {monitoring}
    snapshot_autoextend_threshold = {threshold}
    snapshot_autoextend_percent = 50
}}
backup {{
    backup = 0
    archive = 0
}}
"""


class Group:
    """The volume group vg on a disk in memory, and a model of what its volumes hold."""

    def __init__(self, box, mib=64):
        self._blocks, self._daemon = {}, None
        self.expected = {}  # by volume
        self._folder, self._disk = box.folder(), box.ram(mib).path
        self.configure()
        self.run("vgcreate", "-s", "128k", "vg", self._disk)

    def configure(self, monitoring=0, threshold=70):
        with open(f"{self._folder}/lvm.conf", "w") as file:
            file.write(
                CONFIG.format(
                    disk=self._disk, folder=self._folder, monitoring=monitoring, threshold=threshold
                )
            )

    def run(self, *words, check=True):
        """Runs a command of LVM2, or any other one, while the test has no volume open."""
        self.shut()
        return modules.run(*words, check=check)

    def shut(self):
        for block in self._blocks.values():
            block.close()
        self._blocks.clear()

    def volume(self, name):
        if name not in self._blocks:
            self._blocks[name] = Block(f"/dev/vg/{name}")
        return self._blocks[name]

    def create(self, name, mib):
        self.run("lvcreate", "-n", name, "-L", f"{mib}m", "vg")
        self.expected[name] = bytearray(pattern(name, mib * MIB))
        self.volume(name).fill(self.expected[name])

    def snapshot(self, name, size, *more, origin="base"):
        self.run("lvcreate", "-s", "-n", name, "-L", size, *more, f"vg/{origin}")
        self.expected[name] = bytearray(self.expected[origin])

    def write(self, name, sector, count, tag="new"):
        data = pattern(f"{name} {tag} {sector}", count)
        self.volume(name).write(sector, data)
        self.expected[name][sector * 512 : sector * 512 + len(data)] = data

    def scatter(self, rng, names, count):
        """Writes small pieces all over the volumes."""
        for n in range(count):
            name, length = rng.choice(names), rng.randrange(1, 20)
            self.write(name, rng.randrange(len(self.expected[name]) // 512 - length), length, tag=n)

    def check(self):
        for name, data in self.expected.items():
            assert_same(self.volume(name).content(), bytes(data), where=name)

    def remove(self, name):
        self.run("lvremove", "-y", f"vg/{name}")
        self.expected.pop(name, None)

    def fields(self, name, *fields):
        """What lvs shows of a volume."""
        out = self.run(
            "lvs", "--noheadings", "--separator", "|", "-o", ",".join(fields), f"vg/{name}"
        ).stdout
        return [field.strip() for field in out.split("|")]

    def percent(self, *names):
        """How full snapshots are, in percent."""
        lines = self.run(
            "lvs", "--noheadings", "-o", "data_percent", *(f"vg/{name}" for name in names)
        ).stdout.split()
        return tuple(map(float, lines)) if len(names) > 1 else float(lines[0])

    def state(self):
        """Everything that lvs and device-mapper show, without device numbers."""
        lvs = self.run(
            "lvs",
            "-a",
            "--noheadings",
            "-o",
            "lv_name,lv_attr,lv_size,origin,data_percent,snap_percent,"
            "lv_snapshot_invalid,lv_active,chunk_size,segtype",
            "-O",
            "lv_name",
            "vg",
        ).stdout
        tables = [
            sorted(self.run("dmsetup", what).stdout.splitlines()) for what in ("table", "status")
        ]
        return [line.split() for line in lvs.splitlines()], re.sub(
            r"\b\d+:\d+\b", "DEVICE", "\n".join(sum(tables, []))
        )

    def monitor(self):
        """Starts dmeventd; LVM2 registers snapshots with it."""
        self._daemon = subprocess.Popen(
            ["dmeventd", "-f", "-l"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait.until(
            lambda: modules.run("dmeventd", "-i", check=False).returncode == 0, "dmeventd answers"
        )

    def close(self):
        try:
            self.run("vgremove", "-ff", "-y", "vg")
        finally:
            if self._daemon:
                self._daemon.send_signal(signal.SIGKILL)
                self._daemon.wait()
            if dm.leftovers():
                self.run("dmsetup", "remove_all", "--force")


@pytest.fixture
def group(impl, box, monkeypatch):
    monkeypatch.setenv("LVM_SYSTEM_DIR", box.folder())
    new_group = Group(box)
    yield new_group
    new_group.close()


def test_snapshot(group, same):
    """A snapshot from its creation to its removal; lvs, tables and status are C's at each step."""
    group.create("base", 4)
    same(group.state(), "volume")
    group.snapshot("snap", "2m")
    assert group.fields("snap", "lv_attr", "origin", "data_percent") == [
        "swi-a-s---",
        "base",
        "0.00",
    ]
    assert group.fields("base", "lv_attr") == ["owi-a-s---"]
    same(group.state(), "snapshot")
    group.write("base", 100, 3)
    group.write("snap", 2000, 30)
    group.write("base", 2000, 90)
    group.check()
    used = group.percent("snap")
    assert 2 < used < 5
    same(group.state(), "written")
    group.write("base", 2000, 90, tag="again")
    group.write("snap", 104, 2)
    group.check()
    assert used < group.percent("snap") < used + 0.5  # only the chunk of sector 104 is new
    group.remove("snap")
    group.check()
    assert group.fields("base", "lv_attr", "segtype") == ["-wi-a-----", "linear"]
    same(group.state(), "removed")


def test_several_snapshots(group, rng, same):
    """Snapshots of different chunk sizes and ages; any of them may be removed."""
    group.create("base", 2)
    for n, chunk in enumerate(("4k", "64k", "512k", "16k")):
        group.snapshot(f"snap{n}", "4m", "-c", chunk)
        group.scatter(rng, list(group.expected), 25)
    group.check()
    same(group.run("lvs", "--noheadings", "-o", "lv_name,chunk_size,lv_size", "vg").stdout)
    for name in ("snap1", "snap3"):
        group.remove(name)
        group.scatter(rng, list(group.expected), 10)
        group.check()


def test_extend(group, same):
    """The COW volume grows under a live snapshot."""
    group.create("base", 4)
    group.snapshot("snap", "1m")
    group.write("base", 0, 1600)
    assert group.percent("snap") > 75
    group.run("lvextend", "-L", "+1m", "vg/snap")
    same(group.state(), "extended")
    assert group.percent("snap") < 50
    group.write("snap", 2000, 1600)
    group.check()
    assert group.percent("snap") > 75
    same(group.state(), "written")
    group.run("lvextend", "-L", "+9m", "vg/snap")  # more than it can ever need: LVM2 limits it
    group.write("base", 0, 4 * MIB, tag="all")
    group.check()
    assert group.fields("snap", "lv_snapshot_invalid") == [""]
    same(group.state(), "full")


def test_extend_origin(group):
    """The origin grows too, while inactive; the snapshot keeps its size, and is not affected by
    writes beyond its end.
    """
    group.create("base", 2)
    group.snapshot("snap", "1m")
    group.write("base", 8, 8)
    group.run("vgchange", "-an", "vg")
    group.run("lvextend", "-L", "+2m", "vg/base")
    group.run("vgchange", "-ay", "vg")
    group.expected["base"] += group.volume("base").read(2 * MIB, 2 * MIB)
    used = group.percent("snap")
    group.write("base", 2 * MIB, 2 * MIB)
    group.check()
    assert group.percent("snap") == used
    group.write("base", 2 * MIB - 16, 32)
    group.check()
    assert group.percent("snap") > used


def test_policies(group, same):
    """lvextend --use-policies reads the percentage, and grows the COW volume by half above 70."""
    group.create("base", 4)
    group.snapshot("snap", "2m")
    group.write("base", 0, 2000)
    group.run("lvextend", "--use-policies", "vg/snap")
    assert group.fields("snap", "lv_size") == ["2.00m"]
    group.write("base", 2000, 1200)
    group.run("lvextend", "--use-policies", "vg/snap")
    assert group.fields("snap", "lv_size") == ["3.00m"]
    group.check()
    same(group.state())


def test_dmeventd(group, folder):
    """dmeventd unmounts a snapshot that is invalid, and extends one that fills up."""
    group.monitor()
    group.configure(monitoring=1, threshold=100)
    group.create("base", 4)
    group.run("mkfs.ext4", "-q", "-O", "^has_journal", "/dev/vg/base")
    group.expected["base"] = bytearray(group.volume("base").content())
    group.snapshot("lost", "512k")
    assert group.fields("lost", "seg_monitor") == ["monitored"]
    group.run("mount", "-o", "ro", "/dev/vg/lost", folder)
    group.write("base", MIB, MIB)
    assert group.fields("lost", "lv_snapshot_invalid") == ["snapshot invalid"]
    wait.until(lambda: not os.path.ismount(folder), "dmeventd unmounts what is lost")
    group.remove("lost")

    group.configure(monitoring=1)
    group.snapshot("grows", "2m")
    cow = Block("/dev/mapper/vg-grows-cow")
    group.write("grows", 0, 3200)
    wait.until(
        lambda: cow.sectors > 2 * MIB, "dmeventd extends the snapshot"
    )  # it checks every ten seconds
    wait.until(lambda: group.fields("grows", "lv_size") == ["3.00m"], "dmeventd is done")
    group.check()


def test_rename(group, rng):
    """lvrename of origin and snapshot while they are active."""
    group.create("base", 2)
    group.snapshot("snap", "2m")
    group.snapshot("other", "2m")
    group.scatter(rng, list(group.expected), 20)
    for old, new in (("snap", "renamed"), ("base", "origin")):
        group.run("lvrename", "vg", old, new)
        group.expected[new] = group.expected.pop(old)
        group.scatter(rng, list(group.expected), 10)
        group.check()
    assert group.fields("renamed", "origin") == ["origin"]


def test_reactivate(group, rng, same):
    """Deactivated, activated, refreshed: contents and percentages stay."""
    group.create("base", 2)
    group.snapshot("snap", "2m")
    group.snapshot("wide", "4m", "-c", "128k")
    for turn in range(3):
        group.scatter(rng, list(group.expected), 30)
        percent = group.percent("snap", "wide")
        group.run("vgchange", "-an", "vg")
        assert not dm.leftovers()
        group.run("vgchange", "-ay", "vg")
        assert group.percent("snap", "wide") == percent
        same(percent, turn)
        group.check()
    before = group.state()
    group.run("lvchange", "--refresh", "vg/base", "vg/snap")
    assert group.state() == before
    same(before, "refreshed")
    group.scatter(rng, list(group.expected), 30)
    group.check()


@pytest.mark.parametrize("by", ["base", "snap"])
def test_full_snapshot_is_invalid(group, same, by):
    """A full COW volume: the snapshot stays invalid even if the volume grows, and shows it; nothing
    else is damaged.
    """
    group.create("base", 2)
    group.snapshot("snap", "1m")
    group.snapshot("other", "3m")
    try:
        group.write(by, 0, 2 * MIB)
    except OSError:
        assert by == "snap"
    else:
        assert by == "base"
    del group.expected["snap"]

    def check():
        assert group.fields("snap", "lv_attr", "data_percent", "lv_snapshot_invalid") == [
            "swi-I-s---",
            "100.00",
            "snapshot invalid",
        ]
        with pytest.raises(OSError):
            group.volume("snap").read(0, 8)
        group.write("base", 1000, 100)
        group.write("other", 1050, 100)
        group.check()

    check()
    same(group.state(), "invalid")
    group.run("lvextend", "-L", "+1m", "vg/snap")
    group.run("vgchange", "-an", "vg")
    group.run("vgchange", "-ay", "vg")
    check()
    same(group.state(), "reactivated")
    group.remove("snap")
    group.write("base", 0, 100, tag="after")
    group.check()


def test_mounted(group, rng, folder):
    """A snapshot of a mounted file system is consistent, while files change; the backup is what was
    there.
    """
    group.run("lvcreate", "-n", "base", "-L", "16m", "vg")
    group.run("mkfs.ext4", "-q", "/dev/vg/base")
    live, frozen = folder / "live", folder / "frozen"
    live.mkdir()
    frozen.mkdir()
    group.run("mount", "/dev/vg/base", live)
    try:
        want = {f"file{n}": rng.randbytes(rng.randrange(1, 100_000)) for n in range(40)}
        for name, data in want.items():
            (live / name).write_bytes(data)
        group.run("lvcreate", "-s", "-n", "snap", "-L", "16m", "vg/base")
        for name in list(want)[::2]:
            (live / name).unlink()
            (live / f"new{name}").write_bytes(rng.randbytes(50_000))
        group.run("sync", "-f", live)
        group.run("mount", "/dev/vg/snap", frozen)
        assert {path.name: path.read_bytes() for path in frozen.iterdir() if path.is_file()} == want
        (frozen / "file1").write_bytes(b"changed in the snapshot")
        group.run("umount", frozen)
        group.run("fsck.ext4", "-fn", "/dev/vg/snap")
        assert (live / "file1").read_bytes() == want["file1"]
    finally:
        for path in (frozen, live):
            if os.path.ismount(path):
                modules.run("umount", path)
    group.remove("snap")
    group.run("fsck.ext4", "-fn", "/dev/vg/base")


def test_sparse(group, same):
    """A snapshot without an origin: a volume larger than its disk, with chunk numbers beyond 32
    bits.
    """
    group.run("lvcreate", "--type", "snapshot", "-V", "64T", "-L", "4m", "-n", "sparse", "vg")
    volume, places = group.volume("sparse"), [0, 1 << 31, (1 << 36) + 7, (64 << 31) - 8]
    for place in places:
        volume.write(place, pattern(place, 8))
    same(group.state())
    group.run("vgchange", "-an", "vg")
    group.run("vgchange", "-ay", "vg")
    volume = group.volume("sparse")
    for place in places:
        assert_same(volume.read(place, 8), pattern(place, 8))
    assert not any(volume.read((1 << 36) - 8, 8))
    assert not any(volume.read((1 << 36) + 15, 8))


def test_split_and_join(group, rng):
    """lvconvert --splitsnapshot detaches the COW volume, lvconvert -s attaches it again with all
    that is on it.
    """
    group.create("base", 2)
    group.snapshot("snap", "2m")
    group.write("snap", 64, 64)
    group.run("lvconvert", "-y", "--splitsnapshot", "vg/snap")
    assert group.fields("snap", "lv_attr") == ["-wi-a-----"]
    group.run("lvconvert", "-y", "-s", "-Zn", "vg/base", "vg/snap")
    group.check()
    group.scatter(rng, list(group.expected), 10)
    group.check()
    group.run("lvconvert", "-y", "--splitsnapshot", "vg/snap")
    group.run("lvconvert", "-y", "-s", "vg/base", "vg/snap")  # zeroed
    group.expected["snap"] = bytearray(group.expected["base"])
    group.check()


@pytest.mark.both
@pytest.mark.phases("c-again")
def test_c_and_dm_rust_alternate(group, rng, rust_module):
    """The same volumes activated on C and on dm-rust alternately, written on each."""
    group.create("base", 4)
    group.snapshot("snap", "6m")
    group.snapshot("wide", "8m", "-c", "256k")
    group.snapshot("lost", "512k")
    group.write("base", 0, MIB)
    del group.expected["lost"]
    try:
        for turn in range(4):
            group.scatter(rng, list(group.expected), 30)
            percent = group.percent("snap", "wide")
            group.run("vgchange", "-an", "vg")
            modules.use(("rust", "c")[turn % 2], rust_module)
            group.run("vgchange", "-ay", "vg")
            group.check()
            assert group.percent("snap", "wide") == percent
            assert group.fields("lost", "lv_snapshot_invalid") == ["snapshot invalid"]
    finally:
        group.run("vgchange", "-an", "vg")
        modules.use("c", rust_module)
