"""`event.id` is an idempotency key: the same at every attempt and after every crash, and of one event only."""

from __future__ import annotations

import pytest
from thalweg import App, Event, Retry, Stream
from thalweg.dead_letters import replay
from thalweg.message import Message
from thalweg.transports.memory import MemoryTransport


class Seen:
    """An app with one agent, which fails as often as told and notes the id of each attempt, by value."""

    def __init__(self, kind: str, failures: int = 1) -> None:
        self.app = app = App("seen", partitions=1)
        self.source = app.topic("source", value=str) if kind == "topic" else app.queue("source", value=str)
        self.ids: dict[str, list[str]] = {}
        self.failures = failures

        @app.agent(self.source.stream().events(), on_error=Retry(2, backoff=0))
        async def note(stream: Stream[Event[str, str]]) -> None:
            async for event in stream:
                attempts = self.ids.setdefault(event.value, [])
                attempts.append(event.id)
                if len(attempts) <= self.failures:
                    raise ValueError("again")

        self.agent = note


CASES = [
    ("topic", "memory://"),
    ("queue", "memory://"),
    ("queue", "memory://?work_queue=false"),
    ("topic", "memory://?log=false"),
    ("queue", "memory://?log=false"),
]


@pytest.mark.parametrize(("kind", "broker"), CASES)
async def test_each_event_keeps_its_id_at_every_attempt(kind: str, broker: str) -> None:
    seen = Seen(kind)
    async with seen.app.test(errors="policy", broker=broker) as t:
        for value in ("same", "other"):
            await seen.source.send(value, key="k", headers={"thalweg-id": "forged"})
        await t.advance(100)
        assert [len(ids) for ids in seen.ids.values()] == [2, 2]
        assert [len(set(ids)) for ids in seen.ids.values()] == [1, 1]
        assert seen.ids["same"][0] != seen.ids["other"][0]
        assert "forged" not in seen.ids["same"]


async def test_messages_sent_many_at_once_have_ids_too() -> None:
    seen = Seen("topic")
    async with seen.app.test(errors="policy", broker="memory://?log=false") as t:
        await seen.source.send_many([("k", "same"), ("k", "other")])
        await t.advance(100)
        assert [len(set(ids)) for ids in seen.ids.values()] == [1, 1]
        assert seen.ids["same"][0] != seen.ids["other"][0]


@pytest.mark.parametrize(("kind", "broker"), CASES)
async def test_an_event_that_was_asked_keeps_its_id_too(kind: str, broker: str) -> None:
    seen = Seen(kind)
    async with seen.app.test(errors="policy", broker=broker) as t:
        await seen.agent.cast("asked", key="k", correlation="7")
        await t.advance(100)
        first, second = seen.ids["asked"]
        assert first == second


async def test_messages_of_foreign_programs_in_a_queue_never_share_an_id() -> None:
    ids: list[str] = []
    for _ in range(2):  # a worker that starts anew may not begin to count anew
        seen = Seen("queue", failures=0)
        async with seen.app.test(errors="policy") as t:
            transport = seen.app.running.transport
            assert isinstance(transport, MemoryTransport)
            channel = await transport.channel("source", "anyone")
            await channel.put([Message(b"foreign", None, (), 0)])
            await t.settle()
        ids.extend(seen.ids["foreign"])
    assert len(set(ids)) == 2


@pytest.mark.parametrize("kind", ["topic", "queue"])
async def test_a_replayed_dead_letter_is_the_same_event(kind: str) -> None:
    seen = Seen(kind, failures=2)
    async with seen.app.test(errors="policy") as t:
        await seen.source.send("failing", key="k")
        await t.advance(100)
        assert len(seen.ids["failing"]) == 2
        (letter,) = [letter async for letter in seen.app.dead_letters(seen.source)]
        assert letter.event_id == seen.ids["failing"][0]
        await replay(seen.app, "source")
        await t.advance(100)
        assert len(seen.ids["failing"]) == 3
        assert len(set(seen.ids["failing"])) == 1
