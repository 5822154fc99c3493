"""What must not pass: each line with the comment is an error, and no other line is."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

from good import (
    Deposit,
    Order,
    Transfer,
    Withdrawal,
    alerts,
    answers,
    app,
    audit,
    double,
    emails,
    money,
    orders,
    silent,
    timed,
    total,
    totals,
    withdrawals,
)
from thalweg import Agent, Event, Stream

right = Withdrawal("ada", "NO", 5, 0.0)

# --- a function that does not fit its source --------------------------------------------------------------------------


@app.agent(withdrawals)  # error
async def wrong_value(stream: Stream[str]) -> AsyncIterator[int]:
    async for _ in stream:
        yield 1


@app.agent(withdrawals)  # error
async def wrong_value_in_a_coroutine(stream: Stream[Order]) -> None: ...


@app.agent(withdrawals.stream().map(lambda w: w.amount))  # error
async def before_the_map(stream: Stream[Withdrawal]) -> None: ...


@app.agent(withdrawals.stream().events())  # error
async def values_for_events(stream: Stream[Withdrawal]) -> None: ...


@app.agent(withdrawals.stream().events())  # error
async def events_of_another_type(stream: Stream[Event[Order, Any]]) -> None: ...


@app.agent(money)  # error
async def half_of_a_union(stream: Stream[Deposit]) -> None: ...


@app.agent([withdrawals, orders])  # error
async def two_types(stream: Stream[Withdrawal]) -> None: ...


@app.agent(withdrawals)  # error
async def no_stream() -> None: ...


@app.agent(withdrawals)  # error
async def a_handler(withdrawal: Withdrawal) -> None: ...


@app.agent(withdrawals)  # error
def not_async(stream: Stream[Withdrawal]) -> Iterator[int]:
    yield 1


@app.agent(withdrawals)  # error
async def answers_by_return(stream: Stream[Withdrawal]) -> int:
    return 1


@app.agent  # error
async def no_source(stream: Stream[Withdrawal]) -> None: ...


@app.agent("withdrawals")  # error
async def name_for_a_source(stream: Stream[Any]) -> None: ...


@app.agent(totals)  # error
async def table_for_a_source(stream: Stream[Any]) -> None: ...


@app.agent(withdrawals, concurrency="many")  # error
async def wrong_option(stream: Stream[Withdrawal]) -> None: ...


@app.agent(withdrawals, on_error="skip")  # error
async def wrong_policy(stream: Stream[Withdrawal]) -> None: ...


@app.agent(withdrawals, sinks=["alerts"])  # error
async def wrong_sink(stream: Stream[Withdrawal]) -> None: ...


@app.agent(withdrawals, sinks=alerts)  # error
async def no_list_of_sinks(stream: Stream[Withdrawal]) -> None: ...


@app.handler(withdrawals)  # error
async def wrong_handler(order: Order) -> None: ...


@app.handler(withdrawals)  # error
def wrong_handler_in_a_thread(order: Order) -> None: ...


@app.handler(emails)  # error
async def wrong_handler_of_a_queue(number: int) -> None: ...


@app.handler(withdrawals)  # error
async def an_agent(stream: Stream[Withdrawal]) -> None: ...


@app.handler(withdrawals, timeout="5s")  # error
async def wrong_timeout(withdrawal: Withdrawal) -> None: ...


# --- asking -----------------------------------------------------------------------------------------------------------


async def asking() -> None:
    await total.ask(right, key="ada")
    await total.ask("ada")  # error
    await total.ask()  # error
    await total.ask(right, timeout="1s")  # error
    await audit.ask(Order(1, []))  # error
    text: str = await total.ask(right)  # error
    number: int = await silent.ask(right)  # error
    print(text, number)
    await total.cast(right, reply_to=double)
    await total.cast(7)  # error
    await total.cast(right, reply_to=audit)  # error
    await total.cast(right, reply_to=alerts)  # error
    await total.cast(right, correlation=7)  # error
    await total.ask_all(right)  # error
    await total.ask_all(["ada"])  # error
    texts: list[str] = await total.ask_all([right])  # error
    print(texts)
    async for answer in total.ask_many([right]):
        answer.upper()  # error
    async for _ in total.ask_many([7]):  # error
        pass


def from_a_thread() -> None:
    with app.portal() as portal:
        portal.ask(total, right)
        portal.ask(total, "ada")  # error
        portal.ask(withdrawals, right)  # error
        text: str = portal.ask(total, right)  # error
        print(text)
        portal.send(withdrawals, "ada")  # error
        portal.send(withdrawals, right, key=7)  # error
        portal.cast(total, 7)  # error
        portal.table(totals, 7)  # error
        portal.call(total.ask, 7)  # error
        portal.call(emails.send, "hello", dealy=5)  # error


# --- declared types ---------------------------------------------------------------------------------------------------

wrong_input: Agent[Order, int] = total  # error
wrong_answer: Agent[Withdrawal, str] = total  # error
not_an_answer: Agent[Withdrawal, int] = silent  # error


# --- by the clock -----------------------------------------------------------------------------------------------------


@app.timer("30")  # error
async def wrong_interval() -> None: ...


@app.timer(30)  # error
def not_async_timer() -> None: ...


@app.timer(30)  # error
async def timer_with_an_argument(stream: Stream[Any]) -> None: ...


@app.crontab("0 9 * * *", misfire="twice")  # error
async def wrong_misfire() -> None: ...


@app.background  # error
def not_async_background() -> None: ...


@app.background(on_leader=1.5)  # error
async def wrong_leader() -> None: ...


@app.exclusive("x")  # error
def not_async_exclusive() -> None: ...


@app.exclusive("x")  # error
async def exclusive_generator() -> AsyncIterator[int]:
    yield 1


@app.exclusive  # error
async def exclusive_without_a_name() -> None: ...


@app.exclusive("x", wait=False)
async def left_out(value: int) -> int:
    return value


async def locking() -> None:
    async with app.lock(5):  # error
        pass
    async with app.lock("x", timeout="5"):  # error
        pass
    with app.lock("x"):  # error
        pass
    await left_out("1")  # error
    print((await left_out(1)) + 1)  # error


async def testing() -> None:
    async with app.test() as t:
        await t.advance("1h")  # error
        t.sent("alerts")  # error
        numbers: list[int] = [event.value for event in t.sent(alerts)]  # error
        print(numbers, t.sent(answers)[0].value + 1, timed, Transfer)
    async with app.test(errors="ignore"):  # error
        pass
