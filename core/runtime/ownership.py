"""Which tasks this worker runs: an even share among the live workers, each task under its lock.

The lock is for liveness, so that owners do not duel (design rule 7); safety is the journal's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Coroutine, Sequence
from contextlib import aclosing
from typing import Any

from thalweg.capabilities import Held, Locks, Peers
from thalweg.errors import BrokerError

from .complaints import Complaints
from .presence import Presence
from .settings import Settings
from .task import TaskKey

__all__ = ["RETRY", "Closings", "Ownership", "share"]

log = logging.getLogger("thalweg")

RETRY = 0.5
"""Seconds until a lock that another worker still holds is tried again."""
LONGEST_BACKOFF = 5.0
"""Seconds, at most, until a broker that does not answer is tried again."""


def share(tasks: Sequence[TaskKey], members: Collection[str], me: str) -> list[TaskKey]:
    """The tasks of one member: every n-th, in order."""
    ranked = sorted(members)
    return [task for number, task in enumerate(tasks) if ranked[number % len(ranked)] == me] if me in members else []


class Closings:
    """Whoever waits may be cancelled; a task that is half closed must not be left so."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    async def to_its_end(self, closing: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(closing, name="thalweg closing")
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        await asyncio.shield(task)

    async def wait(self) -> None:
        await asyncio.gather(*self._running)

    async def cancel(self) -> None:
        running = list(self._running)
        for one in running:
            one.cancel()
        await asyncio.gather(*running, return_exceptions=True)


class Ownership:
    """Opens and closes tasks as members come and go and locks are had and lost."""

    def __init__(
        self,
        transport: object,
        app_id: str,
        me: str,
        tasks: Sequence[TaskKey],
        settings: Settings,
        open_task: Callable[[TaskKey], Awaitable[None]],
        close_task: Callable[[TaskKey, bool], Coroutine[Any, Any, None]],
        presence: Presence | None,
    ) -> None:
        self._presence = presence
        self._transport, self._app_id, self._me = transport, app_id, me
        self._tasks, self._settings, self._complaints = tasks, settings, Complaints(settings.clock)
        self._open, self._close = open_task, close_task
        self._held: dict[TaskKey, Held | None] = {}
        self._watchers: set[asyncio.Task[None]] = set()
        self._closings = Closings()
        self._wanted: frozenset[TaskKey] = frozenset()
        self._changed = asyncio.Event()
        self.settled = asyncio.Event()
        """Set when every task that is this worker's share has been opened once."""

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_members())
            group.create_task(self._reconcile())

    async def _follow_members(self) -> None:
        if not (isinstance(self._transport, Peers) and isinstance(self._transport, Locks)):
            self._want(self._tasks)
            return
        backoff = RETRY
        while True:
            try:
                async with aclosing(self._members(self._transport)) as members:
                    async for live in members:
                        self._want(share(self._tasks, live, self._me))
                        backoff = RETRY
            except BrokerError as error:
                self._complaints.warn("membership", "membership lost, joining again in %.1f s: %s", backoff, error)
            await self._settings.clock.sleep(backoff)
            backoff = min(2 * backoff, LONGEST_BACKOFF)

    def _members(self, peers: Peers) -> AsyncGenerator[frozenset[str], None]:
        return peers.peers(f"{self._app_id}-workers", self._me, self._settings.lease)

    def _want(self, tasks: Sequence[TaskKey]) -> None:
        self._wanted = frozenset(tasks)
        self._changed.set()

    async def _reconcile(self) -> None:
        backoff = RETRY
        while True:
            await self._changed.wait()
            self._changed.clear()
            for key in [key for key in self._held if key not in self._wanted]:
                await self._give_up(key)
            missing = [key for key in self._tasks if key in self._wanted and key not in self._held]
            reached = await asyncio.gather(*(self._take(key) for key in missing))
            backoff = RETRY if all(reached) else min(2 * backoff, LONGEST_BACKOFF)
            if all(key in self._held for key in self._wanted):
                self.settled.set()
            else:
                self._settings.clock.call_later(backoff, self._changed.set)

    async def _take(self, key: TaskKey) -> bool:
        """Open the task if its lock can be had. Returns whether the broker answered."""
        held = None
        if isinstance(self._transport, Locks):
            try:
                held = await self._transport.try_lock(f"{self._app_id}-task-{key[0]}-{key[1]}", self._settings.lease)
            except BrokerError as error:
                self._complaints.warn("lock", "task %s/%d: its lock cannot be had: %s", *key, error)
                return False
            if held is None:
                log.debug("task %s/%d: another worker still holds its lock", *key)
                return True
        self._held[key] = held
        if self._presence is not None:
            self._presence.opened(key)
        await self._open(key)
        if held is not None:
            watcher = asyncio.get_running_loop().create_task(self._watch(key, held), name=f"lock {key[0]}/{key[1]}")
            self._watchers.add(watcher)
            watcher.add_done_callback(self._watchers.discard)
        return True

    async def _watch(self, key: TaskKey, held: Held) -> None:
        await held.lost.wait()
        if self._held.get(key) is held:
            log.warning("task %s/%d: its lock is lost; another worker may have it", *key)
            del self._held[key]
            await self._closings.to_its_end(self._close(key, False))
            if self._presence is not None and key not in self._held:
                self._presence.closed(key)
            self._changed.set()

    async def _give_up(self, key: TaskKey) -> None:
        await self._closings.to_its_end(self._hand_over(key, self._held.pop(key)))

    async def _hand_over(self, key: TaskKey, held: Held | None) -> None:
        await self._close(key, True)
        if held is not None:
            try:
                await held.release()
            except BrokerError as error:
                log.warning("task %s/%d: its lock was not released and ends with its lease: %s", *key, error)
        if self._presence is not None:
            self._presence.closed(key)

    def holds(self, key: TaskKey) -> bool:
        """Whether the task's lock is held now, by this machine's own clock (design rule 9)."""
        if key not in self._held:
            return False
        held = self._held[key]
        return held is None or not held.lost.is_set()

    async def leave(self) -> None:
        """Give up everything, in good order, all tasks at once."""
        await asyncio.gather(*(self._give_up(key) for key in list(self._held)), self._closings.wait())
        await self.abandon()

    async def abandon(self) -> None:
        """Hold nothing any more, and tell nobody: locks end with their leases."""
        self._held.clear()
        watchers = list(self._watchers)
        for watcher in watchers:
            watcher.cancel()
        await asyncio.gather(*watchers, self._closings.cancel(), return_exceptions=True)
