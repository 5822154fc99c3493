"""Question and answer, one after another: the answer leaves after the commit of its event."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from time import perf_counter

import msgspec
from measuring import Case, Run
from programs import new_app
from thalweg import Stream
from workload import Withdrawal, check_totals, withdrawals


async def bare(run: Run) -> None:
    """The least that can be called the same: bytes over a queue, and bytes back by a future."""
    queue: asyncio.Queue[tuple[bytes, asyncio.Future[bytes]]] = asyncio.Queue()
    decode, encode = msgspec.json.Decoder(Withdrawal).decode, msgspec.json.Encoder().encode
    decode_answer = msgspec.json.Decoder(int).decode
    totals: dict[str, int] = defaultdict(int)
    loop = asyncio.get_running_loop()

    async def handle() -> None:
        for _ in range(run.messages):
            data, answer = await queue.get()
            withdrawal = decode(data)
            totals[withdrawal.account] += withdrawal.amount
            answer.set_result(encode(totals[withdrawal.account]))

    handling = asyncio.ensure_future(handle())
    with run.timed():
        for withdrawal in withdrawals(run.messages):
            start = perf_counter()
            answer: asyncio.Future[bytes] = loop.create_future()
            await queue.put((encode(withdrawal), answer))
            decode_answer(await answer)
            run.latencies.append(perf_counter() - start)
    await handling
    check_totals(totals, run.messages)


async def thalweg(run: Run) -> None:
    app = new_app()
    topic = app.topic("withdrawals", key=str, value=Withdrawal)
    totals = app.table("totals", key=str, value=int, default=int)

    @app.agent(topic)
    async def total(stream: Stream[Withdrawal]) -> AsyncIterator[int]:
        async for withdrawal in stream:
            totals[withdrawal.account] += withdrawal.amount
            yield totals[withdrawal.account]

    async with app:
        with run.timed():
            for withdrawal in withdrawals(run.messages):
                start = perf_counter()
                await total.ask(withdrawal, key=withdrawal.account)
                run.latencies.append(perf_counter() - start)
        check_totals(dict(totals.items()), run.messages)


CASE = Case(
    "ask",
    "question and answer, one after another, each answer after its commit",
    {"bare": bare, "thalweg": thalweg},
    share=0.01,
    latency=True,
    target=150e-6,
)
