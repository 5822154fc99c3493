"""`thalweg worker`: starts, says what runs, drains on a signal."""

from __future__ import annotations

import signal
import subprocess

from .conftest import PATIENCE, Shell


def test_a_worker_that_is_told_to_stop_commits_what_it_has_handled(shell: Shell) -> None:
    shell.bank("send", "withdrawals", '{"account": "ada", "amount": 5}')
    with shell.worker() as worker:
        assert worker.line() == "total ada 5"
        assert worker.stop() == 0
        assert "SIGTERM: draining" in worker.errors
        assert "drained, committed, stopped" in worker.errors
    assert shell.bank("table", "totals", "ada").stdout == "5\n"


def test_the_next_worker_goes_on_where_the_last_one_stopped(shell: Shell) -> None:
    for total in (5, 10):
        shell.bank("send", "withdrawals", '{"account": "ada", "amount": 5}')
        with shell.worker() as worker:
            assert worker.line() == f"total ada {total}"
            assert worker.stop() == 0


def test_a_second_signal_stops_at_once(shell: Shell) -> None:
    shell.bank("send", "withdrawals", '{"account": "stuck", "amount": 5}')
    with shell.worker() as worker:
        assert worker.line() == "total stuck 5"
        worker.signal(signal.SIGINT)
        shell.eventually(lambda: "draining" in worker.errors, True)
        worker.signal(signal.SIGINT)
        assert worker.ended() == 130
        assert "Traceback" not in worker.errors
    assert shell.run("-A", "bank:app", "table", "totals", "stuck").returncode == 1


def test_the_banner_tells_what_runs_where(shell: Shell) -> None:
    with shell.worker("bank.py") as worker:
        said = worker.banner
        assert said["app"] == "bank"
        assert said["broker"].startswith("SQLite")
        assert said["broker"].endswith("bank.db")
        assert "memory" in said["store"]
        assert said["guarantee"] == "exactly once"
        assert [(row["agent"], row["sources"], row["tables"]) for row in said["agents"]] == [
            ("total", "withdrawals", True),
            ("rate", "rates", True),
            ("mail", "emails (queue)", False),
        ]
        assert {row["table"] for row in said["tables"]} == {"totals", "by_id", "latest"}
        assert said["queues"] == ["emails"]
        assert {(row["kind"], row["name"]) for row in said["schedule"]} == {
            ("timer", "report"),
            ("crontab", "open_market"),
        }
        assert worker.stop() == 0


def test_a_worker_on_memory_warns_that_nothing_lasts(shell: Shell) -> None:
    with shell.worker("-A", "bank:app", "--broker", "memory://") as worker:
        assert worker.banner["broker"].startswith("memory")
        assert any("keeps nothing" in text for text in worker.banner["warnings"])
        assert worker.stop() == 0


def test_a_program_that_asks_too_much_of_its_broker_is_refused_in_a_sentence(shell: Shell) -> None:
    done = shell.run("-A", "bank:app", "worker", "--broker", "memory://?log=false")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert "table 'totals'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_table_is_read_while_a_worker_in_another_process_writes_it(shell: Shell) -> None:
    with shell.worker() as worker:
        shell.bank("send", "withdrawals", '{"account": "ada", "amount": 5}')
        assert worker.line() == "total ada 5"
        shell.eventually(lambda: shell.run("-A", "bank:app", "table", "totals", "ada").stdout, "5\n")
        shell.bank("send", "withdrawals", '{"account": "ada", "amount": 2}')
        assert worker.line() == "total ada 7"  # reading has not disturbed it
        assert worker.stop() == 0


def test_what_an_included_module_declares_belongs_to_the_program_that_runs(shell: Shell) -> None:
    shell.write(
        "main.py",
        "from thalweg import App\napp = App('two', include=['more'])\nif __name__ == '__main__':\n    app.main()\n",
    )
    shell.write("more.py", "from main import app\n@app.handler(app.topic('t', value=str))\nasync def extra(x): pass\n")
    assert shell.run("main.py", "agents").stdout.startswith("extra\tt\t")
    assert shell.run("-A", "main:app", "agents").stdout.startswith("extra\tt\t")


def test_a_worker_that_waits_for_another_can_be_stopped(shell: Shell) -> None:
    shell.bank("send", "withdrawals", '{"account": "stuck", "amount": 5}')
    with shell.worker() as first:
        assert first.line() == "total stuck 5"
        errors = shell.folder / "second.err"
        with errors.open("w") as file:
            second = subprocess.Popen(
                shell.command("-A", "bank:app", "--log-level", "debug", "worker", "--json"),
                cwd=shell.folder,
                env=shell.environment,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )
        shell.eventually(lambda: "another worker still holds" in errors.read_text(), True)
        second.send_signal(signal.SIGTERM)
        said, _ = second.communicate(timeout=PATIENCE)
        assert said == ""  # no banner: it never ran
        assert second.returncode == 0
        assert "stopped before it had started" in errors.read_text()
        assert first.process.poll() is None


def test_lag_is_what_is_not_committed_yet(shell: Shell) -> None:
    def behind() -> dict[str, int]:
        return {row["agent"]: row["behind"] for row in shell.rows("lag")}

    assert behind() == {}  # no topic exists
    shell.bank(
        "send", "withdrawals", "-", stdin='{"account": "ada", "amount": 1}\n{"account": "bob", "amount": 1}\n' * 2
    )
    assert behind() == {"total": 4, "rate": 0}
    with shell.worker() as worker:
        for _ in range(4):
            assert worker.line()
        assert worker.stop() == 0
    assert behind() == {"total": 0, "rate": 0}
    shell.bank("send", "withdrawals", '{"account": "ada", "amount": 1}')
    assert behind() == {"total": 1, "rate": 0}
