"""Groups that share out tasks, as Kafka's do: what moves is nobody's until its old owner has given it up."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from math import inf

from thalweg.assignment import assign
from thalweg.errors import BrokerError

from .session import Session, Waiters, wake

__all__ = ["TaskGroup", "shares"]


class TaskMember:
    def __init__(self, group: TaskGroup, session: Session, name: str, lease: float) -> None:
        self.group, self.session, self.name, self._lease = group, session, name, lease
        self.held: frozenset[int] = frozenset()
        """What it may be working on: what it was told last, and what it has not given up yet."""
        self.share: frozenset[int] = frozenset()

    @property
    def lease(self) -> float:
        return self._lease

    def expire(self) -> None:
        self.group.leave(self)
        self.session.drop(self)


class TaskGroup:
    def __init__(self, name: str, n: int) -> None:
        self.name, self.n = name, n
        self.waiters: Waiters = {}
        self._members: dict[str, TaskMember] = {}
        self._joined = 0

    def join(self, member: TaskMember) -> None:
        self._joined += 1
        self._members[f"{member.name}-{self._joined}"] = member
        member.session.hold(member)
        self.share_out()

    def leave(self, member: TaskMember) -> None:
        self._members = {key: other for key, other in self._members.items() if other is not member}
        self.share_out()

    def __contains__(self, member: TaskMember) -> bool:
        for one in [one for one in self._members.values() if one.session.outlived(one.lease)]:
            one.expire()
        return member in self._members.values()

    def has(self, session: Session, name: str) -> bool:
        members = list(self._members.values())
        return any(member in self for member in members if (member.session, member.name) == (session, name))

    def share_out(self) -> None:
        shares = assign(self.name, self.n, {key: member.held for key, member in self._members.items()})
        for key, share in shares.items():
            self._members[key].share = share
        wake(self.waiters)


async def shares(session: Session, group: TaskGroup, me: str, lease: float) -> AsyncGenerator[frozenset[int], None]:
    member = TaskMember(group, session, me, lease)
    group.join(member)
    told: frozenset[int] | None = None
    try:
        while True:
            session.check()
            if member not in group:
                raise BrokerError(f"member {me!r} of group {group.name!r} was not heard of for {lease:g} s")
            if member.share != told:
                told = member.share
                member.held |= told
                yield told
                member.held = told
                group.share_out()
            else:
                await session.wait((group.waiters,), inf)
    finally:
        session.give_up(member)
