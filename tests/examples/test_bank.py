"""The bank runs by itself in memory, and again and again on a file. Its trial under stress is in tests/chaos."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

BANK = Path(__file__).parents[2] / "examples" / "bank.py"


def run(broker: str | None = None) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("THALWEG_")}
    given = {} if broker is None else {"THALWEG_BROKER": broker}
    return subprocess.run(
        [sys.executable, str(BANK)], capture_output=True, text=True, check=True, env={**clean, **given}
    ).stdout


def numbers_of_the_statement(output: str) -> list[int]:
    return [int(number) for number in re.findall(r"^ +(\d+)  transfer", output, re.MULTILINE)]


def test_in_memory_the_sum_is_conserved() -> None:
    output = run()

    assert "10,000 transfers on memory://, exactly once; 1,230 refused" in output
    assert "All accounts together had 8,000.00, and have 8,000.00." in output
    assert len(numbers_of_the_statement(output)) == 10


def test_on_a_broker_that_keeps_things_a_second_run_goes_on_where_the_first_ended(tmp_path: Path) -> None:
    broker = f"sqlite:///{tmp_path}/bank.db"
    first, second = run(broker), run(broker)

    assert "All accounts together had 8,000.00, and have 8,000.00." in second
    assert numbers_of_the_statement(second)[0] > numbers_of_the_statement(first)[-1]
