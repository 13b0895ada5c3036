"""Which implementation owns the name `clone`: the C module of the kernel or ours. Only one can."""

import os
import subprocess
from pathlib import Path

from . import dm, wait

PROJECT = Path(__file__).resolve().parents[3]
C_MODULE = "dm_clone"
RUST_MODULE = "dm_rust"


def run(*command, check=True):
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if check and result.returncode:
        raise AssertionError(f"{' '.join(map(str, command))}: status {result.returncode}\n{result.stdout}{result.stderr}")
    return result


def loaded(module):
    return Path(f"/sys/module/{module}").is_dir()


def users(module):
    return int(Path(f"/sys/module/{module}/refcnt").read_text())


def c_file():
    """The file of the C module. It is loaded by path, because modprobe may have been told to keep it out."""
    folder = Path("/lib/modules", os.uname().release)
    found = sorted(folder.glob("**/md/dm-clone.ko*"))
    assert found, f"no dm-clone.ko under {folder}"
    return found[0]


def rust_file(given=None):
    """The file of our module, or None if it was not built."""
    places = [given, os.environ.get("DM_RUST_KO"), PROJECT / "rust" / "dm_rust.ko"]
    return next((Path(place) for place in places if place and Path(place).is_file()), None)


def insmod(file, *parameters, check=True):
    return run("insmod", file, *parameters, check=check)


def unload(module):
    """Unloads a module if it is loaded; its last users may still be on their way out."""
    if loaded(module):
        wait.until(lambda: users(module) == 0, f"{module} has no users ({users(module)})")
        run("rmmod", module)


def use(implementation, rust):
    """Makes "c" or "rust" the owner of `clone`, and proves it."""
    mine, other = (C_MODULE, RUST_MODULE) if implementation == "c" else (RUST_MODULE, C_MODULE)
    unload(other)
    if not loaded(mine):
        if implementation == "c":
            run("modprobe", "-a", "dm-mod", "dm-persistent-data")
            insmod(c_file())
        else:
            run("modprobe", "-a", "dm-mod", "dm-bufio", "dm-persistent-data")
            insmod(rust)
    assert "clone" in dm.target_versions(), f"{mine} did not register the target"
    assert loaded(mine) and not loaded(other)


def targets(rust):
    """The targets that our module registers, found by taking it out and putting it in."""
    unload(RUST_MODULE)
    others = set(dm.target_versions())
    use("rust", rust)
    return set(dm.target_versions()) - others
