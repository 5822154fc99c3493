"""A worker that was killed and starts again on the same disk reads only what came after."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from thalweg import App, Stream
from thalweg.runtime import tables

PROGRAM = """
import asyncio, json, sys
from thalweg import App
from thalweg.runtime.replay import Replay

store, count = sys.argv[1], int(sys.argv[2])
app = App("ledger", broker="sqlite:///broker.db", store=store, partitions=1, lease=1)
numbers = app.topic("numbers", key=str, value=int)
sums = app.table("sums", key=str, value=int, default=int)
replays = []
begin = Replay.__init__

def noted(replay, *arguments):
    begin(replay, *arguments)
    replays.append(replay)

Replay.__init__ = noted

@app.agent(numbers)
async def add(stream):
    async for event in stream.events():
        sums[event.key] += event.value
        yield sums[event.key]

async def main():
    async with app:
        started = {"records": sum(replay.records for replay in replays), "rows": len(dict(sums.items()))}
        for number in range(count):
            await add.ask(1, key=f"k{number}")
        print(json.dumps({**started, "sum": sum(dict(sums.items()).values())}), flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def run_and_kill(folder: Path, store: str, count: int) -> dict[str, Any]:
    (folder / "program.py").write_text(PROGRAM)
    process = subprocess.Popen(
        [sys.executable, "program.py", store, str(count)], cwd=folder, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line
        found: dict[str, Any] = json.loads(line)
        return found
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("kind", ["sqlite", "rocksdb"])
def test_only_the_tail_is_read_after_a_kill(kind: str, tmp_path: Path) -> None:
    if kind == "rocksdb":
        pytest.importorskip("rocksdict")
    store = f"{kind}:///state"
    assert run_and_kill(tmp_path, store, 300) == {"records": 1, "rows": 0, "sum": 300}  # its own marker
    again = run_and_kill(tmp_path, store, 0)
    assert (again["rows"], again["sum"]) == (300, 300)
    assert again["records"] <= 10  # markers, and what was committed but not yet in the store
    elsewhere = run_and_kill(tmp_path, f"{kind}:///other", 0)
    assert (elsewhere["rows"], elsewhere["sum"]) == (300, 300)
    assert elsewhere["records"] > 300


async def test_of_large_rows_few_are_kept_in_memory_by_all_tasks_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "FEWEST", 10)
    app = App("large", partitions=4, rows_mb=1)
    source = app.topic("source", key=str, value=bytes)
    rows = app.table("rows", key=str, value=bytes)

    @app.agent(source)
    async def keep(stream: Stream[bytes]) -> None:
        async for event in stream.events():
            rows[event.key] = event.value

    async with app.test() as t:
        for start in range(0, 400, 20):
            await source.send_many([(f"k{n}", bytes([n % 256]) * 10_000) for n in range(start, start + 20)])
            await t.settle()
        worker = app.running.worker
        assert worker is not None
        tasks = [task for key, task in worker.tasks.items() if key[0] == "4"]
        assert sum(len(task.tables["rows"].hot) for task in tasks) <= 120
        assert dict(rows.items()) == {f"k{n}": bytes([n % 256]) * 10_000 for n in range(400)}
