"""Every allocation and every request of each target's scenario fails once. See lib/faults.py, and
`FAULT` there.
"""

import errno
import importlib
import os
from pathlib import Path

import pytest

from lib import dm, faults, modules

pytestmark = pytest.mark.only("rust")

FILES = [
    path.stem
    for path in sorted(Path(__file__).parent.glob("*.py"))
    if not path.stem.startswith(("conftest", "test_"))
]
SCENARIOS = {
    scenario.target: scenario
    for scenario in (importlib.import_module(file).SCENARIO for file in FILES)
}
# FAULT="clone work slab 17" repeats one repetition, FAULT="clone work slab" one series.
CHOSEN = os.environ.get("FAULT", "").split()


@pytest.fixture
def small_reserves():
    """Makes the reserves of dm-io and kcopyd as small as possible: each of their elements is an
    allocation that can fail.
    """
    folder = "/sys/module/dm_mod/parameters"
    with modules.setting(f"{folder}/reserved_bio_based_ios", "2"), modules.setting(
        f"{folder}/kcopyd_subjob_size_kb", "16"
    ):
        yield


def test_every_target_has_a_scenario(impl, rust_module):
    assert modules.targets(rust_module) == set(SCENARIOS) and len(SCENARIOS) == len(FILES)


@pytest.mark.parametrize(
    "target, name",
    [(target, name) for target, scenario in SCENARIOS.items() for name in scenario.TESTS],
)
def test_series(request, impl, box, log, rust_module, small_reserves, target, name):
    """No leak, no hang, a true status, and nothing lost that was acknowledged; afterwards the
    module can be unloaded.
    """
    assert (
        not CHOSEN
        or CHOSEN[0] == "module"
        or any(
            [scenario.target, *series] == CHOSEN[:3]
            for scenario in SCENARIOS.values()
            for tests in scenario.TESTS.values()
            for series in tests
        )
    ), "no such FAULT"
    leaks = faults.Leaks()
    for part, kind in SCENARIOS[target].TESTS[name]:
        if CHOSEN and [target, part, kind] != CHOSEN[:3]:
            continue
        scenario = SCENARIOS[target](box, rust_module, part, kind, log)
        mark = log.mark()
        try:
            every = (
                1
                if CHOSEN or request.config.getoption("--all-n")
                else scenario.EVERY.get((part, kind), 1)
            )
            series = faults.Series(scenario).run(int(CHOSEN[3]) if CHOSEN[3:] else None, every)
            if not CHOSEN[3:]:
                scenario.complete(series, log.lines(mark))
        finally:
            scenario.close()
    modules.unload(modules.RUST_MODULE)
    try:
        leaks.check()
    finally:
        modules.insmod(rust_module)


class Loading(faults.Scenario):
    """Loading the module: it is loaded as a whole, or not at all and can be loaded again."""

    target, part, kind = "module", "loading", "slab"
    CALLER = "do_one_initcall"

    def __init__(self, module, targets):
        self.module, self.targets = module, targets

    def begin(self):
        modules.unload(modules.RUST_MODULE)

    def steps(self):
        return [faults.Step(self.load, {errno.ENOMEM})]

    def load(self):
        result = modules.insmod(self.module, check=False)
        if result.returncode:
            assert "Cannot allocate memory" in result.stderr, result.stderr
            assert not modules.loaded(modules.RUST_MODULE) and not self.targets & set(
                dm.target_versions()
            )
            raise OSError(errno.ENOMEM, "not loaded")

    def allocate(self):
        modules.unload(modules.RUST_MODULE)
        self.load()

    def end(self, hit):
        if not hit:
            self.begin()
            self.load()
        assert self.targets <= set(dm.target_versions())


def test_loading(impl, rust_module):
    leaks = faults.Leaks()
    try:
        series = faults.Series(Loading(rust_module, modules.targets(rust_module)))
        series.run(int(CHOSEN[3]) if CHOSEN[:1] == ["module"] else None)
        assert series.last >= 2 and series.failed["load"] >= 2
        modules.unload(modules.RUST_MODULE)
        leaks.check()
    finally:
        if not modules.loaded(modules.RUST_MODULE):
            modules.insmod(rust_module)
