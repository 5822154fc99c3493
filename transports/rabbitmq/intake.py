"""How a queue's messages come in: by a consumer whose prefetch is what was asked for.

It is given up when nobody asks any more: what lies in this process but in nobody's hands could be another's work.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from aiormq.abc import AbstractChannel, DeliveredMessage
from pamqp.commands import Basic
from thalweg.finishing import finish

from .connection import Connection
from .loans import Consumer, Loans

__all__ = ["LINGER", "Intake"]

LINGER = 0.01
"""Seconds that a consumer stays after a `get` which found something, for the next one."""
_PREFETCH = 1000
_PATIENCE = 1.0  # seconds that a consumer stays for what is on its way, at most
_SOON = 0.05  # seconds within which a message that the server has ready arrives


class Intake:
    """demand: how many messages are asked for now."""

    def __init__(self, connection: Connection, queue: str, name: str, loans: Loans) -> None:
        self.demand = 0
        self.prefetch = 0
        self.closed = False
        self.channel: AbstractChannel | None = None
        self.background: set[asyncio.Task[Any]] = set()
        self._connection, self._queue, self._loans = connection, queue, loans
        self._what = f"reading queue {name!r}: "
        self._consumer: Consumer | None = None
        self._changing = asyncio.Lock()
        self._asking: set[asyncio.Future[None]] = set()
        self._feeding: asyncio.Task[None] | None = None

    @property
    def tasks(self) -> set[asyncio.Task[Any]]:
        """What is under way."""
        return self.background if self._feeding is None else {*self.background, self._feeding}

    async def arrival(self, limit: int, deadline: float) -> None:
        """Wait until something has arrived, but not much longer than until `deadline` (of the loop's clock)."""
        loop, arrived = asyncio.get_running_loop(), self._loans.arrived
        if self._consumer is None or not self._consumer.hungry:
            if self._feeding is None:
                self._feeding = loop.create_task(self._feed())
                self._feeding.add_done_callback(self._fed)
            feeding = self._feeding
            await asyncio.wait([feeding], timeout=max(_SOON, deadline - loop.time()))
            if not feeding.done():
                return  # it still connects
            feeding.result()
        if not arrived and not self.closed:
            patience = deadline - loop.time()
            if patience <= 0 and await finish(self._any_ready(), self.background):
                patience = _SOON
            if patience > 0:
                woken = loop.create_future()
                self._asking.add(woken)
                try:
                    await asyncio.wait([woken], timeout=patience)
                finally:
                    self._asking.discard(woken)
        while arrived and len(arrived) < limit:  # what is on its way through the client comes along
            count = len(arrived)
            for _ in range(5):
                await asyncio.sleep(0)
            if len(arrived) == count:
                break

    def wake(self, _: object = None) -> None:
        """Whoever waits looks again."""
        for woken in self._asking:
            if not woken.done():
                woken.set_result(None)

    async def rest(self) -> bool:
        """Nobody asks: take nothing more. False: somebody does, by now.

        But first let come what is on its way: the server takes it back when its consumer is gone, and lines it up last.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + _PATIENCE
        while not self.demand and not self.closed:
            async with self._changing:
                consumer = self._consumer
                moving = consumer is not None and consumer.hungry and loop.time() < end
                if not (moving and consumer is not None and await self.count_ready(consumer.channel)):
                    if self.demand:
                        return False
                    await self._give_up(consumer)
                    return True
            await asyncio.sleep(LINGER)
        return False

    async def end(self, channel: AbstractChannel) -> None:
        """Take nothing more at all. Closing the channel alone would do, but in any order."""
        loop, consumer = asyncio.get_running_loop(), self._consumer
        end = loop.time() + _PATIENCE
        while consumer is not None and consumer.hungry and await self.count_ready(channel):
            if loop.time() > end:
                break
            await asyncio.sleep(LINGER)
        await self._give_up(consumer)

    async def count_ready(self, channel: AbstractChannel) -> int:
        """Of the messages that went to nobody; what the server had sent to us before is here when it answers."""
        found = await self._connection.ask(channel.queue_declare(self._queue, passive=True), self._what)
        return found.message_count or 0

    async def _feed(self) -> None:
        """See to it that the server sends something as soon as it has it."""
        async with self._changing:
            consumer, channel, ask = self._consumer, self.channel, self._connection.ask
            if channel is None or channel.is_closed or not self._connection.alive:
                channel = await self._connection.channel()
                self._loans.forget_all()
                self.channel, consumer = channel, None
                channel.closing.add_done_callback(self.wake)
                channel.on_consumer_cancel_callbacks.add(self._cancelled)
            if self.closed or (consumer is not None and consumer.hungry):
                return
            await self._give_up(consumer)
            self.prefetch = prefetch = min(max(1, self.demand), _PREFETCH)
            self._consumer = consumer = Consumer(channel, prefetch)
            await ask(channel.basic_qos(prefetch_count=prefetch))
            answer = await ask(channel.basic_consume(self._queue, partial(self._arrive, consumer)), self._what)
            consumer.tag = answer.consumer_tag

    def _fed(self, feeding: asyncio.Task[None]) -> None:
        self._feeding = None
        if not feeding.cancelled():
            feeding.exception()
        self.wake()

    async def _give_up(self, consumer: Consumer | None) -> None:
        if consumer is not None and consumer.tag is not None and not consumer.channel.is_closed:
            tag, consumer.tag = consumer.tag, None
            await self._connection.ask(consumer.channel.basic_cancel(tag))

    async def _any_ready(self) -> bool:
        async with self._changing:
            channel = self.channel
            if self._loans.arrived or channel is None or channel.is_closed:
                return bool(self._loans.arrived)
            return await self.count_ready(channel) > 0

    async def _arrive(self, consumer: Consumer, message: DeliveredMessage) -> None:
        if message.channel is self.channel and message.delivery_tag is not None:
            self._loans.enter(consumer, message)
            self.wake()

    def _cancelled(self, frame: Basic.Cancel) -> None:
        """By the server: the queue was deleted, or has moved."""
        if self._consumer is not None and frame.consumer_tag == self._consumer.tag:
            self._consumer.tag = None
        self.wake()
