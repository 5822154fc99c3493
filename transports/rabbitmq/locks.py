"""Locks: exclusive queues, each with a number that is the offset of an entry in a stream."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from thalweg.errors import BrokerError
from thalweg.finishing import finish
from thalweg.keeper import Keeper

from .exclusive import ExclusiveQueue, ExclusiveQueues
from .names import Names

__all__ = ["Lock", "Locks"]


class Lock(ExclusiveQueue):
    """As `Held` of the contract."""

    def __init__(self, locks: Locks, queue: str, seconds: float) -> None:
        self.number = 0
        self._locks = locks
        super().__init__(queue, seconds)

    async def release(self) -> None:
        await self._locks.release(self)

    def _ended(self) -> None:
        self._locks.forget(self)


class Locks:
    def __init__(
        self,
        keeper: Keeper[ExclusiveQueue],
        queues: ExclusiveQueues,
        names: Names,
        number: Callable[[], Awaitable[int]],
    ) -> None:
        self._keeper = keeper
        self._queues = queues
        self._names = names
        self._next_number = number
        self._held: dict[Lock, None] = {}
        self._background: set[asyncio.Task[Any]] = set()

    async def try_lock(self, name: str, lease: float) -> Lock | None:
        return await finish(self._take(name, lease), self._background, self._let_go)

    async def release(self, lock: Lock) -> None:
        """Done even if the caller is cancelled."""
        if lock in self._held:
            lock.end()
            await finish(self._give_back(lock), self._background)

    def forget(self, lock: Lock) -> None:
        self._held.pop(lock, None)
        self._keeper.drop(lock)

    async def close(self) -> None:
        if self._background:
            await asyncio.wait(self._background)
        await asyncio.gather(*(self._let_go(lock) for lock in list(self._held)))

    async def _take(self, name: str, seconds: float) -> Lock | None:
        lock = Lock(self, self._names.own("lock", name), seconds)
        if not await self._keeper.aside.run(self._queues.take(lock)):
            return None
        self._held[lock] = None
        self._keeper.keep(lock)
        lock.watch()
        try:
            lock.number = await self._next_number()
        except BaseException:
            await self._let_go(lock)
            raise
        return lock

    async def _give_back(self, lock: Lock) -> None:
        await self._keeper.dropped(lock)
        await self._keeper.aside.run(self._queues.give_back(lock))

    async def _let_go(self, lock: Lock | None) -> None:
        if lock is not None:
            with contextlib.suppress(BrokerError):  # then it runs out
                await self.release(lock)
