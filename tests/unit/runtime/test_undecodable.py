"""Bytes that cannot be decoded, amid a batch of good ones."""

from __future__ import annotations

from thalweg import App, DeadLetter, Stream


async def test_nothing_passes_the_event_at_which_an_agent_halted() -> None:
    app = App("undecodable", partitions=1)
    source = app.topic("source", value=int)
    seen: list[int] = []

    @app.agent(source, on_error=DeadLetter(max_consecutive=1))
    async def note(stream: Stream[int]) -> None:
        async for value in stream:
            seen.append(value)

    async with app.test(errors="policy") as t:
        await source.raw.send_many([(b"k", value) for value in (b"1", b"bad", b"worse", b"2", b"3")])
        await t.settle()
        assert seen == [1]
        assert [letter.value async for letter in app.dead_letters(source)] == [b"bad"]

        await t.crash()  # a new start with a clean record: "worse" may go too, and with it what waited behind
        await t.settle()
        assert seen == [1, 2, 3]
        assert [letter.value async for letter in app.dead_letters(source)] == [b"bad", b"worse"]
