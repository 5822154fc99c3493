"""`thalweg dead-letters`: what failed, why, and another try."""

from __future__ import annotations

from .conftest import Shell


def fail(shell: Shell) -> None:
    shell.bank("send", "withdrawals", '{"account": "ada", "amount": 13}')
    shell.bank("send", "withdrawals", '{"account": "ada", "amount": 1}')
    shell.bank("send", "emails", "bad")
    shell.bank("send", "emails", "good")
    with shell.worker() as worker:
        assert sorted((worker.line(), worker.line())) == ["mail good", "total ada 1"]
        assert worker.stop() == 0


def test_what_failed_is_listed_with_its_reason_and_replayed(shell: Shell) -> None:
    assert shell.rows("dead-letters", "list") == []
    fail(shell)
    letters = {row["source"]: row for row in shell.rows("dead-letters", "list")}
    assert set(letters) == {"withdrawals", "emails"}
    letter = letters["withdrawals"]
    assert letter["agent"] == "total"
    assert letter["attempts"] == 1
    assert letter["key"] == "ada"
    assert letter["value"] == '{"account":"ada","amount":13}'
    assert letter["reason"] == "ValueError: unlucky"
    assert "bank.py" in letter["traceback"]

    [line] = shell.bank("dead-letters", "list", "withdrawals").stdout.splitlines()
    assert "ValueError: unlucky" in line
    assert "Traceback" not in line
    assert "Traceback" in shell.bank("dead-letters", "list", "withdrawals", "--full").stdout

    shell.write("mended", "")
    assert shell.rows("dead-letters", "replay", "withdrawals") == [{"source": "withdrawals", "replayed": 1}]
    assert [row["source"] for row in shell.rows("dead-letters", "list")] == ["emails"]
    with shell.worker() as worker:
        assert worker.line() == "total ada 14"
        assert worker.stop() == 0


def test_an_unknown_source_is_explained(shell: Shell) -> None:
    done = shell.run("-A", "bank:app", "dead-letters", "list", "nope")
    assert done.returncode == 1
    assert "no topic or queue 'nope'" in done.stderr
