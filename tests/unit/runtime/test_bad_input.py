"""Whatever lies in a topic: each bad message ends in a clear error or a dead letter, and the worker lives."""

from __future__ import annotations

import pytest
from thalweg import App, DeadLetter, Stream
from thalweg.message import Message

BROKERS = ("memory://", "memory://?fencing=false")


@pytest.fixture(params=BROKERS)
def broker(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_an_agent_that_halts_at_undecodable_messages_keeps_them_and_all_that_follow(broker: str) -> None:
    app = App("halting", partitions=1)
    source = app.topic("source", key=str, value=int)
    seen: list[int] = []

    @app.agent(source, on_error=DeadLetter(max_consecutive=2))
    async def collect(stream: Stream[int]) -> None:
        async for number in stream:
            seen.append(number)

    async with app.test(errors="policy", broker=broker) as t:
        await source.raw.send_many([(b"k", value) for value in (b"1", b"x", b"x", b"x", b"2", b"3")])
        await t.settle()
        assert seen == [1]
        await t.crash()  # whoever restarts it has looked at the dead letters: counting begins anew
        await t.settle()
        assert seen == [1, 2, 3]
        assert [letter.position async for letter in app.dead_letters(source)] == [1, 2, 3]


async def test_foreign_headers_under_our_names_do_no_harm(broker: str) -> None:
    app = App("headers", partitions=1)
    source = app.topic("source", key=str, value=int)
    seen: list[int] = []

    @app.agent(source)
    async def collect(stream: Stream[int]) -> None:
        async for number in stream:
            seen.append(number)

    headers = [
        (("thalweg-only", b"\xff"),),
        (("thalweg-reply", b"\xff/\xfe"), ("thalweg-answers", b"collect")),
        (("thalweg-out", b"\xff"),),
        (("thalweg-id", b"\xff"), ("thalweg-id", b"")),
    ]
    async with app.test(errors="policy", broker=broker) as t:
        messages = [Message(str(number).encode(), b"k", extra) for number, extra in enumerate(headers)]
        await app.running.send("source", {0: messages})
        await t.settle()
        assert seen == [1, 2, 3]  # the first one is for another agent only
        await source.send(4)
        await t.settle()
        await t.crash()
        await t.settle()
        assert seen == [1, 2, 3, 4]
