"""When a task commits: not later than `commit_interval` after an event has finished, and when it is idle."""

from __future__ import annotations

import asyncio

from thalweg import App, Stream


async def test_what_finishes_after_a_commit_amid_a_batch_is_committed_too() -> None:
    app = App("moments", partitions=1, commit_interval=0.1)
    source, target = app.topic("source", value=str), app.topic("target", value=str)
    gates = {value: asyncio.Event() for value in ("a", "b", "c", "d")}

    @app.agent(source)
    async def pass_on(stream: Stream[str]) -> None:
        async for value in stream:
            await gates[value].wait()
            await target.send(value)

    async with app.test() as t:
        await source.send_many([(None, value) for value in gates])

        for count, gate in enumerate(gates.values(), 1):
            gate.set()
            await t.advance(0.2)  # with all but the last, the agent has the next event of the same batch open
            assert [event.value for event in t.sent(target)] == list(gates)[:count]


async def test_what_finishes_after_a_commit_amid_a_batch_is_committed_once_the_input_is_empty() -> None:
    app = App("moments", partitions=1, commit_interval=0.1)
    source = app.topic("source", value=str)
    seen = app.table("seen", key=str, value=int, default=int, partitions=1)
    gate = asyncio.Event()

    @app.agent(source)
    async def count(stream: Stream[str]) -> None:
        async for value in stream:
            if value == "b":
                await gate.wait()
            seen[value] += 1

    async with app.test() as t:
        await source.send_many([(None, value) for value in "abc"])
        await t.advance(0.2)  # commits "a"
        gate.set()
        await t.settle()  # the clock stands still: only idleness can make it commit "b" and "c"
        await t.crash()
        assert dict(seen.items()) == {"a": 1, "b": 1, "c": 1}
        await t.settle()
        assert dict(seen.items()) == {"a": 1, "b": 1, "c": 1}


async def test_without_a_commit_interval_an_open_event_does_not_make_the_worker_spin() -> None:
    app = App("moments", partitions=1, commit_interval=0)
    source = app.topic("source", key=str, value=int)
    sums = app.table("sums", key=str, value=int, default=int)

    @app.agent(source)
    async def add(stream: Stream[int]) -> None:
        async for number in stream:
            sums["k"] += number
            await app.sleep(1)

    async with asyncio.timeout(30), app.test() as t:
        await source.send(1, key="k")
        await t.advance(2)
        assert sums["k"] == 1
