"""Apps that come and go, and several at once, in one process."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from thalweg import Agent, App, AskDeadlock, Stream
from thalweg.channel import Channel
from thalweg.runtime.lane import Lane
from thalweg.transports.memory import MemoryBroker, MemoryTransport


def make(name: str, broker: str) -> tuple[App, Agent[int, int]]:
    app = App(name, broker=broker, partitions=2)
    source = app.topic("source", key=str, value=int)
    sums = app.table("sums", key=str, value=int, default=int)

    @app.agent(source, name=f"add-{name}")
    async def add(stream: Stream[int]) -> AsyncIterator[int]:
        async for event in stream.events():
            sums[event.key] += event.value
            yield sums[event.key]

    return app, add


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_an_app_started_and_stopped_again_and_again_leaves_nothing(kind: str, tmp_path: Path) -> None:
    url = "memory://again-and-again" if kind == "memory" else f"sqlite:///{tmp_path}/again.db"
    app, add = make("again", url)
    counts: list[tuple[int, int, int]] = []
    for number in range(1, 25):
        async with app:
            assert await add.ask(1, key="a") == number
        if number > 4:
            gc.collect()
            lanes = sum(isinstance(thing, Lane) for thing in gc.get_objects())
            counts.append((len(asyncio.all_tasks()), lanes, len(os.listdir("/proc/self/fd"))))
    assert all(last <= first for first, last in zip(counts[0], counts[-1], strict=True))
    assert max(files for _, _, files in counts) == counts[0][2]


async def test_two_apps_share_a_broker_and_a_loop_and_nothing_else() -> None:
    one, add_one = make("one", "memory://shared-by-two")
    two, add_two = make("two", "memory://shared-by-two")
    async with one, two:
        answers = await asyncio.gather(*(add.ask(1, key="a") for add in (add_one, add_two, add_one)))
        assert max(answers) == 3  # both read the same topic, and each counts for itself
        assert await add_two.ask(0, key="a") == 3


async def test_an_event_that_asks_its_own_agent_is_told_at_once() -> None:
    app = App("asks", partitions=1)
    source = app.topic("source", key=str, value=int)

    @app.agent(source)
    async def echo(stream: Stream[int]) -> AsyncIterator[str]:
        async for number in stream:
            try:
                yield str(await echo.ask(number, key="k")) if number else "zero"
            except AskDeadlock:
                yield "deadlock"

    async with app.test() as t:
        begun = t.now()
        assert await echo.ask(1, key="k") == "deadlock"
        assert await echo.ask(0, key="k") == "zero"
        assert t.now() == begun


class Counting(MemoryTransport):
    """Tells how many channels were opened."""

    opened = 0

    async def channel(self, topic: str, group: str) -> Channel:
        self.opened += 1
        await asyncio.sleep(0)  # as a broker behind a network
        return await super().channel(topic, group)


async def test_many_first_sends_to_a_queue_at_once_share_one_channel() -> None:
    transport = Counting(MemoryBroker())
    app = App("many-sends", broker=transport)
    letters = app.queue("letters", value=int)
    async with app.client():
        await asyncio.gather(*(letters.send(number) for number in range(20)))
    assert transport.opened == 1
