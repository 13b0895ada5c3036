"""Delay points of the module: places where a thread can be held, or where threads sleep at random."""

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
    return os.environ.get("DM_RUST_KERNEL", "stock") != "stock"


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
    """How often each point was passed and how often somebody slept there: {name: (passed, slept)}."""
    lines = (_PARAMETERS / "delay_points").read_text().splitlines()
    found = (re.fullmatch(r"(\d+) passed, (\d+) slept: (.*)", line).groups() for line in lines)
    return {name: (int(passed), int(slept)) for passed, slept, name in found}


@contextlib.contextmanager
def at_random(chance=200, microseconds=5000):
    """So many in a thousand sleep at each point, no longer than this."""
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
    """A point at which the first thread that comes is held."""

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
        """Waits until somebody is held."""
        wait.until(self.is_taken, f"somebody comes to the delay point {self.name!r}")

    def release(self):
        """Whoever is held goes on, and nobody is held any more."""
        self._write("\n")


@contextlib.contextmanager
def held(name):
    """The first thread that comes to the point `name` is held until `release`, or the end."""
    point = _Point(name)
    try:
        yield point
    finally:
        point.release()
