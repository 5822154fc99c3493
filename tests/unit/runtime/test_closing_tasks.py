"""A task that is had again while it is still being closed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from thalweg import App, Stream
from thalweg.starting import worker_running
from thalweg.stores.memory import MemoryStores
from thalweg.transports.memory import MemoryBroker, MemoryTransport


async def test_a_task_that_starts_over_can_be_closed_and_opened_again_at_once() -> None:
    app = App("bank", partitions=1, commit_interval=0.0)
    source = app.topic("source", key=str, value=int)
    sums = app.table("sums", key=str, value=int, default=int)

    @app.agent(source)
    async def add(stream: Stream[int]) -> AsyncIterator[int]:
        async for event in stream.events():
            sums[event.key] += event.value
            yield sums[event.key]

    broker = MemoryBroker()
    async with worker_running(app, transport=MemoryTransport(broker), stores=MemoryStores()) as worker:
        key = ("1", 0)
        worker.tasks[key].failed(RuntimeError("it starts over"))
        closing = asyncio.create_task(worker._close_task(key, False))
        await asyncio.sleep(0)  # it waits for what starts the task over to end
        assert not closing.done()
        await worker._open_task(key)
        await closing
        assert worker.serving(*key) is worker.tasks[key]
        assert await add.ask(5, key="a") == 5


async def test_what_fails_while_its_restart_is_being_cancelled_begins_no_other() -> None:
    app = App("bank", partitions=1, commit_interval=0.0)
    source = app.topic("source", key=str, value=int)

    @app.agent(source)
    async def pass_by(stream: Stream[int]) -> None:
        async for _ in stream:
            pass

    async with worker_running(app, transport=MemoryTransport(MemoryBroker()), stores=MemoryStores()) as worker:
        key = ("1", 0)
        task = worker.tasks[key]
        task.failed(RuntimeError("it starts over"))
        closing = asyncio.create_task(worker._close_task(key, False))
        await asyncio.sleep(0)  # it waits for what starts the task over to end
        task.failed(RuntimeError("it fails meanwhile"))
        await closing
        assert not [one for one in asyncio.all_tasks() if one.get_name().startswith("restart ")]
