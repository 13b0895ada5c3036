"""All targets of the module under random events; see engine.py. One driver per target, in a file of
its name.
"""

import importlib
import time

import pytest

import engine
from lib import box, modules


@pytest.fixture
def drivers(impl, rust_module):
    """The drivers of the targets that the module registers."""
    targets = sorted(modules.targets(rust_module))
    assert targets, "the module registers no target"
    found = []
    for target in targets:
        name = target.replace("-", "_")
        try:
            found.append(importlib.import_module(name).DRIVER)
        except ModuleNotFoundError as missing:
            if missing.name != name:
                raise
            pytest.fail(f"target {target} has no driver in tests/dm/soak/{name}.py", pytrace=False)
        assert found[-1].TARGET == target
    return found


@pytest.mark.crowd
@pytest.mark.only("rust")
def test_soak(drivers, request, soak_in_guest):
    """Runs for --seconds, which the targets share, and until each event has happened. A failure
    says how to repeat it.
    """
    option = request.config.getoption
    # In the debug kernel, which takes ten times as long, two thirds of the events are enough.
    least = 2 / 3 if option("--few") else 1.0
    soaks = [engine.Soak(driver, box.Box, option("--shorten"), least) for driver in drivers]
    request.config.soaks += soaks
    if option("--events"):
        plan = engine.Plan.parse(option("--events"))
        soak = next(soak for soak in soaks if soak.driver.TARGET == plan.target)
        report = soak.replay(plan, time.monotonic() + option("--seconds"))
        assert_passed(report)
        return
    for soak in soaks:
        assert_passed(soak.go(engine.seeds(request.config.seed), option("--seconds") / len(soaks)))
        assert soak.is_enough


def assert_passed(report):
    if report:
        pytest.fail(report, pytrace=False)
