"""What a program gets wrong is said where it does so, with the name of the thing and what would work."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from thalweg import App, EncodeError, Event, Retry, Stream, WrongType
from thalweg.errors import ConfigurationError, StaleRead


class Withdrawal(msgspec.Struct):
    account: str
    amount: int


def plain(stream: Any) -> None: ...


def generator(stream: Any) -> Any:
    yield 1


async def without() -> None: ...


async def two(stream: Any, more: Any) -> None: ...


def declared(kind: str, function: Any) -> None:
    app = App("misuse")
    topic = app.topic("withdrawals", value=Withdrawal)
    decorators: dict[str, Callable[[Any], Any]] = {
        "agent": app.agent(topic),
        "handler": app.handler(topic),
        "timer": app.timer(1),
        "crontab": app.crontab("* * * * *"),
        "background": app.background,
    }
    decorators[kind](function)


@pytest.mark.parametrize(
    ("kind", "function", "says"),
    [
        ("agent", plain, r"agent 'plain' is not an async function; write `async def plain\(stream\)`"),
        ("agent", generator, "agent 'generator' is not an async function"),
        ("agent", without, r"agent 'without' is declared as without\(\).*write `async def without\(stream\)`"),
        ("agent", two, r"agent 'two' is declared as two\(stream: .*, more: "),
        ("handler", without, "handler 'without' is declared as"),
        ("timer", plain, r"timer 'plain' is not an async function; write `async def plain\(\)`"),
        ("timer", two, "timer 'two' is declared as"),
        ("crontab", plain, "crontab 'plain' is not an async function"),
        ("background", plain, "background function 'plain' is not an async function"),
    ],
)
def test_a_function_of_the_wrong_kind_is_refused_where_it_is_declared(kind: str, function: Any, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        declared(kind, function)


async def agent(stream: Stream[Withdrawal]) -> AsyncIterator[int]:
    async for withdrawal in stream:
        yield withdrawal.amount


@functools.wraps(agent)
def wrapped(*args: Any) -> Any:
    return agent(*args)


class Bound:
    async def method(self, stream: Any) -> None: ...


class Called:
    __name__ = "called"

    async def __call__(self, stream: Any) -> None: ...


async def of_two(stream: Any, more: Any) -> None: ...


partial = functools.partial(of_two, more=1)
functools.update_wrapper(partial, of_two)


@pytest.mark.parametrize("function", [agent, wrapped, Bound().method, Called(), partial])
def test_every_kind_of_async_function_will_do(function: Any) -> None:
    declared("agent", function)


def test_a_handler_may_be_a_plain_function() -> None:
    declared("handler", plain)


def test_a_decorator_without_its_source_is_told_how_it_is_written() -> None:
    app = App("misuse")
    with pytest.raises(ConfigurationError, match=r"'agent' has no source; write `@app\.agent\(topic\)`"):
        app.agent(agent)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"on_error": Retry}, "agent 'agent': on_error=<class .*Retry.*>; expected a policy"),
        ({"concurrency": "3"}, "agent 'agent': concurrency='3'; expected a whole number"),
        ({"concurrency": 0}, "agent 'agent': concurrency=0"),
    ],
)
def test_a_setting_of_the_wrong_type_is_named(settings: dict[str, Any], says: str) -> None:
    app = App("misuse")
    with pytest.raises(ConfigurationError, match=says):
        app.agent(app.topic("withdrawals", value=Withdrawal), **settings)(agent)


async def test_what_cannot_be_sent_names_where_it_was_to_go() -> None:
    app = App("misuse")
    topic, queue = app.topic("withdrawals", value=Withdrawal), app.queue("emails", value=str)
    wrong: Any = {"account": "ada"}
    number: Any = 5
    async with app.test():
        with pytest.raises(WrongType, match="topic 'withdrawals': expected Withdrawal, got dict"):
            await topic.send(wrong)
        with pytest.raises(WrongType, match="topic 'withdrawals': expected Withdrawal"):
            await topic.send_many([("ada", wrong)])
        with pytest.raises(EncodeError, match="topic 'withdrawals', key: expected str"):
            await topic.send(Withdrawal("ada", 5), key=number)
        with pytest.raises(WrongType, match="queue 'emails': expected str, got int"):
            await queue.send(number)


async def test_a_key_of_the_wrong_type_is_refused_with_the_name_of_the_topic() -> None:
    app = App("misuse")
    numbered = app.topic("numbered", key=int, value=str)
    text: Any = "5"
    async with app.test():
        with pytest.raises(WrongType, match="topic 'numbered', key: expected int, got str"):
            await numbered.send("a", key=text)
        with pytest.raises(WrongType, match="topic 'numbered', key: expected int, got str"):
            await numbered.send_many([(text, "a")])


async def test_a_key_that_a_table_cannot_have_is_named_and_a_missing_one_explained() -> None:
    app = App("misuse")
    topic, totals = app.topic("words", value=str), app.table("totals", value=int, default=int)
    number: Any = 5

    @app.agent(topic.stream().events())
    async def count(stream: Stream[Event[str, str]]) -> None:
        async for event in stream:
            totals[event.key] += 1

    del count
    async with app.test(errors="policy") as t:
        with pytest.raises(EncodeError, match=r"table 'totals': 5 cannot be a key"):
            totals[number]
        await topic.send("a")
        await t.advance(100)
        (letter,) = [letter async for letter in app.dead_letters(topic)]
        assert letter.reason.startswith("EncodeError: table 'totals': None cannot be a key")
        assert "The event has no key: send it with" in letter.reason


def test_an_agent_that_is_written_like_a_handler_is_told_of_handlers() -> None:
    app = App("mistaken")
    numbers = app.topic("numbers", value=int)

    async def read(number: int) -> None: ...

    with pytest.raises(ConfigurationError, match=r"agent 'read' takes number: int; .*`@app\.handler`"):
        app.agent(numbers)(read)  # type: ignore[type-var]


def test_a_topic_and_a_queue_of_one_name_are_told_apart() -> None:
    app = App("mistaken")
    app.topic("jobs", value=int)
    with pytest.raises(ConfigurationError, match=r"queue 'jobs' was declared before as a topic with key=str"):
        app.queue("jobs", value=int)
    with pytest.raises(ConfigurationError, match="topic '': expected a name"):
        app.topic("")


async def test_what_no_codec_can_help_is_said_without_its_words() -> None:
    app = App("mistaken", partitions=1)
    texts, floats = app.topic("texts", value=str), app.topic("floats", value=float)
    async with app.test():
        with pytest.raises(WrongType, match=r"^topic 'texts': expected str, got int$"):
            await texts.send(1)  # type: ignore[arg-type]
        with pytest.raises(WrongType, match=r"^topic 'floats': expected float, got nan: JSON has no such number"):
            await floats.send(float("nan"))


async def test_a_client_says_that_it_has_no_tables() -> None:
    app = App("misuse")
    totals = app.table("totals", value=int, default=int)
    async with app.client():
        with pytest.raises(StaleRead, match=r"a client holds no tables; `await table.ask"):
            totals["ada"]
        with pytest.raises(StaleRead, match=r"a client holds no tables"):
            totals.items()


async def test_a_table_is_iterated_by_its_keys() -> None:
    app = App("misuse")
    topic, totals = app.topic("withdrawals", value=Withdrawal), app.table("totals", key=int, value=int, default=int)

    @app.agent(topic)
    async def count(stream: Stream[Withdrawal]) -> None:
        async for withdrawal in stream:
            totals[withdrawal.amount] += 1

    del count
    async with app.test() as t:
        for partition in range(topic.partitions):
            for amount in range(20):
                if totals._plan.partition_of(str(amount).encode(), topic.partitions) == partition:
                    await topic.send(Withdrawal("ada", amount), partition=partition)
        await t.settle()
        assert sorted(totals) == list(range(20))
        assert len(dict(totals)) == 20  # type: ignore[call-overload]


async def test_an_agent_that_does_not_read_its_stream_fails_the_test() -> None:
    app = App("misuse", partitions=1)

    @app.agent(app.topic("withdrawals", value=Withdrawal))
    async def idle(stream: Stream[Withdrawal]) -> None:
        return

    del idle
    with pytest.raises(ConfigurationError, match=r"agent 'idle' returned without reading its stream"):
        async with app.test() as t:
            await t.settle()
