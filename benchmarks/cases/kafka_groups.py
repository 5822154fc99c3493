"""Consumer groups on Kafka against aiokafka's: at most 1000 messages a call, committed before the next call.

The driver stores twice a call, not once: what it lends (so that attempts grow after a crash) and what is finished.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiokafka import AIOKafkaConsumer
from measuring import Case, Run, answers
from thalweg.channel import TopicSpec
from thalweg.message import Message
from thalweg.transports.kafka import KafkaTransport

from .kafka import BATCH, SERVERS, URL, VALUE, calls, topics, transport

PARTITIONS = 8
FIRST = 1  # message, by which it is seen that the group has been joined


@asynccontextmanager
async def filled(run: Run, queue: bool) -> AsyncIterator[tuple[str, KafkaTransport]]:
    """A topic or a queue, spread over its partitions."""
    async with topics() as prefix, transport(prefix) as opened:
        await opened.declare([TopicSpec("work", queue=True) if queue else TopicSpec("work", partitions=PARTITIONS)])
        channel = await opened.channel("work", "writer")
        await channel.put([Message(VALUE)] * FIRST)
        for _ in range(calls(run)):
            await channel.put([Message(VALUE, b"%d" % number) for number in range(BATCH)])
        yield prefix + ("queue.work" if queue else "work"), opened


def bare(queue: bool):
    async def consume(run: Run) -> None:
        async with filled(run, queue) as (topic, _):
            consumer = AIOKafkaConsumer(
                topic,
                bootstrap_servers=SERVERS,
                group_id=f"{topic}-bare",
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                isolation_level="read_committed",
            )
            await consumer.start()
            count = sum(map(len, (await consumer.getmany(timeout_ms=10_000, max_records=FIRST)).values()))
            with run.timed():
                while count < calls(run) * BATCH + FIRST:
                    found = await consumer.getmany(timeout_ms=1000, max_records=BATCH)
                    count += sum(map(len, found.values()))
                    await consumer.commit()
            await consumer.stop()

    return consume


def driver(queue: bool):
    async def consume(run: Run) -> None:
        async with filled(run, queue) as (_, opened):
            channel = await opened.channel("work", "reader")
            first = await channel.get(FIRST, 10)
            await channel.commit(first)
            count = len(first)
            with run.timed():
                while count < calls(run) * BATCH + FIRST:
                    found = await channel.get(BATCH, 1)
                    count += len(found)
                    await channel.commit(found)
            await channel.close()

    return consume


CASES = (
    Case(
        "kafka-channel",
        "a consumer group of a topic, get and commit, against getmany and commit of aiokafka",
        {"bare": bare(False), "channel": driver(False)},
        share=2.0,  # aiokafka has read some MB before the clock starts
        target=0.5,
    ),
    Case(
        "kafka-queue",
        "a work queue, get and commit, against getmany and commit of aiokafka on its topic",
        {"bare": bare(True), "queue": driver(True)},
        share=2.0,  # aiokafka has read some MB before the clock starts
        target=0.5,
    ),
) * answers(URL, 9092)
