"""A small program meets a fault at each single call that it makes to its broker, one run a call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from thalweg import App, DeadLetter, Retry, Stream
from thalweg.errors import AmbiguousCommit, BrokerError, Fenced
from thalweg.testing import AppTest
from thalweg.transports.memory.faults import Call

BROKERS = ("memory://", "memory://?fencing=false")
EVENTS = [("a", 1), ("b", 2), ("a", 3), ("b", -4), ("c", 5), ("a", 6)]
WRITES = ("append", "commit", "claim", "truncate")


class Program:
    def __init__(self) -> None:
        self.app = app = App("calls", partitions=2)
        self.source = app.topic("source", key=str, value=int)
        self.target = app.topic("target", key=str, value=int)
        self.sums = app.table("sums", key=str, value=int, default=int)
        self.lists = app.table("lists", key=str, value=list[int], default=list)
        self.parities = app.table("parities", key=str, value=int, default=int)

        @app.agent(self.source, on_error=Retry(2, backoff=0.1, then=DeadLetter()))
        async def add(stream: Stream[int]) -> AsyncIterator[int]:
            async for event in stream.events():
                self.sums[event.key] += event.value
                self.lists[event.key].append(event.value)
                await self.target.send(event.value, key=event.key)
                if event.value < 0:
                    raise ValueError(event.value)
                yield self.sums[event.key]

        self.add = add

        @app.agent(self.source.stream().group_by(lambda number: str(number % 2), name="by-parity"))
        async def count(stream: Stream[int]) -> None:
            async for number in stream:
                self.parities[str(number % 2)] += 1

    async def check(self, t: AppTest) -> None:
        assert dict(self.sums.items()) == {"a": 10, "b": 2, "c": 5}
        assert dict(self.lists.items()) == {"a": [1, 3, 6], "b": [2], "c": [5]}
        assert dict(self.parities.items()) == {"0": 3, "1": 3}
        by_key: dict[str, list[int]] = {}
        for event in t.sent(self.target):
            by_key.setdefault(event.key, []).append(event.value)
        assert by_key == {"a": [1, 3, 6], "b": [2], "c": [5]}
        letters = [(letter.agent, letter.value) async for letter in self.app.dead_letters(self.source)]
        assert letters == [("add", b"-4")]
        for task in self.app.running.worker.tasks.values():
            assert not task.in_flight


Meet = Callable[[Call], Awaitable[None]]


async def run(broker: str, number: int, after: bool, meet: Meet, kill: bool) -> bool:
    """Run the program; its call `number` (of those that write) meets a fault. Whether there was such a call."""
    program = Program()
    count = 0

    async def intercept(call: Call) -> None:
        nonlocal count
        if call.operation in WRITES and call.done == after:
            count += 1
            if count == number:
                await meet(call)

    async with program.app.test(errors="policy", broker=broker) as t:
        faults = t._broker.broker.faults
        for key, value in EVENTS:
            faults.intercept(None)
            await program.source.send(value, key=key)
            faults.intercept(intercept)
            if value != 3:  # two events together now and then
                await t.settle()
        await t.advance(1)
        if kill and count >= number:
            await t.crash()
        faults.intercept(None)
        await t.settle()
        await t.advance(100)
        await program.check(t)
        await t.crash()
        await t.advance(100)
        await program.check(t)
    return count >= number


async def all_calls(broker: str, after: bool, meet: Meet, kill: bool = False) -> None:
    number = 1
    while await run(broker, number, after, meet, kill):
        number += 1
    assert number > 8, "hardly a call was made: the test shows nothing"


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("broker", BROKERS)
async def test_killed_at_any_call_it_loses_and_repeats_nothing(broker: str, after: bool) -> None:
    async def stand_still(call: Call) -> None:
        await asyncio.get_running_loop().create_future()

    await all_calls(broker, after, stand_still, kill=True)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("broker", BROKERS)
async def test_a_failed_or_ambiguous_call_loses_and_repeats_nothing(broker: str, after: bool) -> None:
    async def fail(call: Call) -> None:
        if "-journal-" in call.topic or call.operation in ("commit", "claim", "truncate") or after is False:
            raise (AmbiguousCommit if after else BrokerError)("injected")

    await all_calls(broker, after, fail)


@pytest.mark.parametrize("broker", BROKERS)
async def test_fenced_at_any_commit_it_starts_over_and_loses_and_repeats_nothing(broker: str) -> None:
    async def fence(call: Call) -> None:
        if call.operation == "commit":
            raise Fenced("injected")
        if call.operation == "append" and "-journal-" in call.topic:
            raise Fenced("injected")

    await all_calls(broker, False, fence)
