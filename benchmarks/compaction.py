"""What compaction costs, and what it keeps in bounds: `make bench-compaction` (with ARGS=… for options).

One worker, in this process, on a broker of its own, updates a table of 100,000 rows again and again: 10,000,000
updates, by one of two loads. *single*: an event updates one row, any. *hundreds*: an event updates a hundred, in turn,
so that a commit holds up to half of all rows: the hardest case for a journal that has to stay small. Each task's
journal is compacted as it grows. What is told:

journals    the most that all journals held together at one time, as a multiple of the live rows (target: below 3); and
            what lies on the broker at the end, read back
pause       how much longer a commit took because of compaction (target: below 100 ms, each): the time in which the
            parts of snapshots that it carries were made, and the part of the time in which the commit was written that
            is theirs by bytes
commits     how long those took that carried parts of snapshots, those that carried none, of which those amid a
            truncation are told apart, and those of a fifth of the updates made without any compaction. From where the
            commit is cut until it is written
parts       how long the event loop was busy with making those of one task (target: below 10 ms, each)
memory      the most that the process held, with and without compaction

The rows are checked at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import random
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from itertools import islice, product
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
"""Updates an event of the load *hundreds* makes."""
AHEAD = {"single": 8000, "hundreds": 200}
"""Events of each partition that wait to be handled: enough to keep it busy."""
RETENTION = 20.0
"""Seconds that events are kept, many times what they wait: so brokers which keep them in memory need not hold all."""
AT_ONCE = {"single": 1000, "hundreds": 25}
"""Events that are sent in one piece, so that sending them holds up nothing for long."""


PEAK = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def forget_peak() -> None:
    """Linux only."""
    with contextlib.suppress(OSError):
        PEAK[0].write_text("5")


def peak_megabytes() -> float | None:
    """The most memory that this process held since `forget_peak`."""
    with contextlib.suppress(OSError):
        for line in PEAK[1].read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1e3
    return None


class Batch(msgspec.Struct):
    """Updates of rows of a partition, `count` from the `start`-th on, to `value`."""

    start: int
    count: int
    value: int


class Watch:
    """What commits and journals do, as the runtime does it. Times in seconds."""

    def __init__(self) -> None:
        self.plain: list[float] = []
        self.laden: list[float] = []
        self.amid_truncation: list[float] = []
        self.pauses: list[float] = []
        self.making: list[float] = []
        self.snapshots = 0
        self.largest = 0
        self.bytes = self.bytes_of_parts = 0
        self._journals: dict[object, deque[tuple[int, int]]] = {}
        self._size = 0
        self._made = 0.0  # seconds spent on parts of the commit under way,
        self._parts = 0  # and their bytes
        self._cutting = 0.0
        self._truncating = 0
        self._truncated = False

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        entries, cuts, write = Snapshotter.entries, Committer._cuts, Committer._write
        committed, truncate = Task.committed, Task._truncate

        def timed_entries(snapshotter: Any, *arguments: Any) -> Any:
            began = time.perf_counter()
            found = entries(snapshotter, *arguments)
            if found:
                self.making.append(time.perf_counter() - began)
                self._made += self.making[-1]
                self._parts += snapshotter._part
            return found

        def timed_cuts(committer: Any) -> Any:
            self._made, self._parts = 0.0, 0
            began = time.perf_counter()
            found = cuts(committer)
            self._cutting = time.perf_counter() - began
            return found

        async def timed_write(committer: Any, found: Any) -> None:
            size = sum(cut.size for cut in found.values())
            self._truncated = self._truncating > 0
            began = time.perf_counter()
            await write(committer, found)
            writing = time.perf_counter() - began
            self.bytes += size
            self.bytes_of_parts += self._parts
            took = self._cutting + writing
            if self._made:
                self.laden.append(took)
                self.pauses.append(self._made + writing * self._parts / size)
            elif self._truncated:
                self.amid_truncation.append(took)
            else:
                self.plain.append(took)

        def counted(task: Any, cut: Any, written: Any) -> None:
            self._journals.setdefault(task.journal, deque()).append((written.position, cut.size))
            self._size += cut.size
            self.largest = max(self.largest, self._size)
            committed(task, cut, written)

        async def truncated(task: Any, before: int) -> None:
            self._truncating += 1
            self._truncated = True
            try:
                await truncate(task, before)
            finally:
                self._truncating -= 1
            self.snapshots += 1
            journal = self._journals[task.journal]
            while journal and journal[0][0] < before:
                self._size -= journal.popleft()[1]

        with (
            patch.object(Snapshotter, "entries", timed_entries),
            patch.object(Committer, "_cuts", timed_cuts),
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
        self.batches = self.app.topic("batches", key=str, value=Batch, retention=RETENTION)
        self.table = self.app.table("balances", key=str, value=int, default=int)
        self.handled = [0] * PARTITIONS
        self.moved = asyncio.Event()

        @self.app.agent(self.batches)
        async def update(stream: Stream[Batch]) -> None:
            table, handled = self.table, self.handled
            async for event in stream.events():
                mine, batch = keys[event.partition], event.value
                for key in mine[batch.start : batch.start + batch.count]:
                    table[key] = batch.value
                handled[event.partition] += 1
                if not handled[event.partition] % 25:
                    self.moved.set()


def single(keys: list[str], updates: int) -> Iterator[Batch]:
    """Of any row each."""
    chance = random.Random(len(keys))
    for number in range(updates):
        yield Batch(chance.randrange(len(keys)), 1, number)


def hundreds(keys: list[str], updates: int) -> Iterator[Batch]:
    """Over the rows again and again."""
    value = 0
    while updates > 0:
        value += 1
        for start in range(0, len(keys), TOGETHER):
            if updates > 0:
                yield Batch(start, len(keys[start : start + TOGETHER]), value)
                updates -= TOGETHER


LOADS: Mapping[str, Callable[[list[str], int], Iterator[Batch]]] = {"single": single, "hundreds": hundreds}


async def measure(kind: str, load: str, options: argparse.Namespace) -> Mapping[str, Any]:
    keys = keys_by_partition(options.rows)
    with patch.object(starting, "SNAPSHOT_BYTES", 1 << 40):
        never, without = await run(kind, load, keys, options.updates // 5, options.seconds / 5)
    watch, figures = await run(kind, load, keys, options.updates, options.seconds)
    return {
        **figures,
        "updates a second without compaction": without["updates a second"],
        "megabytes at most without compaction": without["megabytes at most"],
        "pauses": shape(watch.pauses),
        "commits with a part": shape(watch.laden),
        "commits without, amid a truncation": shape(watch.amid_truncation),
        "commits without": shape(watch.plain),
        "commits where nothing is compacted": shape(never.plain),
        "making of a task's part": shape(watch.making),
    }


async def run(kind: str, load: str, keys: list[list[str]], updates: int, most: float) -> tuple[Watch, dict[str, Any]]:
    watch = Watch()
    async with broker_of(kind) as broker:
        program = Program(broker, keys)
        forget_peak()
        with watch.watching():
            async with program.app:
                began = time.perf_counter()
                made, truth = await produce(program, load, keys, updates, began + most)
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
                peak = peak_megabytes()
                assert dict(program.table.items()) == truth
        left = None if kind == "memory" else await bytes_of(broker, f"compaction-journal-{PARTITIONS}", PARTITIONS)
    return watch, {
        "broker": kind,
        "load": load,
        "updates": made,
        "rows": sum(map(len, keys)),
        "seconds": seconds,
        "updates a second": made / seconds,
        "live bytes": live,
        "journals at most": watch.largest / live,
        "journals at the end, read back": left and left / live,
        "parts, as a share of all that was written": watch.bytes_of_parts / watch.bytes,
        "snapshots": watch.snapshots,
        "megabytes at most": peak,
    }


async def produce(
    program: Program, load: str, keys: list[list[str]], updates: int, until: float
) -> tuple[int, dict[str, int]]:
    """Keep every partition busy until so many updates were made, or the time is over; what the rows are then."""
    plans = [LOADS[load](mine, updates // PARTITIONS) for mine in keys]
    sent, done, ended = [0] * PARTITIONS, 0, [False] * PARTITIONS
    truth: dict[str, int] = {}
    ahead, at_once = AHEAD[load], AT_ONCE[load]
    while not all(ended):
        for partition, plan in enumerate(plans):
            if ended[partition] or sent[partition] > program.handled[partition] + ahead - at_once:
                continue
            mine = keys[partition]
            out = list(islice(plan, at_once))
            for batch in out:
                touched = mine[batch.start : batch.start + batch.count]
                truth.update(dict.fromkeys(touched, batch.value))
                done += len(touched)
            sent[partition] += len(out)
            ended[partition] = len(out) < at_once or time.perf_counter() > until
            if out:
                await program.batches.send_many((mine[0], batch) for batch in out)
        await wait(program, lambda: _some_run_low(sent, program.handled, ended, ahead - at_once))
    await wait(program, lambda: program.handled == sent)
    return done, truth


def _some_run_low(sent: list[int], handled: list[int], ended: list[bool], enough: int) -> bool:
    going_on = [partition for partition in range(PARTITIONS) if not ended[partition]]
    return not going_on or any(sent[p] <= handled[p] + enough for p in going_on)


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
    parser.add_argument("--load", choices=list(LOADS), help="(default: both, one after the other)")
    parser.add_argument("--updates", type=int, default=10_000_000, help="(default: %(default)s)")
    parser.add_argument("--rows", type=int, default=100_000, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=300.0, help="a run, at most (default: %(default)s)")
    options = parser.parse_args()
    if unknown := sorted(set(options.names) - set(kinds)):
        parser.error(f"no such broker: {', '.join(unknown)}; there are {', '.join(kinds)}")
    logging.getLogger("thalweg").setLevel(logging.ERROR)
    found = []
    for kind, load in product(options.names or kinds, [options.load] if options.load else LOADS):
        if kind != "memory" and (lacking := KINDS[kind].lacking()):
            print(f"{kind}: {lacking}", file=sys.stderr)
            continue
        figures = await measure(kind, load, options)
        found.append(figures)
        print("\n".join(told(figures)), flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({**circumstances(), "brokers": found}, indent=1) + "\n", encoding="utf-8")
    return 0


SHAPES = (
    "pauses",
    "commits with a part",
    "commits without, amid a truncation",
    "commits without",
    "commits where nothing is compacted",
    "making of a task's part",
)


def told(figures: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"{figures['broker']}, {figures['load']}: {figures['updates']:,} updates of {figures['rows']:,} rows in "
        f"{figures['seconds']:.0f} s ({figures['updates a second']:,.0f}/s; without compaction "
        f"{figures['updates a second without compaction']:,.0f}/s), {figures['snapshots']} snapshots"
    )
    live, most, left = (
        figures["live bytes"] / 1e6,
        figures["journals at most"],
        figures["journals at the end, read back"],
    )
    end = f", {left:.2f} times at the end, read back" if left else ""
    share = figures["parts, as a share of all that was written"]
    yield f"    rows: {live:.1f} MB; journals: {most:.2f} times that at most{end}; parts: {share:.0%} of all written"
    if figures["megabytes at most"]:
        yield (
            f"    memory: {figures['megabytes at most']:.0f} MB at most, without compaction "
            f"{figures['megabytes at most without compaction']:.0f} MB"
        )
    for name in SHAPES:
        shape = figures[name]
        if "max" in shape:
            yield (
                f"    {name}: {shape['count']:,}; p50 {shape['p50']:.1f} ms, p99 {shape['p99']:.1f} ms, "
                f"longest {shape['max']:.1f} ms"
            )


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
