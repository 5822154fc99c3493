"""Streams over the plug-in's own protocol: many records a frame, from and to the node that leads each stream.

Reading from the leader, not from a replica, makes "all that was confirmed before" a promise.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from thalweg.errors import BrokerError
from thalweg.finishing import finish
from thalweg.message import Message

from . import sections
from .amqp_streams import AmqpStreams
from .connection import ConnectionLost, Endpoint
from .link import StreamLink
from .protocol import FIRST, LAST, NEXT, OK, Chunk, at, since
from .stream_publisher import Publisher
from .streams import Attachment, NoStream, Receiver, Since, Start

__all__ = ["NativeStreams"]

_CREDIT = 8  # chunks on their way to a reader
_SINKS, _LINKS = 8, 16  # streams read over one connection, until a node has so many connections
_LONGEST_PAUSE = 2.0  # seconds between two attempts to connect
_PLACES: Mapping[str, bytes] = {"first": FIRST, "last": LAST, "next": NEXT}

Node = tuple[str, int]


class NativeBlock:
    """A chunk, decoded when somebody looks."""

    __slots__ = ("_chunk", "_records", "count", "first", "size")

    def __init__(self, chunk: Chunk, size: int) -> None:
        self._chunk, self._records = chunk, list[Message]()
        self.first, self.count, self.size = chunk.first, chunk.count, size

    @property
    def records(self) -> Sequence[Message]:
        if not self._records:
            decode, written = sections.decode, self._chunk.timestamp
            self._records = [decode(body, written) for body in self._chunk.bodies()]
        return self._records

    @property
    def ids(self) -> Sequence[str | None]:
        return [sections.message_id(body) for body in self._chunk.bodies()]


class NativeStreams:
    """amqp: writes what does not fit into one frame of the protocol (about 1 MB), and follows the end of streams.

    For the plug-in, whenever a connection has sent all there is of a stream, sleeps for a millisecond before it looks
    after any other of the connection's streams: the ends of 64 streams took 154 ms to come over one connection, and
    42 ms over AMQP. That is also why readers are spread over several connections.
    """

    name = "stream protocol"

    def __init__(self, endpoint: Endpoint, port: int, amqp: AmqpStreams) -> None:
        self._endpoint = endpoint
        self._doors = [(host, port) for host, _ in endpoint.addresses]
        self._amqp = amqp
        self._routes: dict[Node, Node] = {}  # where a node that advertises itself so was reached
        self._readers: dict[Node, list[StreamLink]] = {}
        self._writers: dict[Node, list[StreamLink]] = {}
        self._connecting = asyncio.Lock()
        self._publishers: dict[str, Publisher] = {}
        self._turns: dict[str, asyncio.Lock] = {}
        self._background: set[asyncio.Task[Any]] = set()
        self._failed_at, self._pause = 0.0, 0.0
        self._open = True

    async def open(self) -> None:
        """Raises `BrokerError` if no node answers."""
        await finish(self._any_reader(), self._background)

    async def close(self) -> None:
        self._open = False
        for task in self._background:
            task.cancel()
        if self._background:
            await asyncio.wait(self._background)
        links = [link for pool in (self._readers, self._writers) for links in pool.values() for link in links]
        await asyncio.gather(*(link.close() for link in links))

    # --- writing ---------------------------------------------------------------------------------------------

    async def publish(self, stream: str, messages: Sequence[Message], ids: Sequence[str] | None = None) -> None:
        await finish(self._publish(stream, messages, ids), self._background)

    async def _publish(self, stream: str, messages: Sequence[Message], ids: Sequence[str] | None) -> None:
        async with self._turns.setdefault(stream, asyncio.Lock()):  # calls are written in the order in which they came
            publisher = await self._publisher(stream)
            encode = sections.encode
            if ids is None:
                bodies = [encode(message) for message in messages]
            else:
                bodies = [encode(message, id) for message, id in zip(messages, ids, strict=True)]
            largest, start = publisher.largest, 0
            if max(map(len, bodies)) > largest:
                for number, body in enumerate(bodies):
                    if len(body) > largest:
                        await publisher.confirm(await publisher.send(bodies[start:number]))
                        await self._amqp.publish(stream, [messages[number]], None if ids is None else [ids[number]])
                        start = number + 1
            sent = await publisher.send(bodies[start:])
        await publisher.confirm(sent)

    async def _publisher(self, stream: str) -> Publisher:
        publisher = self._publishers.get(stream)
        if publisher is None or not publisher.alive:
            link = await self._writer(stream)
            while link.publishers >= 256:
                link = await self._writer(stream)
            publisher = await link.publisher(stream)
            self._publishers = {name: known for name, known in self._publishers.items() if known.alive}
            self._publishers[stream] = publisher
        return publisher

    # --- reading ---------------------------------------------------------------------------------------------

    async def attach(self, stream: str, start: Start, receiver: Receiver) -> Attachment:
        if start == "next":
            return await self._amqp.attach(stream, start, receiver)

        async def undo(attachment: Attachment) -> None:
            await attachment.close()

        return await finish(self._attach(stream, start, receiver), self._background, undo)

    async def _attach(self, stream: str, start: Start, receiver: Receiver) -> Attachment:
        link = await self._reader(stream)
        while link.sinks >= 256:
            link = await self._reader(stream)
        attachment = _NativeAttachment(link, stream, receiver, self._background)
        if isinstance(start, Since):
            place = since(start.timestamp)
        else:
            place = at(start) if isinstance(start, int) else _PLACES[start]
        attachment.number = await link.subscribe(stream, place, _CREDIT, attachment)
        attachment.settle()
        return attachment

    # --- nodes -----------------------------------------------------------------------------------------------

    async def _reader(self, stream: str) -> StreamLink:
        return await self._link(self._readers, await self._leader(stream), "sinks")

    async def _writer(self, stream: str) -> StreamLink:
        return await self._link(self._writers, await self._leader(stream), "publishers")

    async def _leader(self, stream: str) -> Node:
        metadata = await (await self._any_reader()).metadata(stream)
        if metadata.code != OK:
            raise NoStream(f"RabbitMQ at {self._endpoint.place} has no stream {stream!r}, or it has no leader now")
        if metadata.leader is None:
            raise NoStream(f"stream {stream!r} has no leader at the moment")
        return metadata.leader

    async def _any_reader(self) -> StreamLink:
        for links in self._readers.values():
            for link in links:
                if link.alive:
                    return link
        async with self._connecting:
            return await self._knock(None)

    async def _link(self, pool: dict[Node, list[StreamLink]], node: Node, slot: str) -> StreamLink:
        async with self._connecting:
            links = pool[node] = [link for link in pool.get(node, ()) if link.alive]
            fullest = 256 if slot == "publishers" or len(links) >= _LINKS else _SINKS
            free = [link for link in links if getattr(link, slot) < fullest]
            if free:
                return min(free, key=lambda link: getattr(link, slot))
            link = await self._knock(node) if node not in self._routes else await self._connect(self._routes[node])
            if pool is self._writers and link in self._readers.get(node, ()):
                link = await self._connect(self._routes[node])  # a link that writes may be held up: it does not read
            if link not in links:
                links.append(link)
            return link

    async def _knock(self, wanted: Node | None) -> StreamLink:
        """A link to the node (to any), by the doors that the URL names, or where the node says that it is."""
        problem: BrokerError | None = None
        doors = [door for door in self._doors if wanted is None or door not in self._routes.values()]
        for door in doors if wanted is None else [*doors, wanted]:
            try:
                link = await self._connect(door)
            except BrokerError as error:
                problem = error
                continue
            self._routes[link.node] = door
            self._readers.setdefault(link.node, []).append(link)
            if wanted is None or link.node == wanted:
                return link
        if wanted is None:
            assert problem is not None
            raise problem
        host, port = wanted
        raise BrokerError(
            f"RabbitMQ at {self._endpoint.place}: the node that leads a stream says that its stream plug-in listens at "
            f"{host}:{port}, which cannot be reached ({problem}). Set stream.advertised_host and advertised_port in "
            "its rabbitmq.conf, or read and write streams over AMQP by ?streams=amqp"
        )

    async def _connect(self, door: Node) -> StreamLink:
        """Soon after a failure not before a pause."""
        if not self._open:
            raise BrokerError(f"RabbitMQ at {self._endpoint.place}: the transport is not open; call open() first")
        wait = self._failed_at + self._pause - time.monotonic()
        if wait > 0:
            await asyncio.sleep(wait)
        try:
            link = await StreamLink.connect(self._endpoint, *door)
        except BrokerError:
            self._failed_at, self._pause = time.monotonic(), min(_LONGEST_PAUSE, max(0.1, self._pause * 2))
            raise
        self._pause = 0.0
        return link


class _NativeAttachment:
    """Between a link and a receiver."""

    def __init__(self, link: StreamLink, stream: str, receiver: Receiver, background: set[asyncio.Task[Any]]) -> None:
        self.number = -1
        self._link, self._stream, self._receiver, self._background = link, stream, receiver, background
        self._fed, self._owed, self._granted = 0, 0, _CREDIT

    def feed(self, chunk: Chunk) -> None:
        self._fed += 1
        self._receiver.feed(NativeBlock(chunk, chunk.size))

    def lost(self, error: BrokerError) -> None:
        self._receiver.lost(error)

    def taken(self, block: object) -> None:
        self._owed += 1
        if self.number >= 0 and self._owed * 2 >= _CREDIT:
            self.settle()

    def settle(self) -> None:
        if self._owed:
            self._link.credit(self.number, self._owed)
            self._granted += self._owed
            self._owed = 0

    async def barrier(self) -> bool:
        self.settle()
        granted = self._granted
        await self._link.metadata(self._stream)
        return self._fed >= granted

    async def close(self) -> None:
        if self._link.alive:
            with contextlib.suppress(ConnectionLost):
                await finish(self._link.unsubscribe(self.number), self._background)
