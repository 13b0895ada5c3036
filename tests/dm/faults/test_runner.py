"""The runner itself: faults hit the chance that was chosen; the runner notices violations, and says
how to repeat them.
"""

import errno
import re

import pytest

from lib import faults
from lib.box import pattern
from lib.faults import Step

pytestmark = pytest.mark.only("rust")


class Plain(faults.Scenario):
    """Five requests of a disk; `lie` plants a mistake."""

    target, part = "plain", "five"

    def __init__(self, box, kind, lie=None, disks=1, piece=4):
        self.kind, self.lie = kind, lie
        self.disks = {"disk": [box.ram(1, cache=True) for _ in range(disks)]}
        self.device = (
            self.disks["disk"][0]
            if disks == 1
            else box.mapped(
                f"0 2048 striped 2 {piece} "
                + " ".join(f"{disk.dev} 0" for disk in self.disks["disk"])
            )
        )
        self.met = []

    def begin(self):
        self.done = []

    def steps(self):
        may = () if self.lie == "unexpected" else {errno.EIO}
        return [
            Step(call, may) for call in (self.first, self.second, self.flush, self.third, self.read)
        ]

    def first(self):
        self.device.write(0, pattern("first", 8))

    def second(self):
        if self.lie == "silent":
            try:
                self.first()
            except OSError:
                return
        self.first()

    def flush(self):
        self.device.flush()

    def third(self):
        self.device.write(8, pattern("third", 8))
        if self.lie == "later" and self.fault.count():
            raise OSError(errno.EIO, "once more")

    def read(self):
        self.device.read(0, 8)

    def excused(self, error):
        return False

    def end(self, hit):
        self.met.append(hit)
        assert self.lie != "end" or not hit, "not as it should be"


def test_each_request_fails_once(impl, box):
    series = faults.Series(Plain(box, "disk"))
    series.run()
    assert series.last == 5
    assert series.failed == {"first": 1, "second": 1, "flush": 1, "third": 1, "read": 1}
    assert series.scenario.met == [1] * 5 + [0, 0]


def test_one_repetition(impl, box):
    series = faults.Series(Plain(box, "disk"))
    series.run(only=4)
    assert series.failed == {"third": 1} and series.repetitions == 1
    series.run()
    assert series.last == 5


def test_a_dead_disk_stays_dead(impl, box):
    """Four of five requests have a size. The disk is dead from the third of these on, and works
    again afterwards.
    """
    series = faults.Series(Plain(box, "disk-dead"))
    series.run(only=3)
    assert series.failed == {"third": 1, "read": 1} and series.scenario.met == [2]
    series.scenario.read()
    series.run()
    assert series.last == 4


@pytest.mark.parametrize("lie, n", [("unexpected", 1), ("later", 1), ("end", 1)])
def test_violations_are_reported(impl, box, lie, n):
    """The runner reports an error of the wrong kind, an error after the only fault, and a violation
    at the end.
    """
    with pytest.raises(AssertionError) as caught:
        faults.Series(Plain(box, "disk", lie)).run()
    (note,) = caught.value.__notes__
    assert f"FAULT='plain five disk {n}'" in note and re.search(r"in step '\w+' after ", note)


def test_a_torn_write(impl, box):
    """Both disks of a striped device get their pieces. The one that fails keeps its old data, and
    the write reports EIO.
    """
    for piece, n in (4, 1), (4, 2), (1, 1), (1, 3), (1, 8):
        scenario = Plain(box, "disk-torn", disks=2, piece=piece)
        device, fault = scenario.device, faults.make("disk-torn", scenario)
        old, new = pattern("old", 8), pattern("new", 8)
        device.write(0, old)
        fault.arm(n)
        with pytest.raises(OSError) as refused:
            device.write(0, new)
        assert refused.value.errno == errno.EIO
        assert fault.disarm()
        got = device.read(0, 8)
        kept = [at for at in range(8) if got[at * 512 :][:512] == old[at * 512 :][:512]]
        assert kept == list(range((n - 1) * piece, n * piece)), "the piece that failed"
        assert all(
            got[at * 512 :][:512] == new[at * 512 :][:512] for at in range(8) if at not in kept
        )


def test_model():
    old, one, two = (pattern(name, 2) for name in ("old", "one", "two"))
    model = faults.Model(old)
    model.trying(0, one)
    model.check(old, "either")
    model.check(one, "either")
    model.wrote(0, one)
    with pytest.raises(AssertionError, match="1 sectors hold what they may not: 1 .older"):
        model.check(one[:512] + old[512:], "acknowledged")
    model.trying(0, two)
    model.lost()
    for content in old, one, two:
        model.check(content, "not flushed")
    model.wrote(0, two)
    model.flushed()
    model.lost()
    model.check(two, "flushed")
    with pytest.raises(AssertionError):
        model.check(one, "flushed")
