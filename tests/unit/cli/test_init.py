"""`thalweg init`: what it writes works as it stands."""

from __future__ import annotations

import subprocess
import sys

from .conftest import PATIENCE, Shell

FILES = {"bank.py", "test_bank.py", "pyproject.toml", "README.md"}


def test_the_new_program_runs_and_its_tests_pass(shell: Shell) -> None:
    done = shell.run("init", "new/bank")
    assert done.returncode == 0
    folder = shell.folder / "new" / "bank"
    assert {file.name for file in folder.iterdir()} == FILES
    made = Shell.__new__(Shell)
    made.folder, made.environment = folder, shell.environment
    assert made.run("bank.py", "agents").stdout.startswith("total\twithdrawals\t1\ttrue\t")
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error"],
        cwd=folder,
        env=shell.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert tests.returncode == 0, tests.stdout
    assert "2 passed" in tests.stdout


def test_the_new_program_is_typed(shell: Shell) -> None:
    shell.run("init", "typed")
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", "cache", "typed/bank.py"],
        cwd=shell.folder,
        env=shell.environment,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
    )
    ours = [line for line in checked.stdout.splitlines() if line.startswith("typed/")]
    assert ours == []


def test_no_file_is_overwritten(shell: Shell) -> None:
    before = (shell.folder / "bank.py").read_text()
    done = shell.run("init")
    assert done.returncode == 1
    assert "bank.py would be overwritten; nothing was written" in done.stderr
    assert (shell.folder / "bank.py").read_text() == before
    assert not (shell.folder / "test_bank.py").exists()
