"""What a takeover adds once the heir may begin, with a warm standby and without: `make bench-takeover`.

A journal of so many keys (--keys, 110 bytes a row, four tasks) on each broker, as `recovery.py` writes it. One worker
runs all tasks, another none, with standbys of all (warm) or of none (cold). The first is killed with SIGKILL, and one
message goes to each task. Then the heir says, of the slowest task:

began      from the death until it has the task's lock, or its place in the group: the lease
ready      from then on until the task runs: its journal read to the end and claimed
commit     and until it has committed the message
read       how many records it read for that, all tasks together

The figures of the last run are in `results/takeover.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chaos.servers import own_broker
from recovery import LEASE, PARTITIONS, make, row, write
from replaying import watched
from report import circumstances
from thalweg.assignment import Assignment, Member
from thalweg.journal.writer import Written
from thalweg.runtime.holding import Holding
from thalweg.runtime.task import Cut, Task, TaskKey
from thalweg.starting import worker_running

RESULTS = Path(__file__).parent / "results" / "takeover.json"
BROKERS = ["redis", "nats", "kafka", "sqlite", "rabbitmq"]
STORES = ["memory", "rocksdb"]
MODES = {"warm": 1, "cold": 0}
OWNER, HEIR = "a", "b"
PATIENCE = 120.0


def first_owns(group: str, n: int, members: Sequence[Member], previous: Assignment, standbys: int) -> Assignment:
    """Everything to the first by zone, and the standbys to the others."""
    first, *others = [member.name for member in sorted(members, key=lambda member: member.zone)]
    return Assignment([first] * n, [others[:standbys]] * n)


# --- workers ---------------------------------------------------------------------------------------------------------


async def own(url: str, store: str, mode: str, keys: int) -> None:
    async with worker_running(make(url, store, MODES[mode], zone=OWNER, assignor=first_owns)):
        print(json.dumps({}), flush=True)
        await asyncio.Event().wait()


class Moments:
    """When, by the machine's clock, each task was had, ran, and had committed an event."""

    def __init__(self) -> None:
        self.had: dict[TaskKey, float] = {}
        self.ready: dict[TaskKey, float] = {}
        self.committed: dict[TaskKey, float] = {}
        self.all = asyncio.Event()
        take, opened, committed = Holding.take, Task.open, Task.committed

        async def noted_take(holding: Holding, key: TaskKey) -> None:
            self.had[key] = time.monotonic()
            await take(holding, key)

        async def noted_open(task: Task) -> None:
            await opened(task)
            self.ready[task.key] = time.monotonic()

        def noted_commit(task: Task, cut: Cut, written: Written) -> None:
            committed(task, cut, written)
            if any(row.startswith(b"t") for row in cut.rows):
                self.committed.setdefault(task.key, time.monotonic())
                if len(self.committed) == PARTITIONS:
                    self.all.set()

        Holding.take, Task.open, Task.committed = noted_take, noted_open, noted_commit  # type: ignore[method-assign]

    def told(self) -> dict[str, float]:
        slowest = max(self.committed, key=lambda key: self.committed[key] - self.had[key])
        had = self.had[slowest]
        return {
            "had": had,
            "ready": self.ready[slowest] - had,
            "commit": self.committed[slowest] - had,
            "all committed": max(self.committed.values()),
        }


async def inherit(url: str, store: str, mode: str, keys: int) -> None:
    moments, replays = Moments(), watched()
    async with worker_running(make(url, store, MODES[mode], zone=HEIR, assignor=first_owns)):
        while mode == "warm" and sum(one.keys for one in replays) < keys:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        before = sum(one.records for one in replays)
        print(json.dumps({"read before": before}), flush=True)
        async with asyncio.timeout(PATIENCE):
            await moments.all.wait()
        read = sum(one.records for one in replays) - before
        print(json.dumps({**moments.told(), "read": read}), flush=True)
        await asyncio.Event().wait()


# --- all of it -------------------------------------------------------------------------------------------------------


class Process:
    def __init__(self, role: str, *arguments: str) -> None:
        command = [sys.executable, __file__, "--role", role, *arguments]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=sys.stderr, text=True)

    async def says(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            found: dict[str, Any] = json.loads(await asyncio.to_thread(self._process.stdout.readline))
        return found

    def kill(self) -> float:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        return time.monotonic()


async def take_over(url: str, store: str, mode: str, keys: int) -> dict[str, float]:
    folder = tempfile.mkdtemp(prefix="thalweg-takeover-")

    def where(name: str) -> str:
        return "memory://" if store == "memory" else f"{store}:///{folder}/{name}"

    started: list[Process] = []
    try:
        started.append(owner := Process("own", url, where("owner"), mode))
        await owner.says()
        started.append(heir := Process("inherit", url, where("heir"), mode, "--keys", str(keys)))
        await heir.says()
        app = make(url, "memory://")
        numbers, place = app.topic("numbers", key=str, value=int), app.tables["accounts"].partition_of
        one_of_each = {place(key, PARTITIONS): key for key, _ in map(row, range(100))}
        async with app.client():
            died = owner.kill()
            value = time.time_ns()  # other than what is there
            await numbers.send_many((key.decode(), value) for key in one_of_each.values())
            found = await heir.says()
    finally:
        for process in started:
            process.kill()
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "began": found["had"] - died,
        "ready": found["ready"],
        "commit": found["commit"],
        "read": found["read"],
        "all": found["all committed"] - died,
    }


async def measure(kind: str, stores: Sequence[str], modes: Sequence[str], keys: int) -> dict[str, Any]:
    found: dict[str, Any] = {"broker": kind}
    async with own_broker(kind) as broker:
        url = broker.url.replace("brokers.kafka_proxied:ProxiedTransport://", "kafka://")
        await write(url, keys)
        for store in stores:
            for mode in modes:
                done = await take_over(url, store, mode, keys)
                found[f"{store} {mode}"] = done
                figures = ", ".join(f"{name} {value:,.2f} s" for name, value in done.items() if name != "read")
                print(f"{kind} {store} {mode}: {figures}, read {done['read']:,} records", flush=True)
                await asyncio.sleep(LEASE + 1)  # of the heir
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"some of {', '.join([*BROKERS, *STORES, *MODES])} (default: all)")
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--role", choices=["own", "inherit"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        act = {"own": own, "inherit": inherit}[options.role]
        asyncio.run(act(*options.names, options.keys))
        return
    if unknown := set(options.names) - {*BROKERS, *STORES, *MODES}:
        parser.error(f"neither broker, store nor mode: {', '.join(sorted(unknown))}")
    kinds, stores, modes = (
        [one for one in all_ if one in options.names] or list(all_) for all_ in (BROKERS, STORES, MODES)
    )
    results = [asyncio.run(measure(kind, stores, modes, options.keys)) for kind in kinds]
    before = json.loads(options.json.read_text())["results"] if options.json.exists() else []
    kept = [one for one in before if one["broker"] not in kinds]
    options.json.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**circumstances(), "keys": options.keys, "results": [*kept, *results]}, indent=1)
    options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", os.pathsep.join(sys.path))
    main()
