"""Every public coroutine, cancelled at each of its points: the app goes on, nothing is lost, no task is left over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace

import pytest
from thalweg import App, Stream
from thalweg.testing import AppTest

BROKERS = ("memory://", "memory://?fencing=false")
pytestmark = pytest.mark.parametrize("broker", BROKERS)


def make(broker: str = "memory://") -> SimpleNamespace:
    app = App("cancelled", broker=broker, partitions=2)
    source = app.topic("source", key=str, value=int)
    jobs = app.queue("jobs", value=int)
    sums = app.table("sums", key=str, value=int, default=int)
    done: list[int] = []

    @app.agent(source)
    async def add(stream: Stream[int]) -> AsyncIterator[int]:
        async for event in stream.events():
            sums[event.key] += event.value
            yield sums[event.key]

    @app.handler(jobs)
    async def work(number: int) -> None:
        done.append(number)

    return SimpleNamespace(**locals())


async def cancelled_after(turns: int, coroutine: Awaitable[object]) -> bool:
    """Run it for so many turns of the loop and cancel it then; whether that came in time."""
    task = asyncio.ensure_future(coroutine)
    for _ in range(turns):
        await asyncio.sleep(0)
    if task.done():
        task.result()
        return False
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return True


async def letters(program: SimpleNamespace) -> None:
    async for _ in program.app.dead_letters(program.source):
        pass


CALLS: dict[str, Callable[[SimpleNamespace, AppTest], Awaitable[object]]] = {
    "send": lambda p, t: p.source.send(0, key="a"),
    "send_many": lambda p, t: p.source.send_many([(key, 0) for key in "abcdef"]),
    "ask": lambda p, t: p.add.ask(0, key="a"),
    "ask_all": lambda p, t: p.add.ask_all([0] * 5, key="a"),
    "cast": lambda p, t: p.add.cast(0, key="a"),
    "table.ask": lambda p, t: p.sums.ask("a"),
    "queue.send": lambda p, t: p.jobs.send(0),
    "dead_letters": lambda p, t: letters(p),
    "settle": lambda p, t: t.settle(),
    "advance": lambda p, t: t.advance(0.5),
}


@pytest.mark.parametrize("call", CALLS)
async def test_after_a_call_is_cancelled_at_any_point_the_app_goes_on(broker: str, call: str) -> None:
    before = asyncio.all_tasks()
    program = make()
    async with program.app.test(broker=broker) as t:
        turns, sent = 0, 0
        while True:
            in_time = await cancelled_after(turns, CALLS[call](program, t))
            await program.source.send(1, key="a")
            await program.jobs.send(1)
            sent += 1
            assert await program.add.ask(0, key="a") == sent
            await t.settle()
            assert program.done.count(1) == sent
            if (not in_time and turns > 3) or turns == 40:  # settle cannot end while this loop counts
                break
            turns += 1
        assert program.sums["a"] == sent
    assert asyncio.all_tasks() == before


@pytest.mark.parametrize("client", [False, True])
async def test_a_start_that_is_cancelled_at_any_point_leaves_nothing_behind(broker: str, client: bool) -> None:
    before = asyncio.all_tasks()
    url = f"memory://start-{client}-{len(broker)}{broker.removeprefix('memory://')}"
    keeper = App("keeper", broker=url)  # what a memory broker holds lasts while somebody refers to it
    async with keeper.client():
        turns = 0
        while True:
            program = make(url)

            async def start(app: App = program.app) -> None:
                async with app.client() if client else app:
                    pass

            in_time = await cancelled_after(turns, start())
            left = asyncio.all_tasks() - before
            assert not left, f"after {turns} turns"
            assert not program.app.is_running
            if not in_time and turns > 3:
                break
            turns += 1
        program = make(url)
        async with asyncio.timeout(30), program.app:
            assert await program.add.ask(5, key="a") == 5
    assert asyncio.all_tasks() == before


async def test_a_stop_that_is_cancelled_at_any_point_leaves_nothing_behind(broker: str) -> None:
    before = asyncio.all_tasks()
    url = f"memory://stop{len(broker)}{broker.removeprefix('memory://')}"
    keeper = App("keeper", broker=url)
    async with keeper.client():
        turns, sent, in_time = 1, 0, True  # at 0 it would never begin
        while in_time or turns < 4:
            program = make(url)
            async with asyncio.timeout(30):
                await program.app.__aenter__()
                sent += 1
                assert await program.add.ask(1, key="a") == sent
            in_time = await cancelled_after(turns, program.app.__aexit__(None, None, None))
            assert not asyncio.all_tasks() - before, f"after {turns} turns"
            assert not program.app.is_running
            turns += 1
    assert asyncio.all_tasks() == before
