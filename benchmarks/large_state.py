"""State far larger than memory: `make bench-large` (ARGS="--gb 5").

A journal of so many GB on SQLite (rows of 10 kB that do not compress, in two partitions), and workers with RocksDB as
their store, each in a process to which the kernel gives --limit MiB and no more (`limited.py`): what needs more is
killed, and the benchmark fails. One after another

recovery    fills an empty store from the journal, and then handles events that change rows all over; it is killed
restart     starts on the same disk, and reads all rows by `table.items()`; it is killed
compaction  handles events until each journal has got a new snapshot, and what lay before it is truncated; it is killed
backup      `thalweg backup` writes a file of all of it
restore     `thalweg restore` puts that into an empty broker

Then all is removed. It takes a quarter of an hour, and seven times the disk.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from limited import Limit, limited
from replaying import watched
from thalweg import App, Stream, Table, Topic
from thalweg.capabilities import Logs
from thalweg.journal.readback import writer_for
from thalweg.journal.rewriting import Rewriting
from thalweg.journal.rows import prefix
from thalweg.registry import load_transport
from thalweg.starting import worker_running

PARTITIONS, VALUE, COMMIT = 2, 10_000, 200
EVENTS, BATCH = 20_000, 500
LEASE = 5
STEPS = ["recovery", "restart", "compaction", "backup", "restore"]


def make(folder: Path) -> tuple[App, Topic[bytes, bytes], Table[bytes, bytes]]:
    app = App(
        "large",
        broker=f"sqlite:///{folder}/broker.db?synchronous=normal",
        store=f"rocksdb:///{folder}/state?cache_mb=64",
        partitions=PARTITIONS,
        lease=LEASE,
        rows_mb=64,
    )
    return app, app.topic("changes", key=bytes, value=bytes), app.table("documents", key=bytes, value=bytes)


def key_of(number: int) -> bytes:
    return b"document-%09d" % number


async def write(folder: Path, keys: int) -> None:
    app, _, _ = make(folder)
    async with app.client():
        pass
    plan = app.tables["documents"]
    transport = load_transport(app.broker)
    await transport.open()
    assert isinstance(transport, Logs)
    writer = writer_for(transport, transport.log, app.clock)
    topic = f"large-journal-{plan.group}"
    log = await transport.log(topic)
    shares: list[list[bytes]] = [[] for _ in range(PARTITIONS)]
    for number in range(keys):
        shares[plan.partition_of(key_of(number), PARTITIONS)].append(key_of(number))
    noise = random.Random(7).randbytes(VALUE * 50)
    for partition, share in enumerate(shares):
        random.Random(partition).shuffle(share)
        task = Rewriting(writer, log, (topic, partition), app.clock, transport.limits.message_bytes)
        await task.look()
        await task.claim(PARTITIONS, "murmur2")
        await task.begin("a benchmark")
        for start in range(0, len(share), COMMIT):
            at = random.Random(start).randrange(VALUE * 49)
            await task.add(
                {prefix("documents") + key: noise[at : at + VALUE - 20] + key for key in share[start : start + COMMIT]}
            )
        await task.end()
    await log.close()
    await writer.close()
    await transport.close()


# --- a worker --------------------------------------------------------------------------------------------------------


class Worker:
    """Of the state in `folder`. handled: events."""

    def __init__(self, folder: Path, keys: int) -> None:
        self.app, self._changes, self.documents = make(folder)
        self._keys, self.handled, self._dice = keys, 0, random.Random(time.time())
        self.slowest = 0.0
        """Seconds, of a batch of events."""
        documents = self.documents

        @self.app.agent(self._changes)
        async def change(stream: Stream[bytes]) -> None:
            async for event in stream.events():
                before = documents[event.key]
                assert len(before) >= VALUE - 20
                documents[event.key] = before[:-4] + event.value
                self.handled += 1

    @asynccontextmanager
    async def running(self) -> AsyncIterator[dict[str, float]]:
        began, replays = time.monotonic(), watched()
        async with worker_running(self.app):
            took = time.monotonic() - began
            keys = sum(one.keys for one in replays)
            yield {"started after s": took, "records read": sum(one.records for one in replays), "keys/s": keys / took}

    async def handle(self, events: int) -> float:
        """So many, batch by batch; how many a second."""
        start, began = self.handled, time.monotonic()
        while self.handled - start < events:
            sent, at = self.handled, time.monotonic()
            keys = [key_of(self._dice.randrange(self._keys)) for _ in range(BATCH)]
            await self._changes.send_many([(key, b"%04d" % (sent % 10_000)) for key in keys])
            while self.handled < sent + BATCH:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            self.slowest = max(self.slowest, time.monotonic() - at)
        return (self.handled - start) / (time.monotonic() - began)


async def recovery(worker: Worker) -> dict[str, float]:
    async with worker.running() as found:
        return {**found, "events/s": await worker.handle(EVENTS), "slowest batch s": worker.slowest}


async def restart(worker: Worker) -> dict[str, float]:
    async with worker.running() as found:
        began, rows, size = time.monotonic(), 0, 0
        for value in worker.documents.values():
            rows, size = rows + 1, size + len(value)
            if rows % 100 == 0:
                await asyncio.sleep(0)  # as whoever reads so much in a process that has other things to do
        return {**found, "rows": rows, "scanned MB/s": size / 1e6 / (time.monotonic() - began)}


async def compaction(worker: Worker) -> dict[str, float]:
    async with worker.running() as found:
        rate = await worker.handle(EVENTS)
        before, worker.slowest = worker.slowest, 0.0
        log = await worker.app.running.open_log(f"large-journal-{PARTITIONS}")
        ends = [(await log.bounds(i)).last for i in range(PARTITIONS)]
        began, events = time.monotonic(), worker.handled
        while any([((await log.bounds(i)).first or 0) <= (end or 0) for i, end in enumerate(ends)]):
            await worker.handle(EVENTS)
        await log.close()
        took = time.monotonic() - began
        return {
            **found,
            "events/s before": rate,
            "slowest batch s before": before,
            "seconds": took,
            "events/s": (worker.handled - events) / took,
            "slowest batch s": worker.slowest,
        }


# --- all of it -------------------------------------------------------------------------------------------------------


async def work(step: str, folder: Path, keys: int) -> None:
    """Do it, say on a line how it went, and be killed with all that is open."""
    worker = Worker(folder, keys)
    print(json.dumps(await {"recovery": recovery, "restart": restart, "compaction": compaction}[step](worker)))
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGKILL)


def command(step: str, folder: Path, keys: int) -> list[str]:
    """What a process runs for this step."""
    thalweg = [sys.executable, "-c", "from thalweg.cli import main; main()", "-A", f"{__file__}:app"]
    if step == "backup":
        return [*thalweg, "--json", "backup", str(folder / "all.thalweg")]
    if step == "restore":
        return [
            *thalweg,
            "--broker",
            f"sqlite:///{folder}/other.db",
            "--json",
            "restore",
            str(folder / "all.thalweg"),
            "-y",
        ]
    return [sys.executable, __file__, "--work", step, str(folder), str(keys)]


def run(arguments: Sequence[str], enter: Callable[[], None], folder: Path) -> tuple[str, float, float]:
    """What it prints, how long it takes, and the most bytes of memory that its process ever has."""
    began = time.monotonic()
    process = subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL if "--json" in arguments else sys.stderr,
        text=True,
        preexec_fn=enter,
        env={**os.environ, "LARGE_STATE": str(folder)},
    )
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if not said:
        raise SystemExit(f"{' '.join(arguments)}: ended with {process.returncode}")
    return said, time.monotonic() - began, usage.ru_maxrss * 1024


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def measure(steps: Sequence[str], folder: Path, keys: int, limit: Limit) -> None:
    for step in steps:
        said, seconds, most = run(command(step, folder, keys), limit.enter, folder)
        if limit.killed():
            raise SystemExit(f"{step}: the kernel has killed what went above the limit")
        figures = "; ".join(
            f"{name} {value:,.4g}" for name, value in json.loads(said).items() if value.__class__ is not str
        )
        print(f"{step}: {figures}", flush=True)
        print(
            f"  {seconds:.0f} s; most memory {most / 2**20:.0f} MiB; store {size_of(folder / 'state') / 1e9:.2f} GB, "
            f"broker {(folder / 'broker.db').stat().st_size / 1e9:.2f} GB",
            flush=True,
        )
        time.sleep(LEASE + 1)  # of the one that was killed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", default=STEPS, help=f"of: {', '.join(STEPS)}")
    parser.add_argument("--gb", type=float, default=5.0)
    parser.add_argument("--limit", type=int, default=512, help="MiB of memory")
    parser.add_argument("--folder", type=Path, help="where it all lies, and stays (default: a temporary one)")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        step, where, keys = options.work
        asyncio.run(work(step, Path(where), int(keys)))
        return
    folder = options.folder or Path(tempfile.mkdtemp(prefix="thalweg-large-"))
    keys = round(options.gb * 1e9 / VALUE)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "broker.db").exists():
            began = time.monotonic()
            asyncio.run(write(folder, keys))
            print(f"journal of {keys:,} rows written in {time.monotonic() - began:.0f} s", flush=True)
        with limited(options.limit << 20) as limit:
            print(f"limited to {options.limit} MiB: {limit.what}", flush=True)
            measure(options.steps, folder, keys, limit)
    finally:
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", os.pathsep.join(sys.path))
    main()
elif "LARGE_STATE" in os.environ:  # what the commands work on
    app, _, _ = make(Path(os.environ["LARGE_STATE"]))
