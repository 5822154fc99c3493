"""What must not pass: each line with the comment is an error, and no other line is."""

from typing import Any

from good import Deposit, Withdrawal, alerts, answers, app, emails, is_deposit, money, orders, totals, withdrawals
from thalweg import Event, Stream


def length(text: str) -> int:
    return len(text)


async def slow_length(text: str) -> int:
    return len(text)


stream = withdrawals.stream()

stream.map(length)  # error
stream.map(slow_length)  # error
stream.map(lambda w: w.acount)  # error
stream.filter(length)  # error
stream.filter(lambda w: w.acount)  # error
stream.flat_map(lambda w: w.amount)  # error
stream.flat_map(length)  # error
stream.take("10")  # error
stream.take(10, within="1s")  # error
stream.take(10).map(lambda w: w.amount)  # error
stream.events().map(lambda w: w.amount)  # error
stream.merge(alerts)  # error
stream.group_by(lambda w: w.amount, name="a")  # error
stream.group_by(lambda w: w.country, name="b", key=int)  # error (mypy): pyright widens K to `str | int`
stream.group_by(lambda w: w.country)  # error
stream.group_by(lambda w: w.contry, name="c")  # error
stream.repartition(partitions=5)  # error
stream.repartition(name="d", partitions="5")  # error

stream.to(alerts)  # error
stream.to(emails)  # error
stream.to(totals)  # error
stream.to("alerts")  # error
stream.map(lambda w: w.amount).to(answers)
stream.map(lambda w: w.account).to(answers)  # error

money.stream().filter(is_deposit).to(money)  # error
deposits: Stream[Deposit] = money.stream()  # error
texts: Stream[str] = alerts.stream().map(length)  # error
merged: Stream[Withdrawal] = stream.merge(alerts.stream())  # error
lists: Stream[list[int]] = stream.take(5)  # error
events: Stream[Event[int, Any]] = stream.events()  # error
raw: Stream[Withdrawal] = withdrawals.raw.stream()  # error


@app.agent(withdrawals)
async def reading(stream: Stream[Withdrawal]) -> None:
    for _ in stream:  # error
        pass
    async for withdrawal in stream:
        print(withdrawal.acount)  # error


@app.agent(orders)
async def reading_events(stream: Stream[Any]) -> None:
    async for event in withdrawals.stream().events():
        print(event.value.acount)  # error
        print(event.offset)  # error
        print(event.timestamp.year)  # error
        event.value = 5  # error


async def letters() -> None:
    async for letter in app.dead_letters("withdrawals"):  # error
        print(letter)
    async for letter in app.dead_letters(withdrawals):
        print(letter.why)  # error
        print(letter.reason + 1)  # error
