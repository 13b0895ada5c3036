"""Memory is short for a while, not for one allocation: what needs none continues, and what waits
does not keep a CPU busy.
"""

import contextlib
import time

import pytest

from lib import faults, wait
from lib.box import pattern
from lib.snaps import Family

pytestmark = pytest.mark.only("rust")

MANY = 1 << 30


class Shortage(faults.Attribute):
    """Fails each allocation that has the module on its stack."""

    def __init__(self, module):
        start, end = faults.text_range(module)
        super().__init__(
            "failslab",
            require_start=hex(start),
            require_end=hex(end),
            reject_start=0,
            reject_end=0,
            stacktrace_depth=32,
            ignore_gfp_wait="N",
            cache_filter="N",
        )

    @contextlib.contextmanager
    def lasting(self):
        interval = self.get("interval")
        self.put(interval=1, times=MANY, probability=100)
        try:
            yield
        finally:
            self.put(probability=0, times=0, interval=interval)

    @property
    def count(self):
        """The number of failed allocations."""
        return MANY - self.left


def test_exception_waits_for_memory(impl, box, request):
    """An exception is durable, but there is no memory for its table entry. A later exception that
    needs no memory completes; the worker retries at most fifty times a second.
    """
    family = Family(box, sectors=70000)
    snapshot = family.snap("P", 8)
    family.write(snapshot, 80, pattern("own", 8))  # the table has memory for its neighbours
    snapshot.cow.lower.fill(pattern("stale", 2048), 24)  # and so has the disk
    shortage = Shortage(request.config.rust)
    with shortage.lasting():
        far = family.writer(snapshot, 69632, pattern("far", 8))  # in another stripe of the table
        wait.until(lambda: shortage.count >= 3, "the worker asks for memory again and again")
        family.writer(snapshot, 160, pattern("near", 8)).result()
        assert not far.done
        # Retries are counted, not timed: a slow machine makes fewer of them.
        before, since = shortage.count, time.monotonic()
        wait.until(lambda: shortage.count >= before + 20, "it goes on to ask")
        asked, seconds = shortage.count - before, time.monotonic() - since
        assert asked <= 22 + 50 * seconds, f"{asked} times in {seconds:.2f} s"
    far.result()
    assert snapshot.exceptions() == 3
    family.check()
