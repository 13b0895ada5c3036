"""Which implementation provides the targets: the C modules of the kernel, or dm-rust. Only one
can.
"""

import contextlib
import ctypes
import lzma
import os
import subprocess
from pathlib import Path

from . import dm, wait

PROJECT = Path(__file__).resolve().parents[3]
C_MODULES = {  # by target
    "clone": "dm_clone",
    "era": "dm_era",
    "snapshot": "dm_snapshot",
    "snapshot-origin": "dm_snapshot",
    "snapshot-merge": "dm_snapshot",
}
RUST_MODULE = "dm_rust"


def run(*command, check=True):
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if check and result.returncode:
        raise AssertionError(
            f"{' '.join(map(str, command))}: status "
            f"{result.returncode}\n{result.stdout}{result.stderr}"
        )
    return result


@contextlib.contextmanager
def setting(file, value):
    """Changes a setting of the kernel for the duration of the context."""
    file = Path(file)
    before = file.read_text()
    file.write_text(value)
    try:
        yield
    finally:
        file.write_text(before)


def loaded(module):
    return Path(f"/sys/module/{module}").is_dir()


def users(module):
    return int(Path(f"/sys/module/{module}/refcnt").read_text())


def c_file(target="clone"):
    """The file of the C module of a target. It is loaded by path, because the guest keeps modprobe
    from loading it.
    """
    folder = Path("/lib/modules", os.uname().release)
    name = C_MODULES[target].replace("_", "-")
    found = sorted(folder.glob(f"**/md/{name}.ko*"))
    assert found, f"no {name}.ko under {folder}"
    return found[0]


_libc = ctypes.CDLL(None, use_errno=True)
_INIT_MODULE, _DELETE_MODULE = (175, 176) if os.uname().machine == "x86_64" else (105, 106)


class Swift:
    """A module that is loaded and unloaded without starting a process, for tests that do so a
    hundred times.
    """

    def __init__(self, file, name, parameters=""):
        self._image, self._name, self._parameters = (
            Path(file).read_bytes(),
            name.encode(),
            parameters.encode(),
        )
        if str(file).endswith(".xz"):
            self._image = lzma.decompress(self._image)

    def _call(self, *args):
        if _libc.syscall(*args):
            raise OSError(ctypes.get_errno(), f"module {self._name.decode()}")

    def load(self):
        self._call(_INIT_MODULE, self._image, ctypes.c_ulong(len(self._image)), self._parameters)

    def unload(self):
        wait.until(lambda: users(self._name.decode()) == 0, f"{self._name.decode()} has no users")
        self._call(_DELETE_MODULE, self._name, os.O_NONBLOCK)


def unload_c():
    """Unloads all C modules that are loaded."""
    for module in set(C_MODULES.values()):
        unload(module)


def rust_file(given=None):
    """The file of dm-rust, or None if it was not built."""
    file = Path(given or os.environ.get("DM_RUST_KO") or PROJECT / "rust" / "dm_rust.ko")
    return file if file.is_file() else None


def insmod(file, *parameters, check=True):
    return run("insmod", file, *parameters, check=check)


def unload(module):
    """Unloads a module if it is loaded; waits for its last users."""
    if loaded(module):
        wait.until(lambda: users(module) == 0, f"{module} has no users ({users(module)})")
        run("rmmod", module)


def use(implementation, rust, *parameters):
    """Makes "c" or "rust" the provider of all targets, and verifies it. The parameters are for
    dm-rust.
    """
    if implementation == "c":
        unload(RUST_MODULE)
        missing = {c_file(target) for target, module in C_MODULES.items() if not loaded(module)}
        if missing:
            run("modprobe", "-a", "dm-mod", "dm-bufio", "dm-persistent-data", "dm-bio-prison")
        for file in sorted(missing):
            insmod(file)
    else:
        unload_c()
        if not loaded(RUST_MODULE):
            run("modprobe", "-a", "dm-mod", "dm-bufio", "dm-persistent-data")
            insmod(rust, *parameters)
    assert set(C_MODULES) <= set(
        dm.target_versions()
    ), f"{implementation} did not register all targets"
    assert loaded(RUST_MODULE) == (implementation == "rust")
    assert all(loaded(module) == (implementation == "c") for module in C_MODULES.values())


def targets(rust):
    """The targets that dm-rust registers, found by unloading and loading it."""
    unload(RUST_MODULE)
    others = set(dm.target_versions())
    use("rust", rust)
    return set(dm.target_versions()) - others
