"""Which tasks this worker runs where the broker's groups share them out (`Grouped`): one membership a task group.

What leaves this worker's set is given up before the next set is asked for, so that no two owners duel; what stays
does not stop. As with locks, this is for liveness: safety is the journal's.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any

from thalweg.assignment import load_assignor
from thalweg.capabilities import Grouped, Role
from thalweg.errors import BrokerError, Superseded

from .ownership import RETRY, Closings
from .presence import Presence
from .settings import Settings
from .task import TaskKey

__all__ = ["Membership"]

log = logging.getLogger("thalweg")


class Membership:
    """Does what `Ownership` does, by groups instead of locks and peers."""

    def __init__(
        self,
        transport: Grouped,
        app_id: str,
        me: str,
        tasks: Sequence[TaskKey],
        settings: Settings,
        open_task: Callable[[TaskKey], Awaitable[None]],
        close_task: Callable[[TaskKey, bool], Coroutine[Any, Any, None]],
        presence: Presence | None,
    ) -> None:
        self._presence = presence
        self._transport, self._app_id, self._me, self._settings = transport, app_id, me, settings
        self._open, self._close = open_task, close_task
        self._sizes = Counter(group for group, _ in tasks)
        self._sets: dict[str, AsyncGenerator[frozenset[int], None]] = {}
        self._next: dict[str, asyncio.Task[frozenset[int]]] = {}
        self._held: dict[TaskKey, asyncio.Task[None]] = {}  # with what opens it
        self._closings = Closings()
        self._unsettled = set(self._sizes)
        self._standbys: Mapping[str, int] = {}
        self._stand_by: Callable[[Collection[TaskKey]], None] | None = None
        self.settled = asyncio.Event()
        """Set when every task that this worker owns at first has been opened once."""

    def keep_standbys(self, counts: Mapping[str, int], stand_by: Callable[[Collection[TaskKey]], None]) -> None:
        """Each task of a group is to have so many standbys; those of this worker are told to `stand_by`."""
        self._standbys, self._stand_by = counts, stand_by

    async def run(self) -> None:
        """Raises Superseded."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for group, n in self._sizes.items():
                    tasks.create_task(self._follow(group, n, tasks))
        except ExceptionGroup as failed:
            superseded = failed.subgroup(Superseded)
            raise failed if superseded is None else superseded.exceptions[0] from None

    async def _follow(self, group: str, n: int, tasks: asyncio.TaskGroup) -> None:
        settings = self._settings
        assignor = load_assignor(settings.assignor)
        role = Role(settings.worker_id, settings.zone, assignor, self._standbys.get(group, 0))
        while True:
            try:
                self._sets[group] = self._transport.tasks(self._name(group), n, self._me, settings.lease, role)
                while True:
                    await self._become(group, await self._next_set(group), tasks)
            except Superseded:
                await asyncio.gather(*(self._lose(key) for key in self._held_of(group)))
                raise
            except BrokerError as error:
                log.warning("group %s: membership lost, joining again in %.1f s: %s", group, RETRY, error)
            await asyncio.gather(*(self._lose(key) for key in self._held_of(group)))
            if group in self._sets:
                await self._sets[group].aclose()
            await self._settings.clock.sleep(RETRY)

    async def _next_set(self, group: str) -> frozenset[int]:
        """Not cancelled with us, for that would leave the group, and nothing has been given up yet."""
        waiting = asyncio.get_running_loop().create_task(_next_of(self._sets[group]), name=f"group {group}")
        self._next[group] = waiting
        return await asyncio.shield(waiting)

    async def _become(self, group: str, owned: frozenset[int], tasks: asyncio.TaskGroup) -> None:
        await asyncio.gather(*(self._give_up(key) for key in self._held_of(group) if key[1] not in owned))
        for key in ((group, index) for index in sorted(owned)):
            if key not in self._held:
                if self._presence is not None:
                    self._presence.opened(key)
                self._held[key] = tasks.create_task(self._take(key), name=f"opening {key[0]}/{key[1]}")
        self._tell_standbys()
        if group in self._unsettled:
            await asyncio.gather(*(self._held[key] for key in self._held_of(group)))
            self._unsettled.discard(group)
            if not self._unsettled:
                self.settled.set()

    def _tell_standbys(self) -> None:
        """What is being opened counts as stood by for, until its standby's store has been taken."""
        if self._stand_by is not None:
            groups = {group: self._transport.standbys_of(self._name(group), self._me) for group in self._sizes}
            opening = [key for key, task in self._held.items() if not task.done()]
            self._stand_by([*((group, task) for group, tasks in groups.items() for task in tasks), *opening])

    async def _take(self, key: TaskKey) -> None:
        await self._open(key)
        asyncio.get_running_loop().call_soon(self._taken, key)

    def _taken(self, key: TaskKey) -> None:
        if key in self._held:
            self._tell_standbys()

    async def _give_up(self, key: TaskKey) -> None:
        await self._closings.to_its_end(self._stop(key, self._held.pop(key), hand_over=True))

    async def _lose(self, key: TaskKey) -> None:
        log.warning("task %s/%d: another worker may have it", *key)
        await self._closings.to_its_end(self._stop(key, self._held.pop(key), hand_over=False))

    async def _stop(self, key: TaskKey, opening: asyncio.Task[None], hand_over: bool) -> None:
        opening.cancel()
        await asyncio.wait([opening])
        await self._close(key, hand_over)
        if self._presence is not None and key not in self._held:
            self._presence.closed(key)

    def _held_of(self, group: str) -> list[TaskKey]:
        return [key for key in self._held if key[0] == group]

    def _name(self, group: str) -> str:
        return f"{self._app_id}-{group}"

    def holds(self, key: TaskKey) -> bool:
        """Whether the task is certainly this worker's, by this machine's own clock (design rule 9)."""
        return key in self._held and self._transport.holds(self._name(key[0]), self._me)

    async def leave(self) -> None:
        """Give up everything, in good order, all tasks at once, and only then leave the groups."""
        await asyncio.gather(*(self._give_up(key) for key in list(self._held)), self._closings.wait())
        await self.abandon()

    async def abandon(self) -> None:
        """Hold nothing any more, and leave the groups."""
        left = [*self._held.values(), *self._next.values()]
        self._held.clear()
        for one in left:
            one.cancel()
        await asyncio.gather(*left, self._closings.cancel(), return_exceptions=True)
        await asyncio.gather(*(sets.aclose() for sets in self._sets.values()), return_exceptions=True)


async def _next_of(sets: AsyncGenerator[frozenset[int], None]) -> frozenset[int]:
    return await anext(sets)
