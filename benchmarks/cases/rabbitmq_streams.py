"""Logs on RabbitMQ, on the server of RABBITMQ_URL: 1000 messages a call, written with confirms, and read.

Over the stream protocol against rstream with bare bytes, the most that a client in Python does (and, to compare like
with like, against rstream with a header); over AMQP against aio-pika. There are no such cases where no server answers.
"""

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import aio_pika
from measuring import Case, Run, answers
from rstream import AMQPMessage, Consumer, ConsumerOffsetSpecification, OffsetType, Producer, amqp_decoder
from thalweg.channel import TopicSpec
from thalweg.message import Message
from thalweg.transports.rabbitmq import RabbitTransport
from thalweg.url import Url

URL = os.environ.get("RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672")
WHERE = urlsplit(URL)
PORT = int(os.environ.get("RABBITMQ_STREAM_PORT", "5552"))
LOGIN: dict[str, Any] = {
    "host": WHERE.hostname or "localhost",
    "port": PORT,
    "username": WHERE.username or "guest",
    "password": WHERE.password or "guest",
}
BATCH = 1000
VALUE = b'{"account": "account-123", "country": "NO", "amount": 5}'.ljust(100)
MESSAGES = [Message(VALUE, b"account-123", (), 1_790_000_000_000)] * BATCH


def bare() -> list[Any]:
    return [VALUE] * BATCH


def with_header() -> list[Any]:
    return [AMQPMessage(body=VALUE, application_properties={"key": "account-123"}) for _ in range(BATCH)]


def calls(run: Run) -> int:
    return max(1, run.messages // BATCH)


@asynccontextmanager
async def stream() -> AsyncIterator[str]:
    name = f"bench-{secrets.token_hex(6)}"
    async with await aio_pika.connect(URL) as connection:
        channel = await connection.channel()
        await channel.declare_queue(name, durable=True, arguments={"x-queue-type": "stream"})
        try:
            yield name
        finally:
            await channel.queue_delete(name)


@asynccontextmanager
async def transport(way: str, name: str) -> AsyncIterator[RabbitTransport]:
    """Of a topic whose stream is `name`: partition 0 under a prefix of its own."""
    separator = "&" if "?" in URL else "?"
    opened = RabbitTransport.from_url(Url(f"{URL}{separator}prefix={name}.&streams={way}&stream_port={PORT}"))
    await opened.open()
    try:
        await opened.declare([TopicSpec("log")])
        yield opened
    finally:
        await opened.close()
        async with await aio_pika.connect(URL) as connection:
            channel = await connection.channel()
            for queue in (f"{name}.log:0", f"{name}.:topics", f"{name}.:numbers"):
                await channel.queue_delete(queue)


async def write_by_rstream(name: str, batch: Callable[[], list[Any]], times: int) -> None:
    left, done = times * BATCH, asyncio.Event()

    async def confirmed(_: object) -> None:
        nonlocal left
        left -= 1
        if not left:
            done.set()

    async with Producer(**LOGIN) as producer:
        for _ in range(times):
            await producer.send_batch(name, batch(), on_publish_confirm=confirmed)
        await done.wait()


async def read_by_rstream(run: Run, decoder: Any) -> None:
    async with stream() as name:
        await write_by_rstream(name, bare if decoder is None else with_header, calls(run))
        left, done = calls(run) * BATCH, asyncio.Event()

        def take(message: object, context: object) -> None:
            nonlocal left
            left -= 1
            if not left:
                done.set()

        consumer = Consumer(**LOGIN)
        await consumer.start()
        with run.timed():
            first = ConsumerOffsetSpecification(OffsetType.FIRST)
            await consumer.subscribe(name, take, decoder=decoder, offset_specification=first)
            await done.wait()
        await consumer.close()


async def rstream_put(run: Run) -> None:
    async with stream() as name:
        with run.timed():
            await write_by_rstream(name, bare, calls(run))


async def rstream_put_header(run: Run) -> None:
    async with stream() as name:
        with run.timed():
            await write_by_rstream(name, with_header, calls(run))


async def rstream_get(run: Run) -> None:
    await read_by_rstream(run, None)


async def rstream_get_header(run: Run) -> None:
    await read_by_rstream(run, amqp_decoder)


async def aio_pika_put(run: Run) -> None:
    async with stream() as name, await aio_pika.connect(URL) as connection:
        channel = await connection.channel()
        with run.timed():
            await write_by_aio_pika(channel.default_exchange, name, calls(run))


async def write_by_aio_pika(exchange: aio_pika.abc.AbstractExchange, name: str, times: int) -> None:
    for _ in range(times):
        messages = (aio_pika.Message(VALUE, delivery_mode=2, headers={"key": "account-123"}) for _ in range(BATCH))
        await asyncio.gather(*(exchange.publish(message, routing_key=name) for message in messages))


async def aio_pika_get(run: Run) -> None:
    async with stream() as name, await aio_pika.connect(URL) as connection:
        channel = await connection.channel()
        await write_by_aio_pika(channel.default_exchange, name, calls(run))
        left, done = calls(run) * BATCH, asyncio.Event()

        async def take(message: aio_pika.abc.AbstractIncomingMessage) -> None:
            nonlocal left
            left -= 1
            if not left % 100:
                await message.channel.basic_ack(message.delivery_tag, multiple=True)
            if not left:
                done.set()

        await channel.set_qos(prefetch_count=500)
        queue = await channel.get_queue(name, ensure=False)
        with run.timed():
            await queue.consume(take, arguments={"x-stream-offset": "first"})
            await done.wait()


async def put(run: Run, way: str) -> None:
    async with transport(way, f"bench-{secrets.token_hex(6)}") as opened:
        log = await opened.log("log")
        with run.timed():
            for _ in range(calls(run)):
                await log.append({0: MESSAGES}, positions=False)


async def get(run: Run, way: str) -> None:
    async with transport(way, f"bench-{secrets.token_hex(6)}") as opened:
        log = await opened.log("log")
        for _ in range(calls(run)):
            await log.append({0: MESSAGES}, positions=False)
        count, after = 0, None
        with run.timed():
            while count < calls(run) * BATCH:
                batch = (await log.read({0: after}, BATCH, 1 << 22, 1))[0]
                count, after = count + len(batch.records), batch.positions[-1]


async def native_put(run: Run) -> None:
    await put(run, "native")


async def native_get(run: Run) -> None:
    await get(run, "native")


async def amqp_put(run: Run) -> None:
    await put(run, "amqp")


async def amqp_get(run: Run) -> None:
    await get(run, "amqp")


CASES = (
    Case(
        "rabbitmq-stream-put",
        "the RabbitMQ driver's append over the stream protocol, against rstream with bare bytes",
        {"bare": rstream_put, "thalweg": native_put, "rstream, a header": rstream_put_header},
        share=0.5,
        target=0.3,
    ),
    Case(
        "rabbitmq-stream-get",
        "its read over the stream protocol, against rstream with bare bytes",
        {"bare": rstream_get, "thalweg": native_get, "rstream, a header": rstream_get_header},
        share=0.5,
        target=0.3,
    ),
    Case(
        "rabbitmq-amqp-put",
        "its append over AMQP, against aio-pika publishing with confirms",
        {"bare": aio_pika_put, "thalweg": amqp_put},
        share=0.1,
        target=0.8,
    ),
    Case(
        "rabbitmq-amqp-get",
        "its read over AMQP, against aio-pika consuming a stream",
        {"bare": aio_pika_get, "thalweg": amqp_get},
        share=0.1,
        target=0.8,
    ),
)
if not answers(URL, 5672, PORT):
    CASES = ()
