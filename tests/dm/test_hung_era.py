"""era: a device that does not answer holds up I/O that needs it, and nothing else."""

import errno
import signal
import subprocess

import pytest

from lib import eras, hung, snaps, wait
from lib.box import pattern
from lib.expect import errno_of

pytestmark = pytest.mark.only("rust")

ROLES = "metadata", "origin"


class Case:
    """An era with marked blocks, one of whose devices can be held."""

    def __init__(self, box, role):
        self.box, self.role = box, role
        pair = eras.Pair(box)
        self.gate = snaps.Gate(box, pair.meta_disk if role == "metadata" else pair.origin_disk)
        setattr(pair, "meta" if role == "metadata" else "origin", self.gate)
        self.era = pair.era()
        self.era.write(0, pattern("marked", 80))
        self.pair = pair

    def hang(self):
        """Starts a write to a block that is not marked, and a message that ends the era; both
        wait.
        """
        self.gate.hold()
        write = self.box.background(self.era.write, 800, pattern("waits", 8))
        hung.waits(self.gate)
        message = subprocess.Popen(["dmsetup", "message", self.era.name, "0", "checkpoint"])
        if self.role == "origin":  # the era ends; then the message waits for the write
            wait.until(lambda: self.era.era == 2, "the new era has begun")
        return write, message


@pytest.fixture(params=ROLES)
def case(impl, box, request):
    return Case(box, request.param)


@pytest.mark.crowd
def test_neighbours_go_on(box, case):
    """Other devices work, and are removed and created; the hung one answers from memory what it
    can.
    """
    neighbours = hung.Neighbours(box)
    status = case.era.status()
    table = case.era.table()
    write, message = case.hang()
    hung.go_on(box, neighbours.check)
    now = 1 if case.role == "metadata" else 2
    for noflush in True, False:
        hung.go_on(box, lambda: case.era.status(noflush))
        assert case.era.look().era == now
    assert case.era.table() == table and (case.role == "origin" or case.era.status() == status)
    assert not case.era.suspended
    case.era.load(case.era.line)
    assert case.era.specs(inactive=True)[0][3] == case.era.status()
    for words in "nonsense", "checkpoint now":
        assert errno_of(case.era.message, words) == errno.EINVAL
    if case.role == "metadata":
        for n in range(10):  # marked
            hung.go_on(box, lambda: case.era.write(n * 8, pattern("again", 8)))
        hung.go_on(box, lambda: case.era.read(0, 80), case.era.flush)
    else:
        # Blocks are marked, and work that does not need the origin is done.
        other = box.background(case.era.write, 1600, pattern("other", 8))
        wait.until(lambda: case.era.marked() == {200}, "the block is marked")
        assert not other.done
    hung.go_on(box, neighbours.check)
    assert not write.done and message.poll() is None
    case.gate.release()
    write.result()
    assert message.wait(wait.DEADLINE) == 0
    assert case.era.era == 2
    expected = set(range(10)) | {100} | ({200} if case.role == "origin" else set())
    case.era.clear()  # not before: device-mapper lets it wait for the message
    assert case.era.since(1) == expected
    neighbours.check()


@pytest.mark.crowd
def test_killed_while_the_origin_hangs(box, impl):
    """A process that waits for the origin can be killed; the next message does not wait for it, but
    for the origin.
    """
    case = Case(box, "origin")
    write, message = case.hang()
    message.send_signal(signal.SIGKILL)
    assert message.wait(wait.DEADLINE) == -signal.SIGKILL
    again = subprocess.Popen(["dmsetup", "message", case.era.name, "0", "checkpoint"])
    assert not write.done and again.poll() is None
    case.gate.release()
    write.result()
    assert again.wait(wait.DEADLINE) == 0


def test_removal_without_the_origin(box, impl):
    """With nothing in flight, an era is suspended, resumed and removed while its origin hangs."""
    case = Case(box, "origin")
    case.gate.hold()
    hung.go_on(box, case.era.suspend, case.era.resume, lambda: case.era.swap(case.era.line))
    assert case.era.era == 3
    hung.go_on(box, case.era.remove)
    case.gate.release()
    assert eras.check(case.pair.meta).since(1) == set(range(10))


def test_suspend_waits_for_the_metadata(box, impl):
    """As with C, it ends when the device answers; meanwhile the status and other devices
    continue.
    """
    case, neighbours = Case(box, "metadata"), hung.Neighbours(box)
    case.gate.hold()
    suspend = box.background(case.era.suspend)
    hung.waits(case.gate)
    hung.go_on(box, case.era.status, neighbours.check)
    assert not suspend.done
    case.gate.release()
    suspend.result()
    hung.go_on(box, case.era.resume, case.era.remove)
    assert eras.check(case.pair.meta).since(1) == set(range(10))
