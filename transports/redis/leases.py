"""What a living process holds and keeps by renewing it: locks, its place in a peer group, its place as a consumer.

A thread with a loop and a connection of its own renews, so that a busy event loop loses nothing. A process that is
stopped does: its leases run out on the server, and by the boot clock here. So does one whose event loop is stuck for
more than a minute: it would hold for ever what it does not use.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeVar

from thalweg.clock import boot_clock
from thalweg.errors import BrokerError
from thalweg.finishing import finish
from thalweg.lease import Lease as TimedLease

from . import scripts
from .connection import Connection, Endpoint
from .waker import Waker
from .wire import pack

__all__ = ["Keeper", "Lease", "Leases"]

T = TypeVar("T")

_STUCK = 60.0  # seconds without a sign of life from the event loop


class Lease(TimedLease):
    """A lock, or a place in a set, as `Held` by the contract. `expires`: boot clock, never later than on the server."""

    def __init__(
        self, leases: Leases, key: bytes, token: bytes, seconds: float, expires: float, number: int, bell: bytes | None
    ) -> None:
        self.key = key
        self.token = token
        self.bell = bell
        self.seconds = seconds
        self.number = number
        self._leases = leases
        super().__init__(expires)
        self.watch()

    async def release(self) -> None:
        await self._leases.release(self)

    def _ended(self) -> None:
        self._leases.forget(self)


class Keeper:
    """The thread. It renews every third of the shortest lease."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._held: dict[Lease, None] = {}
        self._watched = asyncio.get_running_loop()
        self._beat = boot_clock()
        self._stop, self._changed = asyncio.Event(), asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="redis keeper", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Whoever holds something must have released it before, or it runs out."""
        self._call(self._stop.set)
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join)

    def keep(self, lease: Lease) -> None:
        def keep() -> None:
            self._held[lease] = None
            self._changed.set()

        self._call(keep)

    def drop(self, lease: Lease) -> None:
        self._call(lambda: self._held.pop(lease, None))

    def _call(self, function: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the thread has ended
            self._loop.call_soon_threadsafe(function)

    # --- in the thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._renew_until_stopped())
        finally:
            self._loop.close()

    async def _renew_until_stopped(self) -> None:
        connection = Connection(self._endpoint)
        stopped = self._loop.create_task(self._stop.wait())
        try:
            while not stopped.done():
                self._changed.clear()
                pause = min((lease.seconds / 3 for lease in self._held), default=None)
                changed = self._loop.create_task(self._changed.wait())
                await asyncio.wait([stopped, changed], timeout=pause, return_when=asyncio.FIRST_COMPLETED)
                if changed.done() and not stopped.done():
                    continue
                changed.cancel()
                renewing = self._loop.create_task(self._renew(connection))
                await asyncio.wait([stopped, renewing], return_when=asyncio.FIRST_COMPLETED)
                renewing.cancel()
                await asyncio.wait([renewing])
        finally:
            stopped.cancel()
            await connection.close()

    async def _renew(self, connection: Connection) -> None:
        with contextlib.suppress(RuntimeError):
            self._watched.call_soon_threadsafe(self._alive)
        leases = list(self._held)
        if boot_clock() - self._beat > _STUCK + max((lease.seconds for lease in leases), default=0.0):
            return
        arguments = [part for lease in leases for part in (lease.token, round(lease.seconds * 1000))]
        asked = boot_clock()
        shortest = min((lease.seconds for lease in leases), default=1.0)
        try:
            async with asyncio.timeout(shortest):
                kept = await connection.run(scripts.RENEW, [lease.key for lease in leases], *arguments)
        except (BrokerError, TimeoutError):
            return  # what cannot be renewed ends in time, and its holder knows
        for lease, good in zip(leases, kept, strict=True):
            if good:
                lease.expires = max(lease.expires, asked + lease.seconds)
            else:
                self._held.pop(lease, None)
                lease.end_soon()

    def _alive(self) -> None:
        self._beat = boot_clock()


class Leases:
    """All leases of one transport."""

    def __init__(self, connection: Connection, waker: Waker, names: Callable[[str, str], bytes]) -> None:
        self.keeper = Keeper(connection.endpoint)
        self._connection = connection
        self._waker = waker
        self._names = names
        self._held: dict[Lease, None] = {}
        self._background: set[asyncio.Task[Any]] = set()

    async def try_lock(self, name: str, seconds: float) -> Lease | None:
        return await finish(self._try_lock(name, seconds), self._background, self._let_go)

    async def _try_lock(self, name: str, seconds: float) -> Lease | None:
        key, token, asked = self._names("lock", name), secrets.token_hex(16).encode(), boot_clock()
        number = await self._connection.write(
            scripts.LOCK, [key, self._names("lock-number", name)], token, _milliseconds(seconds)
        )
        return self.hold(key, token, seconds, asked, number) if number else None

    async def peers(self, group: str, me: str, seconds: float) -> AsyncGenerator[frozenset[str], None]:
        key, bell = self._names("members", group), self._names("members-bell", group)
        token = f"{me}\0{secrets.token_hex(8)}".encode()
        place = await finish(self._enter(key, bell, token, seconds), self._background, self._let_go)
        seen: frozenset[str] | None = None
        try:
            while True:
                if place is None or place.lost.is_set():
                    place = await finish(self._enter(key, bell, token, seconds), self._background, self._let_go)
                rung, next_end, *members = await self._connection.run(scripts.MEMBERS, [key, bell])
                present = frozenset(member.partition(b"\0")[0].decode() for member in members)
                if present != seen:
                    seen = present
                    yield present
                else:
                    pause = min(0.5, seconds / 4) if next_end < 0 else min(0.5, seconds / 4, next_end / 1000 + 0.002)
                    await self._waker.watch({bell: pack(rung)}).wait(pause)
        finally:
            if place is not None:
                await self._let_go(place)

    async def _enter(self, key: bytes, bell: bytes, token: bytes, seconds: float) -> Lease | None:
        asked = boot_clock()
        await self._connection.write(scripts.ENTER, [key, bell], token, _milliseconds(seconds))
        return self.hold(key, token, seconds, asked, bell=bell)

    def hold(
        self, key: bytes, token: bytes, seconds: float, since: float, number: int = 0, bell: bytes | None = None
    ) -> Lease:
        """Renew from now on what was taken at `since` (boot clock)."""
        lease = Lease(self, key, token, seconds, since + seconds, number, bell)
        if not lease.lost.is_set():
            self._held[lease] = None
            self.keeper.keep(lease)
        return lease

    async def release(self, lease: Lease) -> None:
        """Give it back; done even if the caller is cancelled."""
        if lease in self._held:
            lease.end()
            await finish(self._give_back(lease), self._background)

    def forget(self, lease: Lease) -> None:
        """It is lost: stop renewing it."""
        self._held.pop(lease, None)
        self.keeper.drop(lease)

    async def close(self) -> None:
        await asyncio.gather(*(self._let_go(lease) for lease in list(self._held)))  # what cannot be released runs out
        if self._background:
            await asyncio.wait(self._background)
        await self.keeper.close()

    def end_all(self) -> None:
        for lease in list(self._held):
            lease.end()

    async def _give_back(self, lease: Lease) -> None:
        if lease.bell is None:
            await self._connection.write(scripts.UNLOCK, [lease.key], lease.token)
        else:
            await self._connection.write(scripts.LEAVE, [lease.key, lease.bell], lease.token)

    async def _let_go(self, lease: Lease | None) -> None:
        if lease is not None:
            with contextlib.suppress(BrokerError):
                await self.release(lease)


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))
