"""Where does the tests' time go? CPU seconds of each test, of its set-up and of the processes that it waited for.

``pytest -p tests.cpu_seconds`` ends with the sum, each file and the forty dearest tests. Seconds of a clock also count what
other programs of the machine did meanwhile; these count less of it. A shared fixture's are those of the test that made it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Generator
from typing import Any

import pytest

from tests.warm import KEY

BEFORE = pytest.StashKey[float]()
DEAREST = 40


def used(item: pytest.Item) -> float:
    """User's and system's seconds of this process and of all that it waited for, or had waited for."""
    warm = item.config.stash.get(KEY, None)
    return sum(os.times()[:4]) + (warm.spent if warm is not None else 0.0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, Any, Any]:
    item.stash[BEFORE] = used(item)
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    now = used(item)
    # Sent to the process that prints, where several run tests.
    vars(report)["cpu_seconds"] = now - item.stash.get(BEFORE, now)
    item.stash[BEFORE] = now
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    tests: Counter[str] = Counter()
    files: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            seconds = getattr(report, "cpu_seconds", None)
            # A skipped or failed test's reports of other phases are listed nowhere, or under no word.
            if seconds is not None:
                tests[report.nodeid] += seconds
                files[report.nodeid.partition("::")[0]] += seconds
    terminalreporter.section(f"CPU seconds: {sum(files.values()):.1f}")
    for name, seconds in (*files.most_common(), *tests.most_common(DEAREST)):
        terminalreporter.write_line(f"{seconds:8.1f}  {name}")
