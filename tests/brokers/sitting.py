"""A program whose agent can be told to block its worker's event loop: `python sitting.py worker`."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace

import msgspec
from thalweg import App, Stream

LEASE = 1.0


class Order(msgspec.Struct):
    """Sit for so many seconds, if this is the process `who`."""

    who: int = 0
    seconds: float = 0.0


class Done(msgspec.Struct):
    """by: which processes have carried out the orders for this key so far."""

    partition: int
    by: list[int]


def make_sitting(broker: str | None = None) -> SimpleNamespace:
    app = App("sitting", broker=broker or "memory://", partitions=4, lease=LEASE)
    orders = app.topic("orders", key=str, value=Order)
    workers = app.table("workers", key=str, value=list[int], default=list)

    @app.agent(orders)
    async def work(stream: Stream[Order]) -> AsyncIterator[Done]:
        async for event in stream.events():
            workers[event.key].append(os.getpid())
            if event.value.who == os.getpid():
                time.sleep(event.value.seconds)  # noqa: ASYNC251
            yield Done(event.partition, workers[event.key])

    return SimpleNamespace(**locals())


if __name__ == "__main__":
    make_sitting().app.main()
