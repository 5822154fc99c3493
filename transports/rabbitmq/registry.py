"""What topics and queues there are: AMQP cannot list them, so a stream of the driver's own remembers.

Entries are never taken back, and of several about one thing the first in the stream counts. So two programs that
declare the same topic at once agree, and nobody needs a lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Mapping

import msgspec
from aiormq.abc import AbstractChannel, DeliveredMessage
from thalweg.errors import BrokerError

from .connection import Connection, ConnectionLost, Outgoing, Refused, finish
from .names import Names
from .wire import Properties

__all__ = ["Registry", "Topic"]

_QUIET = 0.05  # seconds without an entry after which the past is taken for read, when nothing depends on it


class Topic(msgspec.Struct, frozen=True):
    """A topic or queue as it was first declared."""

    name: str
    partitions: int
    queue: bool = False
    kind: str = "stream"
    """Of the queues that hold it: stream, quorum or classic."""
    retention: float | None = None
    options: Mapping[str, str] = {}


class _Entry(msgspec.Struct, omit_defaults=True):
    """token: by which its writer knows it again. What holds nothing else only marks a place."""

    token: str
    topic: Topic | None = None
    queue: str | None = None
    group: str | None = None


class Registry:
    """Follows the stream; `sync` and all that writes return when what was written before has been read."""

    def __init__(self, connection: Connection, names: Names) -> None:
        self.topics: dict[str, Topic] = {}
        self._groups: dict[str, list[str]] = {}
        self._connection = connection
        self._name = names.own("topics")
        self._channel: AbstractChannel | None = None
        self._attaching = asyncio.Lock()
        self._after: int | None = None
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._last = 0.0
        self._background: set[asyncio.Task[object]] = set()

    async def find(self, name: str) -> Topic | None:
        """Rigorous: all that was declared before is known."""
        if name not in self.topics:
            await self.sync()
        return self.topics.get(name)

    async def read(self) -> None:
        """What is there, give or take the very latest."""
        await self._attach()
        loop = asyncio.get_running_loop()
        while (wait := self._last + _QUIET - loop.time()) > 0:  # noqa: ASYNC110 - it waits for silence
            await asyncio.sleep(wait)

    async def declare(self, topic: Topic) -> Topic:
        """The topic as it is: as given here, unless another was first."""
        if topic.name not in self.topics:
            await self._write(_Entry(secrets.token_hex(8), topic=topic))
        return self.topics[topic.name]

    async def groups(self, queue: str, group: str) -> list[str]:
        """The consumer groups of a queue, `group` among them, in the order in which they came."""
        if group not in self._groups.get(queue, ()):
            await self._write(_Entry(secrets.token_hex(8), queue=queue, group=group))
        return self._groups[queue]

    async def sync(self) -> None:
        await self._write(_Entry(secrets.token_hex(8)))

    async def close(self) -> None:
        for task in self._background:
            task.cancel()
        if self._background:
            await asyncio.wait(self._background)
        channel, self._channel = self._channel, None
        if channel is not None:
            with contextlib.suppress(Exception):
                await channel.close()

    async def _write(self, entry: _Entry) -> None:
        await finish(self._write_and_see(entry), self._background)

    async def _write_and_see(self, entry: _Entry) -> None:
        await self._attach()
        seen = self._waiting[entry.token] = asyncio.get_running_loop().create_future()
        body, what = msgspec.json.encode(entry), "the list of topics"
        try:
            await self._connection.publish([Outgoing("", self._name, body, Properties(delivery_mode=2))], what)
            async with asyncio.timeout(self._connection.endpoint.timeout):
                await seen
        except TimeoutError:
            raise BrokerError(
                f"RabbitMQ at {self._connection.endpoint.place} wrote to {what}, but did not show it"
            ) from None
        finally:
            del self._waiting[entry.token]

    async def _attach(self) -> None:
        async with self._attaching:
            if self._channel is not None and not self._channel.is_closed and self._connection.alive:
                return
            self._channel = None
            await self._ensure()
            channel = await self._connection.channel()
            offset = "first" if self._after is None else self._after + 1
            await self._connection.ask(channel.basic_qos(prefetch_count=1000))
            await self._connection.ask(
                channel.basic_consume(self._name, self._take, arguments={"x-stream-offset": offset})
            )
            self._last = asyncio.get_running_loop().time()
            self._channel = channel

    async def _ensure(self) -> None:
        channel = await self._connection.channel()
        try:
            await self._connection.ask(channel.queue_declare(self._name, passive=True))
        except ConnectionLost:
            raise
        except Refused:
            channel = await self._connection.channel()
            await self._connection.ask(
                channel.queue_declare(self._name, durable=True, arguments={"x-queue-type": "stream"}),
                "making the list of topics: ",
            )
        with contextlib.suppress(Exception):
            await channel.close()

    async def _take(self, message: DeliveredMessage) -> None:
        assert message.delivery_tag is not None
        await message.channel.basic_ack(message.delivery_tag, wait=False)
        headers = message.header.properties.headers or {}
        offset = headers.get("x-stream-offset")
        if not isinstance(offset, int) or (self._after is not None and offset <= self._after):
            return
        self._after, self._last = offset, asyncio.get_running_loop().time()
        try:
            entry = msgspec.json.decode(message.body, type=_Entry)
        except msgspec.DecodeError:  # of another program, or of a later version
            return
        if entry.topic is not None:
            self.topics.setdefault(entry.topic.name, entry.topic)
        if entry.queue is not None and entry.group is not None:
            groups = self._groups.setdefault(entry.queue, [])
            if entry.group not in groups:
                groups.append(entry.group)
        waiting = self._waiting.get(entry.token)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)
