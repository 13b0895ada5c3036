"""era: nothing is lost between two eras (I8): what a message guarantees when it returns."""

import os
import pathlib
import random
import signal
import subprocess
import threading

import pytest

from lib import eras, wait
from lib.box import pattern
from lib.disk import in_flight

# Of a backup; with KASAN each takes seconds.
ROUNDS = 8 if os.environ.get("DM_RUST_KERNEL") == "debug" else 150
MESSAGES = "checkpoint", "take_metadata_snap"


@pytest.fixture
def era(pair):
    return pair.layered("origin").era(8)


def write_discard(era, kind, block):
    if kind == "discard":
        era.discard(block * 8, 8)
    else:
        era.write(block * 8, pattern("late", 8))


@pytest.mark.only("rust")
@pytest.mark.parametrize("message", MESSAGES)
@pytest.mark.parametrize("kind", ["marked", "deferred", "discard"])
def test_waits_for_what_is_in_flight(pair, era, kind, message):
    """A write of the old era is in flight: the message returns when it has ended, not before."""
    if kind == "marked":
        era.write(0, pattern("first", 8))
    pair.origin.hold()
    write = pair.box.background(write_discard, era, kind, 0)
    wait.until(lambda: in_flight(era) == 1, "the write is in flight")
    if kind != "marked":
        # Marked durably, so it has been submitted to the origin.
        wait.until(lambda: era.marked() == {0}, "the block is marked")
    rollover = pair.box.background(era.message, message)
    wait.until(lambda: era.era == 2, "the new era has begun")
    assert not rollover.done and not write.done
    pair.origin.release()
    rollover.result()
    write.result()
    if message == "take_metadata_snap":
        image = eras.Metadata(pair.meta.content(), era.look().snapshot)
        assert image.since(1) == {0} and image.since(2) == set()


@pytest.mark.only("c")
def test_c_does_not_wait(pair, era):
    """The defect of C: the write ends after the checkpoint, and is not in the new era."""
    era.write(0, pattern("first", 8))
    pair.origin.hold()
    write = pair.box.background(era.write, 0, pattern("late", 8))
    wait.until(lambda: in_flight(era) == 1, "the write is in flight")
    now = era.checkpoint()
    assert not write.done
    pair.origin.release()
    write.result()
    assert era.since(now) == set()


@pytest.mark.crowd
@pytest.mark.only("rust")
def test_writes_go_on_meanwhile(pair):
    """While a message waits, other writes are recorded in the new era, and do not wait for the
    message.
    """
    half = pair.origin_disk.sectors // 2
    # The lower half is held, the upper one is not.
    slow = pair.box.layered(pair.origin_disk, sectors=half)
    pair.origin = pair.box.mapped(
        f"0 {half} linear {slow.dev} 0\n{half} {half} linear {pair.origin_disk.dev} {half}"
    )
    era = pair.era()
    era.write(0, pattern("first", 8))
    slow.hold()
    late = pair.box.background(era.write, 0, pattern("late", 8))
    wait.until(lambda: in_flight(era) == 1, "the write is in flight")
    rollover = pair.box.background(era.message, "checkpoint")
    wait.until(lambda: era.era == 2, "the new era has begun")
    era.write(half, pattern("new", 8))
    assert era.marked() == {half // 8}
    assert not rollover.done and not late.done
    slow.release()
    rollover.result()
    late.result()


@pytest.mark.crowd
@pytest.mark.only("rust")
def test_message_can_be_killed(pair, era):
    """A process that waits can be killed. The era has ended, and the next message waits for the
    same write.
    """
    era.write(0, pattern("first", 8))
    pair.origin.hold()
    late = pair.box.background(era.write, 0, pattern("late", 8))
    wait.until(lambda: in_flight(era) == 1, "the write is in flight")
    first = [
        subprocess.Popen(["dmsetup", "message", era.name, "0", "checkpoint"]) for _ in range(2)
    ]
    wait.until(lambda: era.era == 2, "the new era has begun")
    for process in first:  # the second one waits for its turn
        process.send_signal(signal.SIGKILL)
        assert process.wait(wait.DEADLINE) == -signal.SIGKILL
    assert not late.done
    again = pair.box.background(era.message, "checkpoint")
    third = pair.box.background(era.write, 80, pattern("other", 8))
    wait.until(lambda: era.marked() == {10}, "marked in the present era")
    assert era.era == 2 and not again.done
    pair.origin.release()
    again.result()
    late.result()
    third.result()
    assert era.era == 3
    assert era.since(3) == set()


@pytest.mark.only("rust")
def test_flush_before_the_promise(pair):
    """What has ended is durable when the message returns; a message that waits for a held origin
    can be killed.
    """
    pair.origin_disk = pair.box.ram(4, cache=True)
    era = pair.layered("origin").era()
    era.write(0, pattern("cached", 8))
    before = pair.origin_disk.stats()
    era.checkpoint()
    assert (pair.origin_disk.stats() - before).flushes == 1
    pair.origin.hold()
    process = subprocess.Popen(["dmsetup", "message", era.name, "0", "checkpoint"])
    wait.until(lambda: era.era == 3, "the new era has begun")
    process.send_signal(signal.SIGKILL)
    assert process.wait(wait.DEADLINE) == -signal.SIGKILL
    pair.origin.release()
    assert era.checkpoint() == 4
    pair.origin.error_writes()
    with pytest.raises(OSError):
        era.checkpoint()
    pair.origin.heal()
    assert era.checkpoint() == 6


@pytest.mark.only("rust")
def test_message_waits_for_failing_writes_too(pair, era):
    """Writes that the origin fails have ended, too."""
    era.write(0, pattern("first", 80))
    pair.origin.error_writes()
    for _ in range(20):
        with pytest.raises(OSError):
            era.write(0, pattern("fails", 8))
    pair.origin.heal()
    assert era.checkpoint() == 2
    assert era.checkpoint() == 3


@pytest.mark.crowd
@pytest.mark.only("rust")
def test_messages_from_many_threads(pair, era):
    """Eight threads send their own messages: eras increase by one, and none is left out."""
    stop = threading.Event()

    def write(seed):
        numbers = random.Random(seed)
        while not stop.is_set():
            era.write(numbers.randrange(1024) * 8, pattern("w", 8))

    writers = [pair.box.background(write, n) for n in range(3)]
    callers = [
        pair.box.background(lambda: [era.message("checkpoint") for _ in range(8)]) for _ in range(8)
    ]
    for caller in callers:
        caller.result()
    stop.set()
    for writer in writers:
        writer.result()
    assert era.era == 1 + 64
    era.remove()
    eras.check(pair.meta)


WORK = """
[global]
filename={path}
direct=1
ioengine=libaio
iodepth=4
time_based=1
runtime=1000
thinktime=200
randrepeat=0
[writes]
rw=randwrite
bsrange=512-12k
blockalign=512
[discards]
rw=randtrim
bs=4k
iodepth=1
thinktime=5000
"""


@pytest.mark.only("rust")
@pytest.mark.parametrize("delay", [0, 2])
def test_backup(pair, delay):
    """Incremental backups of a device that is written to all the time: in the end the copy equals
    the device.
    """
    blocks, size = 128, 8
    below = pair.origin_disk.dev
    pair.origin = pair.box.mapped(f"0 {blocks * size} delay {below} 0 0 {below} 0 {delay}")
    era = pair.era(size, length=blocks * size)
    copy = [era.read(block * size, size) for block in range(blocks)]
    job = pathlib.Path(pair.box.folder(), "work.fio")
    job.write_text(WORK.format(path=era.path))
    fio = subprocess.Popen(["fio", job], stdout=subprocess.DEVNULL, cwd=job.parent)
    since, rounds = 1, 0
    try:
        wait.until(lambda: era.marked(), "fio writes")
        while fio.poll() is None or rounds == 0:
            rounds += 1
            since = back_up(pair, era, copy, since, size)
            if rounds == ROUNDS:
                fio.send_signal(signal.SIGINT)
    finally:
        fio.kill()
        fio.wait()
    since = back_up(pair, era, copy, since, size)
    wrong = [block for block in range(blocks) if copy[block] != era.read(block * size, size)]
    assert not wrong, f"the backup misses {wrong}"
    assert rounds >= ROUNDS and since == rounds + 2


def back_up(pair, era, copy, since, size):
    """Makes one increment; returns the era from which the next one starts."""
    era.take()
    pair.meta.close()
    image = eras.Metadata(pair.meta.content(), era.look().snapshot, sums=False)
    for block in image.since(since):
        copy[block] = era.read(block * size, size)
    era.drop()
    return image.era
