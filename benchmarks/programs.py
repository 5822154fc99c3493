"""The Thalweg programs that are measured, as a user would write them, and how to know that they are done."""

from __future__ import annotations

import asyncio
import itertools
from typing import Literal

from measuring import Run
from thalweg import Agent, App, Stream, Table, Topic
from workload import Withdrawal, check_totals, withdrawals

__all__ = ["Program", "finished", "new_app", "passing_on", "sum_backlog", "summing"]

Guarantee = Literal["exactly_once", "at_least_once"]

PARTITIONS = 8
POLL = 0.001
"""Seconds between two looks at how far an agent is: what the end of a measurement may be late by."""

_numbers = itertools.count()


class Program:
    """An app, its input, and its agent, which waits for `begin` before it asks for its first event.

    So the start of the worker does not count, and "handling alone" finds its whole backlog in the topic.
    """

    def __init__(
        self, app: App, agent: Agent[Withdrawal, None], source: Topic[str, Withdrawal], begin: asyncio.Event
    ) -> None:
        self.app, self.agent, self.source, self.begin = app, agent, source, begin
        self.totals: Table[str, int] | None = None
        self.target: Topic[str, Withdrawal] | None = None


def new_app(broker: str = "memory://", guarantee: Guarantee = "exactly_once", store: str = "memory://") -> App:
    """An app on a broker of its own."""
    if broker == "memory://":
        broker = f"memory://benchmark-{next(_numbers)}"
    return App(
        "bench", broker=broker, store=store, guarantee=guarantee, partitions=PARTITIONS, env_prefix="THALWEG_BENCHMARK"
    )


def summing(app: App) -> Program:
    """The stateful program: a sum by key, in a table."""
    begin = asyncio.Event()
    source = app.topic("withdrawals", key=str, value=Withdrawal)
    totals = app.table("totals", key=str, value=int, default=int)

    @app.agent(source)
    async def total(stream: Stream[Withdrawal]) -> None:
        await begin.wait()
        async for withdrawal in stream:
            totals[withdrawal.account] += withdrawal.amount

    program = Program(app, total, source, begin)
    program.totals = totals
    return program


def passing_on(app: App) -> Program:
    """The stateless program: every message goes on to another topic."""
    begin = asyncio.Event()
    source = app.topic("withdrawals", key=str, value=Withdrawal)
    target = app.topic("passed-on", key=str, value=Withdrawal)

    @app.agent(source)
    async def pass_on(stream: Stream[Withdrawal]) -> None:
        await begin.wait()
        async for withdrawal in stream:
            await target.send(withdrawal, key=withdrawal.account)

    program = Program(app, pass_on, source, begin)
    program.target = target
    return program


async def sum_backlog(run: Run, app: App, *, fill: bool = True) -> None:
    """Measure `summing` on a backlog; without `fill` it lies in the topic already."""
    program = summing(app)
    async with program.app:
        if fill:
            await program.source.send_many((w.account, w) for w in withdrawals(run.messages))
        with run.timed():
            program.begin.set()
            await finished(program, run.messages)
        assert program.totals is not None
        check_totals(dict(program.totals.items()), run.messages)


async def finished(program: Program, count: int) -> None:
    """Return once the agent has finished `count` events, all of them are committed, and what they sent has arrived."""
    worker = program.app.running.worker
    assert worker is not None
    inputs = [
        input_
        for task in worker.tasks.values()
        for agent in task.agents
        if agent.plan.name == program.agent.name
        for input_ in agent.inputs
    ]
    while sum(input_.watermark.finished for input_ in inputs) < count:  # noqa: ASYNC110
        # An event set by the agent would cost it time with each message.
        await asyncio.sleep(POLL)
    await worker.committer.flush()
    await asyncio.gather(*(task.settle() for task in worker.tasks.values()))
    while any(task.has_work or task.in_flight for task in worker.tasks.values()):
        # Outputs that follow their commit, where the broker does not take them with it, and the note that they arrived.
        await asyncio.gather(*(task.settle() for task in worker.tasks.values()))
        await worker.committer.flush()
