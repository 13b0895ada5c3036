"""The module itself: loading, unloading, names in use, parameters."""

import errno
import os
from pathlib import Path

import pytest

from lib import delay, dm, modules, wait
from lib.box import pattern

pytestmark = pytest.mark.only("rust")


@pytest.fixture
def load(rust_module):
    """Loads dm-rust with parameters."""
    return lambda *parameters, **how: modules.insmod(rust_module, *parameters, **how)


@pytest.fixture
def unloaded(impl, load):
    """Neither implementation is loaded; dm-rust is again afterwards."""
    modules.unload(modules.RUST_MODULE)
    yield
    modules.unload_c()
    modules.unload(modules.RUST_MODULE)
    load()


def traces():
    """What a module leaves in sysfs, and the registered targets."""
    return sorted(path.name for path in Path("/sys/module").iterdir()), sorted(dm.target_versions())


def test_repeated_load_and_unload(impl, unloaded, load):
    before = traces()
    for _ in range(10):
        load()
        assert "clone" in dm.target_versions()
        modules.run("rmmod", modules.RUST_MODULE)
        assert traces() == before


@pytest.mark.crowd
def test_load_use_unload(impl, unloaded, load, box):
    """After use, unloading leaves as little behind as without use."""
    trio = box.trio(mib=1)
    for _ in range(3):
        load()
        clone = trio.clone(extra="0 4 hydration_threshold 64 hydration_batch_size 16")
        trio.write(clone, 40, pattern("new", 3))
        clone.wait_full()
        clone.remove()
        modules.unload(modules.RUST_MODULE)
        trio.check(trio.dest)
        trio.meta.fill(bytes(4096))


def serves():
    return Path("/sys/module/dm_rust/parameters/serves").read_text().strip().split(",")


# module: its targets
C_TARGETS = {
    module: [target for target, other in modules.C_MODULES.items() if other == module]
    for module in modules.C_MODULES.values()
}


@pytest.mark.parametrize("module", C_TARGETS)
def test_name_is_taken(impl, unloaded, load, log, module):
    """C has names: dm-rust logs them, and serves the others. The snapshot targets go together."""
    taken = C_TARGETS[module]
    modules.insmod(modules.c_file(taken[0]))
    mark = log.mark()
    load()
    assert sorted(serves()) == sorted(set(modules.C_MODULES) - set(taken))
    for target in taken:
        text = f"target `{target}' is registered already: is module `{module}' loaded?"
        assert any(text in line for line in log.lines(mark)), log.lines(mark)
    # C continues to work, and can be unloaded and loaded again.
    modules.unload_c()
    modules.insmod(modules.c_file(taken[0]))
    modules.unload_c()
    modules.unload(modules.RUST_MODULE)
    load()
    assert sorted(serves()) == sorted(modules.C_MODULES)


@pytest.mark.parametrize("module", C_TARGETS)
def test_chosen_name_is_taken(impl, unloaded, load, log, module):
    """A target chosen by name is served, or the load fails and leaves nothing behind."""
    taken = C_TARGETS[module]
    modules.insmod(modules.c_file(taken[0]))
    before = traces()
    mark = log.mark()
    for _ in range(3):
        assert load("targets=" + ",".join(modules.C_MODULES), check=False).returncode != 0
        assert traces() == before
    text = f"target `{taken[0]}' is registered already: is module `{module}' loaded?"
    assert any(text in line for line in log.lines(mark)), log.lines(mark)
    # The other targets can be chosen.
    others = sorted(set(modules.C_MODULES) - set(taken))
    load("targets=" + ",".join(others))
    assert sorted(serves()) == others


def test_all_names_are_taken(impl, unloaded, load, log):
    for target in ("clone", "era", "snapshot"):
        modules.insmod(modules.c_file(target))
    before = traces()
    mark = log.mark()
    assert load(check=False).returncode != 0
    assert traces() == before
    assert any("all names are taken" in line for line in log.lines(mark))


def test_snapshot_targets_go_together(impl, unloaded, load, log):
    """A snapshot of one module and an origin of the other module would not know each other."""
    before = traces()
    for value in ("snapshot", "snapshot-origin,snapshot-merge", "era,snapshot,snapshot-merge"):
        mark = log.mark()
        assert load(f"targets={value}", check=False).returncode != 0, value
        assert traces() == before
        assert any("go together" in line for line in log.lines(mark)), value
    load("targets=snapshot-merge,snapshot,snapshot-origin")
    assert serves() == ["snapshot", "snapshot-origin", "snapshot-merge"]


@pytest.mark.parametrize("target", modules.C_MODULES)
def test_c_cannot_take_the_name(impl, target):
    """The opposite: dm-rust has the names."""
    before = traces()
    assert modules.insmod(modules.c_file(target), check=False).returncode != 0
    assert traces() == before


def test_parameter_selects_targets(impl, unloaded, load, log):
    load("targets=clone")
    assert "clone" in dm.target_versions()
    assert Path("/sys/module/dm_rust/parameters/targets").read_text().strip() == "clone"
    modules.unload(modules.RUST_MODULE)
    before = traces()
    for value in ("nonsense", "clone,nonsense", "Clone", "clone "):
        mark = log.mark()
        assert load(f"targets={value}", check=False).returncode != 0, value
        assert traces() == before
        assert any("targets" in line for line in log.lines(mark)), value
    load("targets=clone,clone")
    assert "clone" in dm.target_versions() and "era" not in dm.target_versions()
    modules.unload(modules.RUST_MODULE)
    load("targets=era,clone")
    assert {"clone", "era"} <= set(dm.target_versions())


def test_throttle_at_load(impl, unloaded, load):
    load("clone_hydration_throttle=40")
    assert (
        Path("/sys/module/dm_rust/parameters/clone_hydration_throttle").read_text().strip() == "40"
    )


def test_information(impl, rust_module):
    """What modinfo and /sys show: license, parameters with descriptions."""
    fields = {}
    for line in modules.run("modinfo", rust_module).stdout.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key, []).append(value.strip())
    assert fields["license"] == ["GPL"]
    # A name of a C module as an alias would have no effect where that module is installed.
    assert "alias" not in fields
    described = dict(parm.split(":", 1) for parm in fields["parm"])
    assert {"targets", "serves", "clone_hydration_throttle"} <= set(described)
    assert all(described.values())


def test_only_kernels_for_debugging_have_delay_points(impl, rust_module):
    parameters = modules.run("modinfo", "-F", "parm", rust_module).stdout
    assert ("delay_" in parameters) == delay.expected()


@pytest.mark.delays
def test_delay_points(impl, box):
    """A thread can be held at a point, only the first one, and threads sleep there sometimes."""
    name = "between preresume and resume"
    trio = box.trio(mib=1)
    first, second = trio.clone(), box.trio(mib=1).clone()
    before = delay.counts()
    first.swap(first.line)
    assert delay.counts() == before, "points are counted although delays are off"
    with delay.held(name) as point:
        assert not point.is_taken()
        first.suspend()
        held = box.background(first.resume)
        point.wait()
        second.swap(second.line)
        assert not held.done and point.is_taken()
        point.release()
        held.result()
    assert not first.suspended
    with delay.at_random(1000, 1000):
        first.swap(first.line)
    passed, slept = before.get(name, (0, 0))
    assert delay.counts()[name] == (passed + 3, slept + 2)
    assert set(delay.counts()) <= set(delay.names())


@pytest.fixture
def example(request, unloaded):
    """Loads the module built with the example of the documentation, and with the target that breaks
    rules; only these.
    """
    module = Path(request.config.getoption("--example-module") or os.environ["DM_RUST_EXAMPLE_KO"])
    kernel = os.environ.get("DM_RUST_KERNEL", "stock")
    assert (
        module.is_file()
    ), f"build it: scripts/build --kernel {kernel} --copy example modules DM_RUST_EXAMPLE=1"
    modules.insmod(module, "targets=rust-linear,rust-stray")
    yield
    modules.unload(modules.RUST_MODULE)


def test_example(impl, example, box):
    """The example of the documentation: a linear target in safe Rust."""
    assert "rust-linear" in dm.target_versions() and "clone" not in dm.target_versions()
    disk = box.ram(2)
    disk.fill(pattern("disk", 4096))
    device = box.mapped(f"0 1024 rust-linear {disk.dev} 1000")
    assert device.content() == pattern("disk", 4096)[1000 * 512 : 2024 * 512]
    device.write(3, pattern("new", 40))
    device.flush()
    assert disk.read(1003, 40) == pattern("new", 40)
    assert device.table() == f"{disk.dev} 1000"
    peeked = modules.run("dmsetup", "message", device.name, "0", "peek", "3").stdout
    assert bytes.fromhex("".join(peeked.strip("[]\n").split(", "))) == pattern("new", 40)[:4]
    for line in ("", disk.dev, f"{disk.dev} x", "/dev/none 0", f"{disk.dev} 4000"):
        with pytest.raises(OSError):
            box.mapped(f"0 1024 rust-linear {line}")


def test_example_answers(impl, example, box):
    """An answer replaces the arguments of the message, and may exceed the first buffer."""
    device = box.mapped(f"0 1024 rust-linear {box.ram(2).dev} 0")
    for count in (1, 9, 1000):
        assert device.ask("repeat", str(count), "word") == "word" * count
    # Device-mapper returns no part of an answer that does not fit; libdm asks again with a larger
    # buffer.
    assert device.ask("repeat", "10000", "word") == ""
    assert (
        modules.run("dmsetup", "message", device.name, "0", "repeat 10000 word").stdout.strip()
        == "word" * 10000
    )


def test_example_forgets(impl, example, box):
    """Nothing in the example stops its timer, whose last user is a work item: the destructor
    does.
    """
    device = box.mapped(f"0 1024 rust-linear {box.ram(2).dev} 0")
    device.message("tick")
    wait.until(lambda: int(device.status()) > 3, "the clock ticks")
    device.remove()


STRAY = (
    "device-mapper: dm_rust: a bio was sent to a device of another target, it ends with an error"
)


@pytest.mark.parametrize("way", ["map", "submit"])
def test_bio_for_a_device_of_another_target(impl, example, box, log, way):
    """The device could be closed before the bio has ended, so it gets no bio."""
    disks = box.ram(1), box.ram(1)
    lender = box.mapped(f"0 2048 rust-stray {disks[0].dev} lend")
    user = box.mapped(f"0 2048 rust-stray {disks[1].dev} {way}")
    lender.write(0, pattern("lender", 8))
    before = disks[0].stats()
    mark = log.mark()
    for call in (lambda: user.write(8, pattern("stray", 8))), (lambda: user.read(0, 8)):
        with pytest.raises(OSError) as refused:
            call()
        assert refused.value.errno == errno.EIO
    done = disks[0].stats() - before
    assert not done.reads and not done.writes
    assert log.lines(mark, STRAY)
    user.remove()
    lender.remove()
    assert disks[0].content(16) == pattern("lender", 8) + bytes(8 * 512)


def test_visit_of_a_device_of_another_target(impl, example, box, log):
    disks = box.ram(1), box.ram(1)
    lender = box.mapped(f"0 2048 rust-stray {disks[0].dev} lend")
    user = box.mapped()
    with pytest.raises(OSError):
        user.load(f"0 2048 rust-stray {disks[1].dev} visit")
        user.resume()
    assert log.lines(0, "a target names a device of another one")
    user.remove()
    lender.remove()
    assert all(disk.is_free() for disk in disks)
    assert not log.lines(0, "not in table devices list") and not log.lines(0, "call missing")
