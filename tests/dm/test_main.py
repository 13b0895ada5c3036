"""The main use, with dmsetup, from blank metadata to the replacement by linear."""

from pathlib import Path

import pytest

from lib import dm, modules
from lib.box import pattern
from lib.disk import Block


def dmsetup(*words):
    return modules.run("dmsetup", *words).stdout.strip()


@pytest.fixture
def dmsetup_clone(box, impl):
    """Creates `suite-clone` with dmsetup, as the manual says, and registers it with the box."""

    def create(trio, *words):
        line = (
            f"0 {trio.sectors} clone {trio.meta.dev} {trio.dest.dev} {trio.source.dev} "
            f"{' '.join(words)}"
        )
        dmsetup("create", "suite-clone", "--table", line)
        info = dmsetup(
            "info", "-c", "--noheadings", "-o", "major,minor", "--separator", ":", "suite-clone"
        )
        device = object.__new__(dm.Clone)
        Block.__init__(device, f"/dev/dm-{info.split(':')[1]}")
        device.name, device.gone = "suite-clone", False
        device.major, device.minor = (int(number) for number in info.split(":"))
        device.length, device.parts = trio.sectors, (trio.meta, trio.dest, trio.source)
        return box.own(device)

    return create


def test_from_blank_metadata_to_linear(impl, box, dmsetup_clone):
    trio = box.trio(mib=16)
    clone = dmsetup_clone(trio, "8", "1", "no_hydration")
    assert dmsetup("status", "suite-clone") == (
        f"0 {trio.sectors} clone 8 6/256 8 0/4096 0 1 no_hydration 4 hydration_threshold 1 "
        "hydration_batch_size 1 rw"
    )
    assert dmsetup("table", "suite-clone") == (
        f"0 {trio.sectors} clone {trio.meta.dev} {trio.dest.dev} {trio.source.dev} 8 1 no_hydration"
    )

    trio.check(clone, "the clone at once")
    trio.write(clone, 13, pattern("partial", 3))
    trio.write(clone, 800, pattern("whole region", 8))
    trio.write(clone, 1003, pattern("many regions", 200))
    trio.write(clone, trio.sectors - 1, pattern("last sector", 1))
    trio.check(clone, "the clone after writes, before hydration")
    assert dm.Status(clone.status()).hydrated == 1 + 1 + 26 + 1

    dmsetup("message", "suite-clone", "0", "hydration_threshold", "256")
    dmsetup("message", "suite-clone", "0", "hydration_batch_size", "64")
    event = dmsetup("info", "-c", "--noheadings", "-o", "events", "suite-clone")
    waiter = box.background(modules.run, "dmsetup", "wait", "suite-clone", event)
    dmsetup("message", "suite-clone", "0", "enable_hydration")
    n = 0
    while dmsetup("status", "suite-clone").split()[6] != "4096/4096":
        n += 1
        trio.write(clone, 97 * n % 4000 * 8 + n % 7, pattern(f"while hydrating {n}", 5))
    waiter.result()
    trio.check(clone, "the clone when all is hydrated")
    dmsetup("status", "suite-clone")

    dmsetup("suspend", "suite-clone")
    dmsetup("load", "suite-clone", "--table", f"0 {trio.sectors} linear {trio.dest.dev} 0")
    dmsetup("resume", "suite-clone")
    assert dmsetup("table", "suite-clone") == f"0 {trio.sectors} linear {trio.dest.dev} 0"
    trio.check(clone, "the linear device in its place")
    trio.check(trio.dest, "the destination")
    trio.check_source()
    clone.close()
    dmsetup("remove", "suite-clone")
    clone.gone = True


def test_version(impl):
    assert dm.target_versions()["clone"] == (1, 0, 0)


@pytest.mark.parametrize("region", [8, 64, 4096])
def test_hydrates_and_stays_in_bounds(impl, box, region):
    """Each region size, a short last region, and a larger destination, which must not be written
    beyond the end.
    """
    trio = box.trio(mib=8, sectors=8 * 2048 - 13)
    clone = trio.clone(region=region, extra="0 4 hydration_threshold 1000 hydration_batch_size 100")
    clone.wait_full()
    trio.check(clone)
    trio.check(trio.dest)
    behind = trio.dest.read(trio.sectors, 13)
    assert behind == trio.stale[trio.sectors * 512 :], "wrote behind the end of the target"
    trio.check_source()


def test_defaults_hydrate(impl, box):
    """Without any argument the hydration starts by itself, one region at a time."""
    trio = box.trio(mib=1)
    clone = trio.clone(extra="")
    clone.wait_full()
    trio.check(trio.dest)


def test_zero_source(impl, box):
    """dm-zero as a source: a clone for fresh encrypted or integrity-protected disks."""
    trio = box.trio(mib=2)
    zero = box.mapped(f"0 {trio.sectors} zero")
    clone = box.clone(
        trio.meta, trio.dest, zero, 8, "0 4 hydration_threshold 64 hydration_batch_size 32"
    )
    clone.write(64, pattern("new", 4))
    clone.wait_full()
    assert trio.dest.content() == bytes(64 * 512) + pattern("new", 4) + bytes(
        (trio.sectors - 68) * 512
    )


def test_source_takes_no_writes(impl, box):
    """A clone only reads its source."""
    trio = box.trio(mib=1)
    modules.run("blockdev", "--setro", trio.source.path)
    try:
        clone = trio.clone()
        trio.write(clone, 65, pattern("new", 4))
        clone.hydrate()
        clone.wait_full()
        trio.check(clone)
    finally:
        modules.run("blockdev", "--setrw", trio.source.path)


def test_throttle_parameter(impl, box):
    """clone_hydration_throttle is writable at run time and stops nothing permanently."""
    module = modules.C_MODULES["clone"] if impl == "c" else modules.RUST_MODULE
    parameter = Path(f"/sys/module/{module}/parameters/clone_hydration_throttle")
    assert parameter.read_text().strip() == "100"
    trio = box.trio(mib=1)
    with modules.setting(parameter, "50"):
        assert parameter.read_text().strip() == "50"
        clone = trio.clone(extra="0 4 hydration_threshold 64 hydration_batch_size 32")
        clone.wait_full()
    trio.check(trio.dest)
