"""Options of the soak, and its summary."""

import pytest

from lib import modules


def pytest_addoption(parser):
    group = parser.getgroup("soak")
    group.addoption(
        "--seconds",
        type=float,
        default=60,
        help="how long to go on (60); the last run comes to its end",
    )
    group.addoption(
        "--crowd-seconds",
        type=float,
        default=0,
        help="how long each crowd goes on, if that takes more than the least number of rounds (0)",
    )
    group.addoption(
        "--events",
        metavar="FILE|TEXT",
        help="carry out this event list, as a failure prints it, again and again for --seconds",
    )
    group.addoption(
        "--shorten",
        type=float,
        default=300,
        metavar="SECONDS",
        help="how long to look for a shorter event list that fails (300)",
    )


@pytest.fixture
def soak_in_guest():
    """The kernel log takes every line of the soak, however many come."""
    with modules.setting("/proc/sys/kernel/printk_devkmsg", "on\n"):
        yield


def pytest_configure(config):
    config.soaks = []


def pytest_terminal_summary(terminalreporter, config):
    """What was done, so that one sees that every hook had its turn."""
    for soak in config.soaks:
        kinds = list(soak.driver.events())
        others = sorted({name for name, _ in soak.tally} - set(kinds))
        total = sum(count for (name, _), count in soak.tally.items() if name in kinds)
        terminalreporter.write_line(
            f"soak of {soak.driver.TARGET}: {soak.runs} runs, {total} events in {soak.spent:.0f} s"
        )
        for name in kinds + others:
            outcomes = {
                outcome: count for (kind, outcome), count in soak.tally.items() if kind == name
            }
            notes = [
                f"{count} {outcome}"
                for outcome, count in sorted(outcomes.items())
                if outcome != "done"
            ]
            terminalreporter.write_line(
                f"  {name:16}{sum(outcomes.values()):7}  {', '.join(notes)}".rstrip()
            )


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item, call):
    """A failure shows the kernel log of its own run; that of all runs is in the console log."""
    report = yield
    if item.name.startswith("test_soak"):
        report.sections = [section for section in report.sections if section[0] != "Kernel log"]
    return report
