"""Nothing an agent does may make the worker wait for itself, or for ever."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from thalweg import App, AskDeadlock, ConcurrentTableError, Skip, Stream, TooManyOutputs, WrongPartition

BROKERS = ("memory://", "memory://?fencing=false")


@pytest.mark.parametrize("broker", BROKERS)
@pytest.mark.parametrize("key", ["a", "b", "c", "d"], ids=lambda key: f"key-{key}")
async def test_an_event_may_ask_another_agent_of_its_own_or_another_partition(broker: str, key: str) -> None:
    app = App("asking", partitions=2)
    questions = app.topic("questions", key=str, value=str)
    numbers = app.topic("numbers", key=str, value=int)
    totals = app.table("totals", key=str, value=int, default=int)
    asked = app.table("asked", key=str, value=int, default=int)

    @app.agent(numbers)
    async def add(stream: Stream[int]) -> AsyncIterator[int]:
        async for event in stream.events():
            totals[event.key] += event.value
            yield totals[event.key]

    @app.agent(questions)
    async def ask(stream: Stream[str]) -> AsyncIterator[int]:
        async for event in stream.events():
            asked[event.key] += 1
            yield await add.ask(5, key=event.value)

    async with app.test(broker=broker):
        assert await ask.ask(key, key="a") == 5
        assert await ask.ask(key, key="a") == 10
        assert asked["a"] == 2


async def test_an_event_that_asks_its_own_agent_is_told_at_once() -> None:
    app = App("self", partitions=1)
    source = app.topic("source", key=str, value=str)

    @app.agent(source)
    async def echo(stream: Stream[str]) -> AsyncIterator[str]:
        async for value in stream:
            yield await echo.ask(value, key="k")

    async with app.test() as t:
        await source.send("a", key="k")
        with pytest.raises(AskDeadlock, match="asks itself"):
            await t.settle()


async def test_an_event_that_has_touched_a_shared_table_may_not_ask_who_shares_it() -> None:
    app = App("shared", partitions=1)
    source = app.topic("source", key=str, value=str)
    other = app.topic("other", key=str, value=str)
    table = app.table("table", key=str, value=int, default=int)

    @app.agent(other)
    async def count(stream: Stream[str]) -> AsyncIterator[int]:
        async for value in stream:
            table[value] += 1
            yield table[value]

    @app.agent(source)
    async def ask(stream: Stream[str]) -> AsyncIterator[int]:
        async for value in stream:
            if value == "touch first":
                table[value] += 1
            yield await count.ask(value, key="k")

    async with app.test() as t:
        assert await ask.ask("ask first", key="k") == 1
        await source.send("touch first", key="k")
        with pytest.raises(AskDeadlock, match="after its event has touched a table"):
            await t.settle()


async def test_an_event_that_sends_without_end_fails_and_the_rest_go_on() -> None:
    app = App("flood", partitions=1, max_event_outputs=100)
    source = app.topic("source", key=str, value=int)
    target = app.topic("target", key=str, value=int)

    @app.agent(source, on_error=Skip(on=TooManyOutputs))
    async def spread(stream: Stream[int]) -> None:
        async for count in stream:
            for number in range(count):
                await target.send(number, key="k")

    async with app.test(errors="policy") as t:
        for count in (2, 1_000_000, 3):
            await source.send(count, key="k")
        await t.settle()
        assert [event.value for event in t.sent(target)] == [0, 1, 0, 1, 2]


async def test_a_take_that_never_fills_holds_up_nobody_and_one_with_a_time_delivers() -> None:
    app = App("takes", partitions=1)
    source = app.topic("source", key=str, value=int)
    taken: list[list[int]] = []
    seen: list[int] = []

    @app.agent(source)
    async def never(stream: Stream[int]) -> None:
        async for _ in stream.take(1000):
            raise AssertionError("there are not so many")

    @app.agent(source)
    async def sometimes(stream: Stream[int]) -> None:
        async for numbers in stream.take(3, within=10):
            taken.append(numbers)

    @app.handler(source)
    async def see(number: int) -> None:
        seen.append(number)

    async with app.test() as t:
        for number in range(4):
            await source.send(number, key="k")
        await t.settle()
        assert seen == [0, 1, 2, 3]
        assert taken == [[0, 1, 2]]
        await t.advance(10)
        assert taken == [[0, 1, 2], [3]]


async def test_a_handler_that_never_returns_is_timed_out() -> None:
    app = App("stuck", partitions=1)
    source = app.topic("source", key=str, value=str)
    seen: list[str] = []

    @app.handler(source, timeout=5, on_error=Skip(on=TimeoutError))
    async def handle(value: str) -> None:
        if value == "stuck":
            await asyncio.Event().wait()
        seen.append(value)

    async with app.test(errors="policy") as t:
        for value in ("a", "stuck", "b"):
            await source.send(value, key="k")
        await t.advance(4)
        assert seen == ["a"]
        await t.advance(2)
        assert seen == ["a", "b"]


async def test_a_body_that_blocks_the_loop_is_survived_and_the_others_commit() -> None:
    app = App("blocking", partitions=1, lease=0.3)
    slow = app.topic("slow", key=str, value=int)
    quick = app.topic("quick", key=str, value=int)
    totals = app.table("totals", key=str, value=int, default=int)

    @app.agent(slow)
    async def block(stream: Stream[int]) -> AsyncIterator[int]:
        async for value in stream:
            time.sleep(1)  # noqa: ASYNC251 - what is tested
            yield value

    @app.agent(quick)
    async def count(stream: Stream[int]) -> AsyncIterator[int]:
        async for event in stream.events():
            totals[event.key] += event.value
            yield totals[event.key]

    async with app:
        blocked = asyncio.ensure_future(block.ask(1, key="k"))
        assert await count.ask(2, key="k") == 2
        assert await blocked == 1
        assert await count.ask(3, key="k") == 5


async def test_a_key_of_another_partition_is_refused_naming_the_group_by_that_is_missing() -> None:
    app = App("wrong", partitions=8)
    source = app.topic("source", key=str, value=str)
    table = app.table("countries", key=str, value=int, default=int)

    @app.agent(source)
    async def count(stream: Stream[str]) -> None:
        async for country in stream:
            table[country] += 1

    async with app.test() as t:
        await source.send("NO", key="ada")
        with pytest.raises(WrongPartition, match=r"group_by\(.*by-countries"):
            await t.settle()


async def test_with_concurrency_an_event_may_touch_only_its_own_keys_row() -> None:
    app = App("lanes", partitions=1)
    source = app.topic("source", key=str, value=str)
    table = app.table("table", key=str, value=int, default=int)

    @app.agent(source, concurrency=4)
    async def count(stream: Stream[str]) -> None:
        async for name in stream:
            table[name] += 1

    async with app.test() as t:
        await source.send("own", key="own")
        await t.settle()
        assert table["own"] == 1
        await source.send("foreign", key="own")
        with pytest.raises(ConcurrentTableError, match="foreign"):
            await t.settle()
