"""Delay points of the module: places where a thread can be held, or where threads sleep at
random.
"""

import contextlib
import functools
import os
import re
from pathlib import Path

from . import wait
from .modules import PROJECT

_PARAMETERS = Path("/sys/module/dm_rust/parameters")
_POINT = re.compile(r'delay_point!\(\s*c"([^"]+)"')


def expected():
    """Whether the module has delay points in this kernel."""
    return os.environ.get("DM_RUST_KERNEL") in ("debug", "uml")


@functools.cache
def names():
    """The names of all delay points in the sources."""
    found = [
        name
        for path in sorted((PROJECT / "rust").glob("**/*.rs"))
        if path.name != "delay.rs"
        for name in _POINT.findall(path.read_text())
    ]
    assert found and len(found) == len(set(found)), f"no delay points, or two of one name: {found}"
    return found


def counts():
    """{name: (passed, slept)}: how often threads passed each point, and how often one slept
    there.
    """
    lines = (_PARAMETERS / "delay_points").read_text().splitlines()
    found = (re.fullmatch(r"(\d+) passed, (\d+) slept: (.*)", line).groups() for line in lines)
    return {name: (int(passed), int(slept)) for passed, slept, name in found}


@contextlib.contextmanager
def at_random(chance=200, microseconds=5000):
    """At each point `chance` of a thousand threads sleep, for up to `microseconds`."""
    values = {"delay_chance": chance, "delay_us": microseconds}
    before = {name: (_PARAMETERS / name).read_text() for name in values}
    for name, value in values.items():
        (_PARAMETERS / name).write_text(str(value))
    try:
        yield
    finally:
        for name, value in before.items():
            (_PARAMETERS / name).write_text(value)


class _Point:
    """A point at which the first thread that passes is held."""

    def __init__(self, name):
        assert name in names(), f"there is no delay point {name!r}"
        self.name = name
        self._write(name)

    @staticmethod
    def _write(text):
        (_PARAMETERS / "delay_hold").write_text(text)

    def is_taken(self):
        return (_PARAMETERS / "delay_hold").read_text().strip() == f"held at {self.name}"

    def wait(self):
        """Waits until a thread is held."""
        wait.until(self.is_taken, f"a thread is held at the delay point {self.name!r}")

    def release(self):
        """Releases the thread that is held; no thread is held afterwards."""
        self._write("\n")


@contextlib.contextmanager
def held(name):
    """Holds the first thread that reaches the point `name` until `release`, or the end of the
    context.
    """
    point = _Point(name)
    try:
        yield point
    finally:
        point.release()
