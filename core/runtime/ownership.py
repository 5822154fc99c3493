"""Which tasks this worker runs: those that the plan gives it, each under its lock.

It follows the roster: what the plan gives to others it gives up, all at once; what is its own it takes as soon as its
old owner has said that it is released, or its lock is free. What stays does not stop. Locks and plans are for
liveness, so that owners do not duel (design rule 7); safety is the journal's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from thalweg.capabilities import Held, Locks, Peers
from thalweg.channel import Transport
from thalweg.clock import Timer
from thalweg.errors import BrokerError, Superseded
from thalweg.message import Message

from .complaints import Complaints
from .coordinator import Coordinator
from .holding import Holding, StandBy, together
from .presence import Presence
from .roster import Plan, Roster, Size
from .settings import Settings
from .task import TaskKey

__all__ = ["RETRY", "Ownership"]

log = logging.getLogger("thalweg")

RETRY = 0.5
"""Seconds until a lock that another worker still holds is tried again, and a broker that did not answer, at first."""
PATIENCE = 2.0
"""Seconds until the lock of a task is tried again whose owner says that it still runs it."""
MISSED = 2.0
"""Seconds, at most, until it is seen that a worker is away whose place is kept."""
LONGEST_BACKOFF = 2.0
"""Seconds, at most, until a broker that does not answer is tried again."""


class Ownership:
    """Opens and closes tasks as the plan says and as locks are had and lost.

    Without a roster, locks or peers all tasks are this worker's.
    """

    def __init__(
        self,
        transport: Transport,
        app_id: str,
        me: str,
        sizes: Mapping[str, Size],
        settings: Settings,
        open_task: Callable[[TaskKey], Awaitable[None]],
        close_task: Callable[[TaskKey, bool], Coroutine[Any, Any, None]],
        stand_by: StandBy,
        presence: Presence | None,
        roster: Roster,
        send: Callable[[str, Mapping[int, Sequence[Message]]], Awaitable[None]],
    ) -> None:
        self._transport, self._app_id, self._me = transport, app_id, me
        self._settings, self._complaints = settings, Complaints(settings.clock)
        self._stand_by, self._presence, self._roster = stand_by, presence, roster
        self._tasks = [(group, index) for group, (n, _) in sizes.items() for index in range(n)]
        self._changed = asyncio.Event()
        self._holding = Holding(open_task, close_task, presence, self._changed.set)
        self._locks: dict[TaskKey, Held] = {}
        self._locking: set[TaskKey] = set()
        self._group: asyncio.TaskGroup
        self._refused: dict[TaskKey, tuple[str | None, Timer]] = {}
        # tasks whose lock could not be had: who said that it runs it, and what ends the pause until the next try
        self._backoff = RETRY
        self._away: Timer | None = None  # ends the pause after a broker that did not answer
        self._failed: TaskKey = ("", -1)  # for which it did not answer last; another is asked for next
        self._coordinator: Coordinator | None = None
        if presence is not None and isinstance(transport, Peers) and isinstance(transport, Locks):
            self._coordinator = Coordinator(transport, app_id, me, roster, settings, send)
        self._planning: asyncio.Task[None] | None = None
        self._plan: Plan | None = None
        self.settled = asyncio.Event()
        """Set when every task that is this worker's by the first plan that knows it has been opened once."""

    async def run(self) -> None:
        """Raises Superseded."""
        async with together() as self._group:
            self._group.create_task(self._reconcile())
            if self._coordinator is not None and isinstance(self._transport, Peers):
                self._group.create_task(self._follow_roster(self._coordinator))
                self._group.create_task(self._follow_members(self._coordinator, self._transport))

    # --- what is to be run -----------------------------------------------------------------------------------------

    async def _follow_members(self, coordinator: Coordinator, peers: Peers) -> None:
        await self._roster.start()
        backoff = RETRY
        try:
            while True:
                try:
                    async with aclosing(self._members(peers)) as members:
                        async for live in members:
                            coordinator.live, coordinator.sure = live, True
                            coordinator.look()
                            self._changed.set()
                            if self._planning is None:
                                self._planning = asyncio.get_running_loop().create_task(coordinator.run())
                            backoff = RETRY
                except BrokerError as error:
                    self._complaints.warn("membership", "membership lost, joining again in %.1f s: %s", backoff, error)
                coordinator.sure = False
                await self._settings.clock.sleep(backoff)
                backoff = min(2 * backoff, LONGEST_BACKOFF)
        finally:
            await self.resign()

    async def resign(self) -> None:
        """Plan no more. Who is about to leave does so first: others that see it gone shall find its lock free."""
        if self._planning is not None:
            self._planning.cancel()
            await asyncio.gather(self._planning, return_exceptions=True)

    def _members(self, peers: Peers) -> AsyncGenerator[frozenset[str], None]:
        """One with a worker id is missed soon: its place is kept for a lease from then."""
        settings = self._settings
        lease = settings.lease if settings.worker_id is None else min(settings.lease, MISSED)
        return peers.peers(f"{self._app_id}-workers", self._me, lease)

    async def _follow_roster(self, coordinator: Coordinator) -> None:
        await self._roster.start()
        assert self._presence is not None
        mine = self._presence.here
        before = [here.since for here in self._roster.workers.values() if here.name == mine.name and here.me != mine.me]
        self._presence.began_after(max(before, default=0))
        while True:
            self._refuse_two_of_a_name(coordinator.live)
            if self._roster.plan is not self._plan:
                self._plan = self._roster.plan
                self._stand_by_as_planned()
            coordinator.look()
            self._changed.set()
            await self._roster.change()

    def _refuse_two_of_a_name(self, live: Collection[str]) -> None:
        assert self._presence is not None
        mine = self._presence.here
        for here in self._roster.workers.values():
            newer = (here.since, here.me) > (mine.since, mine.me)
            if here.me != mine.me and here.name == mine.name and newer and here.me in live and not here.leaving:
                raise Superseded(
                    f"worker_id={mine.name!r}: a newer worker runs under this id (host {here.host!r}, process "
                    f"{here.pid}), so this one stops. Give each worker an id of its own"
                )

    def _stand_by_as_planned(self) -> None:
        assert self._presence is not None
        plan, name = self._plan, self._presence.here.name
        keys = [
            (group, index)
            for group, index in self._tasks
            if plan is not None and name in dict(enumerate(plan.standbys.get(group, ()))).get(index, ())
        ]
        self._stand_by(keys, (self._wanted() or set()) - self._holding.opening.keys())

    def _wanted(self) -> set[TaskKey] | None:
        """None: nobody has said yet."""
        if self._coordinator is None or self._presence is None:
            return set(self._tasks)
        plan, name = self._plan, self._presence.here.name
        if plan is None:
            return None
        return {
            (group, index)
            for group, owners in plan.owners.items()
            for index, owner in enumerate(owners)
            if owner == name
        } & set(self._tasks)

    # --- what is run -----------------------------------------------------------------------------------------------

    async def _reconcile(self) -> None:
        self._changed.set()
        try:
            while True:
                await self._changed.wait()
                self._changed.clear()
                wanted = self._wanted()
                if wanted is None:
                    continue
                had = self._holding.opening.keys()
                for key in sorted(had - wanted):
                    self._group.create_task(self._give_up(key))
                waiting = wanted - had - self._holding.closing.keys() - self._locking
                for key in sorted(waiting, key=lambda key: (key <= self._failed, key)):
                    if self._away is not None or (self._backoff > RETRY and self._locking):
                        break  # one task finds out for all whether the broker is back
                    if not self._is_paused(key):
                        self._locking.add(key)
                        self._group.create_task(self._take(key, self._backoff))
                if wanted <= had - self._holding.unopened and self._is_planned_for():
                    self.settled.set()
        finally:
            for timer in (self._away, *(timer for _, timer in self._refused.values())):
                if timer is not None:
                    timer.cancel()

    def _is_planned_for(self) -> bool:
        if self._coordinator is None or self._presence is None:
            return True
        return self._plan is not None and self._presence.here.name in self._plan.members

    def _is_paused(self, key: TaskKey) -> bool:
        """Whether its lock was refused a moment ago, and whoever said that it runs the task still says so."""
        if key not in self._refused:
            return False
        said, timer = self._refused[key]
        if said == self._runs(key):
            return True
        timer.cancel()
        del self._refused[key]
        return False

    def _runs(self, key: TaskKey) -> str | None:
        """Who says that it runs the task, other than this worker."""
        owner = None if self._coordinator is None else self._roster.owner(*key)
        return None if owner is None or owner.me == self._me else owner.me

    async def _take(self, key: TaskKey, backoff: float) -> None:
        """Open the task if its lock can be had. backoff: as it was; tasks that fail together double it once."""
        held, free, runs = None, True, self._runs(key)
        try:
            if isinstance(self._transport, Locks):
                held = await self._transport.try_lock(f"{self._app_id}-task-{key[0]}-{key[1]}", self._settings.lease)
                free = held is not None
            self._backoff = RETRY
        except BrokerError as error:
            self._complaints.warn("lock", "task %s/%d: its lock cannot be had: %s", *key, error)
            self._failed = key
            self._wait_for_broker(min(2 * backoff, LONGEST_BACKOFF))
            return
        finally:
            self._locking.discard(key)
        if not free:
            log.debug("task %s/%d: another worker still holds its lock", *key)
            self._pause(key, runs)
            return
        if held is not None:
            self._locks[key] = held
            self._group.create_task(self._watch(key, held))
        self._changed.set()
        await self._holding.take(key)

    def _pause(self, key: TaskKey, runs: str | None) -> None:
        """runs: who said before the lock was tried that it runs the task; if that has changed, there is no pause."""
        lives = self._coordinator is not None and runs in self._coordinator.live
        seconds = PATIENCE if lives else RETRY

        def over() -> None:
            del self._refused[key]
            self._changed.set()

        self._refused[key] = (runs, self._settings.clock.call_later(seconds, over))
        self._changed.set()

    def _wait_for_broker(self, seconds: float) -> None:
        self._backoff = max(self._backoff, seconds)

        def over() -> None:
            self._away = None
            self._changed.set()

        if self._away is None:
            self._away = self._settings.clock.call_later(self._backoff, over)

    async def _watch(self, key: TaskKey, held: Held) -> None:
        await held.lost.wait()
        if self._locks.get(key) is held:
            log.warning("task %s/%d: its lock is lost; another worker may have it", *key)
            del self._locks[key]
            await self._holding.give_up(key, in_good_order=False)

    async def _give_up(self, key: TaskKey) -> None:
        held = self._locks.pop(key, None)

        async def release() -> None:
            if held is not None:
                try:
                    await held.release()
                except BrokerError as error:
                    log.warning("task %s/%d: its lock was not released and ends with its lease: %s", *key, error)

        await self._holding.give_up(key, release=release)

    def holds(self, key: TaskKey) -> bool:
        """Whether the task's lock is held now, by this machine's own clock (design rule 9)."""
        if key not in self._holding:
            return False
        held = self._locks.get(key)
        return held is None or not held.lost.is_set()

    async def leave(self) -> None:
        """Give up everything, in good order, all tasks at once. `run` has ended."""
        await asyncio.gather(*(self._give_up(key) for key in list(self._holding.opening)), self._holding.close())

    async def abandon(self) -> None:
        """Hold nothing any more, and tell nobody: locks end with their leases."""
        self._locks.clear()
        await self._holding.abandon()
