"""The Debian packages on the stock kernel: which module serves the targets.

`make test-install` installs the packages, boots, and removes them on a machine of its own. These
tests put the module that DKMS would build where DKMS puts it.
"""

import os
import shutil
from pathlib import Path

import pytest

from lib import dm, modules

RELEASE = os.uname().release
MODULE = Path("/lib/modules", RELEASE, "updates/dkms/dm_rust.ko")
# Makes the guest refuse C's modules, under the name that dm-rust-ctl uses.
OF_THE_GUEST = Path("/etc/modprobe.d/guest.conf")
HIDING = Path("/etc/modprobe.d/dm-rust.conf")
ALL = sorted(modules.C_MODULES)


def serves():
    file = Path("/sys/module/dm_rust/parameters/serves")
    return sorted(file.read_text().strip().split(",")) if file.exists() else []


def unload_all():
    modules.unload_c()
    modules.unload(modules.RUST_MODULE)


def put_module(content):
    """Installs the module. depmod runs only if it must, as it takes half a minute under
    emulation.
    """
    is_known = MODULE.exists()
    MODULE.parent.mkdir(parents=True, exist_ok=True)
    MODULE.write_bytes(content)
    if not is_known:
        modules.run("depmod")


@pytest.fixture(scope="module")
def installed(guest, request, tmp_path_factory):
    """Installs the packages; returns the output of dpkg."""
    packages = sorted((modules.PROJECT / ".build").glob("dm-rust-*.deb"))
    assert len(packages) == 2, "make them: make deb"
    unload_all()
    kept = tmp_path_factory.mktemp("modprobe") / OF_THE_GUEST.name
    shutil.move(OF_THE_GUEST, kept)
    result = modules.run("dpkg", "--install", *packages)
    yield result.stdout + result.stderr
    unload_all()
    modules.run("dpkg", "--purge", "dm-rust-dkms", "dm-rust-tools")
    assert not HIDING.exists() and not Path("/usr/lib/modprobe.d/dm-rust.conf").exists()
    shutil.rmtree(MODULE.parent, ignore_errors=True)
    modules.run("depmod")
    shutil.move(kept, OF_THE_GUEST)


@pytest.fixture
def module(installed, rust_module):
    """dm-rust is installed, and no module is loaded."""
    unload_all()
    put_module(rust_module.read_bytes())
    yield
    unload_all()
    HIDING.unlink(missing_ok=True)


def test_kernel_that_dkms_cannot_serve_is_skipped(installed):
    """The guest has no headers: the package is installed all the same."""
    assert modules.run("dpkg-query", "-Wf${db:Status-Status}", "dm-rust-dkms").stdout == "installed"
    assert (
        f"linux-headers-{RELEASE} is not installed" in installed or "skip" in installed
    ), installed
    assert modules.run("dkms", "status", "dm-rust").stdout.startswith("dm-rust/")


@pytest.mark.parametrize("name", ["dm-clone", "dm-era", "dm-snapshot", "dm-snapshot-merge"])
def test_dm_rust_is_loaded_for_c_names(module, name):
    modules.run("modprobe", name)
    assert serves() == ALL
    assert not any(map(modules.loaded, modules.C_MODULES.values()))


def test_device_mapper_asks_for_a_target(module, box):
    """A table with a target that is not registered makes device-mapper call modprobe."""
    device = box.mapped(f"0 2048 snapshot-origin {box.ram(1).dev}")
    assert device.table() and serves() == ALL


@pytest.mark.parametrize("module_of", ["no", "another"])
def test_c_serves_without_the_module(module, rust_module, module_of, log):
    """There is no module for this kernel, or one that the kernel rejects."""
    if module_of == "no":
        MODULE.unlink()
        modules.run("depmod")
    else:
        content = rust_module.read_bytes()
        vermagic = b"vermagic=" + RELEASE.encode()
        assert vermagic in content
        put_module(content.replace(vermagic, b"vermagic=" + b"x" * len(RELEASE)))
    for target, c_module in modules.C_MODULES.items():
        modules.run("modprobe", "dm-" + target)
        assert modules.loaded(c_module)
    assert not modules.loaded(modules.RUST_MODULE)
    assert set(ALL) <= set(dm.target_versions())


def test_c_serves_what_is_left_out(module):
    """The parameter targets= and the lines of modprobe.d agree."""
    choice = Path("/etc/modprobe.d/choice.conf")
    choice.write_text("options dm_rust targets=era\n")
    try:
        modules.run("modprobe", "dm-era")
        modules.run("modprobe", "dm-snapshot")
    finally:
        choice.unlink()
    assert serves() == ["era"]
    assert modules.loaded("dm_snapshot") and not modules.loaded("dm_era")


def test_others_are_served_beside_c(module):
    modules.run("modprobe", "--ignore-install", "dm-clone")
    modules.run("modprobe", "dm-snapshot")
    assert serves() == sorted(set(ALL) - {"clone"})
    modules.run("modprobe", "dm-clone")
    assert modules.loaded("dm_clone") and not modules.loaded("dm_snapshot")


def lines_of_targets():
    out = modules.run("dm-rust-ctl", "status").stdout
    return {line.split()[0]: line.split(maxsplit=1)[1] for line in out.splitlines()[1:6]}, out


def test_status_says_who_serves(module, box):
    targets, out = lines_of_targets()
    assert sorted(targets) == ALL
    assert all(line.split() == ["none", "yet", "dm_rust"] for line in targets.values()), out
    device = box.mapped(f"0 2048 snapshot-origin {box.ram(1).dev}")
    targets, out = lines_of_targets()
    assert all(line.split() == ["dm_rust", "dm_rust"] for line in targets.values()), out
    assert f"In use: {device.name} (snapshot-origin, dm_rust)" in out
    assert f"Kernel {RELEASE} has dm_rust (running)" in out


@pytest.fixture
def initramfs():
    """Records calls that renew the initramfs: the guest has none."""
    program, calls = Path("/usr/local/sbin/update-initramfs"), Path("/run/update-initramfs.calls")
    program.write_text(f'#!/bin/sh\necho "$*" >>{calls}\n')
    program.chmod(0o755)
    calls.write_text("")
    yield lambda: calls.read_text().split("\n")[:-1]
    program.unlink()


def test_disable_and_enable(module, box, initramfs):
    device = box.mapped(f"0 2048 snapshot-origin {box.ram(1).dev}")
    refused = modules.run("dm-rust-ctl", "disable", check=False)
    assert refused.returncode == 1
    assert f"{device.name} (snapshot-origin)" in refused.stderr
    assert not HIDING.exists() and serves() == ALL and not initramfs()
    modules.run("dm-rust-ctl", "disable", "--next-boot")
    assert initramfs() == ["-u -k all"]
    assert HIDING.exists() and serves() == ALL
    targets, out = lines_of_targets()
    assert targets["era"].split() == ["dm_rust", "dm_era", "(C)"], out
    device.remove()
    modules.run("dm-rust-ctl", "disable")
    assert not modules.loaded(modules.RUST_MODULE)
    modules.run("modprobe", "dm-era")
    assert modules.loaded("dm_era")
    modules.run("dm-rust-ctl", "enable")
    assert not HIDING.exists() and not modules.loaded("dm_era") and serves() == ALL
    assert initramfs() == ["-u -k all"] * 3
