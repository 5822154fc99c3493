"""Locks: a lock is an exclusive queue, which no other connection may declare. It ends with its holder's connection at
once, and, as it has an `x-expires`, when its holder has not declared it again for the length of the lease.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from aiormq.abc import AbstractChannel, AbstractConnection
from aiormq.exceptions import ChannelLockedResource
from thalweg.clock import boot_clock
from thalweg.errors import BrokerError
from thalweg.finishing import finish
from thalweg.lease import Lease

from .connection import Refused
from .keeper import Keeper
from .names import Names

__all__ = ["Lock", "Locks"]


class Lock(Lease):
    """As `Held` of the contract. expires: boot clock, never later than on the server."""

    def __init__(self, locks: Locks, queue: str, seconds: float, expires: float) -> None:
        self.queue = queue
        self.seconds = seconds
        self.number = 0
        self._locks = locks
        super().__init__(expires)

    async def release(self) -> None:
        await self._locks.release(self)

    def end(self) -> None:
        self.expires = 0.0  # for the keeper, too
        super().end()


class Locks:
    """Methods that begin with `_keep` run in the keeper's thread."""

    def __init__(self, keeper: Keeper, names: Names, number: Callable[[], Awaitable[int]]) -> None:
        self._keeper = keeper
        self._names = names
        self._next_number = number
        self._held: dict[str, Lock] = {}
        self._channel: AbstractChannel | None = None
        self._watched: AbstractConnection | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._background: set[asyncio.Task[Any]] = set()

    async def try_lock(self, name: str, lease: float) -> Lock | None:
        return await finish(self._take(name, lease), self._background, undo=self._undo)

    async def release(self, lock: Lock) -> None:
        """Done even if the caller is cancelled."""
        if not lock.lost.is_set():
            lock.end()
            await finish(self._keeper.run(self._keep_released(lock)), self._background)

    async def close(self) -> None:
        if self._background:
            await asyncio.wait(self._background)
        await asyncio.gather(*(self._quietly_release(lock) for lock in list(self._held.values())))

    async def _take(self, name: str, seconds: float) -> Lock | None:
        lock = Lock(self, self._names.own("lock", name), seconds, 0.0)
        if not await self._keeper.run(self._keep_taken(lock)):
            return None
        lock.watch()
        try:
            lock.number = await self._next_number()
        except BaseException:
            await self._quietly_release(lock)
            raise
        return lock

    async def _undo(self, lock: Lock | None) -> None:
        if lock is not None:
            await self._quietly_release(lock)

    async def _quietly_release(self, lock: Lock) -> None:
        with contextlib.suppress(BrokerError):  # then it runs out
            await self.release(lock)

    # --- in the keeper's thread ------------------------------------------------------------------------------

    async def _keep_taken(self, lock: Lock) -> bool:
        other = self._held.get(lock.queue)
        if other is not None and other.expires > boot_clock():
            return False  # for the server, this connection may declare it twice
        self._held[lock.queue] = lock
        try:
            await self._keep_watching()
            channel = await self._keeper.connection.channel()
            taken = await self._keep_declared(lock, channel)
        except BaseException:
            self._forget(lock)
            raise
        if not taken:
            self._forget(lock)
            return False
        with contextlib.suppress(Exception):
            await channel.close()
        if self._renewing is None or self._renewing.done():
            self._renewing = asyncio.get_running_loop().create_task(self._keep_renewing())
        self._changed.set()
        return True

    async def _keep_declared(self, lock: Lock, channel: AbstractChannel) -> bool:
        """Take it, or renew it. False: it is another's."""
        arguments: dict[str, Any] = {"x-expires": max(1, round(lock.seconds * 1000))}
        asked = boot_clock()
        try:
            await self._keeper.connection.ask(
                channel.queue_declare(lock.queue, exclusive=True, arguments=arguments), "locking: "
            )
        except Refused as refused:
            if isinstance(refused.reason, ChannelLockedResource):
                return False
            raise
        lock.expires = asked + lock.seconds
        return True

    async def _keep_released(self, lock: Lock) -> None:
        self._forget(lock)
        connection = self._keeper.connection
        if connection.alive:
            channel = await connection.channel()
            with contextlib.suppress(Refused):
                await connection.ask(channel.queue_delete(lock.queue))
            with contextlib.suppress(Exception):
                await channel.close()

    async def _keep_renewing(self) -> None:
        while self._held:
            self._changed.clear()
            pause = min(lock.seconds for lock in self._held.values()) / 3
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._changed.wait()
                continue
            if self._keeper.main_is_stuck:
                continue
            with contextlib.suppress(BrokerError):  # what cannot be renewed ends in time, and its holder knows
                await self._keep_renewed()

    async def _keep_renewed(self) -> None:
        for lock in list(self._held.values()):
            if lock.expires <= boot_clock():
                self._forget(lock)
                continue
            if self._channel is None or self._channel.is_closed:
                await self._keep_watching()
                self._channel = await self._keeper.connection.channel()
            if not await self._keep_declared(lock, self._channel):
                self._keep_ended(lock)

    async def _keep_watching(self) -> None:
        """When the connection is gone, the server has freed everything, and whoever holds something must know."""
        link = await self._keeper.connection.link()
        if link is not self._watched:
            self._watched = link

            def lost(_: object) -> None:
                for lock in list(self._held.values()):
                    self._keep_ended(lock)

            link.closing.add_done_callback(lost)

    def _keep_ended(self, lock: Lock) -> None:
        self._forget(lock)
        lock.expires = 0.0
        self._keeper.tell_main(lock.end)

    def _forget(self, lock: Lock) -> None:
        if self._held.get(lock.queue) is lock:
            del self._held[lock.queue]
