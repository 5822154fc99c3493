"""Waiting for entries of many streams, for all readers of a transport, on one connection that blocks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

from thalweg.errors import BrokerError
from thalweg.message import Position

from .connection import Connection
from .wire import entry_id, pack

__all__ = ["BLOCK", "Waker", "Watch"]

BLOCK = 5.0
"""Seconds that the server holds one call back."""

_PAUSE = 0.2  # seconds after a failure


class Watch:
    """`await wait(seconds)` returns once one of the streams has an entry after the position given for it, or later."""

    def __init__(self, waker: Waker, after: Mapping[bytes, Position]) -> None:
        self.after = after
        self._waker = waker
        self._woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def wait(self, seconds: float | None) -> None:
        self._waker.watches[self] = None
        self._waker.look()
        try:
            await asyncio.wait([self._woken], timeout=seconds)
        finally:
            self._waker.watches.pop(self, None)

    def wake(self) -> None:
        self._waker.watches.pop(self, None)
        if not self._woken.done():
            self._woken.set_result(None)


class Waker:
    """Runs one XREAD BLOCK over all that is watched. Who watches more meanwhile ends it (CLIENT UNBLOCK)."""

    def __init__(self, main: Connection) -> None:
        self.watches: dict[Watch, None] = {}
        self._main = main
        self._blocking = Connection(main.endpoint, patience=BLOCK)
        self._block = BLOCK
        self._covered: Mapping[bytes, Position] | None = None  # what the call under way watches
        self._wanted = asyncio.Event()
        self._unblocking: asyncio.Task[None] | None = None
        self._task = asyncio.get_running_loop().create_task(self._run(), name="redis waker")

    def watch(self, after: Mapping[bytes, Position]) -> Watch:
        return Watch(self, after)

    def look(self) -> None:
        """Something may have come to be watched."""
        self._wanted.set()
        if self._covered is not None and self._unblocking is None and not self._covers(self._covered):
            self._unblocking = asyncio.get_running_loop().create_task(self._unblock(self._covered))

    def wake_all(self) -> None:
        for watch in list(self.watches):
            watch.wake()

    async def close(self) -> None:
        tasks = [task for task in (self._task, self._unblocking) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        self.wake_all()
        await self._blocking.close()

    async def _run(self) -> None:
        while True:
            if not self.watches:
                self._wanted.clear()
                await self._wanted.wait()
            wanted: dict[bytes, Position] = {}
            for watch in self.watches:
                for key, after in watch.after.items():
                    wanted[key] = min(after, wanted.get(key, after))
            if not wanted:
                self._wanted.clear()
                await self._wanted.wait()
                continue
            self._covered = wanted
            try:
                found = await self._blocking.call(
                    *(b"XREAD", b"COUNT", 1, b"BLOCK", int(self._block * 1000), b"STREAMS"),
                    *wanted,
                    *map(entry_id, wanted.values()),
                )
                self._covered = None
                self._wake((key, entries[0][0]) for key, entries in found or ())
            except BrokerError:
                self._covered = None
                self.wake_all()  # they will meet the error themselves
                await asyncio.sleep(_PAUSE)

    def _wake(self, found: Iterable[tuple[bytes, bytes]]) -> None:
        for key, entry in found:
            try:
                position = pack(entry)
            except BrokerError:
                position = 1 << 63  # a foreign id: whoever reads it says so
            for watch in list(self.watches):
                if watch.after.get(key, position) < position:
                    watch.wake()

    def _covers(self, covered: Mapping[bytes, Position]) -> bool:
        return all(
            key in covered and covered[key] <= after for watch in self.watches for key, after in watch.after.items()
        )

    async def _unblock(self, covered: Mapping[bytes, Position]) -> None:
        """The call may not have reached the server yet: once more, until it is over."""
        try:
            while self._covered is covered and not self._covers(covered):
                if self._blocking.number and await self._main.call(b"CLIENT", b"UNBLOCK", self._blocking.number):
                    break
                await asyncio.sleep(0.002)
        except BrokerError:
            self._block = 0.25  # not allowed: take up what is new at each turn
        finally:
            self._unblocking = None
