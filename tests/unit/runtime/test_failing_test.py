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
