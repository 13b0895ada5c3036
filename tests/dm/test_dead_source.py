"""A source that does not answer: it holds up I/O that reads it, and nothing else (W10)."""

import errno

import pytest

from lib import metadata, wait
from lib.box import assert_same, pattern
from lib.disk import in_flight

pytestmark = pytest.mark.only(
    "rust"
)  # C's suspend waits, uninterruptibly, as long as the source takes


@pytest.fixture
def trio(impl, clone_box):
    return clone_box.trio(mib=2).layered("source")


def hydrating(trio, **more):
    """A clone with copies that wait for the source."""
    clone = trio.clone(**more)
    trio.source.hold()
    clone.hydrate(threshold=64, batch=4)
    clone.wait_hydrating(64)
    return clone


@pytest.mark.crowd
@pytest.mark.parametrize("noflush", [False, True])
def test_suspend_does_not_wait(trio, noflush):
    clone = hydrating(trio)
    clone.suspend(noflush)
    status = clone.look()
    assert not status.hydrating and not status.hydrated
    assert metadata.read(trio.meta).count == 0
    trio.source.release()
    clone.resume()
    clone.wait_full()
    trio.check(clone)
    trio.check(trio.dest)


@pytest.mark.crowd
def test_late_answers_do_not_touch_the_next_table(trio):
    """Suspended, replaced by the destination, and written to; then the source answers."""
    clone = hydrating(trio, region=64)
    clone.suspend()
    clone.load(f"0 {trio.sectors} linear {trio.dest.dev} 0")
    swap = trio.box.background(
        clone.resume
    )  # ends when the old table is gone, and with it the reads
    wait.until(lambda: not clone.suspended, "the new table is live")
    data = pattern("written past the clone", trio.sectors)
    clone.fill(data)
    trio.source.release()
    swap.result()
    assert_same(clone.content(), data)


def test_loading_a_clone_anew_works_without_the_source(trio):
    clone = hydrating(trio)
    trio.write(clone, 2048, pattern("whole region", 8))  # not one of those that are being copied
    clone.suspend()
    clone.load(clone.line)
    swap = trio.box.background(clone.resume)
    wait.until(lambda: not clone.suspended, "the new table is live")
    trio.write(clone, 16, pattern("another", 8))  # given up, so free again
    clone.flush()
    assert clone.look().hydrated == 2
    trio.source.release()
    swap.result()
    clone.hydrate()
    clone.wait_full()
    trio.check(clone)


def test_a_new_table_with_another_path_to_the_source(trio):
    """The old path hangs; the new one copies everything, while the old table still waits for its
    answers, and afterwards.
    """
    clone = hydrating(trio)
    other = trio.box.clone(
        trio.meta,
        trio.dest,
        trio.source_disk,
        8,
        "0 4 hydration_threshold 2 hydration_batch_size 2",
        length=trio.sectors,
        start=False,
    )
    clone.suspend()
    clone.load(other.line)
    swap = trio.box.background(clone.resume)
    wait.until(lambda: not clone.suspended and clone.hydrated() > 4, "the new table copies")
    assert not swap.done
    for n in range(20):
        trio.write(clone, 3900 - 20 * n, pattern(f"part {n}", 3))
        if n == 10:
            trio.source.release()
    swap.result()
    clone.wait_full()
    trio.check(clone)
    trio.check(trio.dest)


def test_noflush_suspend_hands_writes_back(trio):
    """Writes that wait for a copy go back to device-mapper, and are submitted again after the
    resume.
    """
    clone = hydrating(trio)
    writers = []
    for n in range(40):  # to regions that are being copied, to others, and several to one
        sector = (n % 30) * 24 + n % 7
        data = pattern(f"w{n % 30}", 1 + n % 2)
        writers.append(
            (sector, data, trio.box.background(clone.write, sector, data, fua=n % 5 == 0))
        )
    wait.until(lambda: in_flight(clone) == len(writers), "all are in flight")
    clone.suspend(noflush=True)
    assert not clone.look().hydrating
    assert not any(writer.done for _, _, writer in writers)
    trio.source.release()
    clone.resume()
    for sector, data, writer in writers:
        writer.result()
        trio.wrote(sector, data)
    trio.check(clone)
    clone.wait_full()
    trio.check(trio.dest)


def test_noflush_suspend_and_a_discard(trio):
    """A discard waits for copies in its range; these are given up, and the discard is carried
    out.
    """
    clone = hydrating(trio)
    discard = trio.box.background(clone.discard, 0, 1024)
    wait.until(lambda: in_flight(clone) == 1, "it is in flight")
    clone.suspend(noflush=True)
    trio.source.release()
    clone.resume()
    discard.result()
    trio.wrote(0, bytes(1024 * 512))
    trio.check(clone)


def test_writes_to_other_regions_go_on(trio):
    """Writes to hydrated regions and to whole regions do not need the source, nor do flushes."""
    clone = trio.clone()
    trio.write(clone, 0, pattern("hydrated", 64))
    trio.source.hold()
    clone.hydrate(threshold=64, batch=64)
    clone.wait_hydrating(64)
    trio.write(clone, 3, pattern("part of hydrated", 5))
    trio.write(clone, 2048, pattern("whole", 128))
    clone.flush()
    trio.source.release()
    clone.wait_full()
    trio.check(clone)


def test_large_copies_are_given_up_between_their_pieces(trio):
    """A region of many pieces, some of which may be on the destination already."""
    clone = trio.clone(region=4096, extra="0 2 hydration_threshold 1")
    clone.wait_full()
    clone.remove()
    trio.meta.write(0, bytes(4096))
    trio.dest.fill(trio.stale)
    clone = hydrating_one(trio)
    clone.suspend()
    assert not clone.look().hydrating
    trio.source.release()
    clone.resume()
    clone.wait_full()
    trio.check(trio.dest)


def hydrating_one(trio):
    clone = trio.clone(region=4096)
    trio.source.hold()
    clone.message("enable_hydration")
    clone.wait_hydrating(1)
    return clone


def test_removal_waits_for_the_source(trio):
    """The source cannot be closed with reads in flight: removal ends when it answers, and nothing
    is written then.
    """
    clone = hydrating(trio)
    clone.suspend()  # gives up the copies; until then the source may still answer
    written = trio.dest.stats()
    removal = trio.box.background(clone.remove)
    with pytest.raises(OSError) as gone:
        while True:
            clone.info()
    assert gone.value.errno == errno.ENXIO
    trio.source.release()
    removal.result()
    assert not (trio.dest.stats() - written).writes
    assert metadata.read(trio.meta).count == 0
