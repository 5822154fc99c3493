"""Producing alone, in bulk: encode and hand over; nobody reads. The topic has partitions, so each key is hashed too."""

import asyncio

import msgspec
from measuring import Case, Run
from programs import new_app
from workload import Withdrawal, as_json, withdrawals


async def bare(run: Run) -> None:
    queue: asyncio.Queue[bytes] = asyncio.Queue()
    encode = msgspec.json.Encoder().encode
    work = withdrawals(run.messages)
    with run.timed():
        for withdrawal in work:
            await queue.put(encode(withdrawal))
    assert queue.qsize() == run.messages
    assert queue.get_nowait() == as_json(run.messages)[0]


async def thalweg(run: Run) -> None:
    app = new_app()
    topic = app.topic("withdrawals", key=str, value=Withdrawal)
    work = withdrawals(run.messages)
    async with app:
        with run.timed():
            await topic.send_many((w.account, w) for w in work)
        log = await app.running.open_log(topic.name)
        batches = await log.read(dict.fromkeys(range(topic.partitions)), run.messages, 1 << 60, 0)
        assert sum(len(batch.records) for batch in batches.values()) == run.messages


CASE = Case("produce-many", "send_many() into 8 partitions, nobody reads", {"bare": bare, "thalweg": thalweg})
