"""The other process: a nursery that has imported the driver and forks a puppet whenever it is asked for one."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import socket
import struct
import sys
import time
from typing import Any

from thalweg.message import Delivery
from thalweg.registry import load_transport

from .wire import dump, error_to, load, read_frame

__all__ = ["main"]

PID = struct.Struct(">q")

STAGE = -1
"""The number by which a test plays with the process itself."""


def main() -> None:
    """`python -c … FD URL`: serves requests on the socket until the other side closes it."""
    control, url = socket.socket(fileno=int(sys.argv[1])), sys.argv[2]
    load_transport(url)  # imports the driver, once for all puppets
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the dead need no burial
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control.sendall(PID.pack(os.getpid()))
    while True:
        asked, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not asked:
            return
        pid = os.fork()
        if pid == 0:
            control.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            asyncio.run(_Stage(url).serve(socket.socket(fileno=descriptors[0])))
            os._exit(0)
        os.close(descriptors[0])
        control.sendall(PID.pack(pid))


class _Stage:
    """Holds the objects that the test plays with: 0 is the transport."""

    def __init__(self, url: str) -> None:
        self._objects: dict[int, object] = {0: load_transport(url), STAGE: self}
        self._numbers: dict[int, int] = {}
        self._running: dict[int, asyncio.Task[None]] = {}

    async def serve(self, connection: socket.socket) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=connection)
        while (frame := await read_frame(reader)) is not None:
            call, number, method, args = load(frame, lambda number, _: self._objects[number])
            if method == "":  # the test has given up waiting
                if running := self._running.get(call):
                    running.cancel()
            else:
                self._running[call] = asyncio.create_task(self._perform(writer, call, number, method, args))
        os._exit(0)  # the test is over: no farewell

    async def _perform(
        self, writer: asyncio.StreamWriter, call: int, number: int, method: str, args: tuple[Any, ...]
    ) -> None:
        try:
            result = getattr(self._objects[number], method)
            result = result(*args) if callable(result) else result
            result = await result if inspect.isawaitable(result) else result
            answer = dump((call, True, result), self._keep)
        except BaseException as error:  # whatever it is, the test is to see it, cancellation included
            answer = dump((call, False, error_to(error)), lambda _: None)
        del self._running[call]
        writer.write(answer)

    def block(self, seconds: float, computing: bool) -> None:
        """Keep the event loop from turning, as a program does that sleeps, or computes, in a coroutine."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if computing:
                sum(range(10_000))
            else:
                time.sleep(left)

    def _keep(self, value: object) -> tuple[int, dict[str, Any]] | None:
        """A number for what is alive: deliveries, and objects of classes that only the driver knows."""
        if isinstance(value, Delivery):
            return self._number(value), {}
        if inspect.isasyncgen(value) or any(hasattr(value, name) for name in ("commit", "read", "release")):
            return self._number(value), {}
        if hasattr(value, "topic") and hasattr(value, "partition") and hasattr(value, "position"):
            facts = {"topic": value.topic, "partition": value.partition, "position": value.position}
            return self._number(value), facts
        if isinstance(value, asyncio.Event):
            return self._number(value), {}
        return None

    def _number(self, value: object) -> int:
        if id(value) not in self._numbers:
            number = self._numbers[id(value)] = len(self._numbers) + 1
            self._objects[number] = value
        return self._numbers[id(value)]
