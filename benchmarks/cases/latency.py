"""From before a message is sent until an agent has it, one message at a time at 500 a second: nothing queues."""

import asyncio
from time import perf_counter

import msgspec
from measuring import Case, Run
from programs import new_app
from thalweg import Stream
from workload import Withdrawal, withdrawals

INTERVAL = 0.002
"""Seconds between two messages."""


async def bare(run: Run) -> None:
    queue: asyncio.Queue[bytes] = asyncio.Queue()
    decode, encode = msgspec.json.Decoder(Withdrawal).decode, msgspec.json.Encoder().encode
    sent: list[float] = []

    async def handle() -> None:
        for number in range(run.messages):
            decode(await queue.get())
            run.latencies.append(perf_counter() - sent[number])

    handling = asyncio.ensure_future(handle())
    with run.timed():
        for withdrawal in withdrawals(run.messages):
            await asyncio.sleep(INTERVAL)
            sent.append(perf_counter())
            await queue.put(encode(withdrawal))
        await handling


async def thalweg(run: Run) -> None:
    app = new_app()
    topic = app.topic("withdrawals", key=str, value=Withdrawal)
    totals = app.table("totals", key=str, value=int, default=int)
    sent: list[float] = []
    done = asyncio.Event()

    @app.agent(topic)
    async def total(stream: Stream[Withdrawal]) -> None:
        async for withdrawal in stream:
            run.latencies.append(perf_counter() - sent[len(run.latencies)])
            totals[withdrawal.account] += withdrawal.amount
            if len(run.latencies) == run.messages:
                done.set()

    async with app:
        with run.timed():
            for withdrawal in withdrawals(run.messages):
                await asyncio.sleep(INTERVAL)
                sent.append(perf_counter())
                await topic.send(withdrawal, key=withdrawal.account)
            await done.wait()


CASE = Case(
    "latency",
    "from send() until the agent has it, 500 messages a second",
    {"bare": bare, "thalweg": thalweg},
    share=0.0025,
    latency=True,
)
