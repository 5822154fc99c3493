"""A program that uses all of the public surface, with every type that a checker is to infer.

`test_typing.py` runs mypy and pyright over it, both strict. It is not run.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, NewType, TypedDict, assert_type

import msgspec
from pydantic import BaseModel
from starlette.applications import Starlette
from thalweg import (
    Agent,
    App,
    DeadLetter,
    Event,
    HeldLock,
    Queue,
    Reading,
    Reject,
    Retry,
    RetryLater,
    Skip,
    Stream,
    Table,
    Topic,
)
from thalweg.contrib import asgi
from thalweg.dead_letters import DeadLetterRecord
from typing_extensions import TypeIs


class Withdrawal(msgspec.Struct):
    account: str
    country: str
    amount: int
    time: float


class Deposit(msgspec.Struct, tag=True):
    account: str
    amount: int


class Transfer(msgspec.Struct, tag=True):
    source: str
    target: str
    amount: int


@dataclass
class Order:
    customer: int
    lines: list[str]


class Position(TypedDict):
    x: float
    y: float


class Person(BaseModel):
    name: str


AccountId = NewType("AccountId", int)
Money = Deposit | Transfer
Percent = Annotated[int, msgspec.Meta(ge=0, le=100)]


@asynccontextmanager
async def lifespan(app: App) -> AsyncGenerator[dict[str, int], None]:
    yield {"model": 1}


app = App(
    "bank",
    broker="memory://",
    store="memory://",
    partitions=8,
    guarantee="auto",
    commit_interval=timedelta(milliseconds=100),
    include=["bank.agents"],
    lifespan=lifespan,
)

# --- topics: any form of type, and what is left out -------------------------------------------------------------------

withdrawals = app.topic("withdrawals", key=str, value=Withdrawal)
assert_type(withdrawals, Topic[str, Withdrawal])
assert_type(app.topic("bytes"), Topic[str, bytes])
assert_type(app.topic("numbers", value=int), Topic[str, int])
assert_type(app.topic("by-number", key=int), Topic[int, bytes])
assert_type(app.topic("text", key=bytes, value=str), Topic[bytes, str])
assert_type(app.topic("lists", value=list[int]), Topic[str, list[int]])
assert_type(app.topic("optional", value=Withdrawal | None), Topic[str, Withdrawal | None])
assert_type(app.topic("money", value=Deposit | Transfer), Topic[str, Deposit | Transfer])
assert_type(app.topic("alias", value=Money), Topic[str, Deposit | Transfer])
assert_type(app.topic("percent", value=Annotated[int, msgspec.Meta(ge=0)]), Topic[str, int])
assert_type(app.topic("percent-alias", value=Percent), Topic[str, int])
assert_type(app.topic("literal", value=Literal["up", "down"]), Topic[str, Literal["up", "down"]])
assert_type(app.topic("new", key=AccountId, value=AccountId), Topic[AccountId, AccountId])
assert_type(app.topic("pairs", key=tuple[str, int], value=tuple[float, ...]), Topic[tuple[str, int], tuple[float, ...]])
assert_type(app.topic("dataclass", value=Order), Topic[str, Order])
assert_type(app.topic("typed-dict", value=Position), Topic[str, Position])
assert_type(app.topic("model", value=Person), Topic[str, Person])
assert_type(app.topic("anything", value=Any), Topic[str, Any])

orders = app.topic(
    "orders",
    key=int,
    value=Order,
    codec="msgpack",
    partitions=4,
    start=datetime(2026, 1, 1, tzinfo=UTC),
    retention=timedelta(days=7),
    compact=True,
    partitioner="murmur2",
    key_of=lambda order: order.customer,
    timestamp_of=lambda order: float(len(order.lines)),
)
assert_type(orders, Topic[int, Order])
timed = app.topic("timed", value=Withdrawal, key_of=lambda w: w.account, timestamp_of=lambda w: w.time)
assert_type(timed, Topic[str, Withdrawal])


class Upper:
    """A codec of the user's own."""

    def encode(self, value: str, /) -> bytes:
        return value.upper().encode()

    def decode(self, data: bytes, /) -> str:
        return data.decode()


assert_type(app.topic("upper", value=str, codec=Upper()), Topic[str, str])

money = app.topic("money", value=Deposit | Transfer)
alerts = app.topic("alerts", value=str)
answers = app.topic("answers", key=str, value=int)
emails = app.queue("emails", value=str)
assert_type(emails, Queue[str, str])
assert_type(app.queue("jobs", key=int, value=Order | None), Queue[int, Order | None])
assert_type(app.queue("blobs"), Queue[str, bytes])


async def sending() -> None:
    await withdrawals.send(Withdrawal("ada", "NO", 5, 0.0), key="ada")
    await withdrawals.send(
        Withdrawal("ada", "NO", 5, 0.0),
        key="ada",
        headers={"trace": b"1", "text": "2"},
        timestamp=datetime.now(UTC),
        partition=3,
    )
    await withdrawals.send_many([("ada", Withdrawal("ada", "NO", 5, 0.0)), (None, Withdrawal("bob", "SE", 1, 0.0))])
    await withdrawals.send_many((w.account, w) for w in [Withdrawal("ada", "NO", 5, 0.0)])
    await orders.send(Order(7, ["a"]))
    await money.send(Deposit("ada", 1), key="ada")
    await money.send(Transfer("ada", "bob", 1), key="ada")
    optional = app.topic("optional", value=Withdrawal | None)
    await optional.send(None, key="ada")  # a tombstone
    await app.topic("typed-dict", value=Position).send({"x": 1, "y": 2.5}, key="ada")
    assert_type(withdrawals.raw, Topic[bytes, bytes])
    await withdrawals.raw.send(b"{}", key=b"ada")
    await emails.send("hello", key="ada", priority=3, delay=5, expires=timedelta(hours=1))
    assert_type(withdrawals.name, str)
    assert_type(withdrawals.partitions, int)


# --- tables -----------------------------------------------------------------------------------------------------------

totals = app.table("totals", key=str, value=int, default=int, like=withdrawals)
assert_type(totals, Table[str, int])
by_country = app.table("by_country", value=int, default=lambda: 0, partitions=4)
assert_type(by_country, Table[str, int])
histories = app.table("histories", key=int, value=list[str], default=list)
assert_type(histories, Table[int, list[str]])
latest = app.table("latest", value=Deposit | Transfer | None)
assert_type(latest, Table[str, Deposit | Transfer | None])
assert_type(app.table("nested", value=dict[str, list[int]], default=dict), Table[str, dict[str, list[int]]])
assert_type(app.table("floats", value=float, default=int), Table[str, float])
assert_type(withdrawals.table("last"), Table[str, Withdrawal])
assert_type(orders.table("all-orders", replicated=True), Table[int, Order])


async def rows() -> None:
    assert_type(totals["ada"], int)
    totals["ada"] = 5
    totals["ada"] += 1
    del totals["ada"]
    assert_type("ada" in totals, bool)
    assert_type(totals.get("ada"), int | None)
    assert_type(totals.get("ada", None), int | None)
    assert_type(totals.get("ada", 0), int)
    assert_type(totals.get("ada", "none"), int | str)
    histories[7].append("x")
    assert_type(histories[7], list[str])
    for key, value in totals.items():
        assert_type(key, str)
        assert_type(value, int)
    assert_type(list(totals.keys()), list[str])
    assert_type(sum(totals.values()), int)
    assert_type(await totals.ask("ada"), int | None)
    assert_type(await latest.ask("ada", timeout=1), Deposit | Transfer | None)
    assert_type(await totals.ask("ada", stale_ok=True), Reading[int])
    assert_type((await totals.ask("ada", stale_ok=True)).value, int | None)


# --- agents -----------------------------------------------------------------------------------------------------------


@app.agent(withdrawals)
async def total(stream: Stream[Withdrawal]) -> AsyncIterator[int]:
    async for withdrawal in stream:
        assert_type(withdrawal, Withdrawal)
        totals[withdrawal.account] += withdrawal.amount
        yield totals[withdrawal.account]


assert_type(total, Agent[Withdrawal, int])


@app.agent(withdrawals, name="generator", concurrency=100, on_error=Retry(5, backoff=0.1, on=(OSError,)))
async def generator(stream: Stream[Withdrawal]) -> AsyncGenerator[str, None]:
    async for event in stream.events():
        assert_type(event, Event[Withdrawal, Any])
        assert_type(event.value, Withdrawal)
        assert_type(event.headers, tuple[tuple[str, bytes], ...])
        assert_type(event.timestamp, float)
        assert_type(event.partition, int)
        assert_type(event.position, int)
        assert_type(event.id, str)
        assert_type(event.topic, str)
        event.answer("yes")
        yield event.id


assert_type(generator, Agent[Withdrawal, str])


@app.agent(withdrawals, on_error=Retry(5, backoff=0.1, then=DeadLetter()))
async def silent(stream: Stream[Withdrawal]) -> None:
    async for batch in stream.take(100, within=timedelta(seconds=5)):
        assert_type(batch, list[Withdrawal])


assert_type(silent, Agent[Withdrawal, None])


@app.agent(money, on_error=Skip())
async def either(stream: Stream[Deposit | Transfer]) -> AsyncIterator[int | str]:
    async for value in stream:
        if isinstance(value, Deposit):
            yield value.account
        else:
            assert_type(value, Transfer)
            yield value.amount


assert_type(either, Agent[Deposit | Transfer, int | str])


@app.agent([withdrawals, timed])
async def both(stream: Stream[Withdrawal]) -> None:
    async for withdrawal in stream:
        assert_type(withdrawal, Withdrawal)


assert_type(both, Agent[Withdrawal, None])


@app.agent(answers)
async def wider(stream: Stream[float]) -> AsyncIterator[float]:
    """May be written for more than its source gives: an int is a float."""
    async for number in stream:
        yield number / 2


assert_type(wider, Agent[int, float])


@app.agent(app.topic("bytes"))
async def in_bytes(stream: Stream[bytes]) -> None: ...


@app.agent(emails)
async def from_queue(stream: Stream[str]) -> AsyncIterator[bool]:
    async for email in stream:
        assert_type(email, str)
        yield True


assert_type(from_queue, Agent[str, bool])


# --- handlers ---------------------------------------------------------------------------------------------------------


@app.handler(withdrawals)
async def audit(withdrawal: Withdrawal) -> None:
    if withdrawal.amount < 0:
        raise Reject("negative")
    raise RetryLater(30)


assert_type(audit, Agent[Withdrawal, None])


@app.handler(withdrawals, timeout=5, concurrency=10, on_error=Retry(3))
async def price(withdrawal: Withdrawal) -> float:
    return withdrawal.amount * 1.5


assert_type(price, Agent[Withdrawal, float])


@app.handler(emails)
def shout(email: str) -> str:
    return email.upper()


assert_type(shout, Agent[str, str])


@app.handler(orders)
def count(order: Order) -> None: ...


assert_type(count, Agent[Order, None])

# --- sinks ------------------------------------------------------------------------------------------------------------


@app.agent(answers)
async def double(stream: Stream[int]) -> AsyncIterator[int]:
    async for number in stream:
        yield 2 * number


async def log(value: object) -> None: ...
async def log_number(value: int) -> None: ...


@app.agent(withdrawals, sinks=[answers])
async def to_topic(stream: Stream[Withdrawal]) -> AsyncIterator[int]:
    async for withdrawal in stream:
        yield withdrawal.amount


assert_type(to_topic, Agent[Withdrawal, int])


@app.agent(withdrawals, sinks=[double])
async def to_agent(stream: Stream[Withdrawal]) -> AsyncIterator[int]:
    async for withdrawal in stream:
        yield withdrawal.amount


assert_type(to_agent, Agent[Withdrawal, int])


@app.agent(withdrawals, sinks=[log])
async def to_function(stream: Stream[Withdrawal]) -> AsyncIterator[int]:
    async for withdrawal in stream:
        yield withdrawal.amount


assert_type(to_function, Agent[Withdrawal, int])


@app.agent(withdrawals, sinks=[answers, double, log, log_number])
async def to_all(stream: Stream[Withdrawal]) -> AsyncIterator[bool]:
    async for withdrawal in stream:
        yield withdrawal.amount > 0


assert_type(to_all, Agent[Withdrawal, bool])


@app.handler(withdrawals, sinks=[emails])
async def to_queue(withdrawal: Withdrawal) -> str:
    return withdrawal.account


assert_type(to_queue, Agent[Withdrawal, str])


@app.handler(withdrawals, sinks=[emails, log])
def to_queue_from_thread(withdrawal: Withdrawal) -> str:
    return withdrawal.account


assert_type(to_queue_from_thread, Agent[Withdrawal, str])

# --- actors -----------------------------------------------------------------------------------------------------------


async def asking(withdrawal: Withdrawal) -> None:
    assert_type(await total.ask(withdrawal, key="ada", timeout=10), int)
    assert_type(await silent.ask(withdrawal), None)
    assert_type(await either.ask(Deposit("ada", 1)), int | str)
    await total.cast(withdrawal, key="ada")
    await total.cast(withdrawal, reply_to=double, correlation="7")
    await total.cast(withdrawal, reply_to=answers)
    async for answer in total.ask_many([withdrawal], key="ada"):
        assert_type(answer, int)
    assert_type(await total.ask_all([withdrawal, withdrawal]), list[int])
    assert_type(total.name, str)


# --- streams ----------------------------------------------------------------------------------------------------------


def is_deposit(value: Deposit | Transfer) -> TypeIs[Deposit]:
    return isinstance(value, Deposit)


async def slow_length(text: str) -> int:
    return len(text)


async def slow_yes(text: str) -> bool:
    return bool(text)


async def slow_words(text: str) -> list[str]:
    return text.split()


assert_type(withdrawals.stream(), Stream[Withdrawal])
assert_type(withdrawals.raw.stream(), Stream[bytes])
assert_type(emails.stream(), Stream[str])
assert_type(withdrawals.stream().filter(lambda w: w.amount > 5), Stream[Withdrawal])
assert_type(money.stream().filter(is_deposit), Stream[Deposit])
assert_type(alerts.stream().filter(slow_yes), Stream[str])
assert_type(withdrawals.stream().map(lambda w: w.amount), Stream[int])
assert_type(alerts.stream().map(slow_length), Stream[int])
assert_type(alerts.stream().map(len).map(str), Stream[str])
assert_type(withdrawals.stream().flat_map(lambda w: [w.account, w.country]), Stream[str])
assert_type(alerts.stream().flat_map(slow_words), Stream[str])
assert_type(withdrawals.stream().take(10), Stream[list[Withdrawal]])
assert_type(withdrawals.stream().events(), Stream[Event[Withdrawal, Any]])
assert_type(withdrawals.stream().events().take(10, within=1.5), Stream[list[Event[Withdrawal, Any]]])
assert_type(withdrawals.stream().take(10).map(len), Stream[int])
assert_type(withdrawals.stream().merge(timed.stream()), Stream[Withdrawal])
assert_type(withdrawals.stream().merge(alerts.stream(), emails.stream()), Stream[Withdrawal | str])
assert_type(withdrawals.stream().group_by(lambda w: w.country, name="by-country"), Stream[Withdrawal])
assert_type(withdrawals.stream().group_by(lambda w: w.amount, name="by-amount", key=int), Stream[Withdrawal])
assert_type(
    alerts.stream().map(len).group_by(lambda n: n % 7, name="by-length", key=int, value=int | None), Stream[int]
)
assert_type(withdrawals.stream().repartition(name="more", partitions=16), Stream[Withdrawal])
alerts.stream().map(len).to(answers)
alerts.stream().to(emails)
answers.stream().map(float).to(app.topic("floats", value=float))


@app.agent(withdrawals.stream().map(lambda w: w.amount).filter(lambda amount: amount > 100))
async def large(stream: Stream[int]) -> AsyncIterator[str]:
    async for amount in stream:
        yield f"large: {amount}"


assert_type(large, Agent[int, str])


@app.agent(withdrawals.stream().events().take(50))
async def in_batches(stream: Stream[list[Event[Withdrawal, Any]]]) -> None:
    async for batch in stream:
        assert_type(batch[0].value, Withdrawal)


# --- by the clock, and running ----------------------------------------------------------------------------------------


@app.timer(30)
async def report() -> None: ...


@app.timer(timedelta(minutes=5), on_leader=True)
async def tidy() -> None: ...


@app.crontab("0 9 * * mon-fri", timezone="Europe/London", on_leader=True, misfire="skip")
async def open_market() -> None: ...


@app.background
async def preload() -> None:
    await withdrawals.send(Withdrawal("ada", "NO", 5, 0.0), key="ada")


@app.background(on_leader=True, name="watch")
async def watch() -> None: ...


@app.exclusive("reports")
async def build(day: datetime, pages: int = 1) -> list[str]:
    return [day.isoformat()] * pages


@app.exclusive("clean-up", wait=False)
async def clean_up() -> int:
    return 1


@app.timer(60)
@app.exclusive("sweep", wait=False)
async def sweep() -> None: ...


async def alone(name: str) -> None:
    async with app.lock(name, timeout=timedelta(seconds=5)) as held:
        assert_type(held, HeldLock)
        assert_type(held.number, int)
        assert_type(held.lost.is_set(), bool)
    assert_type(await build(datetime(2026, 1, 1, tzinfo=UTC), pages=2), list[str])
    assert_type(await clean_up(), int | None)


async def by_hand() -> None:
    """The decorators give the functions back as they are."""
    await report()
    await open_market()
    await preload()
    await watch()


async def embedding() -> None:
    async with app as running:
        assert_type(running, App)
    async with app.client() as client:
        assert_type(client, App)
        await total.ask(Withdrawal("ada", "NO", 5, 0.0))
    async for letter in app.dead_letters(withdrawals):
        assert_type(letter, DeadLetterRecord)
        assert_type(letter.key, bytes | None)
        assert_type(letter.value, bytes | None)
        assert_type(letter.timestamp, float)
        assert_type(letter.reason, str)
        assert_type(letter.attempts, int)
    assert_type(app.now(), float)
    await app.serve()


@asynccontextmanager
async def web_lifespan(web: Starlette) -> AsyncGenerator[dict[str, int], None]:
    yield {"answer": await total.ask(Withdrawal("ada", "NO", 5, 0.0))}


Starlette(lifespan=asgi.lifespan(app))
Starlette(lifespan=asgi.lifespan(app, web_lifespan, client=True))


def from_a_thread() -> None:
    with app.portal() as portal:
        assert_type(portal.ask(total, Withdrawal("ada", "NO", 5, 0.0), key="ada", timeout=5), int)
        assert_type(portal.ask_all(total, [Withdrawal("ada", "NO", 5, 0.0)]), list[int])
        assert_type(portal.table(totals, "ada"), int | None)
        portal.cast(total, Withdrawal("ada", "NO", 5, 0.0))
        portal.send(withdrawals, Withdrawal("ada", "NO", 5, 0.0), key="ada")
        portal.send(emails, "hello", headers={"trace": "1"})
        portal.call(emails.send, "hello", delay=5)
        assert_type(portal.call(total.ask, Withdrawal("ada", "NO", 5, 0.0), timeout=1), int)


async def testing() -> None:
    async with app.test(start=datetime(2026, 1, 1, tzinfo=UTC), errors="policy") as t:
        await t.settle()
        await t.advance(3600)
        await t.crash()
        assert_type(t.sent(withdrawals), list[Event[Withdrawal, str]])
        assert_type(t.sent(orders)[0].key, int)
        assert_type([event.value for event in t.sent(alerts)], list[str])
        assert_type(t.now(), float)


if __name__ == "__main__":
    app.main()
