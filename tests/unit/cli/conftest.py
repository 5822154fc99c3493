"""The real command, in processes of its own, on programs in a folder of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from forked import run_thalweg

THALWEG = Path(sys.executable).with_name("thalweg")
PATIENCE = 60  # seconds: how long anything may take on a busy machine

BANK = '''
"""Sums up what is withdrawn from each account."""

import asyncio
import uuid
from pathlib import Path

import msgspec
from thalweg import App, DeadLetter


class Withdrawal(msgspec.Struct):
    account: str
    amount: int


app = App("bank", broker="sqlite:///bank.db", partitions=2, lease=2)
withdrawals = app.topic("withdrawals", key=str, value=Withdrawal, key_of=lambda w: w.account)
rates = app.topic("rates", key=uuid.UUID, value=float)
notes = app.topic("notes", key=str, value=str)
emails = app.queue("emails", value=str)
totals = app.table("totals", key=str, value=int, default=int)
by_id = app.table("by_id", key=uuid.UUID, value=float)
latest = notes.table("latest", replicated=True)


@app.agent(withdrawals, on_error=DeadLetter())
async def total(stream):
    """Adds up withdrawals."""
    async for withdrawal in stream:
        if withdrawal.amount == 13 and not Path("mended").exists():
            raise ValueError("unlucky")
        totals[withdrawal.account] += withdrawal.amount
        print("total", withdrawal.account, totals[withdrawal.account], flush=True)
        if withdrawal.account == "stuck":
            await asyncio.Event().wait()


@app.agent(rates)
async def rate(stream):
    async for event in stream.events():
        by_id[event.key] = event.value
        print("rate", event.value, flush=True)


@app.handler(emails, on_error=DeadLetter())
async def mail(email: str) -> None:
    if email == "bad":
        raise RuntimeError("no such mailbox")
    print("mail", email, flush=True)


@app.timer(3600, name="report")
async def report():
    pass


@app.crontab("0 9 * * *", timezone="Europe/London", on_leader=True)
async def open_market():
    pass


if __name__ == "__main__":
    app.main()
'''


class Running:
    """A worker in a process of its own. What the program prints comes line by line."""

    def __init__(self, process: subprocess.Popen[str], errors: Path) -> None:
        self.process, self._errors = process, errors
        self._lines: list[str] = []
        while not (line := self._read()).startswith("{"):  # agents run, and print, before all of the worker does
            assert line, self.errors
            self._lines.append(line)
        self.banner = json.loads(line)

    def _read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def line(self) -> str:
        """The next line that the program printed; empty if it has ended."""
        return self._lines.pop(0) if self._lines else self._read()

    @property
    def errors(self) -> str:
        return self._errors.read_text()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def ended(self) -> int:
        return self.process.wait(PATIENCE)

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return self.ended()


class Shell:
    """A folder with a program in it, and commands run there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("THALWEG_", "PYTHONPATH", "NO_COLOR", "FORCE_COLOR", "COLUMNS"))
        }
        self.write("bank.py", BANK)

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text, encoding="utf-8")

    def command(self, *arguments: str) -> list[str]:
        """`thalweg …`, or `python …` where the first argument is a file."""
        if arguments and arguments[0].endswith(".py"):
            return [sys.executable, *arguments]
        return [str(THALWEG), *arguments]

    def run(self, *arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        everything = {**self.environment, **environment}
        if not (arguments and arguments[0].endswith(".py")):
            return run_thalweg(arguments, self.folder, everything, stdin, PATIENCE)
        return subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=everything,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    def bank(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """A command that must succeed."""
        done = self.run("-A", "bank:app", *arguments, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done

    def rows(self, *arguments: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.bank("--json", *arguments).stdout.splitlines()]

    def eventually(self, look: Callable[[], Any], expected: Any) -> None:
        """What another process is about to commit is seen in the end."""
        end = time.monotonic() + PATIENCE
        while (seen := look()) != expected:
            assert time.monotonic() < end, f"{seen!r} did not become {expected!r}"

    @contextmanager
    def worker(self, *arguments: str) -> Iterator[Running]:
        errors = self.folder / "worker.err"
        with errors.open("w") as file:
            process = subprocess.Popen(
                self.command(*(arguments or ("-A", "bank:app")), "worker", "--json"),
                cwd=self.folder,
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )
        patience = threading.Timer(2 * PATIENCE, process.kill)  # then whoever waits for a line gets an empty one
        patience.start()
        try:
            yield Running(process, errors)
        finally:
            patience.cancel()
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)
