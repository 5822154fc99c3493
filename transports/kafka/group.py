"""`Grouped`: the tasks of a group as its members share them out."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator
from typing import NamedTuple

from thalweg.capabilities import Part, Role

from .member import Member, Quarters

__all__ = ["Sessions", "TaskGroups"]

log = logging.getLogger("thalweg")

_CALM = 1.0
"""Seconds, at most: workers that start within less of each other cause one move of tasks."""


class Sessions(NamedTuple):
    """What the brokers allow: group.min.session.timeout.ms and group.max.session.timeout.ms, in seconds."""

    shortest: float = 0.0
    longest: float = math.inf

    def of(self, lease: float, group: str) -> float:
        """How long a member may be silent: the lease, or what comes next to it, and then a warning says so."""
        session = min(max(lease, self.shortest), self.longest)
        if session != lease:
            low, high = ("below", "min", "lower", "long"), ("above", "max", "raise", "short")
            side, end, remedy, fault = low if lease < session else high
            log.warning(
                "group %s: lease=%g is %s the brokers' group.%s.session.timeout.ms: what a worker has that hangs moves "
                "after %g s; %s that setting if this is too %s",
                *(group, lease, side, end, session, remedy, fault),
            )
        return session


class TaskGroups:
    """All task groups that one transport is a member of.

    A group's numbers are given out under the name of a topic, so that Kafka's tools show who has what. It is a name
    only: no such topic exists.
    """

    def __init__(self, quarters: Quarters, prefix: str, sessions: Sessions) -> None:
        self._quarters, self._prefix, self._sessions = quarters, prefix, sessions
        self._members: dict[tuple[str, str], Member] = {}

    async def tasks(
        self, group: str, n: int, me: str, lease: float, role: Role
    ) -> AsyncGenerator[frozenset[int], None]:
        changed = asyncio.Event()
        name = f"{self._prefix}{group}"
        session = self._sessions.of(lease, name)
        who = role.worker_id or me, role
        member = Member(self._quarters, name, name, n, session, *who, changed.set, min(_CALM, session / 10))
        self._members[group, me] = member
        member.start()
        told: frozenset[int] | None = None
        part: Part | None = None
        try:
            while True:
                await changed.wait()
                changed.clear()
                if member.lost is not None:
                    raise member.lost
                if member.share is not None and (member.share != told or member.part != part):
                    part = member.part
                    told = member.take()
                    yield told
                    member.keep(told)
                    changed.set()
        finally:
            if self._members.get((group, me)) is member:
                del self._members[group, me]
            await member.close()

    def part(self, group: str, me: str) -> Part | None:
        member = self._members.get((group, me))
        return None if member is None else member.part

    def holds(self, group: str, me: str) -> bool:
        member = self._members.get((group, me))
        return member is not None and member.is_certain

    async def close(self) -> None:
        await asyncio.gather(*(member.close() for member in list(self._members.values())))
