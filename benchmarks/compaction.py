"""What compaction costs, and what it keeps in bounds: `make bench-compaction` (with ARGS=… for options).

One worker, in this process, on a broker of its own, updates a table of 100,000 rows again and again: 10,000,000
updates, a hundred of them an event. Each task's journal is compacted as it grows. What is told:

journals    the most that all journals held together at one time, as a multiple of the live rows (target: below 3); and
            what lies on the broker at the end, read back
commits     how long they took that carried parts of snapshots, those that carried none, and those of a fifth of the
            updates made without any compaction: what compaction adds must stay below 100 ms
parts       how long the event loop was busy with making those of one commit

The rows are checked at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from statistics import quantiles
from typing import Any
from unittest.mock import patch

import msgspec
from chaos.checking import bytes_of
from chaos.servers import KINDS, own_broker
from report import circumstances
from thalweg import App, Stream, starting
from thalweg.journal.snapshot import LOCAL_MARKER, Snapshotter
from thalweg.partitioner import murmur2_partitioner
from thalweg.runtime.committer import Committer
from thalweg.runtime.task import Task

RESULTS = Path(__file__).parent / "results" / "compaction.json"
PARTITIONS = 8
TOGETHER = 100
"""Updates an event makes."""
AHEAD = 200
"""Events of each partition that wait to be handled: enough to keep it busy."""


class Batch(msgspec.Struct):
    """Updates of the n-th rows of a partition, `TOGETHER` from `start` on, to `value`."""

    start: int
    value: int


class Watch:
    """What commits and journals do, as the runtime does it."""

    def __init__(self) -> None:
        self.plain: list[float] = []
        self.laden: list[float] = []
        self.making: list[float] = []
        self.snapshots = 0
        self.largest = 0
        self._journals: dict[object, deque[tuple[int, int]]] = {}
        self._size = 0
        self._busy = 0.0

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        entries, write, committed, truncate = Snapshotter.entries, Committer._write, Task.committed, Task._truncate

        def timed_entries(*arguments: Any) -> Any:
            began = time.perf_counter()
            found = entries(*arguments)
            if found:
                self._busy += time.perf_counter() - began
            return found

        async def timed_write(committer: Any, cuts: Any) -> None:
            busy, self._busy = self._busy, 0.0
            began = time.perf_counter()
            await write(committer, cuts)
            took = time.perf_counter() - began + busy
            (self.laden if busy else self.plain).append(took)
            if busy:
                self.making.append(busy)

        def counted(task: Any, cut: Any, written: Any) -> None:
            self._journals.setdefault(task.journal, deque()).append((written.position, cut.size))
            self._size += cut.size
            self.largest = max(self.largest, self._size)
            committed(task, cut, written)

        async def truncated(task: Any, before: int) -> None:
            await truncate(task, before)
            self.snapshots += 1
            journal = self._journals[task.journal]
            while journal and journal[0][0] < before:
                self._size -= journal.popleft()[1]

        with (
            patch.object(Snapshotter, "entries", timed_entries),
            patch.object(Committer, "_write", timed_write),
            patch.object(Task, "committed", counted),
            patch.object(Task, "_truncate", truncated),
        ):
            yield


def keys_by_partition(rows: int) -> list[list[str]]:
    found: list[list[str]] = [[] for _ in range(PARTITIONS)]
    for number in range(rows):
        key = f"account-{number:07}"
        found[murmur2_partitioner(key.encode(), PARTITIONS)].append(key)
    return found


class Program:
    def __init__(self, broker: str, keys: list[list[str]]) -> None:
        self.app = App("compaction", broker=broker, partitions=PARTITIONS, env_prefix="THALWEG_BENCHMARK")
        self.batches = self.app.topic("batches", key=str, value=Batch)
        self.table = self.app.table("balances", key=str, value=int, default=int)
        self.handled = [0] * PARTITIONS
        self.moved = asyncio.Event()

        @self.app.agent(self.batches)
        async def update(stream: Stream[Batch]) -> None:
            table, handled = self.table, self.handled
            async for event in stream.events():
                mine, batch = keys[event.partition], event.value
                for key in mine[batch.start : batch.start + TOGETHER]:
                    table[key] = batch.value
                handled[event.partition] += 1
                self.moved.set()


def batches(keys: list[str], updates: int) -> Iterator[tuple[Batch, int]]:
    """Over the rows again and again, and how many updates each makes."""
    done = value = 0
    while done < updates:
        value += 1
        for start in range(0, len(keys), TOGETHER):
            yield Batch(start, value), len(keys[start : start + TOGETHER])
            done += len(keys[start : start + TOGETHER])
            if done >= updates:
                return


async def measure(kind: str, options: argparse.Namespace) -> Mapping[str, Any]:
    keys = keys_by_partition(options.rows)
    with patch.object(starting, "SNAPSHOT_BYTES", 1 << 40):
        never, _ = await run(kind, keys, options.updates // 5, options.seconds / 5)
    watch, figures = await run(kind, keys, options.updates, options.seconds)
    return {
        **figures,
        "commits with a part": shape(watch.laden),
        "commits without": shape(watch.plain),
        "commits where nothing is compacted": shape(never.plain),
        "making of parts": shape(watch.making),
    }


async def run(kind: str, keys: list[list[str]], updates: int, most: float) -> tuple[Watch, dict[str, Any]]:
    watch = Watch()
    async with broker_of(kind) as broker:
        program = Program(broker, keys)
        with watch.watching():
            async with program.app:
                began = time.perf_counter()
                made, truth = await produce(program, keys, updates, began + most)
                seconds = time.perf_counter() - began
                worker = program.app.running.worker
                assert worker is not None
                await worker.committer.flush()
                live = sum(
                    len(key) + len(value)
                    for task in worker.tasks.values()
                    for key, value in task._store.scan(b"", None)  # type: ignore[union-attr]
                    if key != LOCAL_MARKER
                )
                assert dict(program.table.items()) == truth
        left = None if kind == "memory" else await bytes_of(broker, f"compaction-journal-{PARTITIONS}", PARTITIONS)
    return watch, {
        "broker": kind,
        "updates": made,
        "rows": sum(map(len, keys)),
        "seconds": seconds,
        "updates a second": made / seconds,
        "live bytes": live,
        "journals at most": watch.largest / live,
        "journals at the end, read back": left and left / live,
        "snapshots": watch.snapshots,
    }


async def produce(program: Program, keys: list[list[str]], updates: int, until: float) -> tuple[int, dict[str, int]]:
    """Keep every partition busy until so many updates were made, or the time is over; what the rows are then."""
    plans = [batches(mine, updates // PARTITIONS) for mine in keys]
    sent, done, ended = [0] * PARTITIONS, 0, [False] * PARTITIONS
    truth: dict[str, int] = {}
    while not all(ended):
        out: list[tuple[int, Batch]] = []
        for partition, plan in enumerate(plans):
            while not ended[partition] and sent[partition] < program.handled[partition] + AHEAD:
                batch, count = next(plan, (None, 0))
                if batch is None or time.perf_counter() > until:
                    ended[partition] = True
                    break
                out.append((partition, batch))
                sent[partition] += 1
                done += count
                truth.update(dict.fromkeys(keys[partition][batch.start : batch.start + TOGETHER], batch.value))
        for partition in range(PARTITIONS):
            if mine := [batch for where, batch in out if where == partition]:
                await program.batches.send_many((keys[partition][0], batch) for batch in mine)
        await wait(program, lambda: _some_run_low(sent, program.handled, ended))
    await wait(program, lambda: program.handled == sent)
    return done, truth


def _some_run_low(sent: list[int], handled: list[int], ended: list[bool]) -> bool:
    going_on = [partition for partition in range(PARTITIONS) if not ended[partition]]
    return not going_on or any(sent[p] < handled[p] + AHEAD / 2 for p in going_on)


async def wait(program: Program, reached: Any) -> None:
    while not reached():
        program.moved.clear()
        await program.moved.wait()


@contextlib.asynccontextmanager
async def broker_of(kind: str) -> AsyncIterator[str]:
    if kind == "memory":
        yield f"memory://compaction-{time.monotonic_ns()}"
        return
    async with own_broker(kind) as broker:
        yield broker.url


def shape(times: list[float]) -> Mapping[str, float]:
    """Milliseconds."""
    if len(times) < 2:
        return {"count": len(times)}
    cuts = quantiles(times, n=100, method="inclusive")
    return {"count": len(times), "p50": 1e3 * cuts[49], "p99": 1e3 * cuts[98], "max": 1e3 * max(times)}


async def main() -> int:
    kinds = ["memory", *KINDS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="BROKER", help=f"some of {', '.join(kinds)} (default: all)")
    parser.add_argument("--updates", type=int, default=10_000_000, help="(default: %(default)s)")
    parser.add_argument("--rows", type=int, default=100_000, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=300.0, help="on each broker, at most (default: %(default)s)")
    options = parser.parse_args()
    if unknown := sorted(set(options.names) - set(kinds)):
        parser.error(f"no such broker: {', '.join(unknown)}; there are {', '.join(kinds)}")
    found = []
    for kind in options.names or kinds:
        if kind != "memory" and (lacking := KINDS[kind].lacking()):
            print(f"{kind}: {lacking}", file=sys.stderr)
            continue
        figures = await measure(kind, options)
        found.append(figures)
        print("\n".join(told(figures)), flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({**circumstances(), "brokers": found}, indent=1) + "\n", encoding="utf-8")
    return 0


def told(figures: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"{figures['broker']}: {figures['updates']:,} updates of {figures['rows']:,} rows in "
        f"{figures['seconds']:.0f} s ({figures['updates a second']:,.0f}/s), {figures['snapshots']} snapshots"
    )
    live, most = figures["live bytes"] / 1e6, figures["journals at most"]
    yield f"    rows: {live:.1f} MB; journals: {most:.2f} times that at most"
    if figures["journals at the end, read back"]:
        yield f"    journals at the end, read back: {figures['journals at the end, read back']:.2f} times the rows"
    for name in ("commits with a part", "commits without", "commits where nothing is compacted", "making of parts"):
        shape = figures[name]
        if "max" in shape:
            yield (
                f"    {name}: {shape['count']:,}; p50 {shape['p50']:.1f} ms, p99 {shape['p99']:.1f} ms, "
                f"longest {shape['max']:.1f} ms"
            )


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
