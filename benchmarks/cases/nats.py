"""The NATS driver against nats-py, on the server of NATS_URL: 1000 messages a call on both sides.

nats-py publishes without waiting for each answer (`publish_async`) and fetches 1000 at a time. And a whole program, the
stateful sum exactly once, against a loop written by hand on nats-py that does no more than that: fetch, decode, add,
and publish the sums that changed with the positions, as one message every 100 ms that asserts the one before.

There are no such cases where no server answers.
"""

import os
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import perf_counter

import msgspec
import nats
from measuring import Case, Run, answers
from nats.js import JetStreamContext, api
from programs import new_app, sum_backlog
from thalweg.capabilities import Commit
from thalweg.channel import TopicSpec
from thalweg.message import Message
from thalweg.transports.nats import NatsTransport
from thalweg.url import Url
from workload import Withdrawal, check_totals, withdrawals

URL = os.environ.get("NATS_URL", "nats://127.0.0.1:4222")
BATCH = 1000
VALUE = b'{"account": "account-123", "country": "NO", "amount": 5}'.ljust(100)
HEADERS = {"thalweg-key": "account-123", "thalweg-time": "1790000000000"}
COMMIT_INTERVAL = 0.1
MESSAGES = [Message(VALUE, b"account-123", (), 1_790_000_000_000)] * BATCH


def calls(run: Run) -> int:
    return max(1, run.messages // BATCH)


@asynccontextmanager
async def bare_client() -> AsyncIterator[tuple[JetStreamContext, str]]:
    client, name = await nats.connect(URL.partition("?")[0]), f"bench-{secrets.token_hex(6)}"
    stream = client.jetstream()
    await stream.add_stream(api.StreamConfig(name=name, subjects=[f"{name}.>"]))
    try:
        yield stream, name
    finally:
        await stream.delete_stream(name)
        await client.close()


@asynccontextmanager
async def broker() -> AsyncIterator[tuple[str, str]]:
    """A URL with a prefix of its own, and that prefix; what lies under it is deleted at the end."""
    prefix = f"bench-{secrets.token_hex(6)}"
    try:
        yield f"{URL}{'&' if '?' in URL else '?'}prefix={prefix}", prefix
    finally:
        async with bare_client() as (stream, _):
            for found in await stream.streams_info():
                if found.config.name is not None and found.config.name.startswith(prefix):
                    await stream.delete_stream(found.config.name)


@asynccontextmanager
async def transport() -> AsyncIterator[NatsTransport]:
    async with broker() as (url, _):
        opened = NatsTransport.from_url(Url(url))
        await opened.open()
        try:
            await opened.declare([TopicSpec("log"), TopicSpec("journal"), TopicSpec("queue", queue=True)])
            yield opened
        finally:
            await opened.close()


async def fill(stream: JetStreamContext, subject: str, run: Run, headers: dict[str, str] | None) -> None:
    for _ in range(calls(run)):
        for _ in range(BATCH):
            await stream.publish_async(subject, VALUE, headers=headers)
        await stream.publish_async_completed()


async def bare_put(run: Run) -> None:
    async with bare_client() as (stream, name):
        with run.timed():
            await fill(stream, f"{name}.0", run, HEADERS)
        assert (await stream.stream_info(name)).state.messages == calls(run) * BATCH


async def bare_put_values(run: Run) -> None:
    async with bare_client() as (stream, name):
        with run.timed():
            await fill(stream, f"{name}.0", run, None)


async def put(run: Run) -> None:
    async with transport() as opened:
        log = await opened.log("log")
        with run.timed():
            for _ in range(calls(run)):
                await log.append({0: MESSAGES})


async def commit(run: Run) -> None:
    """A journal record and 999 outputs, all or nothing and fenced."""
    async with transport() as opened:
        claim = await opened.claim("journal", 0, Message(b"marker"))
        with run.timed():
            for _ in range(calls(run)):
                await opened.commit({claim: Commit([Message(VALUE)], {("log", 0): MESSAGES[1:]})})


async def bare_fetch(run: Run, headers: dict[str, str] | None) -> None:
    async with bare_client() as (stream, name):
        await fill(stream, f"{name}.0", run, headers)
        config = api.ConsumerConfig(ack_policy=api.AckPolicy.NONE)
        consumer = await stream.pull_subscribe(f"{name}.0", stream=name, config=config)
        count = 0
        with run.timed():
            while count < calls(run) * BATCH:
                count += len(await consumer.fetch(BATCH, timeout=5))


async def bare_get(run: Run) -> None:
    await bare_fetch(run, HEADERS)


async def bare_get_values(run: Run) -> None:
    await bare_fetch(run, None)


async def get(run: Run) -> None:
    async with transport() as opened:
        log = await opened.log("log")
        for _ in range(calls(run)):
            await log.append({0: MESSAGES})
        count, after = 0, None
        with run.timed():
            while count < calls(run) * BATCH:
                batch = (await log.read({0: after}, BATCH, 1 << 22, 0))[0]
                count, after = count + len(batch.records), batch.positions[-1]


async def bare_queue(run: Run) -> None:
    """Of a thousand acknowledgements one is confirmed; the driver has every one confirmed."""
    async with bare_client() as (stream, name):
        await fill(stream, f"{name}.0", run, HEADERS)
        consumer = await stream.pull_subscribe(f"{name}.0", durable="group", stream=name)
        count = 0
        with run.timed():
            while count < calls(run) * BATCH:
                found = await consumer.fetch(BATCH, timeout=5)
                for message in found[:-1]:
                    await message.ack()
                await found[-1].ack_sync()
                count += len(found)


async def queue(run: Run) -> None:
    async with transport() as opened:
        channel = await opened.channel("queue", "group")
        for _ in range(calls(run)):
            await channel.put(MESSAGES)
        count = 0
        with run.timed():
            while count < calls(run) * BATCH:
                deliveries = await channel.get(BATCH, 1)
                await channel.commit(deliveries)
                count += len(deliveries)


# --- whole programs ------------------------------------------------------------------------------------------


async def fill_topic(url: str, count: int) -> None:
    """The same backlog for both sides, as the program itself writes it."""
    app = new_app(url)
    source = app.topic("withdrawals", key=str, value=Withdrawal)
    async with app.client():
        await source.send_many((w.account, w) for w in withdrawals(count))


async def bare_sum(run: Run) -> None:
    decode, encode = msgspec.json.Decoder(Withdrawal).decode, msgspec.msgpack.encode
    totals: dict[str, int] = defaultdict(int)
    changed: dict[str, int] = {}
    async with broker() as (url, prefix), bare_client() as (stream, name):
        await fill_topic(url, run.messages)
        config = api.ConsumerConfig(ack_policy=api.AckPolicy.NONE)
        consumer = await stream.pull_subscribe(f"{prefix}.log.withdrawals.*", stream=prefix, config=config)
        count, sequence, position = 0, 0, 0
        with run.timed():
            last = perf_counter()
            while count < run.messages:
                for message in await consumer.fetch(BATCH, timeout=5):
                    withdrawal = decode(message.data)
                    totals[withdrawal.account] = total = totals[withdrawal.account] + withdrawal.amount
                    changed[withdrawal.account] = total
                    count += 1
                position = message.metadata.sequence.stream
                if perf_counter() - last > COMMIT_INTERVAL or count == run.messages:
                    headers = {"Nats-Expected-Last-Subject-Sequence": str(sequence)}
                    sequence = (await stream.publish(f"{name}.0", encode([position, changed]), headers=headers)).seq
                    changed.clear()
                    last = perf_counter()
    check_totals(totals, run.messages)


async def thalweg_sum(run: Run) -> None:
    async with broker() as (url, _):
        await fill_topic(url, run.messages)
        await sum_backlog(run, new_app(url), fill=False)


CASES = (
    Case(
        "nats-put",
        "writing to NATS, against pipelined publishing of nats-py",
        {"bare": bare_put, "append": put, "fenced commit": commit, "bare, without headers": bare_put_values},
        share=0.25,
        target=0.8,
    ),
    Case(
        "nats-get",
        "reading from NATS, against fetch(1000) of nats-py",
        {"bare": bare_get, "read": get, "bare, without headers": bare_get_values},
        share=0.25,
        target=0.8,
    ),
    Case(
        "nats-queue",
        "consuming and acknowledging, against fetch and ack of nats-py, which confirms one of a thousand",
        {"bare": bare_queue, "get and commit": queue},
        share=0.25,
        target=0.8,
    ),
    Case(
        "nats-sum",
        "stateful sum by key on NATS, exactly once, against a loop written by hand on nats-py",
        {"bare": bare_sum, "thalweg": thalweg_sum},
        share=0.5,
        target=0.8,
    ),
) * answers(URL, 4222)
