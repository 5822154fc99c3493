"""State that a program keeps under one partition count and now declares under another is not orphaned in silence."""

from __future__ import annotations

import pytest
from thalweg import App, Stream
from thalweg.errors import JournalMismatch


def make_app(broker: str, like: str) -> App:
    """Both groups of tasks, of 2 and of 4 partitions, are there whatever the table belongs to."""
    app = App("moving", broker=broker)
    topics = {name: app.topic(name, key=str, value=int, partitions=n) for name, n in (("narrow", 2), ("wide", 4))}
    rows = app.table("rows", key=str, value=int, default=int, like=topics[like])

    @app.agent(topics["narrow"])
    async def add(stream: Stream[int]) -> None:
        async for event in stream.events():
            if like == "narrow":
                rows[event.key] += event.value

    for name, topic in topics.items():

        @app.agent(topic, name=f"watch-{name}")
        async def watch(stream: Stream[int]) -> None:
            async for _ in stream:
                pass

    return app


@pytest.mark.parametrize("fencing", ["true", "false"])
async def test_a_table_moved_between_two_groups_that_both_remain_is_refused(fencing: str) -> None:
    broker = f"memory://moved-{fencing}?fencing={fencing}"
    first = make_app(broker, "narrow")
    async with first:
        await first.source("narrow").send(5, key="ada")
        while not dict(first.running.table_items(first.tables["rows"])):
            await first.sleep(0.01)
    with pytest.raises(JournalMismatch, match=r"table 'rows': kept in 'moving-journal-2' with 2 partitions"):
        async with make_app(broker, "wide") as app:
            await app.running.worker.failed
    async with make_app(broker, "narrow") as app:  # the old declaration still runs
        assert dict(app.running.table_items(app.tables["rows"])) == {"ada": 5}
