"""How fast a worker gets its state back: `make bench-recovery` (with ARGS=… for options).

A journal of so many keys (--keys, 110 bytes a row, a thousand rows a commit, in four partitions) on each broker, which
is started for it. Then, in processes of their own:

recovery   a worker starts with an empty store: keys a second until all its tasks run
tail       it is killed with SIGKILL and starts again on the same disk: how many records it reads, and how long it takes
client     the broker's bare client reads records of the same bytes: keys a second, and nothing is done with them

The figures of the last run are in `results/recovery.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from chaos.servers import own_broker
from replaying import run_and_kill, watched
from report import circumstances
from thalweg import App, Stream
from thalweg.capabilities import Logs
from thalweg.channel import TopicSpec, Transport
from thalweg.journal.readback import writer_for
from thalweg.journal.rewriting import Rewriting
from thalweg.journal.rows import prefix
from thalweg.message import Message
from thalweg.registry import load_transport
from thalweg.starting import worker_running
from thalweg.url import Url

RESULTS = Path(__file__).parent / "results" / "recovery.json"
BROKERS = ["sqlite", "redis", "nats", "kafka", "rabbitmq"]
STORES = ["memory", "sqlite", "rocksdb"]
PARTITIONS, COMMIT, LEASE = 4, 1000, 5
BARE = 200_000
"""Keys that the bare client reads at most."""


def make(broker: str, store: str, standbys: int = 0, **settings: Any) -> App:
    app = App("bench", broker=broker, store=store, partitions=PARTITIONS, lease=LEASE, **settings)
    numbers = app.topic("numbers", key=str, value=int)
    accounts = app.table("accounts", key=str, value=dict, standbys=standbys)

    @app.agent(numbers)
    async def add(stream: Stream[int]) -> None:
        async for event in stream.events():
            accounts[event.key] = {"balance": event.value}

    return app


def row(number: int) -> tuple[bytes, bytes]:
    return b"account-%08d" % number, b'{"balance":1%011d,"owner":"%064d"}' % (number, number)


# --- the journal -----------------------------------------------------------------------------------------------------


async def write(url: str, keys: int) -> list[bytes]:
    """The journal, and the records that the bare client is to read. Returns these."""
    app = make(url, "memory://")
    async with app.client():
        pass  # which declares all topics
    plan = app.tables["accounts"]
    transport = load_transport(url)
    await transport.open()
    assert isinstance(transport, Logs)
    writer = writer_for(transport, transport.log, app.clock)
    limit = transport.limits.message_bytes
    numbers = list(range(keys))
    random.Random(7).shuffle(numbers)
    shares: list[list[int]] = [[] for _ in range(PARTITIONS)]
    for number in numbers:
        shares[plan.partition_of(row(number)[0], PARTITIONS)].append(number)
    topic = f"bench-journal-{plan.group}"
    log = await transport.log(topic)
    samples: list[bytes] = []
    for partition, share in enumerate(shares):
        task = Rewriting(writer, log, (topic, partition), app.clock, limit)
        await task.look()
        await task.claim(PARTITIONS, "murmur2")
        await task.begin("a benchmark")
        for start in range(0, len(share), COMMIT):
            found = dict(row(number) for number in share[start : start + COMMIT])
            await task.add({prefix("accounts") + key: value for key, value in found.items()})
            samples.append(b"".join(key + value for key, value in found.items()))
        await task.end()
    await transport.declare([TopicSpec("bare", 1)])
    bare = await transport.log("bare")
    kept = samples[: BARE // COMMIT]
    for start in range(0, len(kept), 20):
        await bare.append({0: [Message(data) for data in kept[start : start + 20]]}, positions=False)
    for one in (bare, log):
        await one.close()
    await writer.close()
    await transport.close()
    return kept


# --- a worker ------------------------------------------------------------------------------------------------------


async def work(url: str, store: str) -> None:
    """Start, say on a line what was read and how long it took, and stay."""
    app, replays = make(url, store), watched()
    began = time.monotonic()
    async with worker_running(app):
        took = time.monotonic() - began
        records, keys = sum(one.records for one in replays), sum(one.keys for one in replays)
        print(json.dumps({"seconds": took, "records": records, "keys": keys}), flush=True)
        await asyncio.Event().wait()


# --- bare clients --------------------------------------------------------------------------------------------------


async def by_sqlite(url: Url, count: int) -> None:
    connection = sqlite3.connect(url.file)
    rows = connection.execute("SELECT value FROM messages WHERE topic = 'bare' ORDER BY position").fetchall()
    assert len(rows) == count
    connection.close()


async def by_redis(url: Url, count: int) -> None:
    import redis.asyncio

    client = redis.asyncio.Redis.from_url(url.text)
    after, found = "-", 0
    while found < count:
        entries = await client.xrange("{0}:bare", after, count=100)
        found, after = found + len(entries), "(" + entries[-1][0].decode()
    await client.aclose()


async def by_kafka(url: Url, count: int) -> None:
    from aiokafka import AIOKafkaConsumer

    consumer = AIOKafkaConsumer("bare", bootstrap_servers=url.hosts, auto_offset_reset="earliest")
    await consumer.start()
    found = 0
    while found < count:
        found += sum(map(len, (await consumer.getmany(timeout_ms=1000, max_records=1000)).values()))
    await consumer.stop()


async def by_nats(url: Url, count: int) -> None:
    import nats
    from nats.js.api import AckPolicy, ConsumerConfig

    client = await nats.connect(f"nats://{url.hosts}")
    consumer = await client.jetstream().pull_subscribe(
        "thalweg.log.bare.0", stream="thalweg", config=ConsumerConfig(ack_policy=AckPolicy.NONE)
    )
    found = 0
    while found < count:
        found += len(await consumer.fetch(100, timeout=5))
    await client.close()


async def by_rabbitmq(url: Url, count: int) -> None:
    from rstream import Consumer, ConsumerOffsetSpecification, OffsetType

    consumer = Consumer(
        host="127.0.0.1",
        port=int(url.query["stream_port"]),
        username=url.username or "guest",
        password=url.password or "guest",
    )
    left, done = count, asyncio.Event()

    def take(message: object, context: object) -> None:
        nonlocal left
        left -= 1
        if not left:
            done.set()

    await consumer.start()
    first = ConsumerOffsetSpecification(OffsetType.FIRST)
    await consumer.subscribe("bare:0", take, offset_specification=first)
    await done.wait()
    await consumer.close()


CLIENTS: dict[str, Callable[[Url, int], Awaitable[None]]] = {
    "sqlite": by_sqlite,
    "redis": by_redis,
    "kafka": by_kafka,
    "nats": by_nats,
    "rabbitmq": by_rabbitmq,
}


async def driver_alone(transport: Transport, count: int) -> None:
    assert isinstance(transport, Logs)
    log = await transport.log("bare")
    after, found = None, 0
    while found < count:
        batch = (await log.read({0: after}, 1000, 16 << 20, 5))[0]
        found, after = found + len(batch.records), batch.positions[-1]
    await log.close()


# --- all of it -----------------------------------------------------------------------------------------------------


async def measure(kind: str, stores: list[str], keys: int) -> dict[str, Any]:
    found: dict[str, Any] = {"broker": kind}
    async with own_broker(kind) as broker:
        url = broker.url.replace("brokers.kafka_proxied:ProxiedTransport://", "kafka://")
        kept = await write(url, keys)
        began = time.monotonic()
        await asyncio.wait_for(CLIENTS[kind](Url(url), len(kept)), 60)
        found["client keys/s"] = len(kept) * COMMIT / (time.monotonic() - began)
        transport = load_transport(url)
        await transport.open()
        began = time.monotonic()
        await driver_alone(transport, len(kept))
        found["driver keys/s"] = len(kept) * COMMIT / (time.monotonic() - began)
        await transport.close()
        for store in stores:
            folder = tempfile.mkdtemp(prefix="thalweg-recovery-")
            try:
                where = "memory://" if store == "memory" else f"{store}:///{folder}/state"
                await asyncio.sleep(LEASE + 1)  # of the one killed before
                first = await asyncio.to_thread(run_and_kill, [__file__, "--work", url, where])
                found[store] = {"seconds": first["seconds"], "keys/s": first["keys"] / first["seconds"], "read": first}
                if store != "memory":
                    await asyncio.sleep(LEASE + 1)
                    found[store]["again"] = await asyncio.to_thread(run_and_kill, [__file__, "--work", url, where])
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            print(json.dumps({kind: found}), file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("brokers", nargs="*", default=BROKERS, help=f"of: {', '.join(BROKERS)}")
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--stores", default=",".join(STORES))
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--work", nargs=2, metavar=("BROKER", "STORE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        asyncio.run(work(*options.work))
        return
    results = [asyncio.run(measure(kind, options.stores.split(","), options.keys)) for kind in options.brokers]
    for found in results:
        print(
            f"{found['broker']}: bare client {found['client keys/s']:,.0f}, driver {found['driver keys/s']:,.0f} keys/s"
        )
        for store in options.stores.split(","):
            one = found[store]
            again = one.get("again")
            tail = "" if again is None else f"; again: {again['records']} records, {again['seconds']:.2f} s"
            print(f"  {store}: {one['keys/s']:,.0f} keys/s ({one['seconds']:.2f} s){tail}")
    before = json.loads(options.json.read_text())["results"] if options.json.exists() else []
    kept = [one for one in before if one["broker"] not in options.brokers]
    options.json.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**circumstances(), "keys": options.keys, "results": [*kept, *results]}, indent=1)
    options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", os.pathsep.join(sys.path))
    main()
