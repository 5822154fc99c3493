"""`table.changes()`: what commits did to rows, once each and in order, whatever happens in between."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import pytest
from thalweg import App, Change, DeadLetter, Stream
from thalweg.errors import ConfigurationError


def make_app(partitions: int | None = None, **options: Any) -> tuple[App, Any, Any, list[Change[str, int]]]:
    """Sums by key; 0 deletes the row."""
    app = App("sums", partitions=2, **options)
    numbers = app.topic("numbers", key=str, value=int, partitions=partitions)
    sums = app.table("sums", key=str, value=int, default=int, like=numbers)
    seen: list[Change[str, int]] = []

    @app.agent(numbers)
    async def add(stream: Stream[int]) -> None:
        async for event in stream.events():
            if event.value == 0:
                if event.key in sums:
                    del sums[event.key]
            else:
                sums[event.key] += event.value

    @app.agent(sums.changes())
    async def follow(stream: Stream[Change[str, int]]) -> None:
        async for change in stream:
            seen.append(change)

    return app, numbers, sums, seen


async def test_each_commit_tells_what_rows_were_and_became() -> None:
    app, numbers, _, seen = make_app()
    async with app.test() as t:
        for value in (3, 4, 0, 0, 5):
            await numbers.send(value, key="ada")
            await t.settle()
        assert seen == [Change("ada", None, 3), Change("ada", 3, 7), Change("ada", 7, None), Change("ada", None, 5)]
        await numbers.send_many([("ada", 1), ("ada", -1)])  # one commit, after which the row is as before
        await t.settle()
        assert len(seen) == 4
        assert [event.key for event in t.sent(app.source("sums-sums-changes"))] == ["ada"] * 4


@pytest.mark.parametrize("broker", ["memory://", "memory://?fencing=false", "memory://?commit_messages=3"])
async def test_through_crashes_they_add_up_to_the_table(broker: str) -> None:
    app, numbers, sums, _ = make_app(partitions=3)
    copies: dict[str, int] = app.table("copies", key=str, value=int, partitions=3)  # type: ignore[assignment]
    steps: Any = app.table("steps", key=str, value=int, default=int, partitions=3)

    @app.agent(sums.changes())
    async def copy(stream: Stream[Change[str, int]]) -> None:
        async for change in stream:
            assert copies.get(change.key) == change.old
            steps[change.key] += 1
            if change.new is None:
                del copies[change.key]
            else:
                copies[change.key] = change.new

    chance = random.Random(7)
    async with app.test(broker=broker) as t:
        for _ in range(12):
            batch = [(f"k{chance.randrange(5)}", chance.choice([0, 1, 2, 3])) for _ in range(20)]
            await numbers.send_many(batch)
            if chance.random() < 0.5:
                await t.advance(0.01)
            await t.crash()
        await t.advance(10)
        assert dict(copies.items()) == dict(sums.items())
        by_key: dict[str, list[Change[str, int]]] = defaultdict(list)
        for event in t.sent(app.source("sums-sums-changes")):
            by_key[event.value.key].append(event.value)
        for changes in by_key.values():
            assert [c.old for c in changes] == [None, *(c.new for c in changes)][:-1]


@pytest.mark.parametrize("first", [True, False])
async def test_a_table_that_follows_changes_is_placed_with_them(first: bool) -> None:
    app = App("placed", partitions=5)
    numbers = app.topic("numbers", key=str, value=int, partitions=3)
    copies: Any = app.table("copies", key=str, value=int) if first else None
    sums = app.table("sums", key=str, value=int, default=int)
    copies = copies or app.table("copies", key=str, value=int)

    @app.agent(numbers)
    async def add(stream: Stream[int]) -> None:
        async for event in stream.events():
            sums[event.key] += event.value

    @app.agent(sums.changes())
    async def copy(stream: Stream[Change[str, int]]) -> None:
        async for change in stream:
            copies[change.key] = change.new or 0

    async with app.test() as t:
        await numbers.send_many([(f"k{number}", number) for number in range(20)])
        await t.settle()
        assert dict(copies.items()) == dict(sums.items()) == {f"k{number}": number for number in range(20)}


async def test_a_change_that_is_too_large_fails_its_event_and_no_other() -> None:
    app = App("large", partitions=1)
    texts = app.topic("texts", key=str, value=str)
    rows = app.table("rows", key=str, value=str)
    rows.changes()

    @app.agent(texts, on_error=DeadLetter())
    async def keep(stream: Stream[str]) -> None:
        async for event in stream.events():
            rows[event.key] = event.value

    async with app.test(broker="memory://?message_bytes=4000", errors="policy") as t:
        await texts.send_many([("a", "x" * 3000), ("b", "y")])
        await t.settle()
        await texts.send_many([("b", "v"), ("a", "z" * 3000), ("b", "w")])
        await t.advance(60)
        assert rows["b"] == "w"
        letters = [letter async for letter in app.dead_letters(texts)]
        assert [letter.key for letter in letters] == [b"a"]
        assert "its change, the value before and after, has 60" in letters[0].reason


def test_what_cannot_be_is_refused() -> None:
    app = App("wrong")
    topic = app.topic("t", key=str, value=int)
    with pytest.raises(ConfigurationError, match="replicated"):
        topic.table("r", replicated=True).changes()
    app.topic("wrong-taken-changes", key=str, value=int)
    with pytest.raises(ConfigurationError, match="needs that name"):
        app.table("taken", value=int).changes()
