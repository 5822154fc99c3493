"""Bugs of locks, members and shares of tasks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from thalweg.capabilities import Held, Role
from thalweg.errors import BrokerError, Superseded
from thalweg.transports.memory.locks import MemoryLock

from .base import Seeded, caught_by


@caught_by("a_lock_has_one_holder_until_it_is_released")
class TwoHolders(Seeded):
    """Whoever asks a second time is given what the first one has."""

    async def try_lock(self, name: str, lease: float) -> Held | None:
        held = await super().try_lock(name, lease)
        if held is None and self.session is not None:
            return MemoryLock({}, self.session, name, lease, next(self.broker._lock_numbers))
        return held


class Numbered:
    """A lock whose number is somebody's idea of one."""

    def __init__(self, held: Held, number: int) -> None:
        self.held, self.number = held, number

    @property
    def lost(self) -> asyncio.Event:
        return self.held.lost

    async def release(self) -> None:
        await self.held.release()


@caught_by("a_lock_has_one_holder_until_it_is_released")
class NumberDoesNotGrow(Seeded):
    async def try_lock(self, name: str, lease: float) -> Held | None:
        held = await super().try_lock(name, lease)
        return None if held is None else Numbered(held, 1)


@caught_by("a_lock_has_one_holder_until_it_is_released")
class ReleaseFreesTheNextHoldersLock(Seeded):
    """DEL without a look at whose it is: released twice, it takes the heir's."""

    async def try_lock(self, name: str, lease: float) -> Held | None:
        held = await super().try_lock(name, lease)
        return None if held is None else Careless(held, held.number, self)


class Careless(Numbered):
    def __init__(self, held: Held, number: int, transport: Seeded) -> None:
        super().__init__(held, number)
        self.transport = transport
        self.name = held.name  # type: ignore[attr-defined]

    async def release(self) -> None:
        await super().release()
        self.transport.broker._locks.pop(self.name, None)


@caught_by("a_living_holder_keeps_its_lock_beyond_the_lease")
class LocksAreNotRenewed(Seeded):
    async def try_lock(self, name: str, lease: float) -> Held | None:
        held = await super().try_lock(name, lease)
        if held is not None:
            self.broker.clock.call_later(lease, held.expire)  # type: ignore[attr-defined]
        return held


@caught_by("a_lock_of_a_killed_holder_is_free_when_its_lease_has_ended")
class LocksOutliveTheirHolders(Seeded):
    """No expiry on the key."""

    def kill(self) -> None:
        if self.session is not None:
            self.session.down, self.session.ended = "killed", True


@caught_by("a_hung_holder_loses_its_lock_and_knows_it_in_the_moment_it_goes_on")
class LostIsNeverSet(Seeded):
    async def try_lock(self, name: str, lease: float) -> Held | None:
        held = await super().try_lock(name, lease)
        return None if held is None else Believer(held, held.number)


class Believer(Numbered):
    """tells: whether the broker hears of its release."""

    released = False

    def __init__(self, held: Held, number: int, tells: bool = True) -> None:
        super().__init__(held, number)
        self.tells = tells

    @property
    def lost(self) -> asyncio.Event:
        event = asyncio.Event()
        if self.released:
            event.set()
        return event

    async def release(self) -> None:
        self.released = True
        if self.tells:
            await super().release()


@caught_by("closing_a_transport_frees_its_locks_at_once_and_says_so")
class CloseKeepsLocks(Seeded):
    async def close(self) -> None:
        if self.session is not None and self.session.down is None:
            for leased in [one for one in self.session._leased if isinstance(one, MemoryLock)]:
                del self.session._leased[leased]
        await super().close()


@caught_by("what_is_given_back_is_free_long_before_its_lease_would_have_ended")
class ReleasedLocksRunOut(Seeded):
    """Releasing is no more than not renewing."""

    async def try_lock(self, name: str, lease: float) -> Held | None:
        held = await super().try_lock(name, lease)
        return None if held is None else Believer(held, held.number, tells=False)


@caught_by("many_locks_of_one_holder_are_all_kept_while_others_come_and_go")
class RenewsSixtyFour(Seeded):
    """What came later is renewed when it is too late."""

    async def try_lock(self, name: str, lease: float) -> Held | None:
        held = await super().try_lock(name, lease)
        if held is not None and len(self.broker._locks) > 64:
            self.broker.clock.call_later(lease, held.expire)  # type: ignore[attr-defined]
        return held


@caught_by("a_lock_outlasts_a_broken_network_for_less_than_its_lease_or_its_holder_knows")
class LocksEndWithTheConnection(Seeded):
    """And nobody is told."""

    def cut(self) -> None:
        for name in [name for name, lock in self.broker._locks.items() if lock.session is self.session]:
            del self.broker._locks[name]
        super().cut()


@caught_by("a_holder_cut_off_for_longer_than_the_lease_knows_that_its_lock_is_lost")
class BelievesWhileNobodySaysOtherwise(Seeded):
    async def try_lock(self, name: str, lease: float) -> Held | None:
        held = await super().try_lock(name, lease)
        return None if held is None else Believer(held, held.number)


@caught_by("a_member_that_leaves_is_gone_long_before_its_lease_would_have_ended")
class LeavesWithoutAWord(Seeded):
    async def peers(self, group: str, me: str, lease: float) -> AsyncGenerator[frozenset[str], None]:
        members = super().peers(group, me, lease)
        self.broker.faults.left = members  # type: ignore[attr-defined]  # nobody closes it
        async for seen in members:
            yield seen


@caught_by("a_member_whose_transport_closes_while_it_watches_leaves_and_does_not_come_back")
class MembersComeBack(Seeded):
    """One that is not a member any more joins again, though its transport is closing."""

    async def peers(self, group: str, me: str, lease: float) -> AsyncGenerator[frozenset[str], None]:
        try:
            async for seen in super().peers(group, me, lease):
                yield seen
        except BrokerError:
            other = Seeded(self.broker, self.options)
            await other.open()
            again = other.peers(group, me, lease)
            self.broker.faults.left = again  # type: ignore[attr-defined]  # nobody closes it
            await anext(again)
            raise


@caught_by("a_killed_member_is_gone_when_its_lease_has_ended_and_a_living_one_stays")
class DeathIsNotNoticed(Seeded):
    """A set of members, without leases."""

    def kill(self) -> None:
        if self.session is not None:
            self.session.down, self.session.ended = "killed", True


@caught_by("a_member_sees_itself_then_each_change")
class SeesOnlyTheOthers(Seeded):
    async def peers(self, group: str, me: str, lease: float) -> AsyncGenerator[frozenset[str], None]:
        members = super().peers(group, me, lease)
        try:
            async for seen in members:
                yield seen - {me}
        finally:
            await members.aclose()


@caught_by("groups_of_members_are_separate")
class OneGroupOfAll(Seeded):
    def peers(self, group: str, me: str, lease: float) -> AsyncGenerator[frozenset[str], None]:
        return super().peers("all", me, lease)


@caught_by("a_task_moves_only_once_its_owner_has_given_it_up", "grouped=true")
class RevokesBeforeTheOwnerLetsGo(Seeded):
    """A rebalance that does not wait for those who work."""

    async def tasks(
        self, group: str, n: int, me: str, lease: float, role: Role | None = None
    ) -> AsyncGenerator[frozenset[int], None]:
        shares = super().tasks(group, n, me, lease, role)
        known = self.broker.task_group(group, n)
        try:
            async for share in shares:
                yield share
                for member in known._members.values():
                    member.held = frozenset()
                known.share_out()
        finally:
            await shares.aclose()

    async def channel(self, topic: str, group: str) -> Any:
        return await super().channel(topic, group)


@caught_by("a_hung_member_loses_its_tasks_and_knows_it_in_the_moment_it_goes_on", "grouped=true")
class BelievesItStillHolds(Seeded):
    def holds(self, group: str, me: str) -> bool:
        return True


@caught_by("tasks_that_stay_are_not_interrupted", "grouped=true")
class StopsTheWorld(Seeded):
    """Takes everything from everybody before it shares out anew."""

    async def tasks(
        self, group: str, n: int, me: str, lease: float, role: Role | None = None
    ) -> AsyncGenerator[frozenset[int], None]:
        shares = super().tasks(group, n, me, lease, role)
        before: frozenset[int] = frozenset()
        try:
            async for share in shares:
                if before and share != before:
                    yield frozenset(list(share)[:1])
                before = share
                yield share
        finally:
            await shares.aclose()


@caught_by("a_worker_that_comes_back_under_its_id_finds_its_tasks_and_moves_none", "grouped=true")
class ForgetsWhoComesBack(Seeded):
    """Worker ids count for nothing."""

    def tasks(
        self, group: str, n: int, me: str, lease: float, role: Role | None = None
    ) -> AsyncGenerator[frozenset[int], None]:
        return super().tasks(group, n, me, lease)


@caught_by("of_two_members_of_one_worker_id_the_newer_has_the_tasks_and_the_older_is_told", "grouped=true")
class TheOlderIsNotTold(Seeded):
    async def tasks(
        self, group: str, n: int, me: str, lease: float, role: Role | None = None
    ) -> AsyncGenerator[frozenset[int], None]:
        shares = super().tasks(group, n, me, lease, role)
        try:
            async for share in shares:
                yield share
        except Superseded:
            await asyncio.get_running_loop().create_future()
        finally:
            await shares.aclose()
