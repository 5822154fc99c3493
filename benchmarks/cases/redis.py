"""The Redis driver against redis-py with hiredis, on the server of REDIS_URL: 1000 messages a call on both sides.

There are no such cases where no server answers.
"""

import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import redis.asyncio
from measuring import Case, Run, answers
from thalweg.capabilities import Commit
from thalweg.channel import TopicSpec
from thalweg.message import Message
from thalweg.transports.redis import RedisTransport
from thalweg.url import Url

URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379")
BATCH = 1000
VALUE = b'{"account": "account-123", "country": "NO", "amount": 5}'.ljust(100)
FIELDS = {"key": b"account-123", "value": VALUE, "timestamp": b"1790000000000"}
MESSAGES = [Message(VALUE, b"account-123", (), 1_790_000_000_000)] * BATCH


def calls(run: Run) -> int:
    return max(1, run.messages // BATCH)


@asynccontextmanager
async def bare_client() -> AsyncIterator[tuple[redis.asyncio.Redis, str]]:
    client, key = redis.asyncio.Redis.from_url(URL), f"bench-{secrets.token_hex(6)}"
    try:
        yield client, key
    finally:
        await client.delete(key)
        await client.aclose()


@asynccontextmanager
async def transport() -> AsyncIterator[RedisTransport]:
    prefix = f"bench-{secrets.token_hex(6)}-"
    opened = RedisTransport.from_url(Url(f"{URL}{'&' if '?' in URL else '?'}prefix={prefix}"))
    await opened.open()
    try:
        await opened.declare([TopicSpec("log"), TopicSpec("journal"), TopicSpec("queue", queue=True)])
        yield opened
    finally:
        await opened.close()
        async with bare_client() as (client, _):
            async for key in client.scan_iter(f"*{prefix}*", count=1000):
                await client.delete(key)


async def fill(client: redis.asyncio.Redis, key: str, run: Run) -> None:
    for _ in range(calls(run)):
        pipeline = client.pipeline(transaction=False)
        for _ in range(BATCH):
            pipeline.xadd(key, FIELDS)
        await pipeline.execute()


async def bare_put(run: Run) -> None:
    async with bare_client() as (client, key):
        with run.timed():
            await fill(client, key, run)
        assert await client.xlen(key) == calls(run) * BATCH


async def put(run: Run) -> None:
    async with transport() as opened:
        log = await opened.log("log")
        with run.timed():
            for _ in range(calls(run)):
                await log.append({0: MESSAGES})


async def commit(run: Run) -> None:
    """A journal record and 1000 outputs, all or nothing and fenced."""
    async with transport() as opened:
        claim = await opened.claim("journal", 0, Message(b"marker"))
        with run.timed():
            for _ in range(calls(run)):
                await opened.commit({claim: Commit([Message(VALUE)], {("log", 0): MESSAGES})})


async def bare_get(run: Run) -> None:
    async with bare_client() as (client, key):
        await fill(client, key, run)
        count, last = 0, b"0"
        with run.timed():
            while count < calls(run) * BATCH:
                [[_, entries]] = await client.xread({key: last}, count=BATCH)
                count, last = count + len(entries), entries[-1][0]


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
    async with bare_client() as (client, key):
        await fill(client, key, run)
        await client.xgroup_create(key, "group", "0")
        count = 0
        with run.timed():
            while count < calls(run) * BATCH:
                found = await client.xreadgroup("group", "member", {key: ">"}, count=BATCH)
                names = [name for name, _ in found[0][1]]
                await client.xack(key, "group", *names)
                await client.xdel(key, *names)
                count += len(names)


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


CASES = (
    Case(
        "redis-put",
        "writing to Redis, against pipelined XADD of redis-py",
        {"bare": bare_put, "append": put, "fenced commit": commit},
        share=0.25,
        target=0.5,
    ),
    Case(
        "redis-get",
        "reading from Redis, against XREAD of redis-py",
        {"bare": bare_get, "read": get},
        share=0.25,
        target=0.5,
    ),
    Case(
        "redis-queue",
        "consuming and deleting, against XREADGROUP, XACK and XDEL of redis-py",
        {"bare": bare_queue, "get and commit": queue},
        share=0.25,
        target=0.5,
    ),
) * answers(URL, 6379)
