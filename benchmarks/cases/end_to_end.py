"""Producing and handling at the same time: encode, hand over, decode, sum by key, up to and with the last commit."""

import asyncio
from collections import defaultdict

import msgspec
from measuring import Case, Run
from programs import finished, new_app, summing
from workload import Withdrawal, check_totals, withdrawals

QUEUE_SIZE = 2000
"""The bare queue is bounded, as every queue in production; generously, so that its two sides seldom switch."""


async def bare(run: Run) -> None:
    queue: asyncio.Queue[bytes] = asyncio.Queue(QUEUE_SIZE)
    decode, encode = msgspec.json.Decoder(Withdrawal).decode, msgspec.json.Encoder().encode
    totals: dict[str, int] = defaultdict(int)
    work = withdrawals(run.messages)

    async def produce() -> None:
        for withdrawal in work:
            await queue.put(encode(withdrawal))

    async def handle() -> None:
        for _ in range(run.messages):
            withdrawal = decode(await queue.get())
            totals[withdrawal.account] += withdrawal.amount

    with run.timed():
        await asyncio.gather(produce(), handle())
    check_totals(totals, run.messages)


async def thalweg(run: Run) -> None:
    program = summing(new_app())
    work = withdrawals(run.messages)
    async with program.app:
        program.begin.set()
        with run.timed():
            await program.source.send_many((w.account, w) for w in work)
            await finished(program, run.messages)
        assert program.totals is not None
        check_totals(dict(program.totals.items()), run.messages)


CASE = Case(
    "end-to-end",
    "producing and the stateful sum at once, with the last commit, exactly once",
    {"bare": bare, "thalweg": thalweg},
)
