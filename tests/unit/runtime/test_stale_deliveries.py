"""A worker that was not heard of for longer than the leases of its queue's messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from thalweg import App, Stream
from thalweg.transports.memory import MemoryTransport


async def test_what_went_back_meanwhile_is_handled_again_and_holds_up_nothing() -> None:
    app = App("stale")
    letters = app.queue("letters", value=int)
    handled: list[int] = []
    gate = asyncio.Event()

    @app.agent(letters, concurrency=2)
    async def handle(stream: Stream[int]) -> AsyncIterator[int]:
        async for letter in stream:
            handled.append(letter)
            if letter < 3:
                await gate.wait()
            yield letter

    async with app.test() as t:
        await letters.send(1)
        await letters.send(2)
        await t.settle()
        worker = t._worker
        assert worker is not None
        assert isinstance(worker.transport, MemoryTransport)
        worker.transport.cut()
        await t.advance(60)
        worker.transport.heal()
        gate.set()
        asked = asyncio.ensure_future(handle.ask(3))
        await t.advance(30)
        assert await asked == 3
        assert sorted(handled) == [1, 1, 2, 2, 3]
        channel = await worker.transport.channel("letters", "work")
        assert not await channel.get(10, 0)  # all are committed
        await t.advance(60)
        assert not await channel.get(10, 0)
