"""Which tasks this worker runs where the broker's groups share them out (`Grouped`): one membership a task group.

What leaves this worker's set is given up before the next set is asked for, so that no two owners duel; what stays
does not stop. As with locks, this is for liveness: safety is the journal's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from typing import Any

from thalweg.capabilities import Grouped, Part, Role
from thalweg.errors import BrokerError, Superseded

from .holding import Holding, StandBy, together
from .ownership import RETRY
from .presence import Presence
from .roster import Size
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
        sizes: Mapping[str, Size],
        settings: Settings,
        open_task: Callable[[TaskKey], Awaitable[None]],
        close_task: Callable[[TaskKey, bool], Coroutine[Any, Any, None]],
        stand_by: StandBy,
        presence: Presence | None,
    ) -> None:
        self._transport, self._app_id, self._me, self._settings = transport, app_id, me, settings
        self._sizes, self._stand_by = sizes, stand_by
        self._holding = Holding(open_task, close_task, presence, self._stand_by_as_planned)
        self._parts = dict.fromkeys(sizes, Part(frozenset()))  # the last known of each group, while out of it too
        self._sets: dict[str, AsyncGenerator[frozenset[int], None]] = {}
        self._next: dict[str, asyncio.Task[frozenset[int]]] = {}
        self._group: asyncio.TaskGroup
        self._unsettled = {group for group, (n, _) in sizes.items() if n}
        self.settled = asyncio.Event()
        """Set when every task that is this worker's, as first agreed in each group, has been opened once."""

    async def run(self) -> None:
        """Raises Superseded."""
        async with together() as self._group:
            for group, (n, standbys) in self._sizes.items():
                if n:
                    self._group.create_task(self._follow(group, n, standbys))

    async def _follow(self, group: str, n: int, standbys: int) -> None:
        settings = self._settings
        role = Role(settings.worker_id, settings.zone, settings.assignor, standbys)
        while True:
            try:
                self._sets[group] = self._transport.tasks(self._name(group), n, self._me, settings.lease, role)
                while True:
                    await self._become(group, await self._next_set(group))
            except Superseded:
                await self._lose(group)
                raise
            except BrokerError as error:
                log.warning("group %s: membership lost, joining again in %.1f s: %s", group, RETRY, error)
            await self._lose(group)
            if group in self._sets:
                await self._sets[group].aclose()
            await self._settings.clock.sleep(RETRY)

    async def _next_set(self, group: str) -> frozenset[int]:
        """Not cancelled with us, for that would leave the group, and nothing has been given up yet."""
        waiting = asyncio.get_running_loop().create_task(_next_of(self._sets[group]), name=f"group {group}")
        self._next[group] = waiting
        return await asyncio.shield(waiting)

    async def _become(self, group: str, owned: frozenset[int]) -> None:
        await asyncio.gather(*(self._holding.give_up(key) for key in self._held_of(group) if key[1] not in owned))
        for key in ((group, index) for index in sorted(owned)):
            if key not in self._holding:
                self._group.create_task(self._holding.take(key))
        self._group.create_task(self._settle(group, owned))
        self._stand_by_as_planned()

    async def _settle(self, group: str, owned: frozenset[int]) -> None:
        part = self._transport.part(self._name(group), self._me)
        if group in self._unsettled and part is not None and part.owned <= owned:
            opening = [self._holding.opening[key] for key in self._held_of(group)]
            if opening:
                await asyncio.wait(opening)
            self._unsettled.discard(group)
            if not self._unsettled:
                self.settled.set()

    def _stand_by_as_planned(self) -> None:
        keys: list[TaskKey] = []
        coming: list[TaskKey] = []
        for group in self._sizes:
            part = self._parts[group] = self._transport.part(self._name(group), self._me) or self._parts[group]
            keys.extend((group, index) for index in part.standbys)
            coming.extend((group, index) for index in part.owned)
        self._stand_by(keys, coming)

    async def _lose(self, group: str) -> None:
        for key in self._held_of(group):
            log.warning("task %s/%d: another worker may have it", *key)
        await asyncio.gather(*(self._holding.give_up(key, in_good_order=False) for key in self._held_of(group)))

    def _held_of(self, group: str) -> list[TaskKey]:
        return [key for key in self._holding.opening if key[0] == group]

    def _name(self, group: str) -> str:
        return f"{self._app_id}-{group}"

    def holds(self, key: TaskKey) -> bool:
        """Whether the task is certainly this worker's, by this machine's own clock (design rule 9)."""
        return key in self._holding and self._transport.holds(self._name(key[0]), self._me)

    async def resign(self) -> None:
        """The group's leader plans for as long as it is a member."""

    async def leave(self) -> None:
        """Give up everything, in good order, all tasks at once, and only then leave the groups."""
        await asyncio.gather(*map(self._holding.give_up, list(self._holding.opening)), self._holding.close())
        await self.abandon()

    async def abandon(self) -> None:
        """Hold nothing any more, and leave the groups."""
        left = list(self._next.values())
        for one in left:
            one.cancel()
        await asyncio.gather(*left, self._holding.abandon(), return_exceptions=True)
        await asyncio.gather(*(sets.aclose() for sets in self._sets.values()), return_exceptions=True)


async def _next_of(sets: AsyncGenerator[frozenset[int], None]) -> frozenset[int]:
    return await anext(sets)
