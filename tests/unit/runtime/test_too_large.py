"""A broker that takes less than it says: what does not fit is the affair of the event that sent it, and of no other."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import ClassVar

import pytest
from thalweg import App, DeadLetter, Retry, Stream
from thalweg.errors import MessageTooLarge
from thalweg.message import Message
from thalweg.transports.memory.log import MemoryLog

LIMIT = 100


class Strict(MemoryLog):
    """Of the topics in `limited`."""

    limited: ClassVar[set[str]] = set()

    async def append(
        self, records: Mapping[int, Sequence[Message]], positions: bool = True
    ) -> Mapping[int, Sequence[int]]:
        largest = max(message.size for messages in records.values() for message in messages)
        if self._topic.name in self.limited and largest > LIMIT:
            raise MessageTooLarge(f"{self._topic.name} takes {LIMIT} bytes")
        return await super().append(records, positions)


@pytest.fixture(autouse=True)
def limited(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    monkeypatch.setattr("thalweg.transports.memory.transport.MemoryLog", Strict)
    monkeypatch.setattr(Strict, "limited", {"target"})
    return Strict.limited


@pytest.mark.parametrize("policy", [DeadLetter(), Retry(3, backoff=1)])
async def test_of_a_queues_messages_the_one_whose_output_is_too_large_meets_its_policy(
    policy: DeadLetter | Retry,
) -> None:
    app = App("large")
    letters = app.queue("letters", value=int)
    target = app.topic("target", value=str)

    @app.handler(letters, concurrency=4, on_error=policy)
    async def copy(size: int) -> int:
        await target.send("x" * size)
        return size

    async with app.test(errors="policy") as t:
        asked = asyncio.gather(*(copy.ask(size) for size in (1, 2, 200, 3, 4)), return_exceptions=True)
        await t.advance(30)
        answers = await asked
        assert [answer for answer in answers if isinstance(answer, int)] == [1, 2, 3, 4]
        assert "target takes 100 bytes" in str(answers[2])
        assert {len(event.value) for event in t.sent(target)} == {1, 2, 3, 4}
        (letter,) = [letter async for letter in app.dead_letters(letters)]
        assert (letter.value, letter.attempts) == (b"200", 1 if isinstance(policy, DeadLetter) else 3)
        assert await copy.ask(5) == 5  # the worker lives


async def test_a_dead_letter_that_is_too_large_halts_the_agent_and_is_kept(limited: set[str]) -> None:
    app = App("large")
    letters = app.queue("letters", value=str)

    @app.handler(letters, on_error=DeadLetter())
    async def fail(text: str) -> None:
        if len(text) > 1:
            raise ValueError("no")

    async with app.test(errors="policy") as t:
        limited.add("large-dead-letters-letters")
        await letters.send("x" * 200)
        await t.settle()
        assert [letter async for letter in app.dead_letters(letters)] == []
        limited.clear()
        await t.crash()
        await t.advance(60)
        (letter,) = [letter async for letter in app.dead_letters(letters)]
        assert letter.value == b"x" * 200


async def test_of_sends_that_went_together_only_the_large_one_fails() -> None:
    app = App("large")
    target = app.topic("target", value=str)
    async with app.test() as t:
        results = await asyncio.gather(*(target.send("x" * size) for size in (1, 2, 200, 3)), return_exceptions=True)
        assert [type(result) for result in results] == [type(None), type(None), MessageTooLarge, type(None)]
        assert sorted(len(event.value) for event in t.sent(target)) == [1, 2, 3]


async def test_a_key_by_which_events_are_regrouped_may_not_be_larger_than_the_broker_takes() -> None:
    app = App("keys", partitions=1)
    source = app.topic("source", key=str, value=str)
    seen: list[str] = []

    @app.agent(source.stream().group_by(lambda value: value, name="by-value"))
    async def read(stream: Stream[str]) -> None:
        async for value in stream:
            seen.append(value)

    async with app.test(errors="policy") as t:
        app.running.head_bytes = 100
        for value in ("a", "b" * 101, "c"):
            await source.send(value, key="k")
        await t.advance(60)
        assert seen == ["a", "c"]
        assert ["of key and headers" in letter.reason async for letter in app.dead_letters(source)] == [True]
