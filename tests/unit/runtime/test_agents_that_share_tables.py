"""Events that use the same tables take turns, lowest timestamp first; whoever cannot go on holds up nobody."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from thalweg import App, Skip, Stream
from thalweg.message import Message

BROKERS = ("memory://", "memory://?fencing=false")
pytestmark = pytest.mark.parametrize("broker", BROKERS)


def make_two(pauses: int = 2) -> SimpleNamespace:
    """Two agents on two topics, one table; `seen` tells when each event began (+) and ended (-)."""
    app = App("turns", partitions=1)
    one, two = app.topic("one", key=str, value=int), app.topic("two", key=str, value=int)
    sums = app.table("sums", key=str, value=int, default=int)
    seen: list[str] = []

    async def add(number: int) -> None:
        seen.append(f"+{number}")
        before = sums["k"]
        for _ in range(pauses):
            await asyncio.sleep(0)
        sums["k"] = before + number
        seen.append(f"-{number}")

    @app.agent(one)
    async def first(stream: Stream[int]) -> None:
        async for number in stream:
            await add(number)

    @app.agent(two)
    async def second(stream: Stream[int]) -> None:
        async for number in stream:
            await add(number)

    return SimpleNamespace(**locals())


def numbered(numbers: list[int]) -> dict[int, list[Message]]:
    """Messages whose value is their timestamp."""
    return {0: [Message(str(number).encode(), b"k", (), number) for number in numbers]}


@pytest.mark.parametrize("pauses", [0, 1, 5])
async def test_events_of_two_agents_run_by_their_timestamps_and_never_interleave(broker: str, pauses: int) -> None:
    two = make_two(pauses)
    async with two.app.test(broker=broker) as t:
        numbers = list(range(10, 90, 5))
        await asyncio.gather(
            two.app.running.send("one", numbered(numbers[::2])), two.app.running.send("two", numbered(numbers[1::2]))
        )
        await t.settle()
        assert two.seen == [f"{sign}{number}" for number in numbers for sign in "+-"]
        assert two.sums["k"] == sum(numbers)


async def test_a_table_written_by_an_open_event_is_not_committed_again_and_again(broker: str) -> None:
    two = make_two(pauses=2000)
    async with two.app.test(broker=broker) as t:
        await two.app.running.send("one", numbered([1]))
        await two.app.running.send("two", numbered([2]))
        await t.settle()
        assert two.sums["k"] == 3
        assert two.app.running.worker.committer.commits < 10


async def test_an_agent_that_hangs_before_it_reads_holds_up_no_other(broker: str) -> None:
    app = App("turns", partitions=1)
    source = app.topic("source", key=str, value=int)
    sums = app.table("sums", key=str, value=int, default=int)

    @app.agent(source)
    async def hangs(stream: Stream[int]) -> None:
        assert sums is not None
        await app.sleep(1e6)

    @app.agent(source)
    async def works(stream: Stream[int]) -> None:
        async for number in stream:
            sums["k"] += number

    async with app.test(broker=broker) as t:
        for number in (1, 2, 3):
            await source.send(number, key="k")
            await t.settle()
        assert sums["k"] == 6
        await t._worker.stop_by_kill()


async def test_commits_go_on_while_every_event_holds_a_value_that_was_changed_before(broker: str) -> None:
    app = App("turns", partitions=1, commit_interval=0.1)
    source = app.topic("source", key=str, value=int)
    lists = app.table("lists", key=str, value=list[int], default=list)

    @app.agent(source)
    async def keep(stream: Stream[int]) -> None:
        async for number in stream:
            lists["k"][:] = [number]
            await app.sleep(0.03)  # at nearly any moment an event is open

    async with app.test(broker=broker) as t:
        await source.send_many([("k", number) for number in range(200)])
        await t.advance(3)
        assert app.running.worker.committer.commits > 10
        await t.crash()
        assert lists["k"][0] > 80
        await t.advance(10)
        assert lists["k"] == [199]


async def test_the_programs_own_cancellation_fails_the_event_and_not_the_agent(broker: str) -> None:
    app = App("turns", partitions=1)
    source = app.topic("source", key=str, value=int)
    seen: list[int] = []

    @app.agent(source, on_error=Skip())
    async def awaits(stream: Stream[int]) -> None:
        async for number in stream:
            if number == 2:
                cancelled = asyncio.get_running_loop().create_future()
                cancelled.cancel()
                await cancelled
            seen.append(number)

    async with app.test(errors="policy", broker=broker) as t:
        await source.send_many([("k", 1), ("k", 2), ("k", 3)])
        await t.settle()
        assert seen == [1, 3]


@pytest.mark.parametrize("pauses", range(5))
async def test_events_that_keep_failing_in_their_lanes_do_not_undo_each_others_end_for_ever(
    broker: str, pauses: int
) -> None:
    app = App("turns", partitions=1)
    source = app.topic("source", key=str, value=int)
    lists = app.table("lists", key=str, value=list[int], default=list)

    @app.agent(source, concurrency=3, on_error=Skip())
    async def gather(stream: Stream[int]) -> None:
        async for event in stream.events():
            lists[event.key].append(event.value)
            for _ in range(pauses):
                await asyncio.sleep(0)
            if event.value < 0:  # only going back to the last commit undoes the change of a list changed before
                raise ValueError(event.value)

    async with asyncio.timeout(10), app.test(errors="policy", broker=broker) as t:
        await source.send_many([(key, number) for number in (1, 1, -2, 3, 3, -4, 5) for key in "abcd"])
        await t.settle()
        assert dict(lists.items()) == {key: [1, 1, 3, 3, 5] for key in "abcd"}
