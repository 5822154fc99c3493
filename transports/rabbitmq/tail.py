"""Following a small stream of the driver's own: what one appends is seen again, behind all that came before it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

from aiormq.abc import AbstractChannel, DeliveredMessage
from thalweg.errors import BrokerError
from thalweg.finishing import finish

from .connection import Connection, Outgoing, Refused
from .wire import Properties

__all__ = ["Tail"]


class Tail:
    """Attaches when first used, and again after a loss. take: called with each entry and its offset, in order.

    start: where it begins, as `x-stream-offset` (`first`, `next`…). what: how errors name it.
    """

    def __init__(
        self,
        connection: Connection,
        name: str,
        what: str,
        take: Callable[[int, bytes], None],
        start: str = "first",
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self.last = 0.0
        """When something was read, or the reading began: the loop's clock."""
        self._connection = connection
        self._name = name
        self._what = what
        self._on_entry = take
        self._start = start
        self._arguments = arguments or {}
        self._channel: AbstractChannel | None = None
        self._attaching = asyncio.Lock()
        self._after: int | None = None
        self._waiting: dict[str, asyncio.Future[int]] = {}
        self._background: set[asyncio.Task[Any]] = set()

    async def append(self, body: bytes) -> int:
        """Its offset, once it has been read back. Cancelled, it goes on to the end."""
        return await finish(self._append(body), self._background)

    async def attach(self) -> None:
        """Follow, from now on."""
        await finish(self._attach(), self._background)

    async def close(self) -> None:
        for task in self._background:
            task.cancel()
        if self._background:
            await asyncio.wait(self._background)
        channel, self._channel = self._channel, None
        if channel is not None:
            with contextlib.suppress(Exception):
                await channel.close()

    async def _append(self, body: bytes) -> int:
        await self._attach()
        token = secrets.token_hex(8)
        seen: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting[token] = seen
        properties = Properties(delivery_mode=2, message_id=token)
        endpoint = self._connection.endpoint
        try:
            await self._connection.publish([Outgoing("", self._name, body, properties)], self._what)
            async with asyncio.timeout(endpoint.timeout):
                return await seen
        except TimeoutError:
            raise BrokerError(
                f"RabbitMQ at {endpoint.place} took an entry of {self._what}, but did not show it within "
                f"{endpoint.timeout:g} s"
            ) from None
        finally:
            del self._waiting[token]

    async def _attach(self) -> None:
        async with self._attaching:
            if self._channel is not None and not self._channel.is_closed and self._connection.alive:
                return
            self._channel = None
            await self._ensure_in_time()
            channel = await self._connection.channel()
            offset = self._start if self._after is None else self._after + 1
            await self._connection.ask(channel.basic_qos(prefetch_count=1000))
            await self._connection.ask(
                channel.basic_consume(self._name, self._take, arguments={"x-stream-offset": offset}),
                f"reading {self._what}: ",
            )
            self.last = asyncio.get_running_loop().time()
            self._channel = channel

    async def _ensure_in_time(self) -> None:
        """A server that has just started takes a moment until its streams are there."""
        deadline = time.monotonic() + self._connection.endpoint.timeout
        while True:
            try:
                await self._ensure()
                return
            except Refused as refused:
                if not refused.away or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(0.1)

    async def _ensure(self) -> None:
        channel = await self._connection.channel()
        try:
            await self._connection.ask(channel.queue_declare(self._name, passive=True))
        except Refused:
            channel = await self._connection.channel()
            await self._connection.ask(
                channel.queue_declare(
                    self._name, durable=True, arguments={"x-queue-type": "stream", **self._arguments}
                ),
                f"making {self._what}: ",
            )
        with contextlib.suppress(Exception):
            await channel.close()

    async def _take(self, message: DeliveredMessage) -> None:
        assert message.delivery_tag is not None
        await message.channel.basic_ack(message.delivery_tag, wait=False)
        properties = message.header.properties
        offset = (properties.headers or {}).get("x-stream-offset")
        if not isinstance(offset, int) or (self._after is not None and offset <= self._after):
            return
        self._after, self.last = offset, asyncio.get_running_loop().time()
        self._on_entry(offset, message.body)
        waiting = self._waiting.get(properties.message_id or "")
        if waiting is not None and not waiting.done():
            waiting.set_result(offset)
