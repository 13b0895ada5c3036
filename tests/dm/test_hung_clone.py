"""A device of a clone does not answer: I/O that does not need it continues, on the clone and on its
neighbours.
"""

import errno
import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from lib import hung, wait
from lib.box import pattern
from lib.disk import in_flight

pytestmark = pytest.mark.only("rust")


@pytest.fixture
def neighbours(impl, clone_box):
    return hung.Neighbours(clone_box)


def queries(clone):
    """What a device must answer at any time."""
    assert clone.look(noflush=True).mode == "rw"
    assert clone.table() and clone.info() and clone.status()
    clone.message("hydration_threshold", "64")
    assert "commits" in clone.ask("statistics")


def start_blocked(clone, *jobs):
    """Starts I/O that must wait; returns when all of it is in flight."""
    jobs = [clone_job() for clone_job in jobs]
    wait.until(lambda: in_flight(clone) == len(jobs), "all are in flight")
    assert not any(job.done for job in jobs)
    return jobs


@pytest.mark.crowd
def test_hung_source(neighbours, clone_box):
    trio = clone_box.trio(mib=2).layered("source")
    clone = trio.clone()
    trio.write(clone, 0, pattern("hydrated", 64))
    trio.source.hold()
    start = clone_box.background
    jobs = start_blocked(
        clone,
        lambda: start(clone.write, 803, pattern("part", 2)),
        lambda: start(clone.read, 1600, 8),
        lambda: start(clone.discard, 800, 16),
    )
    clone.hydrate(threshold=64, batch=4)
    clone.wait_hydrating(65)  # the background copies, and the one of the write

    def work():
        queries(clone)
        assert clone.look(noflush=False).mode == "rw"
        neighbours.check()
        assert clone.read(0, 64) == bytes(trio.expected[: 64 * 512])
        trio.write(clone, 3, pattern("part of hydrated", 5))
        trio.write(clone, 2048, pattern("whole", 128), fua=True)
        clone.flush()
        queries(clone)

    start(work).result()  # no discard: the kernel allows one at a time per device
    assert not any(job.done for job in jobs)
    trio.source.release()
    for job in jobs:
        job.result()
    trio.wrote(800, clone.read(800, 16))  # the discard came before the write or after it
    clone.wait_full()
    trio.check(clone)


def rescuers():
    found = 0
    for path in Path("/proc").glob("[0-9]*/comm"):
        with suppress(OSError):  # it has ended
            found += path.read_text().startswith("kworker/R-dm-cl")
    return found


def test_three_rescuer_threads(impl, clone_box):
    """The queues for reads of the source, for commits and for the rest have a rescuer each. If no
    other worker thread can be created, each rescuer runs its work items one after the other, and a
    hanging one delays its own queue only.
    """
    before = rescuers()
    clone = clone_box.trio(mib=1).clone()
    assert rescuers() == before + 3
    clone.remove()
    assert rescuers() == before


def test_a_hung_source_leaves_room_for_whole_regions(impl, clone_box):
    """However many copies wait for the source, writes to whole regions do not need it."""
    trio = clone_box.trio(mib=16).layered("source")
    clone = trio.clone()
    trio.source.hold()
    clone.hydrate(threshold=100000, batch=1)
    clone.wait_hydrating(512)

    def work():
        for n in range(200):
            trio.write(clone, trio.sectors - 8 * (n + 1), pattern(f"whole {n}", 8), fua=n % 50 == 0)

    clone_box.background(work).result()
    assert clone.look().hydrated == 200
    trio.source.release()
    clone.wait_full()
    trio.check(clone)


@pytest.mark.crowd
def test_hung_destination(neighbours, clone_box):
    """Reads of regions that are not hydrated do not need the destination, nor do discards that are
    not passed down.
    """
    trio = clone_box.trio(mib=2).layered("dest")
    clone = trio.clone(extra="2 no_hydration no_discard_passdown")
    trio.write(clone, 0, pattern("hydrated", 64))
    clone.flush()
    trio.dest.hold()
    start = clone_box.background
    jobs = start_blocked(
        clone,
        lambda: start(clone.write, 803, pattern("part", 2)),
        lambda: start(clone.write, 1600, pattern("whole", 16)),
        lambda: start(clone.read, 0, 8),
    )
    clone.hydrate(threshold=64, batch=4)
    clone.wait_hydrating(67)  # the background copies, and those of the writes

    def work():
        queries(clone)
        neighbours.check()
        for sector in 800, 1600, 2048:
            assert clone.read(sector, 8) == bytes(trio.expected[sector * 512 : (sector + 8) * 512])
        clone.discard(3200, 64)
        queries(clone)

    start(work).result()
    assert not any(job.done for job in jobs)
    trio.dest.release()
    for job in jobs:
        job.result()
    trio.wrote(803, pattern("part", 2))
    trio.wrote(1600, pattern("whole", 16))
    clone.wait_full()
    trio.wrote(
        3200, clone.read(3200, 64)
    )  # what the destination held, or the copy if it came first
    trio.check(clone)


@pytest.mark.crowd
def test_hung_metadata(neighbours, clone_box):
    """Only flushes and FUA writes wait: they ask for durability."""
    trio = clone_box.trio(mib=2, cache=True).layered("meta")
    clone = trio.clone()
    trio.write(clone, 0, pattern("hydrated", 64))
    clone.flush()
    flushes = trio.dest.stats().flushes
    trio.meta.hold()
    trio.write(clone, 640, pattern("dirty", 8))
    start = clone_box.background
    jobs = start_blocked(
        clone,
        lambda: start(clone.flush),
        lambda: start(clone.write, 0, pattern("fua", 8), fua=True),
        lambda: start(clone.write, 800, pattern("fua", 8), fua=True),
    )
    wait.until(lambda: trio.dest.stats().flushes > flushes, "a commit has begun")

    def work():
        queries(clone)
        neighbours.check()
        for sector in 8, 640, 1600:
            assert clone.read(sector, 8) == bytes(trio.expected[sector * 512 : (sector + 8) * 512])
        trio.write(clone, 11, pattern("part of hydrated", 5))
        trio.write(clone, 1603, pattern("part", 2))
        trio.write(clone, 2048, pattern("whole", 128))
        trio.discard(clone, 3200, 64)
        clone.hydrate(threshold=64, batch=4)
        clone.wait_full()
        queries(clone)

    start(work).result()
    assert not any(job.done for job in jobs)
    trio.meta.release()
    for job in jobs:
        job.result()
    trio.wrote(0, pattern("fua", 8))
    trio.wrote(800, pattern("fua", 8))
    trio.check(clone)
    clone.flush()
    assert clone.look(noflush=False).full


# A status that commits waits, as with C, but can be killed.


class StatusProcess:
    """A process that reads a status, with a commit before it."""

    def __init__(self, clone):
        clone.info()  # opens the control device, for the child too
        self.pid = os.fork()
        if not self.pid:
            try:
                clone.status(noflush=False)
            finally:
                os._exit(0)

    def is_waiting(self):
        """Whether it stays in the sleep of I/O."""
        path = Path(f"/proc/{self.pid}/stat")
        return all(path.read_text().rsplit(")", 1)[1].split()[0] == "D" for _ in range(50))

    def end(self):
        """Waits for its end; returns the wait status."""
        found = wait.until(
            lambda: (result := os.waitpid(self.pid, os.WNOHANG)) != (0, 0) and result, "it ends"
        )
        return found[1]

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)


@pytest.fixture
def dirty(impl, clone_box):
    """A clone with something to commit, whose metadata device hangs."""
    trio = clone_box.trio(mib=1, cache=True).layered("meta")
    clone = trio.clone()
    clone.flush()
    flushes = trio.dest.stats().flushes
    trio.meta.hold()
    trio.write(clone, 0, pattern("new", 8))
    process = StatusProcess(clone)
    wait.until(lambda: trio.dest.stats().flushes > flushes, "a commit has begun")
    wait.until(process.is_waiting, "the status waits for it")
    return trio, clone, process


def test_status_commits_and_can_be_killed(dirty, clone_box):
    trio, clone, killed = dirty
    other = StatusProcess(clone)
    wait.until(other.is_waiting, "another waits")
    assert clone_box.background(clone.look).result().hydrated == 1
    killed.kill()
    assert os.WTERMSIG(killed.end()) == signal.SIGKILL
    assert other.is_waiting()
    trio.meta.release()
    assert other.end() == 0
    meta = trio.meta.stats()
    assert clone.look(noflush=False).mode == "rw"
    assert not (trio.meta.stats() - meta).writes, "the commit had been waited for"


def test_a_killed_status_does_not_keep_the_clone(dirty, clone_box):
    """A suspend waits for the commit, not for the killed process; then everything continues."""
    trio, clone, process = dirty
    process.kill()
    process.end()
    suspend = clone_box.background(clone.suspend)
    trio.meta.release()
    suspend.result()
    clone.resume()
    trio.check(clone)
    assert clone.look(noflush=False).hydrated == 1


def test_status_of_a_commit_that_fails(impl, clone_box):
    """The status after the attempt shows the mode."""
    trio = clone_box.trio(mib=1).layered("meta")
    clone = trio.clone()
    clone.flush()
    trio.write(clone, 0, pattern("new", 8))
    trio.meta.error_writes()
    assert clone.look(noflush=False).mode == "ro"
    with pytest.raises(OSError) as failed:
        clone.flush()
    assert failed.value.errno == errno.EIO
    trio.meta.heal()
    clone.message("rw")
    assert clone.look(noflush=False).mode == "rw"
