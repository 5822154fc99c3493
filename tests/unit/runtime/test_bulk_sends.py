"""`send_many` makes the same messages as `send`, a batch at a time."""

from __future__ import annotations

import asyncio
from collections import defaultdict

import msgspec
import pytest
from thalweg import App, EncodeError, MessageTooLarge, Stream, WrongType
from thalweg.composing import Places
from thalweg.topic import SEND_BATCH


class Point(msgspec.Struct):
    at: float
    name: str = ""


async def test_bulk_and_single_sends_give_equal_messages() -> None:
    app = App("bulk", partitions=4)
    one = app.topic("one", key=str, value=Point | None, timestamp_of=lambda point: point.at)
    many = app.topic("many", key=str, value=Point | None, timestamp_of=lambda point: point.at)
    long_key = "k" * (Places.LARGEST_KEY + 1)
    pairs = [("a", Point(1.5)), ("b", None), (long_key, Point(2.0)), ("a", Point(0.5)), ("b", Point(3.0, "é"))]

    async with app.test() as t:
        await many.send_many(pairs)
        for key, value in pairs:
            await one.send(value, key=key)

        def all_of(name: str) -> list[tuple[object, ...]]:
            return [(p, at, r.key, r.value, r.headers, r.timestamp) for p, at, r in t._broker.records(name)]

        assert all_of("many") == all_of("one")
        assert len(all_of("one")) == len(pairs)


async def test_keys_keep_their_order_over_many_batches() -> None:
    app = App("bulk", partitions=3)
    topic = app.topic("numbers", key=int, value=int)
    count = 2 * SEND_BATCH + 7
    async with app.test() as t:
        await topic.send_many((number % 10, number) for number in range(count))
        by_key: dict[int, list[int]] = defaultdict(list)
        for event in t.sent(topic):
            by_key[event.key].append(event.value)
    assert sorted(number for numbers in by_key.values() for number in numbers) == list(range(count))
    assert all(numbers == sorted(numbers) for numbers in by_key.values())


async def test_without_keys_messages_are_spread_over_the_partitions() -> None:
    app = App("bulk", partitions=4)
    topic = app.topic("numbers", value=int)
    async with app.test() as t:
        await topic.send_many((None, number) for number in range(8))
        assert [event.partition for event in t.sent(topic)] == [0, 0, 1, 1, 2, 2, 3, 3]


async def test_a_message_above_the_limit_stops_its_batch_and_what_follows() -> None:
    app = App("bulk", broker="memory://?message_bytes=100", partitions=2)
    topic = app.topic("words", key=str, value=str)
    async with app:
        with pytest.raises(MessageTooLarge, match="a message of 101 bytes is above the broker's limit of 100"):
            await topic.send_many([("k", "fits"), ("k", "x" * 100), ("k", "fits too")])
        await topic.send_many([("k", "x" * 99)])
        log = await app.running.open_log("words")
        batches = await log.read({0: None, 1: None}, 10, 10_000, 0)
        assert [record.value for batch in batches.values() for record in batch.records] == [b"x" * 99]


async def test_a_value_that_cannot_be_encoded_is_named() -> None:
    app = App("bulk", partitions=1)
    topic = app.topic("anything", key=str, value=dict)
    async with app.test() as t:
        with pytest.raises((EncodeError, WrongType), match="object"):
            await topic.send_many([("k", {"good": 1}), ("k", {"bad": object()})])
        assert t.sent(topic) == []


async def test_in_an_event_bulk_sends_are_part_of_its_commit() -> None:
    app = App("bulk", partitions=1)
    source, target = app.topic("source", value=str), app.topic("target", key=str, value=int)
    gate = asyncio.Event()

    @app.agent(source)
    async def fan_out(stream: Stream[str]) -> None:
        async for word in stream:
            await target.send_many((letter, number) for number, letter in enumerate(word))
            await gate.wait()

    async with app.test() as t:
        await source.send("abc", timestamp=12.5)
        await t.advance(1)
        assert t.sent(target) == []
        gate.set()
        await t.settle()
        found = [(event.key, event.value, event.timestamp) for event in t.sent(target)]
        assert found == [("a", 0, 12.5), ("b", 1, 12.5), ("c", 2, 12.5)]


async def test_the_partitions_of_keys_are_looked_up_anew_on_another_broker() -> None:
    app = App("bulk", broker="memory://small-first", partitions=4)
    topic = app.topic("words", key=str, value=str)
    keys = [f"key-{number}" for number in range(50)]
    for partitions in (2, 4):
        other = App("other", broker=f"memory://{partitions}", partitions=partitions)
        other.topic("words", key=str, value=str, partitions=partitions)
        app.broker = f"memory://{partitions}"
        async with other.client(), app.client():
            await topic.send_many((key, key) for key in keys)
            log = await app.running.open_log("words")
            batches = await log.read(dict.fromkeys(range(partitions)), 100, 100_000, 0)
            found = {record.key: number for number, batch in batches.items() for record in batch.records}
            assert found == {key.encode(): topic._plan.partition_of(key.encode(), partitions) for key in keys}


async def test_others_run_while_much_is_sent() -> None:
    app = App("bulk", partitions=2)
    topic = app.topic("numbers", key=str, value=int)
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with app.test():
        counting = asyncio.ensure_future(count_turns())
        await topic.send_many((str(number), number) for number in range(100_000))
        counting.cancel()
    assert turns > 2
