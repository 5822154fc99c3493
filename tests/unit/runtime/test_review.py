"""What a review of the runtime found: each test is the smallest program that showed it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from thalweg import App, Skip, Stream
from thalweg.runtime.task import Task


def the_task(t: Any, partition: int = 0, group: str = "1") -> Task:
    task: Task = t._worker.tasks[group, partition]
    return task


async def test_events_that_finished_ahead_of_an_open_one_count_once_after_a_crash() -> None:
    app = App("ahead", partitions=1)
    source = app.topic("source", key=str, value=str)
    seen = app.table("seen", key=str, value=int, default=int)
    gate = asyncio.Event()

    @app.agent(source, concurrency=2)
    async def count(stream: Stream[str]) -> None:
        async for key in stream:
            if key == "slow":
                await gate.wait()
            seen[key] += 1

    async with app.test() as t:
        for key in ("slow", "fast", "quick"):
            await source.send(key, key=key)
        await t.advance(1)  # commits "fast" and "quick"
        await t.crash()
        gate.set()
        await t.advance(1)
        assert dict(seen.items()) == {"slow": 1, "fast": 1, "quick": 1}
        await t.crash()
        await t.settle()
        assert dict(seen.items()) == {"slow": 1, "fast": 1, "quick": 1}


async def test_undoing_a_change_in_place_keeps_what_a_commit_in_flight_takes_along() -> None:
    app = App("flight", partitions=1)
    source = app.topic("source", key=str, value=str)
    rows = app.table("rows", key=str, value=list[str], default=list)

    @app.agent(source, on_error=Skip())
    async def note(stream: Stream[str]) -> None:
        async for value in stream:
            rows["row"].append(value)
            if value == "bad":
                raise ValueError(value)

    async with app.test(errors="policy") as t:
        hold = t._broker.broker.faults.hold("commit")
        await source.send("first", key="k")
        await hold.reached.wait()
        await source.send("bad", key="k")
        await t.settle()
        await source.send("last", key="k")
        await t.settle()
        hold.release()
        await t.settle()
        assert rows["row"] == ["first", "last"]
        await t.crash()
        await t.settle()
        assert rows["row"] == ["first", "last"]


@pytest.mark.parametrize("after", [False, True])
async def test_a_rollback_while_a_commit_is_in_flight_loses_and_repeats_nothing(after: bool) -> None:
    app = App("overlap", partitions=1)
    source = app.topic("source", key=str, value=str)
    rows = app.table("rows", key=str, value=list[str], default=list)

    @app.agent(source, on_error=Skip())
    async def note(stream: Stream[str]) -> None:
        async for value in stream:
            rows["row"].append(value)
            if value == "bad":
                raise ValueError(value)

    async with app.test(errors="policy") as t:
        hold = t._broker.broker.faults.hold("commit", after=after)
        await source.send("first", key="k")
        await hold.reached.wait()
        await source.send_many([("k", "second"), ("k", "bad")])  # in one batch: undone by a rollback
        await t.settle()
        hold.release()
        await t.settle()
        await source.send("last", key="k")
        await t.advance(20)
        assert rows["row"] == ["first", "second", "last"]
        await t.crash()
        await t.settle()
        assert rows["row"] == ["first", "second", "last"]


async def test_a_record_whose_timestamp_cannot_be_told_holds_up_nobody() -> None:
    app = App("times", partitions=1)
    source = app.topic("source", key=str, value=dict, timestamp_of=lambda value: value["time"])
    other = app.topic("other", key=str, value=dict)
    seen = app.table("seen", key=str, value=int, default=int)

    @app.agent(source, on_error=Skip())
    async def count(stream: Stream[dict[str, Any]]) -> None:
        async for value in stream:
            seen[value["name"]] += 1

    @app.agent(other, on_error=Skip())
    async def count_too(stream: Stream[dict[str, Any]]) -> None:
        async for value in stream:
            seen[value["name"]] += 1

    async with app.test(errors="policy") as t:
        await source.raw.send_many(
            [(b"k", raw) for raw in (b'{"name":"a","time":1}', b'{"name":"b"}', b"?", b'{"name":"c","time":3}')]
        )
        await other.send({"name": "d"}, key="k")
        await t.advance(5)
        assert dict(seen.items()) == {"a": 1, "b": 1, "c": 1, "d": 1}
        await t.crash()
        await t.advance(5)
        assert dict(seen.items()) == {"a": 1, "b": 1, "c": 1, "d": 1}


async def test_a_cancellation_that_comes_from_the_agents_own_code_is_that_events_error() -> None:
    app = App("cancelled", partitions=1)
    source = app.topic("source", key=str, value=str)
    seen: list[str] = []

    @app.agent(source, on_error=Skip())
    async def note(stream: Stream[str]) -> None:
        async for value in stream:
            if value == "bad":
                future = asyncio.get_running_loop().create_future()
                future.cancel()
                await future
            seen.append(value)

    async with app.test(errors="policy") as t:
        await source.send_many([(None, value) for value in ("a", "bad", "b")])
        await t.advance(1)
        assert seen == ["a", "b"]


async def test_a_timer_goes_on_after_a_cancellation_of_its_own() -> None:
    app = App("ticking", partitions=1)
    ticks: list[float] = []

    @app.timer(1)
    async def tick() -> None:
        ticks.append(app.now())
        raise asyncio.CancelledError

    async with app.test(errors="policy") as t:
        await t.advance(3)
        assert len(ticks) == 3


def make_gap(topic: str) -> Exception:
    from thalweg.errors import Gap

    return Gap(topic, 0, 1, 5)


async def test_a_hot_key_does_not_make_a_slow_agent_read_without_end() -> None:
    app = App("hot", partitions=1)
    source = app.topic("source", key=str, value=int)
    gate = asyncio.Event()

    @app.agent(source, concurrency=2)
    async def slow(stream: Stream[int]) -> None:
        async for _ in stream:
            await gate.wait()

    async with app.test() as t:
        await source.send_many([("hot", n) for n in range(30_000)])
        await t.settle()
        (agent,) = the_task(t).agents
        queued = sum(len(lane.queue) for lane in agent.lanes)
        gate.set()
        await t.settle()
        assert queued < 15_000


async def test_a_lock_lost_while_a_commit_is_in_flight_stops_that_task_alone() -> None:
    app = App("losing", partitions=2)
    source = app.topic("source", key=str, value=str)
    seen = app.table("seen", key=str, value=int, default=int)

    @app.agent(source)
    async def count(stream: Stream[str]) -> None:
        async for value in stream:
            seen[value] += 1

    async with app.test() as t:
        hold = t._broker.broker.faults.hold("commit", after=True)
        await source.send("a", key="a", partition=0)
        await hold.reached.wait()
        closing = asyncio.ensure_future(t._worker._close_task(("2", 0), False))
        await t.settle()
        hold.release()
        await t.settle()
        await closing
        assert not t._worker.failed.done()
