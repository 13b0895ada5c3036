"""The suite runs as root in a guest. Each test runs once per implementation: first on the C
targets, then on dm-rust.

Tests ask for `impl`, directly or through `box`. `only("c")` and `only("rust")` restrict a test to
one implementation. A test that asks for `same` compares what it records on dm-rust with what it
recorded on C. See pytest --help, "device-mapper".
"""

import collections
import os
import random
import signal

import pytest

from lib import box as boxes
from lib import delay, dm, eras, kmsg, merges, modules, snaps
from lib.snap_lines import disks, load  # noqa: F401  (fixtures of the tests of table lines)

SECONDS_PER_TEST = 300
# The order of the phases: modules change once between two phases. In the last phase C opens what
# dm-rust wrote.
PHASES = "c", "rust", "c-again"
# Files whose tests take a fifth of the time of the others.
QUICK = {
    "test_table.py",
    "test_era_table.py",
    "test_snap_table.py",
    "test_snap_devices.py",
    "test_snap_format.py",
    "test_snap_format_damage.py",
    "test_snap_format_full.py",
}


def pytest_addoption(parser):
    group = parser.getgroup("device-mapper")
    group.addoption(
        "--impl",
        choices=("c", "rust", "both"),
        help="implementation under test (default: both, or c where dm_rust.ko was not built)",
    )
    group.addoption(
        "--rust-module", metavar="FILE", help="dm_rust.ko to test (default: the one in the project)"
    )
    group.addoption(
        "--example-module",
        metavar="FILE",
        help="dm_rust.ko built with DM_RUST_EXAMPLE=1, for the example's test",
    )
    group.addoption(
        "--seed", type=int, help="seed of the random tests (default: a new one, which is printed)"
    )
    group.addoption(
        "--share",
        metavar="K/N",
        default="1/1",
        help="run the K-th of N shares of the tests (another guest runs the others)",
    )
    group.addoption("--few", action="store_true", help="take only the first of a test's parameters")
    group.addoption(
        "--compare",
        action="store_true",
        help="on C run only the tests with which dm-rust is compared",
    )
    group.addoption(
        "--all-n",
        action="store_true",
        help="try every n of each series of faults, however long it takes",
    )
    group.addoption(
        "--leave", choices=("c", "rust"), help="implementation to leave loaded at the end"
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "only(impl): the test applies to this implementation only")
    config.addinivalue_line("markers", "both: the test needs a run with both implementations")
    config.addinivalue_line(
        "markers", "leaves: a test of the other implementation uses what this test leaves"
    )
    config.addinivalue_line(
        "markers",
        "crowd: several threads at once; make test runs it in the debug kernel too",
    )
    config.addinivalue_line(
        "markers",
        "delays: the test needs delay points, which the module for the stock kernel does not have",
    )
    config.addinivalue_line("markers", "phases(*names): run in these phases instead of c and rust")
    config.rust = modules.rust_file(config.getoption("--rust-module"))
    wanted = config.getoption("--impl") or ("both" if config.rust else "c")
    if wanted != "c" and not config.rust:
        raise pytest.UsageError(
            "dm_rust.ko was not found: build it with 'make', or name it with --rust-module"
        )
    config.impls = ("c", "rust") if wanted == "both" else (wanted,)
    config.seed = config.getoption("--seed")
    if config.seed is None:
        config.seed = random.randrange(1 << 32)
    config.records, config.probes = {}, {}


def pytest_report_header(config):
    return [
        f"device-mapper: kernel {os.uname().release}, implementations "
        f"{' and '.join(config.impls)}, "
        f"seed {config.seed} (--seed {config.seed} repeats this run)"
    ]


def pytest_generate_tests(metafunc):
    if "impl" not in metafunc.fixturenames:
        return
    only = metafunc.definition.get_closest_marker("only")
    phases = metafunc.definition.get_closest_marker("phases")
    names = phases.args if phases else only.args if only else ("c", "rust")
    impls = metafunc.config.impls
    both = impls == ("c", "rust")
    if not both and metafunc.definition.get_closest_marker("both"):
        names = []
    names = [name for name in names if name in impls or (name == "c-again" and both)]
    metafunc.parametrize("impl", names, indirect=True, scope="session")


@pytest.hookimpl(trylast=True)  # shares are made of what -m and -k leave
def pytest_collection_modifyitems(config, items):
    _refuse_empty(items)
    # A test that has no implementation parameter left belongs to the other implementation only.
    left = sorted((i for i in items if _phase(i) is not None), key=_phase)
    if not delay.expected():
        left = [item for item in left if not item.get_closest_marker("delays")]
    if config.getoption("--compare"):
        left = [item for item in left if _compared(item)]
    if config.getoption("--few"):
        left = _few(left)
    left = _share(left, config.getoption("--share"))
    config.hook.pytest_deselected(items=list(set(items) - set(left)))
    items[:] = left


def _refuse_empty(items):
    """Refuses a test whose list of parameters is empty: it would pass without having run."""
    empty = {
        item.nodeid
        for item in items
        for mark in item.iter_markers("skip")
        if "empty parameter set" in mark.kwargs.get("reason", "")
        and "impl" not in mark.kwargs["reason"].split(",")[0]
    }
    if empty:
        raise pytest.UsageError(f"no parameters for {', '.join(sorted(empty))}")


def _few(items):
    first = {}
    for item in items:
        first.setdefault((item.function, _phase(item)), item)
    return list(first.values())


def _compared(item):
    return (
        _phase(item) != PHASES.index("c")
        or "same" in item.fixturenames
        or any(map(item.get_closest_marker, ("both", "leaves", "phases")))
    )


def _share(items, which):
    """The K-th of N shares of about equal duration. A share has whole files, since tests of one
    file may depend on each other.
    """
    share, shares = map(int, which.split("/"))
    sizes, files = collections.Counter(), [[] for _ in range(shares)]
    for item in items:
        sizes[item.path] += 1 if item.path.name in QUICK else 5
    for path, _ in sorted(sizes.items(), key=lambda entry: (-entry[1], entry[0])):
        min(files, key=lambda taken: sum(sizes[path] for path in taken)).append(path)
    return [item for item in items if item.path in files[share - 1]]


def _phase(item):
    if "impl" not in getattr(item, "fixturenames", ()):
        return len(PHASES)
    params = getattr(getattr(item, "callspec", None), "params", {})
    return PHASES.index(params["impl"]) if params.get("impl") in PHASES else None


@pytest.fixture(scope="session", autouse=True)
def guest(request):
    """Prepares the guest, once for all tests."""
    assert (
        os.geteuid() == 0
    ), "the suite needs root in a guest: scripts/vm -- python3 -m pytest tests/dm"
    os.environ["DM_DISABLE_UDEV"] = "1"
    modules.run("modprobe", "-a", "dm-mod", "configfs", "dm-flakey", "dm-delay", "dm-zero", "loop")
    modules.run("modprobe", "null_blk", "nr_devices=0")
    if not os.path.ismount("/sys/kernel/config"):
        modules.run("mount", "-t", "configfs", "none", "/sys/kernel/config")
    # Creating and removing hundreds of devices mostly waits for RCU, except without preemption on
    # one CPU.
    if os.path.exists("/sys/kernel/rcu_expedited"):
        with open("/sys/kernel/rcu_expedited", "w") as file:
            file.write("1")
    before = dm.leftovers()
    assert not before, f"mapped devices exist already: {before}"
    yield
    boxes.Box.pool.drain()
    if request.config.getoption("--leave"):
        modules.use(request.config.getoption("--leave"), request.config.rust)


@pytest.fixture(scope="session")
def impl(request):
    """ "c" or "rust": the implementation that provides the targets while the test runs."""
    name = "c" if request.param.startswith("c") else "rust"
    modules.use(name, request.config.rust)
    return name


@pytest.fixture
def rust_module(request):
    return request.config.rust


_log = None


@pytest.fixture
def log():
    """The kernel log from the start of the test."""
    return _log


@pytest.fixture
def said(log):
    return kmsg.Said(log)


@pytest.fixture(autouse=True)
def watch(request, guest):
    """Fails a test that takes too long, leaves mapped devices behind, or makes the kernel
    complain.
    """
    global _log
    _log = kmsg.Log()
    taint = _taint()

    def too_long(*_):
        raise TimeoutError(f"the test ran for more than {SECONDS_PER_TEST} s")

    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS_PER_TEST)
    yield
    signal.alarm(0)
    bad, left = _log.bad(), dm.leftovers()
    everything = "\n".join(_log.lines())
    _log.close()
    assert not bad, f"the kernel complained:\n{everything}"
    assert (
        not _taint() & ~taint & (1 << 5 | 1 << 7 | 1 << 9 | 1 << 14)
    ), "the kernel is tainted by a fault"
    assert not left, f"mapped devices left behind: {left}"


def _taint():
    with open("/proc/sys/kernel/tainted") as file:
        return int(file.read())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed and _log is not None:
        try:
            report.sections.append(("Kernel log", "\n".join(_log.lines())))
        except OSError:
            pass
    return report


@pytest.fixture
def box(watch):
    """Creates disks and mapped devices, and removes them after the test."""
    new_box = boxes.Box()
    yield new_box
    new_box.close()


@pytest.fixture
def clone_box(impl, box):
    """A box, after the modules of one implementation were loaded."""
    return box


@pytest.fixture
def pair(impl, box):
    """A metadata device and an origin for an era."""
    return eras.Pair(box)


@pytest.fixture
def family(impl, box):
    """An origin without snapshots."""
    return snaps.Family(box)


@pytest.fixture
def parts(impl, box):
    return merges.Parts(box)


@pytest.fixture
def folder(tmp_path_factory):
    """A mount point, which is unmounted after the test."""
    path = tmp_path_factory.mktemp("mnt")
    yield path
    while os.path.ismount(path):
        modules.run("umount", path)


@pytest.fixture
def rng(request):
    """A random number generator that --seed repeats."""
    seed = f"{request.config.seed}/{request.node.originalname}"
    return random.Random(seed)


@pytest.fixture
def probe(request, impl):
    """probe(question, ask): the behaviour of this kernel's C module, where kernels differ. `ask`
    runs while C is loaded; later the answer is remembered. None if C was never asked.
    """
    answers = request.config.probes

    def answer(question, ask):
        if impl == "c" and question not in answers:
            answers[question] = ask()
        return answers.get(question)

    return answer


@pytest.fixture
def same(request, impl):
    """same(value, what): records the value on C, and asserts on dm-rust that it is equal."""
    records = request.config.records

    def check(value, what=""):
        key = (
            request.node.nodeid.replace(f"[{request.node.callspec.id}]", ""),
            tuple(v for k, v in sorted(request.node.callspec.params.items()) if k != "impl"),
            what,
        )
        if impl == "c":
            records[key] = value
        elif "c" in request.config.impls:
            assert (
                key in records
            ), "C left no record to compare with (its test failed or was not selected)"
            assert value == records[key], f"{what or 'record'} differs from C's"

    return check


_durations = {}


def pytest_runtest_logreport(report):
    _durations[report.nodeid] = _durations.get(report.nodeid, 0) + report.duration


def pytest_terminal_summary(terminalreporter, config):
    by = {"implementation": collections.Counter(), "file": collections.Counter()}
    for node, seconds in _durations.items():
        name = next((p for p in reversed(PHASES) if f"[{p}" in node or f"-{p}" in node), "none")
        by["implementation"][name] += seconds
        by["file"][os.path.basename(node.split("::")[0])] += seconds
    for what, sums in by.items():
        terminalreporter.write_line(
            f"time by {what}: "
            + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in sums.most_common())
        )
