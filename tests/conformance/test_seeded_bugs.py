"""The suite is tested: for each driver with a seeded bug it must fail, and in the property that is meant for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from conformance.seeded_bugs import channels, fences, honesty, leases, logs, pulses, stores
from conformance.seeded_bugs.base import BUGS, Seeded
from conformance.seeded_bugs.pulses import SeededProcesses
from conformance.seeded_bugs.stores import SeededStores

TESTS = Path(__file__).parents[1]
MODULES = (channels, logs, fences, leases, pulses, honesty, stores)


TOGETHER = 20
"""Bugs in one run: each run costs a second before it begins."""


def run(targets: Mapping[type, str], folder: Path, *more: str) -> dict[str, set[str]]:
    """By driver, the properties that fail when the suite is run against these modules' drivers as anybody would run it.

    targets: with the options of their URLs.
    """
    settings = ["--thalweg-certificate=certificate.json", "--thalweg-seed=1", "--thalweg-patience=0.5"]
    for driver, options in targets.items():
        target = f"transport={driver.__module__}:{driver.__name__}://?lease=30&message_bytes=10000&{options}"
        if issubclass(driver, SeededStores):
            target = f"store={driver.__module__}:{driver.__name__}:///{folder}/{driver.__name__}"
        if issubclass(driver, SeededProcesses):
            target = f"transport={driver.__module__}:{driver.__name__}:///{folder}/{driver.__name__}?lease=0.5"
            settings[2] = "--thalweg-patience=5"
        settings.append(f"--thalweg-{target}")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "pytest_thalweg", *settings, "-q", "--tb=line", *more],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(TESTS), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode in (0, 1), result.stdout + result.stderr
    names: dict[str, set[str]] = {}
    for certificate in json.loads((folder / "certificate.json").read_text())["certificates"]:
        failed = {found["name"] for found in certificate["properties"] if found["outcome"] == "failed"}
        names[certificate["target"].partition("://")[0].rpartition(":")[2]] = failed
    assert bool(set().union(*names.values())) == bool(result.returncode), result.stdout
    assert names.keys() == {driver.__name__ for driver in targets}, result.stdout
    return names


def failed(driver: type, options: str, folder: Path, *more: str) -> set[str]:
    return run({driver: options}, folder, *more)[driver.__name__]


def groups() -> dict[str, list[type]]:
    found: dict[str, list[type]] = {}
    for module in MODULES:
        bugs = [bug for bug in BUGS if bug.__module__ == module.__name__]
        for start in range(0, len(bugs), TOGETHER):
            found[f"{module.__name__.rpartition('.')[2]} {start + 1}-"] = bugs[start : start + TOGETHER]
    return found


@pytest.mark.parametrize("group", groups())
def test_the_suite_catches(group: str, tmp_path: Path) -> None:
    bugs = groups()[group]
    names = run({bug: BUGS[bug][1] for bug in bugs}, tmp_path, "-p", "conformance.seeded_bugs.only")
    missed = [bug.__name__ for bug in bugs if names[bug.__name__] != {BUGS[bug][0]}]
    assert not missed, f"not caught where they should be: {', '.join(missed)}"


@pytest.mark.parametrize("options", ["", "grouped=true", "fencing=false", "commit_messages=50"])
def test_the_suite_finds_nothing_in_the_driver_without_a_bug(options: str, tmp_path: Path) -> None:
    assert failed(Seeded, options, tmp_path) == set()


def test_the_suite_finds_nothing_in_the_store_without_a_bug(tmp_path: Path) -> None:
    assert failed(SeededStores, "", tmp_path) == set()


def test_the_suite_finds_nothing_in_processes_without_a_bug(tmp_path: Path) -> None:
    assert failed(SeededProcesses, "", tmp_path, "-k", "event_loop") == set()


def test_no_bug_was_forgotten() -> None:
    found = {value for module in MODULES for value in vars(module).values() if isinstance(value, type)}
    bugs = {bug for bug in found if issubclass(bug, Seeded | SeededProcesses | SeededStores)}
    assert bugs - {honesty.Knowing} == {*BUGS, Seeded, SeededProcesses, SeededStores}
    assert len(BUGS) >= 30
