"""One connection by RabbitMQ's stream protocol: requests, publishers, subscriptions. It ends at the first loss.

All that comes in is handled at once and never waits: answers wake who asked, chunks go to their sink.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from typing import Protocol

from thalweg.errors import BrokerError

from .answers import error_of
from .connection import ConnectionLost, Endpoint
from .protocol import OK, Chunk, Command, Metadata, Reader, frame, pairs, string
from .stream_publisher import Publisher
from .streams import NoStream

__all__ = ["Sink", "StreamLink"]

_SLOTS = 256
"""Publishers, and subscriptions, that a connection can have: their numbers are bytes."""


class Sink(Protocol):
    """Where a subscription's chunks go."""

    def feed(self, chunk: Chunk) -> None: ...

    def lost(self, error: BrokerError) -> None:
        """Nothing more will come. Called at most once."""
        ...


class StreamLink(asyncio.Protocol):
    """Open one by `StreamLink.connect`. `node`: host and port as the server advertises itself."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.node: tuple[str, int] = ("", 0)
        self.frame_max = 1 << 20
        self.alive = True
        self._endpoint = endpoint
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._asked: dict[int, asyncio.Future[bytes]] = {}
        self._correlation = 0
        self._tuned: asyncio.Future[bytes] = self._loop.create_future()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._writable: asyncio.Future[None] | None = None
        self._publishers: dict[int, Publisher] = {}
        self._sinks: dict[int, tuple[str, Sink]] = {}
        self._heard = 0.0
        self._beat: asyncio.TimerHandle | None = None

    # --- its life --------------------------------------------------------------------------------------------

    @classmethod
    async def connect(cls, endpoint: Endpoint, host: str, port: int) -> StreamLink:
        """Raises `BrokerError`."""
        what = f"the stream plug-in ({host}:{port}) "
        link: StreamLink | None = None
        try:
            async with asyncio.timeout(endpoint.timeout):
                _, link = await asyncio.get_running_loop().create_connection(
                    lambda: cls(endpoint), host, port, ssl=endpoint.tls
                )
                await link._enter()
                return link
        except TimeoutError:
            error: BrokerError = endpoint.explain(f"no answer within {endpoint.timeout:g} s", what)
        except OSError as problem:
            error = endpoint.explain(problem, f"{what}cannot be reached: ")
        except BrokerError as problem:
            error = problem
        except BaseException:
            if link is not None:
                link.abort()
            raise
        if link is not None:
            link.abort()
        raise error

    async def _enter(self) -> None:
        endpoint = self._endpoint
        user, password = endpoint.url.username or "guest", endpoint.url.password or "guest"
        await self.ask(Command.PEER_PROPERTIES, pairs({"product": "thalweg", "connection_name": "thalweg streams"}))
        await self.ask(Command.SASL_HANDSHAKE)
        secret = f"\0{user}\0{password}".encode()
        await self.ask(Command.SASL_AUTHENTICATE, string("PLAIN"), struct.pack(">I", len(secret)), secret)
        frame_max, heartbeat = struct.unpack(">II", await self._tuned)
        self.frame_max = frame_max or 1 << 24
        beat = min(heartbeat, endpoint.heartbeat) or endpoint.heartbeat
        self._send(frame(Command.TUNE, struct.pack(">II", frame_max, beat)))
        reader = Reader(await self.ask(Command.OPEN, string(endpoint.vhost)), 2)
        known = reader.pairs()
        self.node = known.get("advertised_host", ""), int(known.get("advertised_port", "0"))
        self._heard = self._loop.time()
        self._keep_alive(beat)  # before that the server takes nothing but what it waits for

    def _keep_alive(self, seconds: float) -> None:
        if self._loop.time() - self._heard > 2 * seconds:
            self.abort(f"nothing was heard for {2 * seconds:g} s")
            return
        self._send(frame(Command.HEARTBEAT))
        self._beat = self._loop.call_later(seconds / 2, self._keep_alive, seconds)

    async def close(self) -> None:
        if self.alive:
            with contextlib.suppress(BrokerError, TimeoutError):
                async with asyncio.timeout(1.0):
                    await self.ask(Command.CLOSE, struct.pack(">H", OK), string("done"))
        self.abort()
        await asyncio.wait([self._ended], timeout=1.0)

    def abort(self, why: str = "the connection was closed") -> None:
        if self.alive:
            self._transport.abort()
            self._end(why)

    def _end(self, why: str) -> None:
        if not self.alive:
            return
        self.alive = False
        if self._beat is not None:
            self._beat.cancel()
        if self._writable is not None:
            self._writable.set_result(None)
            self._writable = None
        error = ConnectionLost(str(self._endpoint.explain(why, "the connection to the stream plug-in was lost: ")))
        for waiting in [*self._asked.values(), self._tuned]:
            if not waiting.done():
                waiting.set_exception(error)
                waiting.exception()  # perhaps nobody asks
        self._asked.clear()
        for publisher in self._publishers.values():
            publisher.end(error)
        sinks, self._sinks = self._sinks, {}
        for _, sink in sinks.values():
            sink.lost(error)

    # --- asyncio's side --------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(str(exc) if exc is not None else "the server closed it")
        self._ended.set_result(None)

    def pause_writing(self) -> None:
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._writable is not None:
            self._writable.set_result(None)
            self._writable = None

    def data_received(self, data: bytes) -> None:
        self._heard = self._loop.time()
        buffer = self._buffer
        buffer += data
        at, end = 0, len(buffer)
        frames: list[bytes] = []
        with memoryview(buffer) as view:
            while end - at >= 4:
                size = int.from_bytes(view[at : at + 4], "big")
                if end - at < 4 + size:
                    break
                frames.append(view[at + 4 : at + 4 + size].tobytes())
                at += 4 + size
        del buffer[:at]
        for whole in frames:
            self._take(whole)

    def _take(self, data: bytes) -> None:
        key = data[0] << 8 | data[1]
        if key == Command.DELIVER:
            found = self._sinks.get(data[4])
            if found is not None:
                found[1].feed(Chunk(data, 5))
        elif key == Command.PUBLISH_CONFIRM:
            publisher = self._publishers.get(data[4])
            if publisher is not None:
                publisher.confirmed(struct.unpack_from(f">{(len(data) - 9) // 8}Q", data, 9))
        elif key == Command.PUBLISH_ERROR:
            publisher = self._publishers.get(data[4])
            if publisher is not None:
                publisher.refused([struct.unpack_from(">QH", data, place) for place in range(9, len(data), 10)])
        elif key == Command.METADATA_UPDATE:
            reader = Reader(data, 4)
            reader.number(2)
            self._stream_gone(reader.string())
        elif key == Command.TUNE:
            if not self._tuned.done():
                self._tuned.set_result(data[4:12])
        elif key == Command.CLOSE:
            reader = Reader(data, 10)
            why = reader.string()
            self._send(frame(Command.CLOSE | 0x8000, data[4:8], struct.pack(">H", OK)))
            self.abort(f"the server closed it: {why}")
        elif key & 0x8000 and len(data) >= 8:
            waiting = self._asked.pop(int.from_bytes(data[4:8], "big"), None)
            if waiting is not None and not waiting.done():
                waiting.set_result(data[8:])

    def _stream_gone(self, stream: str) -> None:
        """Deleted, or its leader moved: the server has dropped what this connection had of it."""
        error = NoStream(f"stream {stream!r} was deleted, or moved to another node")
        for number, publisher in list(self._publishers.items()):
            if publisher.stream == stream:
                del self._publishers[number]
                publisher.end(error)
        for number, (name, sink) in list(self._sinks.items()):
            if name == stream:
                del self._sinks[number]
                sink.lost(error)

    # --- asking ----------------------------------------------------------------------------------------------

    def _send(self, data: bytes) -> None:
        if self.alive:
            self._transport.write(data)

    async def ask(self, key: int, *parts: bytes, what: str = "") -> bytes:
        """What follows the correlation id in the answer. Raises `NoStream`, `ConnectionLost` or `BrokerError`."""
        data = await self._ask(key, *parts)
        code = int.from_bytes(data[:2], "big")
        if code != OK:
            raise error_of(code, self._endpoint, what)
        return data

    async def metadata(self, stream: str) -> Metadata:
        """Also a barrier: all that could be delivered when the server came to this question has been fed before."""
        return Metadata.parse(b"\0\0\0\0" + await self._ask(Command.METADATA, struct.pack(">I", 1), string(stream)))

    async def _ask(self, key: int, *parts: bytes) -> bytes:
        self._check()
        self._correlation += 1
        number = self._correlation
        answer: asyncio.Future[bytes] = self._loop.create_future()
        self._asked[number] = answer
        self._send(frame(key, struct.pack(">I", number), *parts))
        try:
            async with asyncio.timeout(self._endpoint.timeout):
                return await answer
        except TimeoutError:
            self.abort(f"no answer within {self._endpoint.timeout:g} s (?timeout=)")
            raise ConnectionLost(str(self._endpoint.explain("no answer from the stream plug-in"))) from None
        finally:
            self._asked.pop(number, None)

    def _check(self) -> None:
        if not self.alive:
            raise ConnectionLost(str(self._endpoint.explain("the connection to the stream plug-in was lost")))

    # --- publishing ------------------------------------------------------------------------------------------

    @property
    def publishers(self) -> int:
        """How many there are; at most 256."""
        return len(self._publishers)

    async def publisher(self, stream: str) -> Publisher:
        number = next(number for number in range(_SLOTS) if number not in self._publishers)
        publisher = self._publishers[number] = Publisher(self, number, stream, self._endpoint)
        try:
            declare = (bytes([number]), string(""), string(stream))
            await self.ask(Command.DECLARE_PUBLISHER, *declare, what=f"writing to {stream!r}: ")
        except BaseException:
            self._publishers.pop(number, None)
            publisher.end(NoStream(f"stream {stream!r} cannot be written"))
            raise
        return publisher

    async def write(self, data: bytes) -> None:
        while self._writable is not None:
            await asyncio.shield(self._writable)
        self._check()
        self._transport.write(data)

    # --- subscribing -----------------------------------------------------------------------------------------

    @property
    def sinks(self) -> int:
        """How many there are; at most 256."""
        return len(self._sinks)

    async def subscribe(self, stream: str, start: bytes, credit: int, sink: Sink) -> int:
        """Number of the subscription. credit: how many chunks may come before `credit` is called."""
        number = next(number for number in range(_SLOTS) if number not in self._sinks)
        self._sinks[number] = stream, sink
        parts = (bytes([number]), string(stream), start, struct.pack(">H", credit), struct.pack(">I", 0))
        try:
            await self.ask(Command.SUBSCRIBE, *parts, what=f"reading {stream!r}: ")
        except BaseException:
            self._sinks.pop(number, None)
            raise
        return number

    def credit(self, number: int, chunks: int) -> None:
        self._send(frame(Command.CREDIT, bytes([number]), struct.pack(">H", chunks)))

    async def unsubscribe(self, number: int) -> None:
        """The number is free again only once the server has agreed: until then chunks may come under it."""
        found = self._sinks.get(number)
        if found is None or not self.alive:
            return
        self._sinks[number] = found[0], _NOWHERE
        with contextlib.suppress(BrokerError):
            await self.ask(Command.UNSUBSCRIBE, bytes([number]))
        self._sinks.pop(number, None)


class _Nowhere:
    def feed(self, chunk: Chunk) -> None:
        pass

    def lost(self, error: BrokerError) -> None:
        pass


_NOWHERE = _Nowhere()
