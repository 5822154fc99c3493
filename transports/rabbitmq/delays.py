"""Delays of any length by a bounded number of queues: message TTL and dead-lettering, one queue for each binary digit.

A delay is a number of ticks. A message waits in the queue of each digit that is 1, from the highest down, and then goes
where the last word of its routing key leads. All messages of one such queue wait equally long, so that none waits
behind another (with a TTL per message it would: RabbitMQ looks only at the head). NServiceBus does it so.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from typing import Any

from .connection import Connection
from .names import Names
from .topology import MANY, bind, ensure_exchange

__all__ = ["LONGEST", "Delays"]

_TICK = 50  # milliseconds
_DIGITS = 28
LONGEST = ((1 << _DIGITS) - 1) * _TICK / 1000
"""Seconds: 155 days."""


class Delays:
    def __init__(self, connection: Connection, names: Names) -> None:
        self._connection = connection
        self._names = names
        self._made = 0
        self._making = asyncio.Lock()

    @property
    def arrivals(self) -> str:
        """The exchange at which a delay ends."""
        return self._names.own("delayed")

    async def route(self, seconds: float, target: str) -> tuple[str, str]:
        """Exchange and routing key for what shall come to the address `target` of the arrivals."""
        ticks = max(1, math.ceil(seconds * 1000 / _TICK))
        digits = ticks.bit_length()
        await self._make(digits)
        words = [*format(ticks, f"0{_DIGITS}b"), target]
        return self._names.own("delay", digits - 1), ".".join(words)

    async def lead(self, target: str, queue: str = "", exchange: str = "") -> None:
        """What arrives for the address `target` goes to this queue, or to this exchange."""
        await ensure_exchange(self._connection, self.arrivals, "topic")
        await bind(self._connection, self.arrivals, f"#.{target}", queue=queue, exchange=exchange)

    async def _make(self, digits: int) -> None:
        async with self._making:
            if digits <= self._made:
                return
            await ensure_exchange(self._connection, self.arrivals, "topic")
            channel, ask = await self._connection.channel(), self._connection.ask
            for digit in range(self._made, digits):
                name = self._names.own("delay", digit)
                after = self._names.own("delay", digit - 1) if digit else self.arrivals
                before = "*." * (_DIGITS - 1 - digit)
                await ask(channel.exchange_declare(name, exchange_type="topic", durable=True), "making delays: ")
                queue = channel.queue_declare(name, durable=True, arguments=_arguments(_TICK << digit, after))
                await ask(queue, "making delays: ")
                await ask(channel.queue_bind(name, name, f"{before}1.#"))
                await ask(channel.exchange_bind(after, name, f"{before}0.#"))
                self._made = digit + 1
            with contextlib.suppress(Exception):
                await channel.close()


def _arguments(milliseconds: int, after: str) -> dict[str, Any]:
    """At least once: a message leaves its queue when the next one has confirmed it."""
    return {
        "x-queue-type": "quorum",
        "x-message-ttl": milliseconds,
        "x-dead-letter-exchange": after,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
        "x-delivery-limit": MANY,
    }
