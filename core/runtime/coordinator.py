"""Who plans: the worker that holds one lock. It says in the roster who is to run what, and all others follow.

Nothing breaks if two believe to be it: plans are numbered, those of an earlier coordinator count for nothing, and a
task is run under its own lock. Who is gone is planned away at once; who comes is waited for a little, so that many
workers that start together cause one move and not many.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

from thalweg.assignment import Assignment, Member, checked
from thalweg.capabilities import Held, Locks
from thalweg.clock import Clock, in_time
from thalweg.errors import BrokerError
from thalweg.message import Message

from .roster import BEAT, Here, Plan, Roster, Size, as_messages
from .settings import Settings

__all__ = ["Coordinator"]

QUIET = 1.0
"""Seconds without another newcomer until those who came are planned for; ten times that is the longest in all."""
RETRY = 0.25
"""Seconds until the lock is tried again while nobody plans, and a plan is said again that could not be written."""
LEAST, JUMP, LONGEST_BACKOFF = 0.001, 0.1, 2.0
CATCHING_UP = 5.0
"""Seconds, at most, for which a new coordinator reads what was planned before it."""


class Coordinator:
    """In each worker of an app; one of them holds the lock.

    live: the workers that the broker has as members now, by their `me`. sure: that they are so still. Whoever sets
    these calls `look` after.
    """

    def __init__(
        self,
        locks: Locks,
        app_id: str,
        me: str,
        roster: Roster,
        settings: Settings,
        send: Callable[[str, Mapping[int, Sequence[Message]]], Awaitable[None]],
    ) -> None:
        self.live: frozenset[str] = frozenset()
        self.sure = False
        self._locks, self._lock, self._me = locks, f"{app_id}-coordinator", me
        self._roster, self._settings, self._send = roster, settings, send
        self._clock, self._complaints = settings.clock, roster.complaints
        self._time = _Steady(settings.clock)
        self._quiet = min(QUIET, settings.lease / 10)
        self._news = asyncio.Event()
        self._known: dict[str, Here] = {}  # the last word of each live worker, should the roster have forgotten it
        self._kept: dict[str, tuple[Here, float]] = {}  # by name, who went away and is kept until then
        self._coming: frozenset[str] = frozenset()
        self._first_came = self._last_came = 0.0

    def look(self) -> None:
        """Something has changed: who is live, or what the roster says."""
        self._news.set()

    async def run(self) -> None:
        while True:
            held = await self._elected()
            try:
                await self._lead(held)
            except BrokerError as error:
                self._complaints.warn("roster", "the plan cannot be written: %s", error)
            finally:
                with contextlib.suppress(BrokerError):  # it ends with its lease
                    await held.release()
            await self._clock.sleep(RETRY)

    # --- becoming it -------------------------------------------------------------------------------------------

    async def _elected(self) -> Held:
        backoff = RETRY
        while True:
            try:
                held = await self._locks.try_lock(self._lock, self._settings.lease)
            except BrokerError as error:
                self._complaints.warn("roster", "the coordinator's lock cannot be had: %s", error)
                await self._clock.sleep(backoff)
                backoff = min(2 * backoff, LONGEST_BACKOFF)
                continue
            backoff = RETRY
            if held is not None:
                return held
            if self._vacant:
                await self._clock.sleep(RETRY)
            else:
                await self._until(self._time() + self._settings.lease / 2, lambda: self._vacant)

    @property
    def _vacant(self) -> bool:
        plan = self._roster.plan
        return plan is None or plan.me == self._me or plan.me not in self.live

    async def _until(self, due: float, holds: Callable[[], bool]) -> None:
        """Wait until the time, or until some news makes it so; for a time that is to come, a beat at most."""

        async def news() -> None:
            while not holds():
                self._news.clear()
                await self._news.wait()

        left = due - self._time()  # at least a little: sums of seconds are not exact, and a clock may not tell it
        await in_time(self._clock, None if due == math.inf else min(max(LEAST, left), BEAT), news())

    # --- being it ----------------------------------------------------------------------------------------------

    async def _lead(self, held: Held) -> None:
        """Until the lock is lost, or a plan of another counts for more."""
        self._coming = frozenset()
        if not await in_time(self._clock, CATCHING_UP, self._roster.catch_up()):
            return
        before = self._roster.plan
        number = held.number if before is None else max(held.number, before.number + 1)
        said, repeat = before, self._time()
        told: frozenset[str] = frozenset()
        watching = asyncio.get_running_loop().create_task(self._watch(held), name="thalweg coordinator's lock")
        try:
            while not held.lost.is_set() and not self._outdone(number):
                self._news.clear()
                now = self._time()
                members, ends = self._members(now)
                due = self._due(members, said, now)
                if due <= now and members and self.sure:
                    plan = self._plan(members, said, number)
                    if said is None or _what(plan) != _what(said):
                        said, repeat = plan, now
                    elif not self._known.keys() <= told:  # back under its worker_id: it has heard nothing yet
                        repeat = now
                if said is not None and now >= repeat:
                    if (said.me, said.number) != (self._me, number):  # a predecessor's, which holds: now in our name
                        said = Plan(self._me, number, 1, said.owners, said.standbys, said.members)
                    await self._send(self._roster.topic, {0: as_messages(said, self._clock, self._roster.limit)})
                    told, repeat = frozenset(self._known), self._time() + BEAT
                if self.live <= {self._me}:
                    repeat = math.inf  # nobody else follows it
                looks = [ends, *([] if said is None else [repeat]), *([due] if due > now else [])]
                await self._until(min(looks), self._news.is_set)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _watch(self, held: Held) -> None:
        await held.lost.wait()
        self._news.set()

    def _outdone(self, number: int) -> bool:
        plan = self._roster.plan
        return plan is not None and plan.me != self._me and plan.number >= number

    def _members(self, now: float) -> tuple[dict[str, Here], float]:
        """Who is to be given tasks, by name, and when that ends for the first of those who are away for a moment."""
        for me in self.live:
            if me in self._roster.workers:
                self._known[me] = self._roster.workers[me]
        away = [self._known.pop(me) for me in self._known.keys() - self.live]
        away.extend(here for here in self._known.values() if here.leaving)
        found = {here.name: here for here in self._known.values() if not here.leaving}
        planned = self._roster.plan
        for name in () if planned is None else planned.members:  # a predecessor may have kept some
            here = self._roster.named(name)
            if name not in self._kept and here is not None:
                away.append(here)
        end = now + self._settings.lease
        self._kept.update((here.name, (here, end)) for here in away if here.worker_id is not None)
        self._kept = {name: kept for name, kept in self._kept.items() if name not in found}
        ends = [end for _, end in self._kept.values() if end > now]
        found.update((name, here) for name, (here, end) in self._kept.items() if end > now)
        return found, min(ends, default=math.inf)

    def _due(self, members: Collection[str], said: Plan | None, now: float) -> float:
        """When to plan: at once where somebody is gone or nobody has anything; else when no more newcomers come."""
        planned = frozenset() if said is None else frozenset(said.members)
        coming = frozenset(members) - planned
        if coming != self._coming:
            self._first_came = now if not self._coming else self._first_came
            self._last_came, self._coming = now, coming
        if not planned & frozenset(members) or planned - frozenset(members) or not coming:
            return now
        return min(self._last_came + self._quiet, self._first_came + 10 * self._quiet)

    def _plan(self, members: Mapping[str, Here], said: Plan | None, number: int) -> Plan:
        """Each group among those whose program has it: while a new release is rolled out, not all have the same."""
        sizes: dict[str, Size] = {}
        for here in members.values():
            for group, (n, wanted) in here.groups.items():
                sizes[group] = n, max(wanted, sizes.get(group, (n, 0))[1])
        owners: dict[str, tuple[str | None, ...]] = {}
        standbys: dict[str, tuple[tuple[str, ...], ...]] = {}
        for group, (n, wanted) in sorted(sizes.items()):
            able = [Member(name, here.zone) for name, here in sorted(members.items()) if group in here.groups]
            found = checked(self._settings.assignor, group, n, able, self._before(group, n, said), wanted)
            owners[group] = tuple(found.owners)
            standbys[group] = tuple(tuple(names) for names in found.standbys)
        version = said.version + 1 if said is not None and (said.me, said.number) == (self._me, number) else 1
        return Plan(self._me, number, version, owners, standbys, tuple(sorted(members)))

    def _before(self, group: str, n: int, said: Plan | None) -> Assignment:
        if said is not None and group in said.owners:
            return Assignment(said.owners[group], said.standbys.get(group, ()))
        running = [self._roster.owner(group, index) for index in range(n)]
        return Assignment([None if here is None else here.name for here in running])


class _Steady:
    """Seconds that have passed, for one who asks at every beat: a clock that jumps makes nothing late or early.

    A jump counts as a moment, so that one that jumps all the time does not make it stand still.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock, self._last, self._passed = clock, clock.now(), 0.0

    def __call__(self) -> float:
        now = self._clock.now()
        step = now - self._last
        self._passed += step if 0 <= step <= 2 * BEAT else JUMP
        self._last = now
        return self._passed


def _what(plan: Plan) -> tuple[object, ...]:
    return plan.members, plan.owners, plan.standbys
