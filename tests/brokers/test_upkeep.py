"""`thalweg reset`, `backup` and `restore`, as an operator types them, beside workers that are killed."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from forked import run_thalweg
from thalweg.capabilities import Logs
from thalweg.journal.replay import committed_rows

from brokers.program_runs import opened

PATIENCE = 60.0
THALWEG = str(Path(sys.executable).with_name("thalweg"))
SALES = [{"shop": f"s{n % 7}", "country": f"c{n % 3}", "amount": n % 40} for n in range(200)]
LATER = [{"shop": f"s{n % 7}", "country": f"c{n % 3}", "amount": n} for n in range(50)]


class Console:
    """A folder with the program in it, and commands run there."""

    def __init__(self, folder: Path, broker: str) -> None:
        self.folder = folder
        shutil.copy(Path(__file__).with_name("shop.py"), folder)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("THALWEG_")}
        self.environment = {**kept, "THALWEG_APP": "shop:app", "THALWEG_BROKER": broker}

    def run(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return run_thalweg(arguments, self.folder, self.environment, stdin, PATIENCE)

    def done(self, *arguments: str, stdin: str = "") -> str:
        """Of a command that must succeed, what it says on standard error."""
        ended = self.run(*arguments, stdin=stdin)
        assert ended.returncode == 0, ended.stderr
        return ended.stderr

    def refused(self, *arguments: str) -> str:
        ended = self.run(*arguments)
        assert ended.returncode == 1, ended.stderr
        assert "Traceback" not in ended.stderr
        return ended.stderr

    def send(self, sales: list[dict[str, Any]]) -> None:
        self.done("send", "sales", "-", stdin="\n".join(map(json.dumps, sales)))

    def rows(self, *arguments: str) -> list[dict[str, Any]]:
        ended = self.run("--json", *arguments)
        assert ended.returncode == 0, ended.stderr
        return [json.loads(line) for line in ended.stdout.splitlines()]

    def table(self, name: str) -> dict[str, int]:
        return {row["key"]: row["value"] for row in self.rows("table", name)}

    def waiting(self) -> int:
        """How many messages wait for their time."""

        async def count() -> int:
            async with opened(self.environment["THALWEG_BROKER"]) as transport:
                assert isinstance(transport, Logs)
                journal = await transport.log("bank-journal-2")
                return sum([len(await committed_rows(journal, partition, b"y", b"z")) for partition in range(2)])

        return asyncio.run(count())

    def behind(self) -> dict[str, tuple[int, int]]:
        return {row["agent"]: (row["behind"], row["retrying"]) for row in self.rows("lag")}

    @contextmanager
    def worker(self) -> Iterator[subprocess.Popen[bytes]]:
        with (self.folder / "worker.err").open("ab") as errors:
            process = subprocess.Popen(
                [THALWEG, "worker"], cwd=self.folder, env=self.environment, stdout=errors, stderr=errors
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def work_off(self) -> None:
        with self.worker() as worker:
            self.until(lambda: set(self.behind().values()) == {(0, 0)})
            worker.terminate()
            assert worker.wait(PATIENCE) == 0

    def until(self, is_so: Any) -> None:
        end = time.monotonic() + PATIENCE
        while not is_so():
            assert time.monotonic() < end, (self.folder / "worker.err").read_text()


def all_is_right(console: Console) -> bool:
    """All sales are handled, each once."""
    sales = [*SALES, *LATER]
    assert console.table("totals") == sums(sales, "shop")
    assert console.table("countries") == sums(sales, "country")
    return console.waiting() == sum(sale["shop"] == "s2" for sale in sales)


def sums(sales: list[dict[str, Any]], by: str) -> Mapping[str, int]:
    found: Counter[str] = Counter()
    for sale in sales:
        found[sale[by]] += sale["amount"]
    return found


def operate(folder: Path, broker: str, other: str) -> None:
    console = Console(folder, broker)
    (folder / "closed").touch()
    console.send(SALES)
    with console.worker():  # and killed: one agent is stuck in its first event, another has events to try again
        console.until(lambda: (b := console.behind())["total"][0] == b["repartition-by-country"][0] == 0)
        assert "while workers run" in console.refused("reset", "--yes")
        assert "workers run" in console.refused("backup", "early")
    at_backup = console.table("totals")
    assert console.behind()["total"][1] > 0
    assert 0 < sum(at_backup.values()) < sum(sale["amount"] for sale in SALES)
    console.done("backup", "kept")
    assert "exists already" in console.refused("backup", "kept")

    (folder / "closed").unlink()
    (folder / "mended").touch()
    console.work_off()  # the app goes on, and all that came after the backup is taken back
    assert console.table("countries") == sums(SALES, "country")
    console.send(LATER)
    console.work_off()
    assert "has state" in console.refused("restore", "kept", "--yes")
    assert "--yes" in console.refused("reset")
    assert all_is_right(console)
    console.done("reset", "--yes")
    assert console.waiting() == 0
    assert (console.table("totals"), console.behind()["total"]) == ({}, (len(SALES) + len(LATER), 0))

    data = (folder / "kept").read_bytes()
    for name, bad in (("torn", data[: len(data) // 2]), ("cut", data[:-1]), ("flipped", flipped(data))):
        (folder / name).write_bytes(bad)
        assert name in console.refused("restore", name, "--yes")
    console.done("restore", "kept", "--yes")
    assert console.table("totals") == at_backup
    console.work_off()
    assert all_is_right(console)

    console.done("reset", "--yes")
    console.work_off()  # from the beginning, and what it once had sent to itself counts no more
    assert all_is_right(console)

    elsewhere = Console(folder, other)
    elsewhere.done("restore", "kept", "--yes")
    elsewhere.send(LATER)
    elsewhere.work_off()
    assert all_is_right(elsewhere)
    elsewhere.done("reset", "--yes")
    assert "--inputs" in elsewhere.refused("restore", "kept", "--yes")  # other sales lie there than in the backup
    elsewhere.done("restore", "kept", "--yes", "--inputs", "end")
    assert elsewhere.table("totals") == at_backup


def flipped(data: bytes) -> bytes:
    found = bytearray(data)
    found[len(data) // 2] ^= 1
    return bytes(found)


def test_state_is_taken_away_kept_and_put_back_on_sqlite(tmp_path: Path) -> None:
    operate(tmp_path, f"sqlite:///{tmp_path}/broker.db", f"sqlite:///{tmp_path}/other.db")


@pytest.mark.parametrize("broker", ["nats without fencing"], indirect=True)
def test_and_on_a_broker_whose_commits_are_read_back(broker: str, tmp_path: Path) -> None:
    operate(tmp_path, broker, f"{broker}other-")
