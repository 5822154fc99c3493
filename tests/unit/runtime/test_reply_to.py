"""`cast(reply_to=…)`: the answer is a message for another agent."""

from __future__ import annotations

from collections.abc import AsyncIterator

from thalweg import App, DeadLetter, Event, Stream


async def test_the_answer_comes_as_an_event_with_its_key_and_correlation_and_an_error_does_not() -> None:
    app = App("replies", partitions=2)
    questions, answers = app.topic("questions", value=int), app.topic("answers", value=int)
    heard: list[tuple[object, ...]] = []

    @app.agent(questions, on_error=DeadLetter())
    async def double(stream: Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            if number == 13:
                raise ValueError("unlucky")
            yield number * 2

    @app.agent(answers.stream().events())
    async def hear(stream: Stream[Event[int, str]]) -> None:
        async for event in stream:
            heard.append((event.key, event.value, event.headers))

    async with app.test(errors="policy") as t:
        await double.cast(4, key="ada", reply_to=hear, correlation="7")
        await double.cast(13, key="ada", reply_to=hear, correlation="8")
        await double.cast(5, key="bob", reply_to=answers)
        await double.cast(6, key="eve")
        await t.settle()
        assert sorted(heard) == [("ada", 8, (("correlation", b"7"),)), ("bob", 10, ())]
        assert [letter.value async for letter in app.dead_letters(answers)] == []
