"""A missing broker may be skipped on a laptop; where brokers are required it must never look like a success."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

Missing = Callable[[str, str], NoReturn]


@pytest.mark.parametrize("required", ["", "redis", "nats,redis"])
def test_a_broker_that_is_not_required_is_skipped(
    required: str, broker_missing: Missing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUIRE_BROKERS", required)
    with pytest.raises(pytest.skip.Exception, match="kafka is missing: no server"):
        broker_missing("kafka", "no server")


@pytest.mark.parametrize("required", ["all", "kafka", "redis,kafka", "redis kafka"])
def test_a_broker_that_is_required_fails(
    required: str, broker_missing: Missing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUIRE_BROKERS", required)
    with pytest.raises(pytest.fail.Exception, match="kafka is missing: no server"):
        broker_missing("kafka", "no server")


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_run_says_before_its_closing_line_which_brokers_were_missing(workers: str, tmp_path: Path) -> None:
    for shared in ("conftest.py", "missing.py"):
        shutil.copy(Path(__file__).parents[1] / shared, tmp_path)
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\npythonpath = ["."]\n')
    (tmp_path / "test_it.py").write_text(
        "def test_kafka(broker_missing):\n    broker_missing('kafka', 'no server')\n"
        "def test_kafka_too(broker_missing):\n    broker_missing('kafka', 'no server')\n"
        "def test_other():\n    __import__('pytest').skip('not about a broker')\n"
    )
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "REQUIRE_BROKERS"))}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", "-n", workers],
        cwd=tmp_path,
        env=own,
        capture_output=True,
        text=True,
        check=True,
    )
    *_, title, line, closing = run.stdout.splitlines()
    assert title.strip("! ") == "BROKERS MISSING"
    assert line == "kafka: 2 tests skipped; with REQUIRE_BROKERS=kafka they fail"
    assert "3 skipped" in closing
