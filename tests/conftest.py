"""Rules for every test: what `alone` means, and what a broker that is not there means."""

from __future__ import annotations

import fcntl
import os
import re
from collections import Counter
from collections.abc import Callable, Generator
from typing import NoReturn

import pytest
from missing import missing


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Under pytest-xdist, a test marked `alone` waits until no other runs, and the others wait for it."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    with open(item.config.rootpath / "pyproject.toml", "rb") as lock:  # any file that all workers can open
        fcntl.flock(lock, fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH)
        return (yield)


@pytest.fixture(scope="session")
def broker_missing() -> Callable[[str, str], NoReturn]:
    """Call it with a broker's name and the reason: skips, or fails where REQUIRE_BROKERS lists the broker or `all`."""
    return missing


@pytest.hookimpl(wrapper=True, tryfirst=True)  # around pytest's own summary: just before the closing line
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Generator[None, object, object]:
    """Say loudly for which brokers tests were skipped: nobody may take such a run for a complete one."""
    result = yield
    reasons = [str(report.longrepr[2]) for report in terminalreporter.stats.get("skipped", [])]
    missing = Counter(found[1] for reason in reasons if (found := re.match(r"Skipped: (\S+) is missing: ", reason)))
    if missing:
        terminalreporter.section("BROKERS MISSING", sep="!", red=True, bold=True)
        for broker, tests in sorted(missing.items()):
            terminalreporter.line(f"{broker}: {tests} tests skipped; with REQUIRE_BROKERS={broker} they fail", red=True)
    return result
