"""Groups that share out tasks, as Kafka's do: what moves is nobody's until its old owner has given it up."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from math import inf

from thalweg.assignment import Assignment, Member, checked, shares
from thalweg.capabilities import Part, Role
from thalweg.errors import BrokerError, Superseded

from .session import Session, Waiters, wake

__all__ = ["TaskGroup", "sets_of"]


class TaskMember:
    """superseded: another has come in under its worker id. away: it has left, and its tasks wait for its next run."""

    def __init__(self, group: TaskGroup, session: Session, name: str, lease: float, role: Role) -> None:
        self.group, self.session, self.name, self._lease = group, session, name, lease
        self.role = role
        self.superseded = self.away = False
        self.held: frozenset[int] = frozenset()
        """What it may be working on: what it was told last, and what it has not given up yet."""
        self.share: frozenset[int] = frozenset()
        self.part: Part | None = None

    @property
    def lease(self) -> float:
        return self._lease

    def expire(self) -> None:
        self.session.drop(self)
        if self.role.worker_id is None or self.away or self.superseded or self.session.down is not None:
            self.group.leave(self)
        else:
            self.away = True
            self.session.clock.call_later(self._lease, self.expire)


class TaskGroup:
    def __init__(self, name: str, n: int) -> None:
        self.name, self.n = name, n
        self.waiters: Waiters = {}
        self._members: dict[str, TaskMember] = {}
        self._joined = 0
        self.plan = Assignment([None] * n)

    def join(self, member: TaskMember) -> None:
        self._joined += 1
        place = f"{member.name}-{self._joined}"
        if member.role.worker_id is not None:
            for key, before in self._members.items():
                if before.role.worker_id == member.role.worker_id:
                    place, before.superseded = key, True
                    member.held = member.share = before.share
        self._members[place] = member
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
        mine = [member for member in members if (member.session, member.name) == (session, name) and not member.away]
        return any(member in self for member in mine)

    def part(self, session: Session, name: str) -> Part | None:
        mine = [one for one in self._members.values() if (one.session, one.name) == (session, name)]
        return mine[-1].part if mine else None

    def share_out(self) -> None:
        held = {key: member.held for key, member in self._members.items()}
        if not held:
            return
        role = next(iter(self._members.values())).role
        members = [Member(key, member.role.zone) for key, member in self._members.items()]
        self.plan = checked(role.assignor, self.name, self.n, members, self.plan, role.standbys)
        for key, share in shares(self.plan, held).items():
            self._members[key].share = share
            self._members[key].part = Part(
                frozenset(task for task, owner in enumerate(self.plan.owners) if owner == key),
                frozenset(task for task in range(self.n) if key in self.plan.standbys_of(task)),
            )
        wake(self.waiters)


async def sets_of(
    session: Session, group: TaskGroup, me: str, lease: float, role: Role
) -> AsyncGenerator[frozenset[int], None]:
    member = TaskMember(group, session, me, lease, role)
    group.join(member)
    told: frozenset[int] | None = None
    part: Part | None = None
    try:
        while True:
            session.check()
            if member.superseded:
                raise Superseded(f"a newer worker runs under the worker id {role.worker_id!r} in group {group.name!r}")
            if member not in group:
                raise BrokerError(f"member {me!r} of group {group.name!r} was not heard of for {lease:g} s")
            if member.share != told or member.part != part:
                told, part = member.share, member.part
                member.held |= told
                yield told
                member.held = told
                group.share_out()
            else:
                await session.wait((group.waiters,), inf)
    finally:
        session.give_up(member)
