"""Locks and memberships: kept while their session is heard of, gone a lease after that."""

from __future__ import annotations

import asyncio

from .session import Session, Waiters, wake

__all__ = ["MemoryLock", "PeerGroup", "PeerMember"]


class MemoryLock:
    """See `thalweg.capabilities.Held`. Released while cut off, it stays taken until its lease ends."""

    def __init__(self, locks: dict[str, MemoryLock], session: Session, name: str, lease: float, number: int) -> None:
        self._locks, self.session, self.name, self._lease, self._number = locks, session, name, lease, number
        self._lost = asyncio.Event()
        locks[name] = self
        session.hold(self)

    @property
    def lost(self) -> asyncio.Event:
        return self._lost

    @property
    def number(self) -> int:
        return self._number

    @property
    def lease(self) -> float:
        return self._lease

    async def release(self) -> None:
        self._lost.set()
        self.session.give_up(self)

    def expire(self) -> None:
        if self._locks.get(self.name) is self:
            del self._locks[self.name]
        self.session.drop(self)
        if not self.session.loop.is_closed():
            self._lost.set()


class PeerGroup:
    """Who is a live member. One name may be joined more than once."""

    def __init__(self) -> None:
        self._members: dict[PeerMember, None] = {}
        self.waiters: Waiters = {}

    def join(self, member: PeerMember) -> None:
        if member not in self._members:
            self._members[member] = None
            member.session.hold(member)
            wake(self.waiters)

    def leave(self, member: PeerMember) -> None:
        if member in self._members:
            del self._members[member]
            wake(self.waiters)

    def live(self) -> frozenset[str]:
        for member in [m for m in self._members if m.session.outlived(m.lease)]:
            member.expire()
        return frozenset(member.name for member in self._members)


class PeerMember:
    def __init__(self, group: PeerGroup, session: Session, name: str, lease: float) -> None:
        self.group, self.session, self.name, self._lease = group, session, name, lease

    @property
    def lease(self) -> float:
        return self._lease

    def expire(self) -> None:
        self.group.leave(self)
        self.session.drop(self)
