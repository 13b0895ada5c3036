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
    """The kernel log accepts every line of the soak, without a rate limit."""
    with modules.setting("/proc/sys/kernel/printk_devkmsg", "on\n"):
        yield


def pytest_configure(config):
    config.soaks = []


def pytest_terminal_summary(terminalreporter, config):
    """Prints what was done, to show that each event has occurred."""
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
    """Shows with a failure the kernel log of its own run; the console log has that of all runs."""
    report = yield
    if item.name.startswith("test_soak"):
        report.sections = [section for section in report.sections if section[0] != "Kernel log"]
    return report
