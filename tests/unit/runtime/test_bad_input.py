"""Whatever lies in a topic: each bad message ends in a clear error or a dead letter, and the worker lives."""

from __future__ import annotations

import pytest
from thalweg import App, DeadLetter, Stream
from thalweg.errors import MessageTooLarge
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
            seen.extend([number])

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
            seen.extend([number])

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


def limited(broker: str, message_bytes: int) -> str:
    return f"{broker}{'&' if '?' in broker else '?'}message_bytes={message_bytes}"


async def test_a_message_as_large_as_can_be_is_dead_lettered_with_what_fits(broker: str) -> None:
    app = App("large", partitions=1)
    source = app.topic("source", key=str, value=str)
    seen: list[str] = []

    @app.agent(source, on_error=DeadLetter())
    async def refuse(stream: Stream[str]) -> None:
        async for value in stream:
            if value.startswith("x"):
                raise ValueError("as it is")
            seen.extend([value])

    async with app.test(errors="policy", broker=limited(broker, 2000)) as t:
        await source.send("x" * 500, key="k", headers={"trace": "7"})
        await source.send("x" * 1990, key="k", headers={"trace": "7"})
        await source.send("fine", key="k")
        await t.settle()
        assert seen == ["fine"]
        short, long = [letter async for letter in app.dead_letters(source)]
        assert (short.value, short.headers) == (b"x" * 500, (("trace", b"7"),))
        assert short.traceback.endswith("ValueError: as it is\n")
        assert len(short.traceback) > 100
        assert long.value == b"x" * len(long.value)
        assert 1000 < len(long.value) < 1990
        assert "cut, of 1990 bytes" in long.reason
        assert (long.position, long.topic) == (1, "source")


async def test_what_an_event_sends_is_refused_where_it_is_sent_if_it_is_too_large(broker: str) -> None:
    app = App("large", partitions=1)
    sizes, target = app.topic("sizes", key=str, value=int), app.topic("target", value=bytes)
    refused: list[int] = []

    @app.agent(sizes)
    async def send(stream: Stream[int]) -> None:
        async for size in stream:
            try:
                await target.send(b"x" * size)
            except MessageTooLarge:
                refused.extend([size])

    async with app.test(broker=limited(broker, 2000)) as t:
        await sizes.send_many([("k", size) for size in range(1900, 2020, 10)])
        await t.settle()
        sent = [len(event.value) for event in t.sent(target)]
        assert sorted(sent + refused) == list(range(1900, 2020, 10))
        assert 1930 in sent
        assert 2010 in refused
        with pytest.raises(MessageTooLarge, match="2001"):
            await target.send(b"x" * 2001)
