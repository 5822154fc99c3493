"""`ttl=`: rows end by themselves, in commits, whatever else happens."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from thalweg import App, Change, Stream
from thalweg.errors import ConfigurationError
from thalweg.journal.replay import committed_rows
from thalweg.journal.rows import below

TTL = 96.0


def make_app(ttl: float = TTL, partitions: int = 1, **options: Any) -> tuple[App, Any, Any]:
    """A value is added to the row; 0 deletes it."""
    app = App("lives", partitions=partitions, **options)
    numbers = app.topic("numbers", key=str, value=int)
    rows = app.table("rows", key=str, value=int, default=int, ttl=ttl)

    @app.agent(numbers)
    async def add(stream: Stream[int]) -> None:
        async for event in stream.events():
            if event.value:
                rows[event.key] += event.value
            elif event.key in rows:
                del rows[event.key]

    return app, numbers, rows


async def test_a_row_lives_for_its_time_after_it_was_written_last() -> None:
    app, numbers, rows = make_app()
    async with app.test() as t:
        await numbers.send_many([("ada", 1), ("bob", 2)])
        await t.advance(TTL * 0.9)
        assert dict(rows.items()) == {"ada": 1, "bob": 2}
        await numbers.send(1, key="ada")
        await t.advance(TTL * 0.2)  # which is a sixteenth late for bob
        assert dict(rows.items()) == {"ada": 2}
        await t.advance(TTL)
        assert dict(rows.items()) == {}
        await numbers.send(5, key="ada")
        await t.settle()
        assert rows["ada"] == 5


async def test_it_ends_after_a_crash_too_and_leaves_nothing_behind() -> None:
    app, numbers, rows = make_app()
    async with app.test() as t:
        await numbers.send_many([(f"k{number}", 1) for number in range(2500)])  # more than one commit ends
        await t.settle()
        await t.crash()
        assert len(dict(rows.items())) == 2500
        await t.advance(TTL * 1.1)
        assert dict(rows.items()) == {}
        journal = await app.running.open_log("lives-journal-1")
        for kind in (b"t", b"e", b"l"):
            assert await committed_rows(journal, 0, kind, below(kind)) == {}
        await journal.close()


async def test_whoever_follows_the_changes_is_told() -> None:
    app, numbers, rows = make_app()
    seen: list[Change[str, int]] = []

    @app.agent(rows.changes())
    async def follow(stream: Stream[Change[str, int]]) -> None:
        async for change in stream:
            seen.append(change)

    async with app.test() as t:
        await numbers.send(3, key="ada")
        await t.advance(TTL * 1.1)
        assert seen == [Change("ada", None, 3), Change("ada", 3, None)]


async def test_a_row_that_an_open_event_has_in_hand_waits() -> None:
    app = App("lives", partitions=1)
    names = app.topic("names", key=str, value=str)
    rows = app.table("rows", key=str, value=list[str], default=list, ttl=TTL)

    @app.agent(names)
    async def add(stream: Stream[str]) -> None:
        async for event in stream.events():
            rows[event.key].append(event.value)
            if event.value == "slow":
                await app.sleep(2 * TTL)
                rows[event.key].append("after")

    async with app.test() as t:
        await names.send("first", key="ada")
        await t.advance(TTL / 2)
        await names.send("slow", key="ada")
        await t.advance(TTL)
        assert rows["ada"] == ["first"]
        await t.advance(TTL * 1.1)
        assert rows["ada"] == ["first", "slow", "after"]
        await t.advance(TTL * 1.1)
        assert "ada" not in rows


async def test_a_mutable_row_that_is_only_looked_at_ends() -> None:
    app = App("lives", partitions=1)
    names = app.topic("names", key=str, value=str)
    rows = app.table("rows", key=str, value=list[str], ttl=TTL)

    @app.agent(names)
    async def look(stream: Stream[str]) -> None:
        async for event in stream.events():
            if event.value == "look":
                rows.get(event.key)
            else:
                rows[event.key] = [event.value]

    async with app.test() as t:
        await names.send("x", key="ada")
        for _ in range(9):
            await t.advance(TTL / 8)
            await names.send("look", key="ada")
            await t.settle()
        assert "ada" not in rows


@pytest.mark.parametrize("broker", ["memory://", "memory://?fencing=false", "memory://?message_bytes=400"])
@pytest.mark.parametrize("seed", range(3))
async def test_rows_are_those_of_a_model(broker: str, seed: int) -> None:
    chance = random.Random(seed)
    app, numbers, rows = make_app(partitions=2, commit_interval=chance.choice([0.0, 0.02]))
    model: dict[str, tuple[int, float]] = {}  # value, and when it was written
    async with app.test(broker=broker) as t:
        await t.advance(0.05)  # rows end at whole seconds: never at a moment at which something is sent, or looked at
        for _ in range(60):
            for _ in range(chance.randrange(6)):
                key, value = f"k{chance.randrange(8)}", chance.choice([0, 1, 1, 2])
                await numbers.send(value, key=key)
                was = model.get(key)
                model[key] = (value + (was[0] if was and value else 0), t.now())
                if not value:
                    del model[key]
            await t.settle()
            if chance.random() < 0.2:
                await t.crash()
            await t.advance(chance.choice([0, TTL / 32, TTL / 3]))
            now, there = t.now(), dict(rows.items())
            for key, (value, written) in list(model.items()):
                if now < written + TTL:
                    assert there.get(key) == value
                elif now > written + TTL * 17 / 16 + 1:
                    assert key not in there
                if key not in there:
                    del model[key]
            assert there.keys() <= model.keys()
        await t.advance(TTL * 1.1)
        assert dict(rows.items()) == {}


@pytest.mark.parametrize("store", ["sqlite", "rocksdb"])
async def test_another_time_to_live_holds_for_what_is_written_from_then_on(store: str, tmp_path: Path) -> None:
    broker, where = f"memory://ttl-{store}", f"{store}:///{tmp_path}/store"
    first, numbers, rows = make_app(3600.0, broker=broker, store=where)
    async with first:
        await numbers.send(1, key="ada")
        while "ada" not in rows:
            await first.sleep(0.005)
    second, numbers, rows = make_app(0.05, broker=broker, store=where)
    async with second:
        await numbers.send(1, key="bob")
        while "bob" not in rows:
            await second.sleep(0.005)
        while "bob" in rows:
            await second.sleep(0.005)
        assert dict(rows.items()) == {"ada": 1}


@pytest.mark.parametrize("ttl", [0, -1, "soon"])
def test_what_is_no_time_is_refused(ttl: Any) -> None:
    with pytest.raises(ConfigurationError, match="ttl"):
        App("lives").table("rows", value=int, ttl=ttl)
