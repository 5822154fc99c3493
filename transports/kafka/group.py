"""`Grouped`: the tasks of a group as its members share them out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator

from .connection import Cluster
from .member import Member

__all__ = ["TaskGroups"]

log = logging.getLogger("thalweg")


class TaskGroups:
    """All task groups that one transport is a member of.

    A group's numbers are given out under the name of a topic, so that Kafka's tools show who has what. It is a name
    only: no such topic exists.
    """

    def __init__(self, cluster: Cluster, prefix: str, shortest: float) -> None:
        self._cluster, self._prefix, self._shortest = cluster, prefix, shortest
        self._members: dict[tuple[str, str], Member] = {}

    async def tasks(self, group: str, n: int, me: str, lease: float) -> AsyncGenerator[frozenset[int], None]:
        if lease < self._shortest:
            log.warning(
                "lease=%g is below the brokers' group.min.session.timeout.ms: tasks of a worker that hangs move "
                "after %g s; lower that setting if this is too long",
                lease,
                self._shortest,
            )
        changed = asyncio.Event()
        name = f"{self._prefix}{group}"
        member = Member(self._cluster, name, name, n, max(lease, self._shortest), changed.set)
        self._members[group, me] = member
        member.start()
        told: frozenset[int] | None = None
        try:
            while True:
                await changed.wait()
                changed.clear()
                if member.lost is not None:
                    raise member.lost
                share = member.share
                if share is not None and share != told:
                    member.held = share | (told or frozenset())
                    told = share
                    yield share
                    member.held = share
                    member.gave_up()
                    changed.set()
        finally:
            if self._members.get((group, me)) is member:
                del self._members[group, me]
            await member.close()

    def holds(self, group: str, me: str) -> bool:
        member = self._members.get((group, me))
        return member is not None and member.is_certain

    async def close(self) -> None:
        await asyncio.gather(*(member.close() for member in list(self._members.values())))
