"""The benchmarks run and write what they say; how fast anything is depends on the machine, so no test asks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parents[2] / "benchmarks" / "run.py"


def run(*arguments: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, RUN, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_case_measures_all_its_sides_and_writes_the_figures(tmp_path: Path) -> None:
    file = tmp_path / "new folder" / "figures.json"

    table = run("--messages", "200", "--rounds", "2", "--json", file)

    figures = json.loads(file.read_text())
    assert figures.keys() == {"when", "commit", "machine", "versions", "settings", "cases"}
    assert figures["settings"] == {"messages": 200, "rounds": 2, "keys": 1000, "message_bytes": 100}
    assert figures["versions"].keys() >= {"python", "thalweg", "msgspec"}
    for case in figures["cases"]:
        assert case["name"] in table
        assert next(side["name"] for side in case["sides"]) == "bare"
        assert len(case["sides"]) > 1
        for side in case["sides"]:
            assert len(side["rounds"]) == 2
            for sample in side["rounds"]:
                assert sample["messages"] == case["messages"]
                assert sample["seconds"] > 0
            for figure in ("messages_per_second", "cpu_per_message", "ratio", "cpu_ratio"):
                assert 0 <= side[figure]["low"] <= side[figure]["median"] <= side[figure]["high"]
    with_latency = {c["name"] for c in figures["cases"] if all(side["p50"] and side["p99"] for side in c["sides"])}
    assert with_latency == {"latency", "ask"}


def test_ownership_is_measured_and_what_was_handled_is_checked(tmp_path: Path) -> None:
    file = tmp_path / "ownership.json"
    quick = ["--rate", "200", "--lease", "1", "--steady", "0.5", "--quiet", "0.5", "--partitions", "6"]
    done = subprocess.run(
        [sys.executable, RUN.with_name("ownership.py"), "sqlite", "kill", "hang", *quick, "--json", file],
        env={**os.environ, "PYTHONPATH": str(RUN.parents[1] / "tests")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    cases = {case["case"]: case["figures"] for case in json.loads(file.read_text())["cases"]}
    assert cases.keys() == {"kill", "hang"}
    for figures in cases.values():
        assert figures["tasks of the victim"] == 2
        assert figures["takeover"] > 0
        assert figures["messages"] > 0
    assert cases["hang"]["zombie's outputs"] == 0


def test_a_profile_names_the_functions_that_take_the_time() -> None:
    assert "_values" in run("--profile", "handle-sum", "--messages", "200")


def test_a_case_that_does_not_exist_is_refused_with_those_that_do() -> None:
    done = subprocess.run([sys.executable, RUN, "handel-sum"], capture_output=True, text=True, timeout=120, check=False)

    assert done.returncode == 2
    assert "handle-sum" in done.stderr


@pytest.mark.parametrize("count", [1, 999, 5000])
def test_messages_have_the_size_that_is_stated(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(RUN.parent))
    import workload

    assert {len(data) for data in workload.as_json(count)} == {workload.MESSAGE_BYTES}
