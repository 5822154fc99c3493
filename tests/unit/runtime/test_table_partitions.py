"""A table has as many partitions as what feeds it; where it has not, events wait for whoever mends the program."""

from __future__ import annotations

import logging

import pytest
from listing import listed
from thalweg import App, Stream, Table, Topic
from thalweg.errors import TableMismatch

WORDS = "abcabc"


def counting(partitions: int | None, broker: str = "memory://") -> tuple[App, Topic[str, str], Table[str, int]]:
    app = App("counting", broker=broker)
    words = app.topic("words", key=str, value=str, key_of=lambda word: word, partitions=3)
    app.topic("others", value=bytes, partitions=5).stream().to(app.topic("copies", value=bytes, partitions=5))
    counts = app.table("counts", key=str, value=int, default=int, partitions=partitions)

    @app.agent(words)
    async def count(stream: Stream[str]) -> None:
        async for word in stream:
            counts[word] += 1

    return app, words, counts


async def test_by_default_it_has_those_of_the_topic_whose_agent_uses_it() -> None:
    app, words, counts = counting(None)
    async with app.test() as t:
        for word in WORDS:
            await words.send(word)
        await t.settle()
        assert dict(counts.items()) == {"a": 2, "b": 2, "c": 2}
        assert app.tables["counts"].partitions == 3


async def test_an_agent_that_uses_one_of_another_number_halts_and_its_events_are_kept(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = "memory://mismatch"
    app, words, _ = counting(2, broker)
    async with app:
        for word in WORDS:
            await words.send(word)
        while "halted" not in caplog.text:
            await app.sleep(0.01)
        assert all(record.levelno == logging.CRITICAL for record in caplog.records if "halted" in record.message)
    mended, words, counts = counting(3, broker)
    async with mended:
        while sum(listed(counts).values()) < len(WORDS):
            await mended.sleep(0.01)
        assert dict(counts.items()) == {"a": 2, "b": 2, "c": 2}
        assert [letter async for letter in mended.dead_letters(words)] == []


async def test_a_test_sees_the_error() -> None:
    app, words, _ = counting(2)

    async def test() -> None:
        async with app.test() as t:
            await words.send("a")
            await t.settle()

    with pytest.raises(TableMismatch, match="partitions=3"):
        await test()
