"""Outputs that do not join a commit leave before a worker does."""

import asyncio

from thalweg import App, Stream
from thalweg.transports.memory.faults import Hold


async def test_what_the_last_event_sent_to_a_queue_is_there_when_the_worker_has_stopped() -> None:
    app = App("leaving", partitions=2, broker="memory://leaving")
    orders = app.topic("orders", key=str, value=int)
    mails = app.queue("mails", value=int)
    handled = asyncio.Event()

    @app.agent(orders)
    async def confirm(stream: Stream[int]) -> None:
        async for order in stream:
            await mails.send(order)
            handled.set()

    async with app:
        hold = app.running.transport.broker.faults.hold("put", topic="mails")
        await orders.send(1, key="a")
        await handled.wait()  # and stop at once: the event is not even finished
        releasing = asyncio.ensure_future(release(hold))
    await releasing
    transport = app.last_transport
    assert transport is not None
    await transport.open()
    channel = await transport.channel("mails", "work")
    assert [delivery.record.value for delivery in await channel.get(10, 0)] == [b"1"]
    await transport.close()


async def release(hold: Hold) -> None:
    """Once the put has been reached, let some turns pass in which the worker could have gone."""
    await hold.reached.wait()
    for _ in range(100):
        await asyncio.sleep(0)
    hold.release()
