"""The Kafka driver against aiokafka, on the cluster of KAFKA_URL: 1000 messages a call on both sides.

And a whole program, the stateful sum exactly once, against a loop written by hand on aiokafka that does no more than
that: fetch, decode, add, and commit the sums that changed and the positions by a transaction every 100 ms.

There are no such cases where no broker answers.
"""

import os
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import perf_counter
from urllib.parse import urlsplit

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.structs import OffsetAndMetadata
from measuring import Case, Run, answers
from programs import PARTITIONS, new_app, sum_backlog
from thalweg import App
from thalweg.capabilities import Commit
from thalweg.channel import TopicSpec
from thalweg.message import Message
from thalweg.transports.kafka import KafkaTransport
from thalweg.url import Url
from workload import Withdrawal, check_totals, withdrawals

URL = os.environ.get("KAFKA_URL", "kafka://127.0.0.1:9092")
SERVERS = urlsplit(URL).netloc
BATCH = 1000
VALUE = b'{"account": "account-123", "country": "NO", "amount": 5}'.ljust(100)
MESSAGES = [Message(VALUE, b"account-123", (), 1_790_000_000_000)] * BATCH
COMMIT_INTERVAL = 0.1


def calls(run: Run) -> int:
    return max(1, run.messages // BATCH)


def url(prefix: str) -> str:
    return f"{URL}{'&' if '?' in URL else '?'}prefix={prefix}"


@asynccontextmanager
async def topics(*names: str, partitions: int = 1) -> AsyncIterator[str]:
    """Of these names under a prefix of their own; deleted at the end, with all that others made under it."""
    prefix = f"bench-{secrets.token_hex(6)}."
    admin = AIOKafkaAdminClient(bootstrap_servers=SERVERS)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(prefix + name, partitions, 1) for name in names])
        yield prefix
    finally:
        await admin.delete_topics([name for name in await admin.list_topics() if name.startswith(prefix)])
        await admin.close()


@asynccontextmanager
async def transport(prefix: str) -> AsyncIterator[KafkaTransport]:
    opened = KafkaTransport.from_url(Url(url(prefix)))
    await opened.open()
    try:
        await opened.declare([TopicSpec("log"), TopicSpec("journal")])
        yield opened
    finally:
        await opened.close()


@asynccontextmanager
async def producer(**more: object) -> AsyncIterator[AIOKafkaProducer]:
    opened = AIOKafkaProducer(
        bootstrap_servers=SERVERS, acks="all", enable_idempotence=True, max_batch_size=1 << 20, **more
    )
    await opened.start()
    try:
        yield opened
    finally:
        await opened.stop()


@asynccontextmanager
async def consumer(topic: str, partitions: int = 1) -> AsyncIterator[AIOKafkaConsumer]:
    opened = AIOKafkaConsumer(
        bootstrap_servers=SERVERS,
        enable_auto_commit=False,
        isolation_level="read_committed",
        max_partition_fetch_bytes=4 << 20,
    )
    await opened.start()
    try:
        places = [TopicPartition(topic, number) for number in range(partitions)]
        opened.assign(places)
        await opened.seek_to_beginning(*places)
        yield opened
    finally:
        await opened.stop()


async def write(to: AIOKafkaProducer, topic: str, times: int) -> None:
    for _ in range(times):
        batch = to.create_batch()
        for message in MESSAGES:
            batch.append(timestamp=message.timestamp, key=message.key, value=message.value)
        await (await to.send_batch(batch, topic, partition=0))


async def bare_put(run: Run) -> None:
    async with topics("log") as prefix, producer() as opened:
        with run.timed():
            await write(opened, prefix + "log", calls(run))


async def put(run: Run) -> None:
    async with topics("log") as prefix, transport(prefix) as opened:
        log = await opened.log("log")
        with run.timed():
            for _ in range(calls(run)):
                await log.append({0: MESSAGES})


async def bare_commit(run: Run) -> None:
    async with topics("log", "journal") as prefix, producer(transactional_id=prefix) as opened:
        with run.timed():
            for _ in range(calls(run)):
                async with opened.transaction():
                    await opened.send(prefix + "journal", VALUE, partition=0)
                    await write(opened, prefix + "log", 1)


async def commit(run: Run) -> None:
    """A journal record and 1000 outputs, all or nothing and fenced."""
    async with topics("log", "journal") as prefix, transport(prefix) as opened:
        claim = await opened.claim("journal", 0, Message(b"marker"))
        with run.timed():
            for _ in range(calls(run)):
                await opened.commit({claim: Commit([Message(VALUE)], {("log", 0): MESSAGES})})


async def bare_get(run: Run) -> None:
    async with topics("log") as prefix:
        async with producer() as opened:
            await write(opened, prefix + "log", calls(run))
        async with consumer(prefix + "log") as reading:
            count = 0
            with run.timed():
                while count < calls(run) * BATCH:
                    found = await reading.getmany(timeout_ms=1000, max_records=BATCH)
                    count += sum(map(len, found.values()))


async def get(run: Run) -> None:
    async with topics("log") as prefix, transport(prefix) as opened:
        log = await opened.log("log")
        for _ in range(calls(run)):
            await log.append({0: MESSAGES})
        count, after = 0, None
        with run.timed():
            while count < calls(run) * BATCH:
                batch = (await log.read({0: after}, BATCH, 4 << 20, 0))[0]
                count, after = count + len(batch.records), batch.positions[-1]


# --- whole programs ------------------------------------------------------------------------------------------


async def fill(prefix: str, count: int) -> App:
    """The same backlog for both sides, on the partitions that the program itself gives it."""
    app = new_app(url(prefix))
    source = app.topic("withdrawals", key=str, value=Withdrawal)
    async with app.client():
        await source.send_many((w.account, w) for w in withdrawals(count))
    return app


async def bare_sum(run: Run) -> None:
    decode = msgspec.json.Decoder(Withdrawal).decode
    totals: dict[str, int] = defaultdict(int)
    changed: dict[TopicPartition, dict[str, int]] = defaultdict(dict)
    reached: dict[TopicPartition, int] = {}
    async with (
        topics("changes", partitions=PARTITIONS) as prefix,
        producer(transactional_id=prefix, linger_ms=0) as writing,
    ):
        await fill(prefix, run.messages)
        async with consumer(prefix + "withdrawals", PARTITIONS) as reading:

            async def flush() -> None:
                async with writing.transaction():
                    for place, sums in changed.items():
                        for account, total in sums.items():
                            data, key = str(total).encode(), account.encode()
                            await writing.send(prefix + "changes", data, key, partition=place.partition)
                    offsets = {place: OffsetAndMetadata(offset, "") for place, offset in reached.items()}
                    await writing.send_offsets_to_transaction(offsets, prefix)
                changed.clear()

            count = 0
            with run.timed():
                last = perf_counter()
                while count < run.messages:
                    for place, records in (await reading.getmany(timeout_ms=1000, max_records=5000)).items():
                        sums = changed[place]
                        for record in records:
                            withdrawal = decode(record.value)
                            totals[withdrawal.account] = total = totals[withdrawal.account] + withdrawal.amount
                            sums[withdrawal.account] = total
                        reached[place] = records[-1].offset + 1
                        count += len(records)
                    if perf_counter() - last > COMMIT_INTERVAL or count == run.messages:
                        await flush()
                        last = perf_counter()
    check_totals(totals, run.messages)


async def thalweg_sum(run: Run) -> None:
    async with topics("changes") as prefix:
        await fill(prefix, run.messages)
        await sum_backlog(run, new_app(url(prefix)), fill=False)


CASES = (
    Case(
        "kafka-put",
        "writing to Kafka, against send_batch of aiokafka",
        {"bare": bare_put, "append": put},
        share=0.5,
        target=0.5,
    ),
    Case(
        "kafka-commit",
        "1000 outputs with each journal record, fenced, against a transaction of aiokafka",
        {"bare": bare_commit, "fenced commit": commit},
        share=0.25,
        target=0.5,
    ),
    Case(
        "kafka-get",
        "reading from Kafka, against getmany of aiokafka",
        {"bare": bare_get, "read": get},
        share=0.5,
        target=0.5,
    ),
    Case(
        "kafka-sum",
        "stateful sum by key on Kafka, exactly once, against a loop written by hand on aiokafka",
        {"bare": bare_sum, "thalweg": thalweg_sum},
        target=0.5,
    ),
) * answers(URL, 9092)
