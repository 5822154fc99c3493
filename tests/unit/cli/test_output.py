"""Pleasant on a terminal, plain in a pipe."""

from __future__ import annotations

import os
import pty
import re
import subprocess
from collections.abc import Mapping

import pytest

from .conftest import PATIENCE, Shell

COLOUR = re.compile(r"\x1b\[(?:[0-9]+;)*[349][0-7](?:;[0-9]+)*m")


def on_a_terminal(shell: Shell, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """What the command shows where standard output and error are a terminal."""
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            shell.command(*arguments),
            cwd=shell.folder,
            env={**shell.environment, "TERM": "xterm-256color", "COLUMNS": "100", **(environment or {})},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
    finally:
        os.close(theirs)
    shown = b""
    try:
        while data := os.read(ours, 65536):
            shown += data
    except OSError:
        pass  # the other end is closed: the command has ended
    finally:
        os.close(ours)
    process.wait(PATIENCE)
    return shown.decode()


@pytest.mark.parametrize("command", [["agents"], ["tables"], ["topics"], ["doctor"]])
def test_a_terminal_gets_colours_and_a_pipe_does_not(shell: Shell, command: list[str]) -> None:
    assert COLOUR.search(on_a_terminal(shell, "-A", "bank:app", *command))
    assert "\x1b" not in on_a_terminal(shell, "-A", "bank:app", "--json", *command).replace("\x1b[2m", "").replace(
        "\x1b[0m", ""
    )
    piped = shell.bank(*command)
    assert "\x1b" not in piped.stdout + piped.stderr
    assert "─" not in piped.stdout


def test_no_color_is_respected(shell: Shell) -> None:
    shown = on_a_terminal(shell, "-A", "bank:app", "agents", environment={"NO_COLOR": "1"})
    assert "total" in shown
    assert not COLOUR.search(shown)


def test_a_terminal_that_knows_only_ascii_is_served_too(shell: Shell) -> None:
    shown = on_a_terminal(shell, "-A", "bank:app", "doctor", environment={"PYTHONIOENCODING": "ascii"})
    assert "Traceback" not in shown
    assert "the program can run here" in shown


def test_a_payload_cannot_steer_the_terminal(shell: Shell) -> None:
    shell.bank("send", "notes", "\x1b[2Jgone", "--key", "\x1b[31mred")
    shown = on_a_terminal(shell, "-A", "bank:app", "table", "latest")
    assert "[2Jgone" in shown
    assert "[31mred" in shown
    assert "\x1b[2J" not in shown
    assert "\x1b[31mred" not in shown


def test_a_plain_line_has_one_row_whatever_is_in_it(shell: Shell) -> None:
    text = (shell.folder / "bank.py").read_text()
    shell.write("bank.py", text.replace('"no such mailbox"', r'"no such\tmail\nbox"'))
    shell.bank("send", "emails", "bad")
    shell.bank("send", "emails", "good")
    with shell.worker() as worker:
        assert worker.line() == "mail good"
        assert worker.stop() == 0
    [line] = shell.bank("dead-letters", "list").stdout.splitlines()
    assert line.count("\t") == 6


def test_a_closed_pipe_is_no_error(shell: Shell) -> None:
    shell.bank("send", "notes", "-", stdin="x\n" * 10)
    command = " ".join(shell.command("-A", "bank:app", "agents"))
    done = subprocess.run(
        ["bash", "-c", f"{command} | true"],
        cwd=shell.folder,
        env=shell.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert "Traceback" not in done.stderr
