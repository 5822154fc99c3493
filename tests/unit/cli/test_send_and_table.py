"""`thalweg send`, `table` and `topics`: in one way, out the other."""

from __future__ import annotations

import json
import signal
import subprocess
from itertools import accumulate

import pytest

from .conftest import PATIENCE, Shell

LATIN = """
import asyncio
from bank import app, notes


async def main():
    async with app.client():
        await notes.raw.send(chr(233).encode("latin-1"), key=b"ada")


asyncio.run(main())
"""

ID = "12345678-1234-5678-1234-567812345678"


def test_lines_of_standard_input_are_sent_in_order(shell: Shell) -> None:
    lines = [json.dumps({"account": f"a{number % 3}", "amount": number}) for number in range(100, 400)]
    said = shell.bank("send", "withdrawals", "-", stdin="\n".join(lines) + "\n\n")
    assert "sent 300 messages" in said.stderr
    amounts = {f"a{rest}": [n for n in range(100, 400) if n % 3 == rest] for rest in range(3)}
    with shell.worker() as worker:
        seen: dict[str, list[int]] = {}
        for _ in range(300):
            _, account, total = worker.line().split()
            seen.setdefault(account, []).append(int(total))
        assert worker.stop() == 0
    assert seen == {account: list(accumulate(parts)) for account, parts in amounts.items()}
    assert {row["key"]: row["value"] for row in shell.rows("table", "totals")} == {
        account: sum(parts) for account, parts in amounts.items()
    }
    assert shell.bank("table", "totals", "--limit", "2").stdout.count("\n") == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["withdrawals", '{"account": 3, "amount": 1}'], ["Expected `str`, got `int`", "$.account"]),
        (["withdrawals", '{"account": "ada"'], ["is not JSON"]),
        (["withdrawals", "ada"], ["Expected `object`"]),
        (["rates", "1.5", "--key", "no-id"], ["--key for 'rates'"]),
        (["nope", "1"], ["no topic or queue 'nope'", "withdrawals"]),
        (["notes", "x", "--priority", "3"], ["--priority is for queues", "'notes' is a topic"]),
        (["emails", "x", "--partition", "0"], ["--partition is for topics", "'emails' is a queue"]),
        (["notes", "x", "--partition", "9"], ["partition=9", "0 to 1"]),
        (["emails", "x", "--priority", "10"], ["priority=10"]),
        (["notes", "x", "--headers", "novalue"], ["NAME=VALUE"]),
    ],
)
def test_what_cannot_be_sent_is_explained(shell: Shell, arguments: list[str], words: list[str]) -> None:
    done = shell.run("-A", "bank:app", "send", *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def test_a_bad_line_is_named_and_those_before_it_are_sent(shell: Shell) -> None:
    good = '{"account": "ada", "amount": 1}\n'
    done = shell.run("-A", "bank:app", "send", "withdrawals", "-", stdin=good * 3 + "rubbish\n" + good)
    assert done.returncode == 1
    assert "line 4" in done.stderr
    assert "The 3 before it were sent" in done.stderr
    assert "Traceback" not in done.stderr
    assert {row["topic"]: row.get("records") for row in shell.rows("topics")}["withdrawals"] == 3


def test_keys_and_values_that_are_no_json_need_no_second_quotes(shell: Shell) -> None:
    shell.bank("send", "rates", "1.5", "--key", ID)
    with shell.worker() as worker:
        assert worker.line() == "rate 1.5"
        assert worker.stop() == 0
    assert shell.bank("table", "by_id", ID).stdout == "1.5\n"
    assert shell.bank("table", "by_id", f'"{ID}"').stdout == "1.5\n"
    assert shell.rows("table", "by_id") == [{"key": ID, "value": 1.5}]


def test_a_message_to_a_queue_is_handled(shell: Shell) -> None:
    shell.bank("send", "emails", "hello", "--priority", "3", "--expires", "3600", "--headers", "from=me")
    with shell.worker() as worker:
        assert worker.line() == "mail hello"
        assert worker.stop() == 0


def test_a_replicated_table_is_read_from_its_topic(shell: Shell) -> None:
    for text in ("first", "second"):
        shell.bank("send", "notes", text, "--key", "ada", "--headers", "a=1")
    shell.bank("send", "notes", "third", "--key", "bob", "--partition", "0")
    assert shell.rows("table", "latest") == [{"key": "ada", "value": "second"}, {"key": "bob", "value": "third"}]
    assert shell.bank("table", "latest", "ada").stdout == '"second"\n'
    shell.write("latin.py", LATIN)
    wrong = shell.run("latin.py")  # a program that writes otherwise
    assert wrong.returncode == 0, wrong.stderr
    listed = shell.run("--json", "-A", "bank:app", "table", "latest")
    assert [json.loads(line) for line in listed.stdout.splitlines()] == shell.rows("table", "latest")
    assert [row["value"] for row in shell.rows("table", "latest")] == ["second", "third"], "as the program has it"
    assert "table 'latest' passes over the record at notes/" in listed.stderr


def test_a_missing_row_and_a_missing_table_are_told_apart(shell: Shell) -> None:
    row = shell.run("-A", "bank:app", "table", "totals", "eve")
    assert (row.returncode, row.stdout) == (1, "")
    assert "no row 'eve'" in row.stderr
    table = shell.run("-A", "bank:app", "table", "nope")
    assert (table.returncode, table.stdout) == (1, "")
    assert "no table 'nope'" in table.stderr
    assert "totals" in table.stderr


def test_topics_are_listed_with_what_they_hold(shell: Shell) -> None:
    assert {row["state"] for row in shell.rows("topics")} == {"to be created"}
    shell.bank("send", "notes", "x")
    rows = {row["topic"]: row for row in shell.rows("topics")}
    assert rows["notes"] == {
        "topic": "notes",
        "kind": "topic",
        "partitions": 2,
        "records": 1,
        "dead_letters": 0,
        "state": "declared",
        "bounds": rows["notes"]["bounds"],
    }
    assert sorted(rows["notes"]["bounds"], key=str)[1] == [None, None]
    assert rows["emails"]["kind"] == "queue"
    assert "bank-journal-2" not in rows
    assert "bank-journal-2" in {row["topic"] for row in shell.rows("topics", "--all")}


def test_a_command_that_looks_into_memory_says_that_nothing_is_there(shell: Shell) -> None:
    done = shell.run("-A", "bank:app", "table", "totals", "--broker", "memory://")
    assert done.returncode == 0
    assert "warning: memory:// exists in one process only" in done.stderr


def test_sending_from_a_silent_terminal_is_interrupted_in_good_order(shell: Shell) -> None:
    with subprocess.Popen(
        shell.command("-A", "bank:app", "send", "notes", "-"),
        cwd=shell.folder,
        env=shell.environment,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write("first\n")
        process.stdin.flush()
        shell.eventually(lambda: {r["topic"]: r.get("records") for r in shell.rows("topics")}["notes"], 1)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
        assert process.stderr.read() == ""
