"""`Grouped`: the tasks of a group as its members share them out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator

from thalweg.capabilities import Part, Role

from .member import Member, Quarters

__all__ = ["TaskGroups"]

log = logging.getLogger("thalweg")

_CALM = 1.0
"""Seconds, at most: workers that start within less of each other cause one move of tasks."""


class TaskGroups:
    """All task groups that one transport is a member of.

    A group's numbers are given out under the name of a topic, so that Kafka's tools show who has what. It is a name
    only: no such topic exists.
    """

    def __init__(self, quarters: Quarters, prefix: str, shortest: float) -> None:
        self._quarters, self._prefix, self._shortest = quarters, prefix, shortest
        self._members: dict[tuple[str, str], Member] = {}

    async def tasks(
        self, group: str, n: int, me: str, lease: float, role: Role
    ) -> AsyncGenerator[frozenset[int], None]:
        if lease < self._shortest:
            log.warning(
                "lease=%g is below the brokers' group.min.session.timeout.ms: tasks of a worker that hangs move "
                "after %g s; lower that setting if this is too long",
                lease,
                self._shortest,
            )
        changed = asyncio.Event()
        name = f"{self._prefix}{group}"
        session = max(lease, self._shortest)
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
