"""State far larger than memory: `make bench-large` (ARGS="--gb 5").

A journal of so many GB on SQLite (rows of 10 kB that do not compress, in two partitions), and a worker with RocksDB as
its store: it recovers, then handles events that change rows all over, is killed, and starts again on the same disk. It
shows keys a second and the most memory that its process ever held, which must stay below --limit. Then all is removed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from replaying import run_and_kill, watched
from thalweg import App, Stream, Table, Topic
from thalweg.capabilities import Logs
from thalweg.journal.readback import writer_for
from thalweg.journal.rewriting import Rewriting
from thalweg.journal.rows import prefix
from thalweg.registry import load_transport
from thalweg.starting import worker_running

PARTITIONS, VALUE, COMMIT = 2, 10_000, 200
EVENTS = 20_000


def make(folder: Path) -> tuple[App, Topic[bytes, bytes], Table[bytes, bytes]]:
    app = App(
        "large",
        broker=f"sqlite:///{folder}/broker.db?synchronous=normal",
        store=f"rocksdb:///{folder}/state?cache_mb=64",
        partitions=PARTITIONS,
        lease=5,
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


def most_memory() -> int:
    """Bytes that this process ever held at once: its peak of resident memory."""
    with open("/proc/self/status") as status:
        (line,) = (line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


async def work(folder: Path, keys: int, events: int) -> None:
    """Start, change rows, say how it went on a line, and stay."""
    app, changes, documents = make(folder)
    replays, handled = watched(), 0

    @app.agent(changes)
    async def change(stream: Stream[bytes]) -> None:
        nonlocal handled
        async for event in stream.events():
            before = documents[event.key]
            assert len(before) >= VALUE - 20
            documents[event.key] = before[:-4] + event.value
            handled += 1

    began = time.monotonic()
    async with worker_running(app):
        took, recovered = time.monotonic() - began, most_memory()
        began, dice = time.monotonic(), random.Random(3)
        for start in range(0, events, 500):
            keys_ = [key_of(dice.randrange(keys)) for _ in range(500)]
            await changes.send_many([(key, b"%04d" % (start % 10_000)) for key in keys_])
            while handled < start:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        while handled < events:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        found = {
            "recovery seconds": took,
            "records read": sum(one.records for one in replays),
            "keys read": sum(one.keys for one in replays),
            "most memory when recovered": recovered,
            "events/s": events / (time.monotonic() - began) if events else 0.0,
            "most memory": most_memory(),
        }
        print(json.dumps(found), flush=True)
        await asyncio.Event().wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=5.0)
    parser.add_argument("--limit", type=int, default=512, help="MiB of memory")
    parser.add_argument("--folder", type=Path, help="where it may all lie (default: a temporary one)")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        asyncio.run(work(Path(options.work[0]), int(options.work[1]), int(options.work[2])))
        return 0
    folder = Path(tempfile.mkdtemp(prefix="thalweg-large-", dir=options.folder))
    keys = round(options.gb * 1e9 / VALUE)
    try:
        began = time.monotonic()
        asyncio.run(write(folder, keys))
        print(f"journal of {keys:,} rows written in {time.monotonic() - began:.0f} s", flush=True)
        most = 0.0
        for events in (EVENTS, 0):
            found = run_and_kill([__file__, "--work", str(folder), str(keys), str(events)])
            size = sum(file.stat().st_size for file in (folder / "state").rglob("*") if file.is_file())
            most = max(most, found["most memory"])
            print(
                f"recovered in {found['recovery seconds']:.1f} s: {found['records read']:,} records, "
                f"{found['keys read'] / found['recovery seconds']:,.0f} keys/s; {found['events/s']:,.0f} events/s; "
                f"most memory {found['most memory when recovered'] / 2**20:.0f} MiB when recovered, "
                f"{found['most memory'] / 2**20:.0f} MiB in the end; store of {size / 1e9:.2f} GB",
                flush=True,
            )
            time.sleep(6)  # the lease of the killed one
        if most > options.limit << 20:
            print(f"above the limit of {options.limit} MiB", file=sys.stderr)
            return 1
        return 0
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", os.pathsep.join(sys.path))
    sys.exit(main())
