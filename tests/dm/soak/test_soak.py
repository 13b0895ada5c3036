"""All targets of our module under random events; see engine.py. One driver per target, in a file of its name."""

import importlib
import time

import pytest

import engine
from lib import box, modules


@pytest.fixture
def drivers(impl, rust_module):
    """The drivers of what the module registers."""
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
    """For --seconds, batch after batch, the targets in turn. A failure says how to repeat it."""
    option = request.config.getoption
    end = time.monotonic() + option("--seconds")
    soaks = [engine.Soak(driver, box.Box, option("--shorten")) for driver in drivers]
    request.config.soaks += soaks
    if option("--events"):
        plan = engine.Plan.parse(option("--events"))
        soak = next(soak for soak in soaks if soak.driver.TARGET == plan.target)
        report = soak.replay(plan, end)
        assert_passed(report)
        return
    seeds = engine.seeds(request.config.seed)
    while True:
        seed = next(seeds)
        for soak in soaks:
            assert_passed(soak.batch(seed, end))
        if time.monotonic() > end:
            return


def assert_passed(report):
    if report:
        pytest.fail(report, pytrace=False)
