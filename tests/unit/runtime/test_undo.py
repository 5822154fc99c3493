"""What an unfinished event did to tables is seen by nobody else, and gone if it fails."""

from __future__ import annotations

import asyncio

import pytest
from thalweg import App, Skip, Stream


@pytest.mark.parametrize("fails", [True, False])
async def test_all_that_an_event_assigned_is_seen_together_or_not_at_all(fails: bool) -> None:
    app = App("undo", partitions=1)
    source = app.topic("source", value=str)
    table = app.table("table", key=str, value=int, partitions=1)
    other = app.table("other", key=str, value=int, partitions=1)
    open_, go_on = asyncio.Event(), asyncio.Event()

    @app.agent(source, on_error=Skip())
    async def change(stream: Stream[str]) -> None:
        async for word in stream:
            if word == "fill":
                table["a"], table["b"], other["a"] = 1, 2, 3
                continue
            table["a"] = 10
            table["a"] += 1
            other["a"] = 30
            del table["b"]
            table["new"] = 5
            table["a"] += 1
            open_.set()
            await go_on.wait()
            if fails:
                raise ValueError(word)

    async with app.test(errors="policy") as t:
        before = {"a": 1, "b": 2}, {"a": 3}
        after = {"a": 12, "new": 5}, {"a": 30}
        await source.send("fill")
        await source.send("change")
        await open_.wait()
        assert (dict(table.items()), dict(other.items())) == before
        assert (table["a"], table["b"], other["a"], "new" in table) == (1, 2, 3, False)
        await t.advance(1)  # a commit while the event is open takes none of it along
        go_on.set()
        await t.settle()
        assert (dict(table.items()), dict(other.items())) == (before if fails else after)
        await t.crash()
        await t.settle()
        assert (dict(table.items()), dict(other.items())) == (before if fails else after)
