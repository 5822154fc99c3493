"""Times that cannot be: refused where they are given; an event that has one is dead-lettered; nothing stands still."""

from __future__ import annotations

import math
from typing import Any

import pytest
from thalweg import App, DeadLetter, Event, Stream, WrongType

IMPOSSIBLE = [1e18, -1e18, math.nan, math.inf, "noon"]


@pytest.mark.parametrize("timestamp", IMPOSSIBLE)
async def test_sends_are_refused(timestamp: Any) -> None:
    app = App("times", partitions=1)
    topic = app.topic("topic", key=str, value=int)
    timed = app.topic("timed", key=str, value=float, timestamp_of=lambda value: timestamp)

    async with app.test():
        with pytest.raises(WrongType, match=r"topic 'topic': timestamp .* expected seconds since the epoch"):
            await topic.send(1, timestamp=timestamp)
        if not isinstance(timestamp, str):
            for send in (timed.send(1.0), timed.send_many([("k", 1.0)])):
                with pytest.raises(WrongType, match=r"topic 'timed': timestamp_of .* expected seconds"):
                    await send


@pytest.mark.parametrize("timestamp", IMPOSSIBLE)
async def test_an_event_that_sends_with_one_is_dead_lettered(timestamp: Any) -> None:
    app = App("times", partitions=1)
    topic = app.topic("topic", key=str, value=int)
    out = app.topic("out", key=str, value=int)

    @app.agent(topic, on_error=DeadLetter())
    async def pass_on(stream: Stream[int]) -> None:
        async for value in stream:
            await out.send(value, timestamp=timestamp if value == 1 else None)

    async with app.test(errors="policy") as t:
        await topic.send_many(("k", number) for number in range(3))
        await t.settle()
        assert [event.value for event in t.sent(out)] == [0, 2]
        assert ["WrongType" in letter.reason async for letter in app.dead_letters(topic)] == [True]


async def test_an_event_whose_own_time_cannot_be_is_dead_lettered_when_that_is_asked_for() -> None:
    app = App("times", partitions=1)
    topic = app.topic("topic", key=str, value=float, timestamp_of=lambda value: value)
    out = app.topic("out", key=str, value=float)

    @app.agent(topic.stream().events(), on_error=DeadLetter())
    async def pass_on(stream: Stream[Event[float, str]]) -> None:
        async for event in stream:
            await out.send(event.value, key=event.key)

    async with app.test(errors="policy") as t:
        for value in (1.0, 1e300, 2.0):
            await topic.raw.send(str(value).encode(), key=b"k", timestamp=0)
        await t.settle()
        assert [event.value for event in t.sent(out)] == [1.0, 2.0]
        assert [letter.position async for letter in app.dead_letters(topic)] == [1]
