"""`thalweg backup` beside a worker; the whole story is told in tests/brokers/test_upkeep.py."""

from __future__ import annotations

from .conftest import Shell


def test_a_backup_beside_a_worker_and_its_restore(shell: Shell) -> None:
    with shell.worker() as worker:
        for amount in (5, 7):
            shell.bank("send", "withdrawals", f'{{"account": "ada", "amount": {amount}}}')
        assert [worker.line(), worker.line()] == ["total ada 5", "total ada 12"]
        shell.eventually(lambda: shell.bank("table", "totals").stdout, '{"key":"ada","value":12}\n')
        (made,) = shell.rows("backup", "kept")
        assert made["tasks"] > 0
        assert "while workers run" in shell.run("-A", "bank:app", "reset", "--yes").stderr
        shell.bank("send", "withdrawals", '{"account": "ada", "amount": 100}')
        assert worker.line() == "total ada 112"
        assert worker.stop() == 0
    shell.bank("reset", "--yes")
    (restored,) = shell.rows("restore", "kept", "--yes")
    assert restored["rows"] == made["rows"]
    assert shell.rows("table", "totals") == [{"key": "ada", "value": 12}]
    assert shell.rows("table", "totals", "--prefix", "a") == [{"key": "ada", "value": 12}]
    assert shell.rows("table", "totals", "--prefix", "b") == []
    with shell.worker() as worker:
        assert worker.line() == "total ada 112"  # what came after the backup, and nothing before it
        assert worker.stop() == 0
