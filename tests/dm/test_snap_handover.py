"""Who takes over from whom, when two things come together."""

import pytest

from lib import wait
from lib.box import pattern
from lib.disk import in_flight
from lib.snaps import Gate, Valve, Watch
from test_snap_lifecycle import succeed, twin

pytestmark = pytest.mark.only("rust")


def test_header_of_a_lost_store_is_written_once(family, log):
    """A record fails that the former table has begun to write, while the next one waits to write another. Both saw that the
    store is lost; users were told twice."""
    lower = Gate(family.box, family.box.ram(4, cache=True))
    valve = Valve(family.box, lower)
    first = family.snap("P", 8, cow=valve)
    second = twin(family, first)
    valve.hold("flushes")
    writers = [family.writer(family.origin, 800, pattern("new", 8))]
    wait.until(lambda: in_flight(valve), "a record is on its way")
    first.suspend()
    second.resume()
    succeed(family, first, second)
    writers.append(family.writer(family.origin, 1600, pattern("new", 8)))
    wait.until(lambda: lower.read(24, 8) == second.expected[1600 * 512:1608 * 512], "the next one has its data")
    watch = Watch(second, log)
    lower.error_writes((8, 16))
    valve.release()
    for writer in writers:
        writer.result()
    second.wait_status("Invalid")
    lower.heal()
    watch.ended(Watch.FAILED)
    first.remove()
    second.swap(f"0 {second.length} error")  # all that it had to do is done
    watch.silent()
