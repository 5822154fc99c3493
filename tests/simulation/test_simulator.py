"""The simulator's own tests, and the seeds that every change must pass. `make simulate SEEDS=10000` runs more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
SEEDS = int(os.environ.get("SIMULATED", "500"))
PARTS = 4
SOON_FOUND = (
    "asked_with_the_commit",
    "cancelling_ignored",
    "deaths_forgotten",
    "delays_in_memory",
    "early_truncation",
    "fetched_is_reached",
    "floor_ignored",
    "foreign_headers",
    "ids_forgotten",
    "left_early",
    "lost_revoke",
    "plan_not_diffed",
    "position_first",
    "released_early",
    "retries_in_memory",
    "served_without_lease",
    "written_outside",
    "zombie_plan",
)
"""Of the planted bugs; `make simulate ARGS=--bugs` looks for all."""


def simulation(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "simulation", *map(str, arguments)],
        cwd=TESTS,
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        timeout=280,
    )


@pytest.mark.parametrize("part", range(PARTS))
def test_no_seed_violates_anything(part: int) -> None:
    seeds = range(SEEDS)[part::PARTS]
    result = simulation("--first", seeds[0], "--step", PARTS, "--seeds", len(seeds), "--processes", 1)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("bug", SOON_FOUND)
def test_a_planted_bug_is_found_within_the_same_seeds(bug: str) -> None:
    result = simulation("--bug", bug, "--seeds", 40, "--processes", 1, "--until-found")
    assert result.returncode == 1, result.stdout + result.stderr
    assert "VIOLATED" in result.stdout


def test_a_seed_takes_the_same_course_whatever_ran_before_it() -> None:
    together = simulation("--first", 2, "--seeds", 6, "--processes", 1, "--courses")
    alone = simulation("--first", 6, "--seeds", 1, "--processes", 1, "--courses")
    courses = [line for line in together.stdout.splitlines() if line.startswith("course of seed ")]
    assert len(courses) == 6, together.stdout + together.stderr
    (course,) = [line for line in alone.stdout.splitlines() if line.startswith("course of seed 6:")]
    assert course in courses


def test_a_failing_seed_replays_and_prints_what_led_to_it() -> None:
    found = simulation("--bug", "served_without_lease", "--seeds", 40, "--processes", 1, "--until-found")
    seed = found.stdout.split("--seed ")[1].split()[0]
    again = simulation("--bug", "served_without_lease", "--seed", seed)
    violation = found.stdout.split(f"seed {seed} VIOLATED ")[1].split("; ")[0].splitlines()[0]
    assert again.returncode == 1
    assert f"VIOLATED {violation}" in again.stdout
    assert "is served by" in violation
    assert "worker1 opens " in again.stdout  # the schedule
    assert "The last 400 steps:" in again.stdout
