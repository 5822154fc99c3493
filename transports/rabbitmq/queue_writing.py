"""How messages get into a queue: at once, or after a delay."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from thalweg.errors import BrokerError, MissingCapability
from thalweg.finishing import finish
from thalweg.message import Message, QueueMessage

from .connection import Connection, Outgoing
from .delays import LONGEST, Delays
from .place import Place
from .wire import EXPIRES, check, to_amqp

__all__ = ["QueueWriting"]


class QueueWriting:
    def __init__(self, connection: Connection, delays: Delays, place: Place, message_bytes: int) -> None:
        self.background: set[asyncio.Task[Any]] = set()
        """What is under way."""
        self._connection, self._delays, self._place, self._limit = connection, delays, place, message_bytes
        self._led: set[str] = set()

    async def put(self, messages: Sequence[Message]) -> None:
        place = self._place
        check(messages, self._limit, place.name)
        outgoing: list[Outgoing] = []
        for message in messages:
            body, properties = to_amqp(message)
            exchange, key = place.exchange, place.routing_key
            if isinstance(message, QueueMessage):
                if message.priority:
                    self._check_priority(message.priority)
                    properties.priority = message.priority
                if message.expires is not None:
                    left = max(0, round(message.expires * 1000))
                    assert properties.headers is not None
                    properties.headers[EXPIRES] = time.time_ns() // 1_000_000 + left
                    if message.delay <= 0:
                        properties.expiration = str(left)
                if message.delay > 0:
                    exchange, key = await self._delayed(message.delay)
            outgoing.append(Outgoing(exchange, key, body, properties))
        if outgoing:
            await self._connection.publish(outgoing, f"queue {place.name!r}")

    async def write(self, message: Outgoing, what: str) -> None:
        await self._connection.publish([message], what)

    async def back_after(self, delay: float) -> tuple[str, str]:
        """Exchange and routing key for what shall come to this group's queue so many seconds later."""
        address = self._place.queue_address
        await self._lead(address, queue=self._place.queue)
        return await self._delays.route(delay, address)

    async def _delayed(self, delay: float) -> tuple[str, str]:
        place = self._place
        if delay > LONGEST:
            raise BrokerError(f"a delay of {delay:g} s for {place.name!r}: RabbitMQ takes {LONGEST:g} s at most")
        if place.kind == "existing" and (place.exchange or not place.queue):
            raise MissingCapability(
                f"{place.name!r} is an exchange that was there before: a delay would change the routing key that "
                "it goes by; declare the queue without declare=False, or send without delay="
            )
        if place.kind == "existing":
            return await self.back_after(delay)
        await self._lead(place.address, exchange=place.exchange)
        return await self._delays.route(delay, place.address)

    async def _lead(self, address: str, queue: str = "", exchange: str = "") -> None:
        if address not in self._led:
            await finish(self._delays.lead(address, queue, exchange), self.background)
            self._led.add(address)

    def _check_priority(self, priority: int) -> None:
        if not 0 <= priority <= 9:
            raise BrokerError(f"priority {priority} of a message for {self._place.name!r}: expected 0 to 9")
        if self._place.kind == "quorum":
            raise MissingCapability(
                f"{self._place.name!r} is a quorum queue, which has no priorities: open the broker with "
                "?queues=classic before the queue is first declared (a classic queue is not replicated)"
            )
