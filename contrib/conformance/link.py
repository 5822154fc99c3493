"""The network between one transport and its broker, as a property can spoil it: cut, silent, slow."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Protocol

from .properties import Unavailable

__all__ = ["InProcessLink", "Link", "Proxy"]


class Link(Protocol):
    def cut(self) -> None:
        """Break all connections, and let none be made until `heal`."""
        ...

    def silence(self, *, to_broker: bool = True, from_broker: bool = True) -> None:
        """Connections stay and new ones are made, but nothing comes through in this direction, until `heal`.

        What a direction swallowed is lost, and its connections are broken by `heal`, as a router's would be.
        """
        ...

    def slow(self, delay: float, bytes_per_second: float) -> None:
        """Each piece is late by `delay` seconds, and the whole is limited to this rate, until `heal`."""
        ...

    def heal(self) -> None: ...
    async def close(self) -> None: ...


class Proxy:
    """A TCP proxy before a broker."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._pairs: dict[tuple[asyncio.StreamWriter, asyncio.StreamWriter], bool] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._refusing = False
        self._passes = {True: True, False: True}
        self._delay, self._rate = 0.0, float("inf")
        self.connections = 0

    async def start(self, port: int = 0) -> tuple[str, int]:
        """The address it listens at."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", port)
        host, listening = self._server.sockets[0].getsockname()[:2]
        return str(host), int(listening)

    def cut(self) -> None:
        self._refusing = True
        self._break(list(self._pairs))

    def silence(self, *, to_broker: bool = True, from_broker: bool = True) -> None:
        self._passes = {True: not to_broker, False: not from_broker}
        self._pairs = dict.fromkeys(self._pairs, True)

    def slow(self, delay: float, bytes_per_second: float) -> None:
        self._delay, self._rate = delay, bytes_per_second

    def heal(self) -> None:
        self._refusing = False
        self._passes = {True: True, False: True}
        self._delay, self._rate = 0.0, float("inf")
        self._break([pair for pair, spoiled in self._pairs.items() if spoiled])

    async def close(self) -> None:
        self._server.close()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def _break(self, pairs: list[tuple[asyncio.StreamWriter, asyncio.StreamWriter]]) -> None:
        for pair in pairs:
            self._pairs.pop(pair, None)
            for writer in pair:
                writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.transport.abort()
            return
        try:
            there, onward = await asyncio.open_connection(self._host, self._port)
        except OSError:
            writer.transport.abort()
            return
        self.connections += 1
        pair = (writer, onward)
        self._pairs[pair] = not all(self._passes.values())
        for source, sink, to_broker in ((reader, onward, True), (there, writer, False)):
            task = asyncio.create_task(self._forward(source, sink, pair, to_broker))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _forward(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        pair: tuple[asyncio.StreamWriter, asyncio.StreamWriter],
        to_broker: bool,
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(64 << 10):
                if not self._passes[to_broker]:
                    continue
                if self._delay or self._rate < float("inf"):
                    await asyncio.sleep(self._delay + len(data) / self._rate)
                sink.write(data)
                await sink.drain()
        if pair in self._pairs:
            self._break([pair])


class Cuttable(Protocol):
    def cut(self) -> None: ...
    def heal(self) -> None: ...


class InProcessLink:
    """Of a broker in this process, which knows of no network but can be cut off."""

    def __init__(self, transport: Cuttable) -> None:
        self._transport = transport

    def cut(self) -> None:
        self._transport.cut()

    def silence(self, *, to_broker: bool = True, from_broker: bool = True) -> None:
        raise Unavailable("the broker is in this process: there is no network to go silent")

    def slow(self, delay: float, bytes_per_second: float) -> None:
        raise Unavailable("the broker is in this process: there is no network to slow down")

    def heal(self) -> None:
        self._transport.heal()

    async def close(self) -> None:
        self._transport.heal()
