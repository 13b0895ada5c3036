"""era: failing devices, metadata without space, damaged metadata."""

import errno

import pytest

from lib import eras, wait
from lib.box import pattern

pytestmark = pytest.mark.only("rust")


def failing(call, *args):
    with pytest.raises(OSError) as error:
        call(*args)
    return error.value.errno


# Failing metadata


@pytest.fixture
def era(pair):
    """An era with blocks 0 to 9 marked, over metadata that can be made to fail."""
    era = pair.layered("meta").era()
    era.write(0, pattern("marked", 80))
    return era


@pytest.mark.parametrize("kind", ["error", "error_writes"])
def test_failing_metadata(pair, era, log, kind):
    """Marked blocks can be written, others cannot; messages fail, and the status says so. When the
    metadata works again, so does everything else.
    """
    events, before = era.event, pair.origin.content()
    getattr(pair.meta, kind)()
    assert failing(era.write, 800, pattern("lost", 8)) == errno.EIO
    assert era.status() == "Error"
    wait.until(lambda: era.event == events + 1, "an event")
    assert any("the metadata failed" in line for line in log.lines())
    for n in range(10):
        era.write(n * 8, pattern("passes", 8))
    assert pair.origin.read(800, 8) == before[800 * 512 : 808 * 512]
    assert failing(era.message, "checkpoint") == errno.EIO
    assert failing(era.message, "take_metadata_snap") == errno.EIO
    era.content()
    pair.meta.heal()
    era.write(800, pattern("found", 8))
    wait.until(lambda: era.event == events + 2, "an event")
    now = era.checkpoint()
    era.write(1600, pattern("later", 8))
    assert era.since(now) == {200}
    assert era.since(1) == set(range(10)) | {100, 200}
    era.remove()
    eras.check(pair.meta)


def test_writes_while_metadata_fails(pair, era):
    """What was marked is recorded in its era; nothing that was submitted is missing afterwards."""
    now = era.era
    pair.meta.error_writes()
    for n in range(10):
        era.write(n * 8, pattern("passes", 8))
    assert failing(era.message, "checkpoint") == errno.EIO
    for n in range(10):
        era.write(n * 8, pattern("again", 8))
    pair.meta.heal()
    era.write(80, pattern("new", 8))
    assert era.since(now) == set(range(11))


@pytest.mark.parametrize("n", range(1, 9))
def test_one_failing_request(pair, n):
    """Any single request of the metadata fails: the write succeeds all the same, by a second
    attempt.
    """
    era = pair.layered("meta").era()
    written = set()
    for block in range(0, 40, 4):
        era.write(block * 8, pattern("a", 8))
        written.add(block)
    # The n-th block of the metadata cannot be written until the first attempt has failed.
    pair.meta.error_writes((n * 8, n * 8 + 8))
    results = []
    for block in range(100, 108):
        try:
            era.write(block * 8, pattern("b", 8))
            written.add(block)
        except OSError as error:
            results.append(error.errno)
    pair.meta.heal()
    assert set(results) <= {errno.EIO}
    era.write(8000, pattern("c", 8))
    assert era.status() != "Error"
    assert era.since(1) >= written | {1000}
    era.remove()
    assert eras.check(pair.meta).since(1) >= written | {1000}


def test_suspend_with_failing_metadata(pair, era):
    """The suspend succeeds; what was committed is archived at the next resume."""
    pair.meta.error()
    era.suspend()
    assert era.status() == "Error"
    assert failing(era.resume) == errno.EIO
    assert era.suspended
    pair.meta.heal()
    era.resume()
    assert era.era >= 2
    assert era.since(1) == set(range(10))


def test_removal_with_failing_metadata(pair, era):
    """The removal succeeds, and what was committed is there the next time, as after a crash."""
    pair.meta.error()
    assert failing(era.write, 800, pattern("lost", 8)) == errno.EIO
    era.remove()
    pair.meta.heal()
    assert eras.check(pair.meta).present == set(range(10))
    era = pair.era()
    assert era.era == 2
    assert era.since(1) == set(range(10))


def test_metadata_that_fails_at_once(pair, log):
    """Creation fails in the constructor or in the resume; afterwards the metadata is as before."""
    pair.layered("meta")
    pair.meta.error()
    empty = pair.box.own(eras.Era(pair.meta, pair.origin, start=False))
    assert failing(empty.load, empty.line) == errno.EIO
    pair.meta.error_writes()
    empty.load(empty.line)
    assert failing(empty.resume) in (
        errno.EIO,
        errno.ENOTBLK,
    )  # of a block that was not written and is read again
    assert not any(pair.meta_disk.read(0, 8)), "a format that failed must read as blank"
    pair.meta.heal()
    empty.resume()
    assert empty.era == 1


# Space


@pytest.mark.parametrize("blocks", [*range(8, 40, 4), 14, 37, 64])
def test_small_metadata(pair, blocks):
    """Metadata of any size: an error or a working device, and never a lost change."""
    pair.meta = pair.box.mapped(f"0 {blocks * 8} linear {pair.meta_disk.dev} 0")
    try:
        era = pair.era()
    except OSError as error:
        assert error.errno == errno.ENOSPC and blocks < 20
        return
    written = set()
    for n in range(12):
        try:
            era.write(n * 400, pattern("a", 8))
            written.add(n * 50)
        except OSError as error:
            assert error.errno == errno.EIO and blocks < 26
        if n % 4 == 3:
            try:
                era.message("checkpoint")
            except OSError as error:
                assert error.errno == errno.ENOSPC and blocks < 36
    assert era.status() != "Error"
    era.remove()
    found = eras.check(pair.meta)
    assert found.since(1) == written
    assert written or blocks < 26


def test_no_space_for_an_era(pair):
    """A snapshot keeps blocks until none is left: checkpoints are refused, writes are recorded.
    Without the snapshot everything works again.
    """
    pair.meta = pair.box.mapped(f"0 {110 * 8} linear {pair.meta_disk.dev} 0")
    pair.origin_disk = pair.origin = pair.box.ram(256)
    era = pair.era()
    assert era.blocks == 65_536
    refused, written = 0, {}
    for n in range(30):
        block = n * 2100 % era.blocks
        now = era.era
        era.write(block * 8, pattern("a", 8))
        written[block] = now
        if n == 3:
            try:
                era.take()
            except OSError as error:
                assert error.errno == errno.ENOSPC
        try:
            era.message("checkpoint")
        except OSError as error:
            assert error.errno == errno.ENOSPC
            assert era.era == now
            refused += 1
    assert refused, "there was space for everything"
    assert era.status() != "Error"
    era.remove()
    image = eras.read(pair.meta)
    assert all(image.eras()[block] >= at for block, at in written.items())
    assert image.since(1) == set(written)
