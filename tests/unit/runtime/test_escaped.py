"""What an agent raises though it is no Exception: the policy deals with it, and a test with `pytest.fail` fails."""

from __future__ import annotations

from typing import Any

import pytest
from thalweg import App, DeadLetter, Stream


class NoException(BaseException):
    pass


def program(kind: str, error: BaseException) -> tuple[App, Any, list[int]]:
    app = App("raising", partitions=1)
    source = app.queue("source", value=int) if kind == "queue" else app.topic("source", key=str, value=int)
    handled: list[int] = []

    def handle(value: int) -> None:
        if value == 1:
            raise error
        handled.append(value)

    async def wait(value: int) -> None:
        handle(value)

    async def read(stream: Stream[int]) -> None:
        async for value in stream:
            handle(value)

    if kind == "agent":
        app.agent(source, on_error=DeadLetter())(read)
    else:
        app.handler(source, on_error=DeadLetter())(handle if kind == "thread" else wait)
    return app, source, handled


@pytest.mark.parametrize("error", [NoException("base"), GeneratorExit("left")], ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("kind", ["agent", "handler", "thread", "queue"])
async def test_it_is_dead_lettered_and_what_follows_is_handled(kind: str, error: BaseException) -> None:
    app, source, handled = program(kind, error)
    async with app.test(errors="policy") as t:
        for number in range(3):
            await source.send(number)
        await t.advance(60)
        assert handled == [0, 2]
        (letter,) = [letter async for letter in app.dead_letters(source)]
        assert type(error).__name__ in letter.reason
        assert str(error) in letter.reason


@pytest.mark.parametrize("kind", ["agent", "handler", "thread", "queue"])
async def test_pytest_fail_fails_the_test(kind: str) -> None:
    app, source, _ = program(kind, pytest.fail.Exception("not to be called"))
    async with app.test() as t:
        await source.send(1)
        with pytest.raises(pytest.fail.Exception, match="not to be called"):
            await t.settle()


async def test_in_a_timer_too() -> None:
    app = App("ticking")

    @app.timer(10)
    async def tick() -> None:
        pytest.fail("not to be called")

    async with app.test() as t:
        with pytest.raises(pytest.fail.Exception, match="not to be called"):
            await t.advance(11)
