"""What must not pass: each line with the comment is an error, and no other line is."""

from datetime import UTC, datetime
from typing import assert_type

from good import Deposit, Order, Transfer, Withdrawal, alerts, app, emails, money, orders, withdrawals
from thalweg import Queue, Topic

right = Withdrawal("ada", "NO", 5, 0.0)


async def send() -> None:
    await withdrawals.send(right, key="ada")
    await withdrawals.send("ada", key="ada")  # error
    await withdrawals.send(right, key=7)  # error
    await withdrawals.send(right, "ada")  # error
    await withdrawals.send()  # error
    await withdrawals.send(None, key="ada")  # error
    await withdrawals.send(right, key="ada", headers={"a": 1})  # error
    await withdrawals.send(right, key="ada", timestamp="now")  # error
    await withdrawals.send(right, key="ada", priority=1)  # error
    await withdrawals.raw.send(right)  # error
    await withdrawals.raw.send(b"{}", key="ada")  # error
    await withdrawals.raw.send(b"{}", key=b"ada")
    await alerts.send(b"bytes")  # error
    await orders.send(Order(7, []), key="7")  # error
    await money.send(right)  # error
    await money.send(Deposit("ada", 1))
    withdrawals.send(right, key="ada")  # error


async def send_many() -> None:
    await withdrawals.send_many([("ada", right), (None, right)])
    await withdrawals.send_many([(7, right)])  # error
    await withdrawals.send_many([("ada", "value")])  # error
    await withdrawals.send_many([right])  # error


async def queues() -> None:
    await emails.send("hello", priority=1)
    await emails.send(7)  # error
    await emails.send("hello", key=7)  # error
    await emails.send("hello", priority="high")  # error
    await emails.send("hello", delay=datetime.now(UTC))  # error
    await emails.send("hello", partition=1)  # error


def customer(order: Order) -> int:
    return order.customer


def when(order: Order) -> str:
    return str(order)


app.topic("a", key=int, value=Order, key_of=customer, start="latest")
app.topic("k", value=Order, key_of=customer)  # error
app.queue("l", value=Order, key_of=customer)  # error
app.topic("m", value=Order, key_of=lambda order: order.customer)  # error
app.queue("n", key=int, value=Withdrawal, key_of=customer)  # error
app.topic("b", key=int, value=Withdrawal, key_of=customer)  # error
app.topic("c", key=int, value=Order, timestamp_of=when)  # error
app.topic("d", key=int, value=Order, start="now")  # error
app.topic("f", value=7)  # error
app.topic("g", int)  # error
app.topic("h", value=int, retention="7d")  # error
app.topic("i", value=int, partitons=5)  # error
app.topic("j", key=int, value=Order, key_of=lambda order: order.custmer)  # error

# A declared type is kept exactly.
wrong_value: Topic[str, Deposit] = money  # error
wrong_key: Topic[bytes, Withdrawal] = withdrawals  # error
not_a_queue: Queue[str, str] = alerts  # error
assert_type(money, Topic[str, Transfer])  # error
