"""The tasks that a worker has: each is opened once it is had, and closed to its end, whoever is cancelled meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

from thalweg.errors import Superseded

from .presence import Presence
from .task import TaskKey

__all__ = ["Holding", "StandBy", "together"]

StandBy: TypeAlias = Callable[[Collection[TaskKey], Collection[TaskKey]], None]
"""(keys, coming): follow the journals of these tasks, and of no others. Where one that is about to run here is followed
already, it is kept until then, to be taken over."""


class Holding:
    """Others are told by `presence`, if there is one. changed: called when one is open, or closed to its end.

    opening: of each task that is had, what opens it. closing: of each that is had no more, what closes it.
    """

    def __init__(
        self,
        open_task: Callable[[TaskKey], Awaitable[None]],
        close_task: Callable[[TaskKey, bool], Coroutine[Any, Any, None]],
        presence: Presence | None,
        changed: Callable[[], object],
    ) -> None:
        self.opening: dict[TaskKey, asyncio.Task[None]] = {}
        self.closing: dict[TaskKey, asyncio.Task[None]] = {}
        self._open, self._close, self._presence, self._changed = open_task, close_task, presence, changed

    def __contains__(self, key: TaskKey) -> bool:
        return key in self.opening

    @property
    def unopened(self) -> frozenset[TaskKey]:
        return frozenset(key for key, opening in self.opening.items() if not opening.done())

    async def take(self, key: TaskKey) -> None:
        """Return when it has been opened, or given up before."""
        if self._presence is not None:
            self._presence.opened(key)
        opening = asyncio.get_running_loop().create_task(self._open_to_the_end(key), name=f"opening {key[0]}/{key[1]}")
        self.opening[key] = opening
        await asyncio.wait([opening])
        if not opening.cancelled():
            opening.result()
            self._changed()

    async def give_up(
        self, key: TaskKey, in_good_order: bool = True, release: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """Close it, and then release it."""
        if key in self.opening:
            closing = self._close_to_the_end(key, self.opening.pop(key), in_good_order, release)
            self.closing[key] = asyncio.get_running_loop().create_task(closing, name=f"closing {key[0]}/{key[1]}")
        if key in self.closing:
            await asyncio.shield(self.closing[key])

    async def close(self) -> None:
        """Wait until all that is being closed is."""
        await asyncio.gather(*map(asyncio.shield, self.closing.values()))

    async def abandon(self) -> None:
        """Have nothing any more, and close nothing."""
        left = [*self.opening.values(), *self.closing.values()]
        self.opening.clear()
        for one in left:
            one.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _open_to_the_end(self, key: TaskKey) -> None:
        await self._open(key)

    async def _close_to_the_end(
        self,
        key: TaskKey,
        opening: asyncio.Task[None],
        in_good_order: bool,
        release: Callable[[], Awaitable[None]] | None,
    ) -> None:
        try:
            opening.cancel()
            await asyncio.wait([opening])
            await self._close(key, in_good_order)
            if release is not None:
                await release()
        finally:
            del self.closing[key]
            if self._presence is not None:
                self._presence.closed(key)
            self._changed()


@asynccontextmanager
async def together() -> AsyncIterator[asyncio.TaskGroup]:
    """A group of which Superseded is raised by itself, if that is why it ends."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except ExceptionGroup as failed:
        superseded = failed.subgroup(Superseded)
        raise failed if superseded is None else superseded.exceptions[0] from None
