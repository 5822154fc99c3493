"""Publishing many messages at once: one write for all, one future for each confirm.

aiormq's own `basic_publish` does one message a call, and to have many on their way takes a task for each: 85 µs a
message where this takes 35. It uses what `aiormq.Channel` shows of its confirms.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence
from uuid import uuid4

import aiormq
import msgspec
import pamqp.frame
from aiormq.abc import ChannelFrame
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from .wire import Properties

__all__ = ["Outgoing", "Publisher"]

_WRITE = 1 << 20  # bytes in one write
_FRAME = struct.Struct(">BHI")
_BODY, _END = 3, b"\xce"


class Outgoing(msgspec.Struct, gc=False):
    """A message on its way. An empty exchange: the routing key is the name of a queue."""

    exchange: str
    routing_key: str
    body: bytes
    properties: Properties


class Publisher:
    """Of one channel with confirms."""

    def __init__(self, channel: aiormq.Channel) -> None:
        self.channel = channel
        self._id, self._count = uuid4().hex, 0
        self._heads: dict[tuple[str, str], bytes] = {}

    async def publish(self, messages: Sequence[Outgoing]) -> Sequence[asyncio.Future[object]]:
        """All are on their way, in this order. Each future is done when its message is confirmed, or refused.

        They are of a channel: when it closes they fail.
        """
        channel, futures = self.channel, list[asyncio.Future[object]]()
        async with channel.lock:
            parts, size = list[bytes](), 0
            for message in messages:
                futures.append(self._enter(message))
                size += self._encode(message, parts)
                if size > _WRITE:
                    await self._write(parts)
                    parts, size = [], 0
            if parts:
                await self._write(parts)
        return futures

    def _enter(self, message: Outgoing) -> asyncio.Future[object]:
        channel = self.channel
        channel.delivery_tag = tag = channel.delivery_tag + 1
        future = channel.create_future()
        channel.confirmations[tag] = future
        properties = message.properties
        if properties.message_id is None:  # by which aiormq knows again what is returned
            self._count += 1
            properties.message_id = f"{self._id}-{self._count}"
        name = properties.message_id
        channel.message_id_delivery_tag[name] = tag

        def forget(_: object) -> None:
            if channel.message_id_delivery_tag.get(name) == tag:
                del channel.message_id_delivery_tag[name]

        future.add_done_callback(forget)
        return future

    def _encode(self, message: Outgoing, parts: list[bytes]) -> int:
        channel, body = self.channel, message.body
        target = (message.exchange, message.routing_key)
        head = self._heads.get(target)
        if head is None:
            if len(self._heads) > 1000:
                self._heads.clear()
            publish = Basic.Publish(exchange=target[0], routing_key=target[1], mandatory=True)
            head = self._heads[target] = pamqp.frame.marshal(publish, channel.number)
        header = ContentHeader(properties=message.properties, body_size=len(body))
        parts += (head, pamqp.frame.marshal(header, channel.number))
        step = channel.max_content_size
        for start in range(0, len(body), step):
            piece = body[start : start + step]
            parts += (_FRAME.pack(_BODY, channel.number, len(piece)), piece, _END)
        return len(body) + 200

    async def _write(self, parts: Sequence[bytes]) -> None:
        """And wait until the socket has taken most of it: the memory of what waits is bounded."""
        drained = self.channel.create_future()
        await self.channel.write_queue.put(ChannelFrame(b"".join(parts), False, drained))
        await drained
