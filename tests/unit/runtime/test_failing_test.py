"""A test that fails says so."""

from __future__ import annotations

import asyncio

import pytest
from thalweg import App, Stream


async def test_a_test_that_fails_while_an_event_is_open_ends() -> None:
    app = App("failing", partitions=1)
    source = app.topic("source", value=str)
    begun = asyncio.Event()

    @app.agent(source)
    async def wait(stream: Stream[str]) -> None:
        async for _ in stream:
            begun.set()
            await asyncio.Event().wait()

    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - what is tested is how the block ends
        async with asyncio.timeout(30), app.test():
            await source.send("a")
            await begun.wait()
            raise ZeroDivisionError


async def test_a_test_that_leaves_an_event_waiting_for_the_clock_ends() -> None:
    """Draining takes time, and nobody else would let it pass."""
    app = App("waiting", partitions=1)
    topic = app.topic("jobs", value=str)
    ended: list[str] = []

    @app.agent(topic)
    async def work(stream: Stream[str]) -> None:
        async for job in stream:
            try:
                await app.sleep(10 if job == "short" else 100_000)
                ended.append(job)
            except asyncio.CancelledError:
                ended.append(f"{job} was cancelled")
                raise

    del work
    for job in ("short", "long"):
        async with asyncio.timeout(20), app.test():
            await topic.send(job)
    assert ended == ["short", "long was cancelled"]
