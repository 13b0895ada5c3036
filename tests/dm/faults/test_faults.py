"""Every allocation and every request of each target's scenario fails once. See lib/faults.py and `FAULT` there."""

import importlib
import os
from pathlib import Path

import pytest

from lib import faults, modules

pytestmark = pytest.mark.only("rust")

SCENARIOS = {path.stem: importlib.import_module(path.stem).SCENARIO
             for path in sorted(Path(__file__).parent.glob("*.py")) if path.stem not in ("conftest", Path(__file__).stem)}
# FAULT="clone work slab 17" repeats one repetition, FAULT="clone work slab" one series.
CHOSEN = os.environ.get("FAULT", "").split()


@pytest.fixture
def small_reserves():
    """Reserves of dm-io and kcopyd as small as they may be: each element of one is an allocation that can fail."""
    folder = Path("/sys/module/dm_mod/parameters")
    wanted = {"reserved_bio_based_ios": "2", "kcopyd_subjob_size_kb": "16"}
    before = {name: (folder / name).read_text() for name in wanted}
    for name, value in wanted.items():
        (folder / name).write_text(value)
    yield
    for name, value in before.items():
        (folder / name).write_text(value)


def test_every_target_has_a_scenario(impl, rust_module):
    assert faults.targets(rust_module) == {scenario.target for scenario in SCENARIOS.values()}


@pytest.mark.parametrize("target, name", [(target, name) for target, it in SCENARIOS.items() for name in it.TESTS])
def test_series(impl, box, log, rust_module, small_reserves, target, name):
    """No leak, no hang, true status, nothing lost that was acknowledged; at the end the module can go."""
    leaks = faults.Leaks()
    for part, kind in SCENARIOS[target].TESTS[name]:
        if CHOSEN and [target, part, kind] != CHOSEN[:3]:
            continue
        scenario = SCENARIOS[target](box, rust_module, part, kind, log)
        try:
            faults.Series(scenario).run(int(CHOSEN[3]) if CHOSEN[3:] else None)
        finally:
            scenario.close()
    modules.unload(modules.RUST_MODULE)
    try:
        leaks.check()
    finally:
        modules.insmod(rust_module)
