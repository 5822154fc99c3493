"""`thalweg doctor`: says what would go wrong, and touches nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from thalweg.channel import TopicInfo, TopicSpec
from thalweg.transports.sqlite import SqliteTransport

from .conftest import Shell


async def existing(file: Path, *create: TopicSpec) -> list[TopicInfo]:
    """The topics of a broker file, after these have been created."""
    transport = SqliteTransport(file)
    await transport.open()
    try:
        await transport.declare(create)
        return list(await transport.topics())
    finally:
        await transport.close()


def examine(shell: Shell, *arguments: str) -> tuple[int, list[dict[str, str]]]:
    done = shell.run("-A", "bank:app", "--json", "doctor", *arguments)
    assert "Traceback" not in done.stderr
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def problems(said: list[dict[str, str]]) -> dict[str, str]:
    return {row["about"]: row["says"] for row in said if row["verdict"] == "problem"}


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ("grouped=true&locks=false&peers=false", set()),
        ("grouped=false", set()),
        ("locks=false", {"no locks", "no grouped"}),
    ],
)
def test_what_another_power_makes_up_for_is_not_missed(shell: Shell, options: str, missing: set[str]) -> None:
    done = shell.run("-A", "bank:app", "--json", "doctor", THALWEG_BROKER=f"memory://?{options}")
    about = {json.loads(line)["about"] for line in done.stdout.splitlines()}
    assert about & {"no locks", "no peers", "no grouped"} == missing


async def test_a_program_that_can_run_is_well(shell: Shell) -> None:
    code, said = examine(shell)
    assert code == 0
    assert problems(said) == {}
    about = {row["about"]: row["says"] for row in said}
    assert about["guarantee"].startswith("exactly once")
    assert about["topic withdrawals"] == "will be created with 2 partitions"
    assert about["largest message"] == "16,777,216 bytes"
    assert {"store", "broker", "can log", "can fencing"} <= about.keys()


@pytest.mark.parametrize("command", [["doctor"], ["topics"], ["table", "totals"], ["dead-letters", "list"]])
async def test_looking_creates_no_topic(shell: Shell, command: list[str]) -> None:
    shell.bank(*command)
    assert await existing(shell.folder / "bank.db") == []


async def test_topics_that_exist_otherwise_are_problems(shell: Shell) -> None:
    program = "from thalweg import App\napp = App('x', broker='sqlite:///bank.db')\n"
    shell.write("other.py", program + "app.topic('t', partitions=3)\napp.topic('q')\n")
    await existing(shell.folder / "bank.db", TopicSpec("t", 5), TopicSpec("q", queue=True))
    done = shell.run("-A", "other:app", "--json", "doctor")
    assert done.returncode == 1
    found = problems([json.loads(line) for line in done.stdout.splitlines()])
    assert "has 5 partitions on the broker, but is declared with 3: declare partitions=5" in found["topic t"]
    assert "is a queue on the broker, but is declared as a topic" in found["topic q"]
    assert "2 problems" in done.stderr


async def test_what_belongs_to_others_and_is_not_there_is_a_problem(shell: Shell) -> None:
    program = "from thalweg import App\napp = App('x', broker='sqlite:///bank.db')\n"
    shell.write("other.py", program + "app.topic('t', declare=False)\napp.queue('q', declare=False)\n")
    await existing(shell.folder / "bank.db", TopicSpec("q", queue=True))
    done = shell.run("-A", "other:app", "--json", "doctor")
    assert done.returncode == 1
    found = problems([json.loads(line) for line in done.stdout.splitlines()])
    assert found.keys() == {"topic t"}
    assert "declare=False" in found["topic t"]


def test_what_the_broker_lacks_is_a_problem(shell: Shell) -> None:
    code, said = examine(shell, "--broker", "memory://?log=false")
    assert code == 1
    assert "table 'totals'" in problems(said)["needs"]
    assert {"about": "no log", "verdict": "note"}.items() <= next(r for r in said if r["about"] == "no log").items()


def test_a_broker_or_store_that_cannot_be_opened_is_a_problem(shell: Shell) -> None:
    code, said = examine(shell, "--broker", "sqlite:///no/such/folder/bank.db", "--store", "nope://")
    assert code == 1
    assert "no/such/folder" in problems(said)["broker"]
    assert "nope" in problems(said)["store"]


def test_state_under_another_partition_count_is_a_problem(shell: Shell) -> None:
    shell.bank("send", "withdrawals", '{"account": "ada", "amount": 5}')
    with shell.worker() as worker:
        assert worker.line() == "total ada 5"
        assert worker.stop() == 0
    text = (shell.folder / "bank.py").read_text()
    shell.write("bank.py", text.replace("partitions=2", "partitions=3").replace('app.topic("', 'app.topic("new-'))
    code, said = examine(shell)
    assert code == 1
    assert "orphaned" in problems(said)["state"]


def test_warnings_of_the_broker_are_shown(shell: Shell) -> None:
    code, said = examine(shell, "--broker", "sqlite:///bank.db?synchronous=normal")
    assert code == 0
    assert any(row["verdict"] == "warning" and "power cut" in row["says"] for row in said)


def test_a_mirror_is_named_and_one_that_cannot_be_reached_is_a_warning(shell: Shell) -> None:
    text = (shell.folder / "bank.py").read_text()
    shell.write("bank.py", text.replace('app.table("', 'app.table(mirror="redis://:hunter2@127.0.0.1:1", name="', 1))
    code, said = examine(shell)
    assert code == 0
    (row,) = [row for row in said if row["about"] == "mirror"]
    assert row["verdict"] == "warning"
    assert "127.0.0.1:1" in row["says"]
    assert "totals cannot be read there" in row["says"]
    assert "hunter2" not in str(said)


def test_a_mirror_that_cannot_be_one_is_a_problem(shell: Shell) -> None:
    text = (shell.folder / "bank.py").read_text()
    shell.write("bank.py", text.replace('app.table("', 'app.table(mirror="mongodb://x", name="', 1))
    code, said = examine(shell)
    assert code == 1
    assert "no driver for the mirror mongodb://x" in problems(said)["mirror"]
