"""Handling alone, with state: a backlog that lies ready is summed by key, up to and with the last commit."""

import asyncio
from collections import defaultdict

import msgspec
from measuring import Case, Run
from programs import Guarantee, new_app, sum_backlog
from workload import Withdrawal, as_json, check_totals


async def bare(run: Run) -> None:
    queue: asyncio.Queue[bytes] = asyncio.Queue()
    for data in as_json(run.messages):
        queue.put_nowait(data)
    decode = msgspec.json.Decoder(Withdrawal).decode
    totals: dict[str, int] = defaultdict(int)
    with run.timed():
        for _ in range(run.messages):
            withdrawal = decode(await queue.get())
            totals[withdrawal.account] += withdrawal.amount
    check_totals(totals, run.messages)


async def thalweg(run: Run, guarantee: Guarantee = "exactly_once", broker: str = "memory://") -> None:
    await sum_backlog(run, new_app(broker, guarantee))


CASE = Case(
    "handle-sum",
    "stateful sum by key of a backlog, with its last commit, exactly once",
    {"bare": bare, "thalweg": thalweg},
    target=0.5,
)
