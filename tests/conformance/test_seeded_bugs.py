"""The suite is tested: for each driver with a seeded bug it must fail, and in the property that is meant for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conformance.seeded_bugs import channels, fences, honesty, leases, logs, pulses, stores
from conformance.seeded_bugs.base import BUGS, Seeded
from conformance.seeded_bugs.pulses import SeededProcesses
from conformance.seeded_bugs.stores import SeededStores

TESTS = Path(__file__).parents[1]
MODULES = (channels, logs, fences, leases, pulses, honesty, stores)


def failed(driver: type, options: str, folder: Path, *more: str) -> set[str]:
    """The properties that fail when the suite is run against a driver of these modules, as anybody would run it."""
    target = f"--thalweg-transport={driver.__module__}:{driver.__name__}://?lease=30&message_bytes=10000&{options}"
    if issubclass(driver, SeededStores):
        target = f"--thalweg-store={driver.__module__}:{driver.__name__}:///{folder}/stores"
    if issubclass(driver, SeededProcesses):
        target = f"--thalweg-transport={driver.__module__}:{driver.__name__}:///{folder}/broker.db?lease=0.5"
        more = ("--thalweg-patience=5", *more)
    settings = ("--thalweg-certificate=certificate.json", "--thalweg-patience=0.5", "--thalweg-seed=1", *more)
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "pytest_thalweg", target, *settings, "-q", "--tb=line"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(TESTS), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode in (0, 1), result.stdout + result.stderr
    (certificate,) = json.loads((folder / "certificate.json").read_text())["certificates"]
    names = {found["name"] for found in certificate["properties"] if found["outcome"] == "failed"}
    assert bool(names) == bool(result.returncode), result.stdout
    return names


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_the_suite_catches(bug: type, tmp_path: Path) -> None:
    name, options = BUGS[bug]
    names = failed(bug, options, tmp_path, "-k", name)  # the whole suite costs seconds more, for each bug
    assert name in names, f"{bug.__name__} was not caught where it should be, but by: {sorted(names) or 'nothing'}"


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
