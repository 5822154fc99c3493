"""Streams over AMQP 0.9.1: where the stream plug-in is off or cannot be reached. A message at a time, hence slower."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import time
from collections.abc import Sequence
from typing import Any

from aiormq.abc import AbstractChannel, DeliveredMessage
from aiormq.exceptions import ChannelNotFoundEntity
from thalweg.errors import AmbiguousCommit, BrokerError
from thalweg.finishing import finish
from thalweg.message import Message

from .connection import Connection, ConnectionLost, Outgoing, Refused, Unroutable
from .streams import Attachment, Block, NoStream, Receiver, Since, Start
from .wire import from_amqp, to_amqp

__all__ = ["AmqpStreams"]

_PREFETCH = 500  # messages on their way to a reader; the server rounds up to whole chunks
_PER_MESSAGE = 200  # bytes of a message besides its body, about
_GRACE = 0.05  # seconds, see `_AmqpAttachment.barrier`


class AmqpBlock:
    """One message."""

    __slots__ = ("_delivered", "_records", "first", "size", "tag")

    count = 1

    def __init__(self, delivered: DeliveredMessage) -> None:
        headers = delivered.header.properties.headers or {}
        offset = headers.get("x-stream-offset")
        self.first = offset if isinstance(offset, int) else -1
        self.size = len(delivered.body) + _PER_MESSAGE
        self.tag = delivered.delivery_tag or 0
        self._delivered, self._records = delivered, list[Message]()

    @property
    def records(self) -> Sequence[Message]:
        if not self._records:
            self._records = [from_amqp(self._delivered, time.time_ns() // 1_000_000)]
        return self._records

    @property
    def ids(self) -> Sequence[str | None]:
        return [self._delivered.header.properties.message_id]


class AmqpStreams:
    """reading, writing: connections of their own, for a server that blocks writers blocks their whole connection."""

    name = "AMQP"

    def __init__(self, reading: Connection, writing: Connection) -> None:
        self._reading, self._writing = reading, writing
        self._background: set[asyncio.Task[Any]] = set()

    async def publish(self, stream: str, messages: Sequence[Message], ids: Sequence[str] | None = None) -> None:
        outgoing: list[Outgoing] = []
        for number, message in enumerate(messages):
            body, properties = to_amqp(message)
            if ids is not None:
                properties.message_id = ids[number]
            outgoing.append(Outgoing("", stream, body, properties))
        try:
            await self._writing.publish(outgoing, f"stream {stream!r}")
        except Unroutable as error:
            raise NoStream(str(error)) from None
        except (AmbiguousCommit, ConnectionLost):
            raise
        except BrokerError as error:
            if len(messages) > 1:
                raise AmbiguousCommit(f"{error} (others of the same call may have been written)") from None
            raise

    async def attach(self, stream: str, start: Start, receiver: Receiver) -> Attachment:
        async def undo(attachment: Attachment) -> None:
            await attachment.close()

        return await finish(self._attach(stream, start, receiver), self._background, undo)

    async def _attach(self, stream: str, start: Start, receiver: Receiver) -> Attachment:
        connection = self._reading
        channel = await connection.channel()
        attachment = _AmqpAttachment(connection, channel, stream, receiver, self._background)
        place: object = start
        if isinstance(start, Since):
            place = datetime.datetime.fromtimestamp(start.timestamp // 1000, datetime.UTC)
        what = f"reading {stream!r}: "
        try:
            await connection.ask(channel.basic_qos(prefetch_count=_PREFETCH), what)
            arguments: Any = {"x-stream-offset": place}
            await connection.ask(channel.basic_consume(stream, attachment.deliver, arguments=arguments), what)
            await connection.ask(channel.basic_qos(prefetch_count=_PREFETCH), what)  # consume-ok comes too early
        except Refused as error:
            await attachment.close()
            raise NoStream(str(error)) from None
        except BaseException:
            await attachment.close()
            raise
        attachment.watch()
        return attachment

    async def close(self) -> None:
        for task in self._background:
            task.cancel()
        if self._background:
            await asyncio.wait(self._background)


class _AmqpAttachment:
    """A channel with one consumer. A chunk is delivered whole, and acknowledged by the number of its messages."""

    def __init__(
        self,
        connection: Connection,
        channel: AbstractChannel,
        stream: str,
        receiver: Receiver,
        background: set[asyncio.Task[Any]],
    ) -> None:
        self._connection, self._channel, self._stream = connection, channel, stream
        self._receiver, self._background = receiver, background
        self._sluggish = _version(channel) >= (3, 13)
        self._fed = 0
        self._owed, self._tag, self._granted = 0, 0, _PREFETCH
        self._acknowledging: asyncio.Task[None] | None = None
        self._closed = False

    async def deliver(self, message: DeliveredMessage) -> None:
        if not self._closed:
            self._fed += 1
            self._receiver.feed(AmqpBlock(message))

    def watch(self) -> None:
        def gone(closing: asyncio.Future[Any]) -> None:
            why = None if closing.cancelled() else closing.exception()
            kind = NoStream if isinstance(why, ChannelNotFoundEntity) else ConnectionLost
            self._end(kind(f"reading {self._stream!r}: the channel was closed: {why}"))

        def cancelled(_: object) -> None:
            self._end(NoStream(f"stream {self._stream!r} was deleted, or moved to another node"))

        assert isinstance(self._channel.closing, asyncio.Future)
        self._channel.closing.add_done_callback(gone)
        self._channel.on_consumer_cancel_callbacks.add(cancelled)

    def _end(self, error: BrokerError) -> None:
        if not self._closed:
            self._closed = True
            self._receiver.lost(error)

    def taken(self, block: Block) -> None:
        self._owed += 1
        assert isinstance(block, AmqpBlock)
        self._tag = max(self._tag, block.tag)
        if self._owed * 4 >= _PREFETCH and self._acknowledging is None and not self._closed:
            self._acknowledging = asyncio.get_running_loop().create_task(self._acknowledge())
            self._background.add(self._acknowledging)
            self._acknowledging.add_done_callback(self._background.discard)

    async def _acknowledge(self) -> None:
        self._granted += self._owed
        self._owed = 0
        with contextlib.suppress(Exception):  # a lost channel is told by `closing`
            await self._channel.basic_ack(self._tag, multiple=True, wait=False)
        self._acknowledging = None

    async def barrier(self) -> bool:
        return await finish(self._barrier(), self._background)

    async def _barrier(self) -> bool:
        """A second consumer makes the server ask the stream, after which all that it had told the first is on its way;
        the answer to the call after that comes behind it. Servers from 3.13 on do not ask: there time must do."""
        if self._owed:
            await self._acknowledge()
        fed, granted, connection, channel = self._fed, self._granted, self._connection, self._channel
        arguments: Any = {"x-stream-offset": "next"}
        answer = await connection.ask(channel.basic_consume(self._stream, _ignore, arguments=arguments))
        await connection.ask(channel.basic_cancel(answer.consumer_tag or ""))
        if not self._fed and self._sluggish:
            await asyncio.sleep(_GRACE)
        elif self._fed > fed:
            await asyncio.sleep(0)  # what came with the answer is handled by tasks of its own
        return self._fed >= granted

    async def close(self) -> None:
        self._closed = True
        with contextlib.suppress(Exception):
            await finish(self._channel.close(), self._background)


def _version(channel: AbstractChannel) -> tuple[int, ...]:
    text = str(getattr(channel.connection, "server_properties", {}).get("version", ""))
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())


async def _ignore(message: DeliveredMessage) -> None:
    pass
