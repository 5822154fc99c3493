"""What those get who ask an agent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from thalweg import Agent, AgentError, App, DeadLetter, Stream

BROKERS = ("memory://", "memory://?fencing=false")
pytestmark = pytest.mark.parametrize("broker", BROKERS)


async def test_an_answer_is_the_value_as_it_was_when_it_was_given(broker: str) -> None:
    app = App("answers", partitions=1)
    source = app.topic("source", key=str, value=int)
    lists = app.table("lists", key=str, value=list[int], default=list)

    @app.agent(source)
    async def gather(stream: Stream[int]) -> AsyncIterator[list[int]]:
        async for number in stream:
            lists["k"].append(number)
            yield lists["k"]

    async with app.test(broker=broker):
        assert await gather.ask_all([1, 2, 3], key="k") == [[1], [1, 2], [1, 2, 3]]


async def test_an_answer_that_cannot_be_encoded_is_an_error_and_other_answers_arrive(broker: str) -> None:
    app = App("answers", partitions=1)
    source = app.topic("source", key=str, value=int)

    @app.agent(source, on_error=DeadLetter())
    async def odd(stream: Stream[int]) -> AsyncIterator[object]:
        async for number in stream:
            yield object() if number % 2 else number

    async with app.test(errors="policy", broker=broker):
        one, two = await asyncio.gather(odd.ask(1, key="k"), odd.ask(2, key="k"), return_exceptions=True)
        assert two == 2
        assert isinstance(one, AgentError)
        assert "object" in str(one)


async def test_an_answer_that_is_too_large_is_an_error(broker: str) -> None:
    url = f"memory://answers{broker.removeprefix('memory://')}{'&' if '?' in broker else '?'}message_bytes=2000"

    def make() -> tuple[App, Agent[int, str]]:
        app = App("answers", broker=url, partitions=1)
        source = app.topic("source", key=str, value=int)

        @app.agent(source)
        async def repeat(stream: Stream[int]) -> AsyncIterator[str]:
            async for number in stream:
                yield "x" * number

        return app, repeat

    worker, _ = make()
    client, repeat = make()
    async with worker, client.client():  # so that the answers travel
        assert await repeat.ask(100, key="k") == "x" * 100
        with pytest.raises(AgentError, match="too large"):
            await repeat.ask(3000, key="k")
        assert await repeat.ask(1, key="k") == "x"
