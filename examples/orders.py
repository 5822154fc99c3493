"""Orders that must be paid in time: a reminder after ten minutes, the end after fifteen, both taken back by a payment.

A saga with a deadline. Steps of an order lie in one partition, in order, and its deadline comes there too, as a step.
So whether a payment was in time is decided once, by what came first, and the row of the order knows it.

    python examples/orders.py worker
    python examples/orders.py send steps '{"type": "Placed", "order": "o-1", "email": "ada@example.org"}'
    python examples/orders.py send steps '{"type": "Paid", "order": "o-1"}'
    python examples/orders.py table orders o-1
"""

from __future__ import annotations

from datetime import timedelta

import msgspec
from thalweg import App, Stream

REMIND, END = timedelta(minutes=10), timedelta(minutes=15)


class Placed(msgspec.Struct, tag=True):
    order: str
    email: str


class Paid(msgspec.Struct, tag=True):
    order: str


class Remind(msgspec.Struct, tag=True):
    order: str


class TimeIsUp(msgspec.Struct, tag=True):
    order: str


class Order(msgspec.Struct):
    email: str
    state: str = "open"


Step = Placed | Paid | Remind | TimeIsUp

app = App("shop", broker="sqlite:///shop.db", partitions=4)
steps = app.topic("steps", value=Step, key_of=lambda step: step.order)
mails = app.topic("mails", key=str, value=str)
orders = app.table("orders", key=str, value=Order)


@app.agent(steps)
async def saga(stream: Stream[Step]) -> None:
    """What a step does is one commit: the row, the mail, what is set and what is taken back."""
    async for step in stream:
        id_ = step.order
        if isinstance(step, Placed):
            if id_ not in orders:
                orders[id_] = Order(step.email)
                await steps.send(Remind(id_), delay=REMIND, id=f"{id_}/remind")
                await steps.send(TimeIsUp(id_), delay=END, id=f"{id_}/end")
            continue
        order = orders.get(id_)
        if order is None or order.state != "open":
            continue
        if isinstance(step, Paid):
            order.state = "paid"
            await steps.cancel(f"{id_}/remind")
            await steps.cancel(f"{id_}/end")
            await mails.send(f"{id_} is paid, thank you", key=order.email)
        elif isinstance(step, Remind):
            await mails.send(f"{id_} waits for your payment", key=order.email)
        else:
            order.state = "ended"
            await mails.send(f"{id_} was not paid in time", key=order.email)


if __name__ == "__main__":
    app.main()
