"""Commits that take long, fail, or end nobody knows how: nothing is lost and nothing happens twice."""

from __future__ import annotations

import asyncio

import pytest
from thalweg import App, Skip, Stream

BROKERS = ("memory://", "memory://?fencing=false")
pytestmark = pytest.mark.parametrize("broker", BROKERS)


def committing(broker: str) -> str:
    """The operation of a memory broker by which a task commits."""
    return "append" if "fencing=false" in broker else "commit"


async def turns(count: int = 100) -> None:
    """Let everything run that can, while a call to the broker is held."""
    for _ in range(count):
        await asyncio.sleep(0)


def make_lists() -> tuple[App, object, object]:
    """A table of lists, changed in place; a negative number raises after its change."""
    app = App("lists", partitions=1)
    source = app.topic("source", key=str, value=int)
    lists = app.table("lists", key=str, value=list[int], default=list)

    @app.agent(source, on_error=Skip())
    async def gather(stream: Stream[int]) -> None:
        async for number in stream:
            lists["k"].append(number)
            if number < 0:
                raise ValueError(number)

    return app, source, lists


async def test_undoing_an_event_keeps_what_a_commit_under_way_holds(broker: str) -> None:
    app, source, lists = make_lists()
    async with app.test(errors="policy", broker=broker) as t:
        hold = t._broker.broker.faults.hold(committing(broker), topic="lists-journal-1")
        await source.send(1, key="k")
        await hold.reached.wait()
        await source.send_many([("k", -2), ("k", 3)])
        await turns()
        hold.release()
        await t.settle()
        assert lists["k"] == [1, 3]
        await t.crash()
        await t.settle()
        assert lists["k"] == [1, 3]


async def test_the_late_answer_to_a_commit_does_no_harm_to_the_task_that_has_started_over(broker: str) -> None:
    app, source, lists = make_lists()
    async with app.test(errors="policy", broker=broker) as t:
        for number in (0, 9):
            await source.send(number, key="k")
            await t.settle()
        hold = t._broker.broker.faults.hold(committing(broker), topic="lists-journal-1", after=True)
        await source.send(1, key="k")
        await hold.reached.wait()
        await source.send_many([("k", 2), ("k", -3), ("k", 4)])
        await turns()  # the failed event had older changes in its object: the task has gone back to its last commit
        hold.release()
        await t.settle()
        assert lists["k"] == [0, 9, 1, 2, 4]
        await source.send(5, key="k")
        await t.settle()
        await t.crash()
        await t.settle()
        assert lists["k"] == [0, 9, 1, 2, 4, 5]
