"""Workers of one app that come and go on one memory broker, under a clock that only the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from thalweg import App, Stream
from thalweg.clock import VirtualClock
from thalweg.message import Message
from thalweg.registry import load_stores
from thalweg.runtime.roster import Roster
from thalweg.runtime.worker import Worker
from thalweg.starting import worker_running
from thalweg.transports.memory import MemoryBroker, MemoryOptions, MemoryTransport

__all__ = ["START", "Town", "quiet", "until"]

T = TypeVar("T")
START = 1_000_000.0


class Town:
    """Workers of one app on one memory broker, and one who only reads the roster."""

    def __init__(self, options: MemoryOptions | None = None) -> None:
        self.clock = VirtualClock(START)
        self.broker = MemoryBroker(clock=self.clock)
        self.options = options or MemoryOptions()
        self.reader = MemoryTransport(self.broker)
        self.roster = Roster("bank", self.reader.log, self.clock)

    @asynccontextmanager
    async def worker(
        self, transport: MemoryTransport | None = None, more: int | None = None, **settings: str
    ) -> AsyncIterator[Worker]:
        """more: of a later release, whose program has an agent more, on a topic of so many partitions."""
        app = App("bank", partitions=4, worker_id=settings.get("worker_id"), zone=settings.get("zone"))
        app.clock = self.clock
        source = app.topic("source", key=str, value=int)
        sums = app.table("sums", key=str, value=int, default=int)

        @app.agent(source)
        async def add(stream: Stream[int]) -> None:
            async for event in stream.events():
                sums[event.key] += event.value

        if more is not None:

            @app.agent(app.topic("more", value=int, partitions=more))
            async def look(stream: Stream[int]) -> None:
                async for _ in stream:
                    pass

        transport = transport or MemoryTransport(self.broker, self.options)
        running = worker_running(app, transport=transport, stores=load_stores("memory://"))
        worker = await self.while_time_passes(running.__aenter__())
        try:
            yield worker
        finally:
            await self.while_time_passes(running.__aexit__(None, None, None))

    async def while_time_passes(self, doing: Awaitable[T]) -> T:
        task = asyncio.ensure_future(doing)
        await quiet()
        while not task.done():
            self.clock.move(self.clock.next() or self.clock.now())
            await quiet()
        return task.result()

    async def read(self) -> Roster:
        await self.reader.open()
        await self.roster.start()
        return self.roster

    async def advance(self, seconds: float) -> None:
        end = self.clock.now() + seconds
        await quiet()
        while (due := self.clock.next()) is not None and due <= end:
            self.clock.move(due)
            await quiet()
        self.clock.move(end)
        await quiet()

    async def append(self, *messages: Message) -> None:
        await (await self.reader.log("bank-workers")).append({0: messages})


async def quiet() -> None:
    for _ in range(100):
        await asyncio.sleep(0)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - it depends on several workers
            await asyncio.sleep(0)
