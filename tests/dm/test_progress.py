"""scripts/dm-progress shows the progress of a clone or a merge, and ends with it."""

import re
import subprocess

from lib import cow, wait
from lib.disk import in_flight
from lib.modules import PROJECT

LINE = re.compile(
    r"(?P<name>\S+) +(?P<share>[\d.]+)%  (?P<done>[\d.]+ \w+) of (?P<total>[\d.]+ \w+)"
    r"(  [\d.]+ \w+/s  \d\d:\d\d:\d\d left)?"
)


class Progress:
    """The running script."""

    def __init__(self, box, name):
        command = [PROJECT / "scripts/dm-progress", "--interval", "0.02", name]
        self.lines = []
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._job = box.background(self._read)

    def _read(self):
        self.lines += iter(self._process.stdout.readline, "")
        self.error = self._process.stderr.read()
        return self._process.wait()

    def wait_begun(self):
        wait.until(lambda: self.lines, "a line")

    def result(self):
        return self._job.result()

    def check(self, name, total):
        """It has ended successfully, and the progress rose."""
        assert (self.result(), self.error) == (0, "")
        found = [LINE.fullmatch(line.rstrip("\n")) for line in self.lines]
        assert all(found), self.lines
        assert {line["name"] for line in found} == {name} and {line["total"] for line in found} == {
            total
        }
        shares = [float(line["share"]) for line in found]
        assert (
            shares == sorted(shares) and shares[-1] == 100 and found[-1]["done"] == total
        ), self.lines


def test_clone(impl, clone_box):
    trio = clone_box.trio()
    clone = trio.clone()
    name = clone.name
    progress = Progress(clone_box, name)
    progress.wait_begun()
    assert "   0.0%  0.0 KiB of 4.0 MiB\n" in progress.lines[0]
    clone.hydrate()
    clone.wait_full()
    progress.check(name, "4.0 MiB")


def test_merge(family):
    """It counts what was left when it started; LVM2 replaces the table in the end."""
    family.layered()
    snapshot = family.store(8, cow.numbered(range(0, 400, 2), 8))
    front = family.merge(snapshot, direct=True, before=lambda: family.real.hold())
    wait.until(lambda: in_flight(family.real), "the first step is at the origin")
    progress = Progress(family.box, front.name)
    progress.wait_begun()
    assert "   0.0%  0.0 KiB of 800.0 KiB\n" in progress.lines[0]
    family.real.release()
    family.merged()
    family.end_merge()
    progress.check(front.name, "800.0 KiB")


def test_failed_merge(family):
    family.layered()
    snapshot = family.store(8, cow.numbered(range(0, 400, 2), 8))
    front = family.merge(snapshot, direct=True, before=lambda: family.real.error_writes())
    front.wait_status("Merge failed")
    progress = Progress(family.box, front.name)
    assert (
        progress.result() == 1
        and progress.error == "snapshot-merge: Merge failed\n"
        and not progress.lines
    )
    family.real.heal()
    family.recreate_merge()
    family.merged()


def test_neither(box):
    plain = box.mapped("0 8 zero")
    progress = Progress(box, plain.name)
    assert (
        progress.result() == 1 and progress.error == f"{plain.name} neither hydrates nor merges\n"
    )
    progress = Progress(box, "dm-rust-test-none")
    assert (
        progress.result() == 1 and progress.error == "dm-rust-test-none: Device does not exist.\n"
    )
