"""Suspend, resume, reload, removal, two devices on one metadata device."""

import errno
import os

import pytest

from lib import dm, metadata, modules, wait
from lib.box import pattern
from lib.disk import in_flight


@pytest.mark.crowd
def test_suspend_and_resume_in_a_loop(impl, clone_box):
    """Nothing is copied while suspended, and hydrated regions only increase."""
    trio = clone_box.trio(mib=4)
    clone = trio.clone(extra="0 4 hydration_threshold 16 hydration_batch_size 4")
    before = 0
    for _ in range(25):
        clone.suspend()
        reads = trio.source.stats()
        status = clone.look()
        assert not status.hydrating and status.hydrated >= before
        before = status.hydrated
        assert not (trio.source.stats() - reads).reads
        clone.resume()
    clone.wait_full()
    trio.check(trio.dest)


def test_suspend_waits_for_copies(impl, clone_box):
    """Copies whose data is being written end before the suspend returns, and it commits them."""
    trio = clone_box.trio(mib=1).layered("dest")
    clone = trio.clone()
    trio.dest.hold()
    clone.hydrate(threshold=32, batch=8)
    wait.until(
        lambda: clone.look().hydrating >= 32 and not in_flight(trio.source), "copies have been read"
    )
    suspend = clone_box.background(clone.suspend)
    trio.dest.release()
    suspend.result()
    status = clone.look()
    assert not status.hydrating
    assert status.hydrated >= 32
    found = metadata.read(trio.meta)
    assert found.count == status.hydrated
    for region in range(status.regions):
        if found.is_hydrated(region):
            assert trio.dest.read(region * 8, 8) == trio.data[region * 4096 : region * 4096 + 4096]
    clone.resume()
    clone.wait_full()


def test_suspend_waits_for_writes_behind_a_copy(impl, clone_box):
    trio = clone_box.trio(mib=1).layered("source")
    clone = trio.clone()
    trio.source.hold()
    writers = [clone_box.background(clone.write, 40 + n, pattern(f"w{n}", 1)) for n in range(8)]
    clone.wait_hydrating()
    suspend = clone_box.background(clone.suspend)
    trio.source.release()
    suspend.result()
    for n, writer in enumerate(writers):
        trio.wrote(40 + n, pattern(f"w{n}", 1))
    clone.resume()
    for writer in writers:
        writer.result()
    trio.check(clone)


@pytest.mark.parametrize("flush", [True, False])
def test_remove_and_recreate_while_hydrating(impl, clone_box, flush):
    """After each removal the next creation continues; nothing is copied twice."""
    trio = clone_box.trio(mib=4)
    before, rounds = 0, 0
    while True:
        clone = trio.clone(extra="0 4 hydration_threshold 4 hydration_batch_size 1")
        status = clone.look()
        assert status.hydrated >= before
        if status.full:
            break
        sector = 101 * rounds % 8000
        trio.write(clone, sector, pattern(f"round {rounds}", 9))
        if flush:
            clone.flush()
        wait.until(
            lambda: clone.hydrated() >= min(status.hydrated + 60, status.regions), "some progress"
        )
        rounds += not clone.look().full
        clone.remove()
        found = metadata.read(trio.meta)
        assert found.count >= before
        before = found.count
        trio.check_source()
    assert rounds
    trio.check(clone)
    trio.check(trio.dest)


def test_deferred_removal(impl, clone_box):
    trio = clone_box.trio(mib=1)
    clone = trio.clone(extra="")
    clone.read(0, 8)  # keeps a descriptor open
    with pytest.raises(OSError) as refused:
        dm._ioctl(dm._REMOVE, clone.name)
    assert refused.value.errno == errno.EBUSY
    clone.remove_deferred()
    assert dm.Mapped.exists(clone.name)
    trio.write(clone, 8, pattern("new", 8))
    clone.close()
    wait.until(lambda: not dm.Mapped.exists(clone.name), "removed with its last user")
    clone.gone = True
    # The name goes first; what the device still has to write is written after that.
    wait.until(lambda: metadata.read(trio.meta).is_hydrated(1), "the last commit")


def test_module_is_pinned(impl, clone_box):
    """The module cannot be unloaded while a table uses it, live or only loaded."""
    module = modules.C_MODULES["clone"] if impl == "c" else modules.RUST_MODULE
    trio = clone_box.trio(mib=1)
    base = modules.users(module)
    clone = clone_box.clone(trio.meta, trio.dest, trio.source, 8, "1 no_hydration", start=False)
    clone.load(clone.line)
    assert modules.users(module) == base + 1
    assert modules.run("rmmod", module, check=False).returncode != 0
    clone.resume()
    assert modules.run("rmmod", module, check=False).returncode != 0
    clone.to_linear()
    wait.until(lambda: modules.users(module) == base, "module released with the old table")


@pytest.mark.crowd
def test_swap_to_linear_under_load(impl, clone_box):
    """The table is replaced while a writer and a reader are at work; no I/O fails and nothing is
    lost.
    """
    trio = clone_box.trio(mib=2)
    clone = trio.clone()
    clone.hydrate()
    stop = []

    def writes():
        n = 0
        while not stop:
            trio.write(clone, 37 * n % 4000, pattern(f"turn {n % 50}", 4))
            n += 1
        return n

    writer = clone_box.background(writes)
    clone.wait_full()
    clone.to_linear()
    after = trio.dest.stats()
    wait.until(lambda: (trio.dest.stats() - after).writes > 3, "writing goes on")
    stop.append(1)
    assert writer.result() > 3
    trio.check(clone)
    trio.check(trio.dest)


def test_abandoned_reload(impl, clone_box):
    """A loaded table that is dropped again changes nothing."""
    trio = clone_box.trio(mib=1)
    clone = trio.clone()
    trio.write(clone, 8, pattern("new", 8))
    clone.load(clone.line)
    clone.clear()
    trio.write(clone, 80, pattern("new", 8))
    clone.suspend()
    clone.load(f"0 {trio.sectors} linear {trio.dest.dev} 0")
    clone.clear()
    clone.resume()
    assert clone.hydrated() == 2
    trio.check(clone)


def test_reload_suspended_first(impl, clone_box):
    """Suspend, load, resume: the order that C needs. Arguments of the new line apply, what is
    hydrated stays.
    """
    trio = clone_box.trio(mib=1)
    clone = trio.clone()
    for region in range(0, 24, 2):
        trio.write(clone, region * 8, pattern(f"r{region}", 8))
    clone.flush()
    clone.swap(clone.line.replace("1 no_hydration", "1 no_hydration 2 hydration_threshold 5"))
    assert clone.hydrated() == 12
    assert clone.look().threshold == 5
    trio.check(clone)
    clone.remove()
    clone = trio.clone()
    assert clone.hydrated() == 12
    trio.check(clone)


def test_reload_over_a_live_clone(impl, clone_box):
    """W2: twelve regions are written and flushed between `load` and `resume`. C forgets them
    permanently.
    """
    trio = clone_box.trio(mib=1)
    clone = trio.clone()
    trio.write(clone, 800, pattern("before", 8))
    clone.flush()
    clone.load(clone.line)
    for region in range(0, 24, 2):
        trio.write(clone, region * 8, pattern(f"r{region}", 8))
    clone.flush()
    trio.check(clone)
    clone.suspend()
    clone.resume()
    got = clone.read(0, 8)
    if impl == "c":
        assert got == trio.data[: 8 * 512], "C did not lose the region: has W2 been fixed there?"
        assert clone.hydrated() == 1
        return
    trio.check(clone)
    assert clone.hydrated() == 13
    clone.write(1000, pattern("more", 8))
    trio.wrote(1000, pattern("more", 8))
    clone.flush()
    clone.remove()
    clone = trio.clone()
    assert clone.hydrated() == 14
    trio.check(clone)
    clone.hydrate()
    clone.wait_full()
    trio.check(trio.dest)


@pytest.mark.crowd
def test_reload_while_hydrating(impl, clone_box):
    """Reloads, suspended first, during the hydration."""
    trio = clone_box.trio(mib=4)
    line = "0 4 hydration_threshold 32 hydration_batch_size 8"
    clone = trio.clone(extra=line)
    before = 0
    for n in range(6):
        trio.write(clone, 999 * n, pattern(f"w{n}", 10))
        clone.swap(clone.line)
        assert clone.hydrated() >= before
        before = clone.hydrated()
    clone.wait_full()
    trio.check(clone)
    trio.check(trio.dest)


def test_two_devices_on_one_metadata(impl, clone_box, log):
    """Certain corruption, which C accepts. dm-rust refuses, and accepts the metadata again when it
    is free.
    """
    trio = clone_box.trio(mib=1)
    first = trio.clone()
    second = clone_box.clone(trio.meta, trio.dest, trio.source, 8, "1 no_hydration", start=False)
    if impl == "c":
        second.load(second.line)
        return
    mark = log.mark()
    with pytest.raises(OSError) as refused:
        second.load(second.line)
    assert refused.value.errno == errno.EBUSY
    assert (
        f"3 device-mapper: table: {second.dev}: clone: Failed to load metadata (-EBUSY)"
        in log.dm(mark)
    )
    trio.write(first, 8, pattern("new", 8))
    first.remove()
    second.load(second.line)
    second.resume()
    assert second.hydrated() == 1
    trio.check(second)


@pytest.mark.only("rust")
def test_two_targets_of_one_table_on_one_metadata(impl, clone_box):
    trio = clone_box.trio(mib=1)
    line = f"1024 clone {trio.meta.dev} {trio.dest.dev} {trio.source.dev} 8 1 no_hydration"
    device = clone_box.mapped()
    with pytest.raises(OSError) as refused:
        device.load(f"0 {line}", f"1024 {line}")
    assert refused.value.errno == errno.EBUSY


def test_many_loads_leave_nothing(impl, clone_box):
    """Loading, replacing and dropping good and bad tables leaves nothing behind: the disks can be
    claimed again.
    """
    trio = clone_box.trio(mib=1)
    clone = clone_box.clone(trio.meta, trio.dest, trio.source, 8, "1 no_hydration", start=False)
    for n in range(30):
        if n % 3 == 2:
            with pytest.raises(OSError):
                clone.load(clone.line + " 2 hydration_threshold x")
        else:
            clone.load(clone.line)
        if n % 5 == 4:
            clone.clear()
    clone.remove()
    for disk in trio.meta, trio.dest, trio.source:
        disk.close()
        os.close(os.open(disk.path, os.O_RDWR | os.O_EXCL))


@pytest.mark.crowd
def test_messages_never_block_on_a_held_source(impl, clone_box):
    """While copies hang, messages, --noflush status and reads of hydrated regions still answer."""
    trio = clone_box.trio(mib=1).layered("source")
    clone = trio.clone()
    trio.write(clone, 0, pattern("new", 8))
    trio.source.hold()
    clone.hydrate(threshold=64, batch=16)
    clone.wait_hydrating(64)
    for words in (
        "hydration_threshold 1",
        "disable_hydration",
        "enable_hydration",
        "hydration_batch_size 2",
    ):
        clone_box.background(clone.message, *words.split()).result(20)
    assert clone_box.background(clone.look).result(20).hydrating == 64
    assert clone_box.background(clone.read, 0, 8).result(20) == pattern("new", 8)
    clone_box.background(clone.write, 0, pattern("newer", 8)).result(20)
    clone_box.background(clone.flush).result(20)
    trio.wrote(0, pattern("newer", 8))
    trio.source.release()
    clone.hydrate()
    clone.wait_full()
    trio.check(trio.dest)
