"""Where each journal is written by itself, one that takes for ever holds up no other task."""

from __future__ import annotations

from collections.abc import AsyncIterator

from thalweg import App, Stream
from thalweg.partitioner import murmur2_partitioner

KEYS = ("a", "b", "c", "d", "e", "f")


async def test_a_commit_that_takes_for_ever_holds_up_its_own_task_only() -> None:
    app = App("stuck", partitions=4)
    source = app.topic("source", key=str, value=int)
    sums = app.table("sums", key=str, value=int, default=int)

    @app.agent(source)
    async def add(stream: Stream[int]) -> AsyncIterator[int]:
        async for event in stream.events():
            sums[event.key] += event.value
            yield sums[event.key]

    async with app.test(broker="memory://?fencing=false") as t:
        hold = t._broker.broker.faults.hold("append", topic="stuck-journal-4")
        for _ in range(3):
            for key in KEYS:
                await source.send(1, key=key)
            await t.advance(2)
        (stuck,) = [task for task in t._worker.tasks.values() if task.in_flight]
        others = [key for key in KEYS if murmur2_partitioner(key.encode(), 4) != stuck.index]
        assert 0 < len(others) < len(KEYS)
        for key in others:
            assert await add.ask(1, key=key, timeout=1) == 4
        hold.release()
        await t.settle()
        expected = {key: 4 if key in others else 3 for key in KEYS}
        assert dict(sums.items()) == expected
        await t.crash()
        await t.settle()
        assert dict(sums.items()) == expected
