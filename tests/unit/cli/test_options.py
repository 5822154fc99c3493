"""Which program, which broker, what is said when either is wrong, and what is never said."""

from __future__ import annotations

import json

import pytest

from .conftest import Shell


@pytest.mark.parametrize("path", ["bank:app", "bank.py:app", "./bank.py:app", "bank.py", "bank"])
def test_a_program_is_named_by_module_or_by_file(shell: Shell, path: str) -> None:
    assert shell.run("-A", path, "agents").stdout.splitlines()[0].startswith("total\twithdrawals\t")


def test_a_program_in_a_package_is_named_by_its_file_too(shell: Shell) -> None:
    (shell.folder / "pkg").mkdir()
    shell.write("pkg/__init__.py", "")
    shell.write("pkg/parts.py", "NAME = 'inside'")
    shell.write(
        "pkg/main.py", "from thalweg import App\nfrom .parts import NAME\nthe = App(NAME)\nthe.table('t', value=int)"
    )
    assert shell.run("-A", "pkg/main.py:the", "tables").stdout.startswith("t\t")


def test_the_environment_names_the_program_where_the_command_does_not(shell: Shell) -> None:
    assert shell.run("tables", THALWEG_APP="bank:app").stdout.startswith("totals\t")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("bnak:app", ["no module 'bnak'", "Did you mean bank.py", "-A module:app"]),
        ("bank:ap", ["'bank' has no 'ap'", "-A bank:app"]),
        ("bank:totals", ["'totals' is a Table, not an App", "-A bank:app"]),
        ("nope.py:app", ["no file 'nope.py'", "-A module:app"]),
        ("bank.nope:app", ["bank.nope"]),
        ("failing:app", ["ZeroDivisionError", "failing.py, line 2"]),
        ("needy:app", ["ModuleNotFoundError", "not_there", "needy.py, line 1"]),
        ("two", ["which app?", "-A two:one", "-A two:other"]),
        (":app", ["expected module:app"]),
        ("bank:", ["expected module:app"]),
    ],
)
def test_a_wrong_path_is_explained(shell: Shell, path: str, words: list[str]) -> None:
    shell.write("failing.py", "a = 1\nb = a / 0\n")
    shell.write("needy.py", "import not_there\n")
    shell.write("two.py", "from thalweg import App\none, other = App('a'), App('b')\n")
    done = shell.run("-A", path, "agents")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def test_no_program_at_all_is_explained(shell: Shell) -> None:
    done = shell.run("agents")
    assert done.returncode == 2
    assert "THALWEG_APP" in done.stderr


def test_the_command_line_beats_the_environment_which_beats_the_program(shell: Shell) -> None:
    def broker(*arguments: str, **environment: str) -> str:
        done = shell.run("-A", "bank:app", "--json", "doctor", *arguments, **environment)
        said = [json.loads(line) for line in done.stdout.splitlines()]
        return next(str(row["says"]) for row in said if row["about"] == "broker")

    assert broker().endswith("bank.db")
    assert broker(THALWEG_BROKER="sqlite:///environment.db").endswith("environment.db")
    assert broker("--broker", "sqlite:///line.db", THALWEG_BROKER="sqlite:///environment.db").endswith("line.db")
    assert broker("--broker=sqlite:///line.db").endswith("line.db")


def test_an_unknown_option_of_a_url_is_one_sentence(shell: Shell) -> None:
    done = shell.run("-A", "bank:app", "topics", "--broker", "sqlite:///bank.db?sync=full")
    assert done.returncode == 1
    assert done.stderr.startswith("error: sqlite:// has no option 'sync'")
    assert "synchronous" in done.stderr
    assert done.stderr.count("\n") == 1


def test_debug_shows_the_traceback(shell: Shell) -> None:
    done = shell.run("-A", "bank:app", "--debug", "topics", "--broker", "nope://")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.parametrize("command", [["worker"], ["topics"], ["doctor"], ["send", "notes", "x"], ["table", "totals"]])
@pytest.mark.parametrize("url", ["redis://me:s3cret@127.0.0.1:1", "redis://127.0.0.1:1?password=s3cret"])
def test_credentials_are_never_shown(shell: Shell, command: list[str], url: str) -> None:
    done = shell.run("-A", "bank:app", "--broker", url, "--debug", *command)
    assert done.returncode == 1
    assert "redis" in (done.stdout + done.stderr).lower()
    assert "s3cret" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["redis://me:s3cret@host"],
        ["agents", "redis://me:s3c/s3cret@host"],
        ["-A", "redis://me:s3cret@host", "agents"],
        ["agents", "--broker=redis://me:s3cret@host", "extra://me:s3cret@host"],
    ],
)
def test_a_url_in_the_wrong_place_is_not_quoted_with_its_credentials(shell: Shell, arguments: list[str]) -> None:
    done = shell.run(*arguments, THALWEG_APP="bank:app")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "s3cret" not in done.stdout + done.stderr


def test_the_version_is_shown(shell: Shell) -> None:
    done = shell.run("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("thalweg ")


def test_no_arguments_show_the_commands(shell: Shell) -> None:
    done = shell.run()
    assert done.returncode == 0
    for command in (
        "worker",
        "agents",
        "tables",
        "topics",
        "send",
        "table",
        "lag",
        "workers",
        "dead-letters",
        "doctor",
        "init",
    ):
        assert command in done.stdout


def test_a_program_that_sets_up_logging_keeps_its_own(shell: Shell) -> None:
    logs = "import logging\nlogging.basicConfig(format='OWN %(message)s', level='INFO')\n"
    shell.write("bank.py", logs + (shell.folder / "bank.py").read_text())
    with shell.worker() as worker:
        assert worker.stop() == 0
        assert "OWN SIGTERM: draining" in worker.errors
