"""Several threads at once on the same devices of each target; see crowd.py. One file per
scenario.
"""

import os
import random
import signal
import time

import crowd_clone
import crowd_era
import crowd_snapshot
import pytest

from lib import box, delay, modules

# The least number of rounds. In the debug kernel a round takes ten times as long.
ROUNDS = (
    {"clone": 2, "era": 2, "snapshot": 6}
    if os.environ.get("DM_RUST_KERNEL") == "debug"
    else {"clone": 8, "era": 8, "snapshot": 24}
)
OVERTIME = 120
SECONDS_PER_ROUND = 240


pytestmark = [pytest.mark.crowd, pytest.mark.delays, pytest.mark.only("rust")]


def test_clones(impl, request, rust_module):
    go(crowd_clone.Clone(box.Box), request, rust_module)


def test_eras(impl, request, rust_module):
    go(crowd_era.Era(box.Box), request, rust_module)


def test_snapshots(impl, request, rust_module):
    """Origins and merges too."""
    go(crowd_snapshot.Family(box.Box), request, rust_module)


def go(crowd, request, rust_module):
    """Runs the least number of rounds, or rounds for --crowd-seconds, and until everything has
    happened.
    """
    name = crowd.NAME
    start, seconds = time.monotonic(), request.config.getoption("--crowd-seconds")
    end, last = start + seconds, start + seconds + OVERTIME
    before = delay.counts()
    while crowd.rounds < ROUNDS[name] or time.monotonic() < end or crowd.missing():
        if time.monotonic() > last:
            break
        seed = f"{request.config.seed}/{name}/{crowd.rounds}"
        try:
            with delay.at_random(300, 20000 if crowd.rounds % 2 else 3000):
                crowd.round(random.Random(seed))
        except BaseException as error:
            error.add_note(f"round {crowd.rounds} of {name}, seed {seed}")
            raise
        signal.alarm(SECONDS_PER_ROUND)
    slept = {
        point: count - before.get(point, (0, 0))[1] for point, (_, count) in delay.counts().items()
    }
    print(
        f"crowd of {name}: {crowd.rounds} rounds in {time.monotonic() - start:.0f} s; "
        + ", ".join(f"{what} {count}" for what, count in sorted(crowd.tally.items()))
    )
    print("slept at " + ", ".join(f"{point} {count}" for point, count in slept.items() if count))
    assert (
        not crowd.missing()
    ), f"too little has happened in {crowd.rounds} rounds: {crowd.missing()}"
    assert sum(slept.values()) > crowd.rounds, slept
    modules.unload(modules.RUST_MODULE)
    modules.insmod(rust_module)
