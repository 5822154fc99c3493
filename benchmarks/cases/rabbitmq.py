"""Queues on RabbitMQ against aio-pika, on the server of RABBITMQ_URL: quorum queues, persistent messages, confirms.

1000 messages a call on both sides; each is acknowledged. There are no such cases where no server answers.
"""

import asyncio
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aio_pika
from measuring import Case, Run, answers
from thalweg.channel import Channel, TopicSpec
from thalweg.message import Message
from thalweg.transports.rabbitmq import RabbitTransport
from thalweg.url import Url

URL = os.environ.get("RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672")
BATCH = 1000
VALUE = b'{"account": "account-123", "country": "NO", "amount": 5}'.ljust(100)
MESSAGES = [Message(VALUE, b"account-123", (), 1_790_000_000_000)] * BATCH
HEADERS = {"thalweg-key": "account-123", "timestamp_in_ms": 1_790_000_000_000}


def calls(run: Run) -> int:
    return max(1, run.messages // BATCH)


@asynccontextmanager
async def bare_queue() -> AsyncIterator[tuple[aio_pika.abc.AbstractChannel, aio_pika.abc.AbstractQueue]]:
    name = f"bench-{secrets.token_hex(6)}"
    async with await aio_pika.connect(URL) as connection:
        channel = await connection.channel(on_return_raises=True)
        queue = await channel.declare_queue(name, durable=True, arguments={"x-queue-type": "quorum"})
        try:
            yield channel, queue
        finally:
            await channel.queue_delete(name)


@asynccontextmanager
async def our_queue() -> AsyncIterator[Channel]:
    prefix = f"bench-{secrets.token_hex(6)}."
    transport = RabbitTransport.from_url(Url(f"{URL}{'&' if '?' in URL else '?'}prefix={prefix}"))
    await transport.open()
    try:
        await transport.declare([TopicSpec("queue", queue=True)])
        yield await transport.channel("queue", "group")
    finally:
        await transport.close()
        async with await aio_pika.connect(URL) as connection:
            channel = await connection.channel()
            await channel.queue_delete(f"{prefix}queue")
            await channel.queue_delete(f"{prefix}:topics")
            await channel.exchange_delete(f"{prefix}queue")


async def fill(channel: aio_pika.abc.AbstractChannel, name: str, run: Run) -> None:
    for _ in range(calls(run)):
        messages = (aio_pika.Message(VALUE, delivery_mode=2, headers=HEADERS) for _ in range(BATCH))
        publish = channel.default_exchange.publish
        await asyncio.gather(*(publish(message, name, mandatory=True) for message in messages))


async def bare_put(run: Run) -> None:
    async with bare_queue() as (channel, queue):
        with run.timed():
            await fill(channel, queue.name, run)


async def put(run: Run) -> None:
    async with our_queue() as queue:
        with run.timed():
            for _ in range(calls(run)):
                await queue.put(MESSAGES)


async def bare_get(run: Run) -> None:
    async with bare_queue() as (channel, queue):
        await fill(channel, queue.name, run)
        await channel.set_qos(BATCH)
        left, done = calls(run) * BATCH, asyncio.Event()

        async def take(message: aio_pika.abc.AbstractIncomingMessage) -> None:
            nonlocal left
            await message.ack()
            left -= 1
            if not left:
                done.set()

        with run.timed():
            await queue.consume(take)
            await done.wait()


async def get(run: Run) -> None:
    async with our_queue() as queue:
        for _ in range(calls(run)):
            await queue.put(MESSAGES)
        count = 0
        with run.timed():
            while count < calls(run) * BATCH:
                deliveries = await queue.get(BATCH, 1)
                await queue.commit(deliveries)
                count += len(deliveries)


CASES = (
    Case(
        "rabbitmq-put",
        "putting on a quorum queue of RabbitMQ, against publishing with confirms by aio-pika",
        {"bare": bare_put, "put": put},
        share=0.1,
        target=0.8,
    ),
    Case(
        "rabbitmq-get",
        "getting from a quorum queue of RabbitMQ and committing, against consuming and acknowledging by aio-pika",
        {"bare": bare_get, "get and commit": get},
        share=0.1,
        target=0.8,
    ),
) * answers(URL, 5672)
