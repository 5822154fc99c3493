"""Groups whose members share tasks out: one owner a task, and none before the last one has let go."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing

from thalweg.capabilities import Role
from thalweg.channel import Capability, Transport
from thalweg.contrib.conformance.properties import Profile, prop
from thalweg.contrib.conformance.puppet import Puppet
from thalweg.contrib.conformance.transports.locks import BLOCKED
from thalweg.contrib.conformance.trial import Trial, groups
from thalweg.errors import BrokerError, Superseded

TASKS = 8

LONG_LEASE = 1000.0
"""Seconds: none that matters ends within a property."""


class Member:
    """Owns what it is given, and lets go of the rest as soon as it is told."""

    def __init__(self, trial: Trial, transport: Transport, name: str, worker_id: str | None = None) -> None:
        self.transport, self.name, self.group = transport, name, trial.name("g")
        self.worker_id = worker_id
        self.owned: frozenset[int] = frozenset()
        self.sets: list[frozenset[int]] = []
        self._changed = asyncio.Event()
        self.tasks = self._join(trial)
        self.running = trial.start(self._run())

    def _join(self, trial: Trial) -> AsyncGenerator[frozenset[int], None]:
        tasks, who = groups(self.transport).tasks, (self.group, TASKS, self.name)
        if self.worker_id is None:
            return tasks(*who, trial.rig.lease)
        return tasks(*who, LONG_LEASE, Role(self.worker_id))

    async def _run(self) -> None:
        async with aclosing(self.tasks):
            async for owned in self.tasks:
                self.owned = owned
                self.sets.append(owned)
                self._changed.set()

    async def change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    async def holds(self) -> bool:
        if isinstance(self.transport, Puppet):
            return await self.transport.still_holds(self.group, self.name)
        return groups(self.transport).holds(self.group, self.name)


def shared_out(members: Sequence[Member]) -> bool:
    """Every task has one owner, and none of them is idle."""
    owned = sorted(task for member in members for task in member.owned)
    return owned == list(range(TASKS)) and all(member.owned for member in members)


async def until(trial: Trial, members: Iterable[Member], condition: Callable[[], bool], what: str) -> None:
    everyone = list(members)
    async with trial.patience(what):
        while not condition():
            for member in everyone:
                if member.running.done() and not member.running.cancelled():
                    member.running.result()  # raises what ended it
            await trial.step()


def disjoint(members: Sequence[Member]) -> bool:
    owned = [task for member in members for task in member.owned]
    return len(owned) == len(set(owned))


@prop(Profile.GROUPED, Capability.GROUPED)
async def a_single_member_owns_every_task(trial: Trial) -> None:
    member = Member(trial, await trial.open(), "a")
    await until(trial, [member], lambda: shared_out([member]), "all tasks")
    assert await member.holds()


@prop(Profile.GROUPED, Capability.GROUPED)
async def members_share_the_tasks_and_no_task_has_two_owners_on_the_way(trial: Trial) -> None:
    members = [Member(trial, await trial.open(), "a")]
    await until(trial, members, lambda: shared_out(members), "all tasks")
    for name in ("b", "c"):
        members.append(Member(trial, await trial.open(), name))

        def settled() -> bool:
            assert disjoint(members), "a task has two owners"
            return shared_out(members)

        await until(trial, members, settled, f"a share for {name}")


@prop(Profile.GROUPED, Capability.GROUPED)
async def a_task_moves_only_once_its_owner_has_given_it_up(trial: Trial) -> None:
    first, second = await trial.open(), await trial.open()
    slow = groups(first).tasks(trial.name("g"), TASKS, "slow", trial.rig.lease)
    async with aclosing(slow):
        async with trial.patience("all tasks"):
            while len(await anext(slow)) < TASKS:
                pass
        waiting = trial.start(anext(slow))
        member = Member(trial, second, "b")
        kept = await trial.soon(waiting, "a smaller share")
        async with trial.patience("a share that differs"):
            while len(kept) == TASKS:
                kept = await anext(slow)
        given_up = set(range(TASKS)) - kept
        await trial.rig.pass_time(trial.rig.lease * 2)
        assert not member.owned & given_up, "a task was another's before its owner had given it up"
        waiting = trial.start(anext(slow))
        await until(trial, [member], lambda: given_up <= member.owned, "the tasks that were given up")
        await trial.stop(waiting)


@prop(Profile.GROUPED, Capability.GROUPED)
async def tasks_that_stay_are_not_interrupted(trial: Trial) -> None:
    members = [Member(trial, await trial.open(), "a")]
    await until(trial, members, lambda: shared_out(members), "all tasks")
    members.append(Member(trial, await trial.open(), "b"))
    await until(trial, members, lambda: shared_out(members), "a share for b")
    kept = members[0].owned
    assert kept
    assert all(kept <= owned for owned in members[0].sets if owned)


@prop(Profile.GROUPED, Capability.GROUPED)
async def a_member_that_leaves_is_replaced_at_once(trial: Trial) -> None:
    members = [Member(trial, await trial.open(), name) for name in "ab"]
    await until(trial, members, lambda: shared_out(members), "both to have a share")
    await trial.stop(members[1].running)
    await until(trial, members[:1], lambda: shared_out(members[:1]), "the share of one that left")


@prop(Profile.GROUPED, Capability.GROUPED)
async def a_killed_member_loses_its_tasks_when_its_lease_has_ended(trial: Trial) -> None:
    living, dying = Member(trial, await trial.open(), "a"), Member(trial, await trial.open_elsewhere(), "b")
    await until(trial, [living, dying], lambda: shared_out([living, dying]), "both to have a share")
    await trial.rig.crash(dying.transport)
    await until(trial, [living], lambda: shared_out([living]), "the share of one that died")
    assert await living.holds()


@prop(Profile.GROUPED, Capability.GROUPED)
async def a_hung_member_loses_its_tasks_and_knows_it_in_the_moment_it_goes_on(trial: Trial) -> None:
    living, hung = Member(trial, await trial.open(), "a"), Member(trial, await trial.open_elsewhere(), "b")
    await until(trial, [living, hung], lambda: shared_out([living, hung]), "both to have a share")
    assert await hung.holds()
    await trial.rig.hang(hung.transport)
    await until(trial, [living], lambda: shared_out([living]), "the share of one that hangs")
    await trial.rig.resume(hung.transport)
    try:
        assert not await hung.holds()
    except BrokerError:
        pass
    await learns(trial, hung, living)


async def learns(trial: Trial, member: Member, heir: Member) -> None:
    """It was away, and another has its tasks: it gets a new share, or is told that it is no member any more."""
    async with trial.patience("one that was away to learn what it owns"):
        await asyncio.wait([member.running, trial.start(member.change())], return_when=asyncio.FIRST_COMPLETED)
    assert member.running.done() or disjoint([heir, member])


# --- a member's event loop -------------------------------------------------------------------------------------


@prop(Profile.GROUPED, Capability.GROUPED, cases=BLOCKED)
async def a_member_keeps_its_tasks_while_its_event_loop_is_blocked_and_others_join(
    trial: Trial, computing: bool
) -> None:
    blocked = Member(trial, await trial.open_elsewhere(), "a")
    await until(trial, [blocked], lambda: shared_out([blocked]), "all tasks")
    waiting = trial.start(trial.rig.block(blocked.transport, 3 * trial.rig.lease, computing))
    other = Member(trial, await trial.open(), "b")
    while not waiting.done():
        assert not other.owned, "tasks were another's before their owner had given them up"
        await trial.step()
    await waiting
    assert await blocked.holds()
    await until(trial, [blocked, other], lambda: shared_out([blocked, other]), "both to have a share")


@prop(Profile.GROUPED, Capability.GROUPED)
async def a_member_loses_its_tasks_once_its_event_loop_is_stuck_and_knows_it(trial: Trial) -> None:
    stuck = Member(trial, await trial.open_impatient(2 * trial.rig.lease), "a")
    other = Member(trial, await trial.open(), "b")
    await until(trial, [stuck, other], lambda: shared_out([stuck, other]), "both to have a share")
    waiting = trial.start(trial.rig.block(stuck.transport, 5 * trial.rig.lease, False))
    await until(trial, [other], lambda: shared_out([other]), "the share of one that is stuck")
    await waiting
    assert not await stuck.holds()
    await learns(trial, stuck, other)


# --- worker ids ------------------------------------------------------------------------------------------------


@prop(Profile.GROUPED, Capability.GROUPED)
async def a_worker_that_comes_back_under_its_id_finds_its_tasks_and_moves_none(trial: Trial) -> None:
    other = Member(trial, await trial.open(), "a", "other")
    first = Member(trial, await trial.open(), "b", "worker")
    await until(trial, [other, first], lambda: shared_out([other, first]), "both to have a share")
    told = len(other.sets)
    await trial.stop(first.running)
    assert not await first.holds()
    second = Member(trial, await trial.open(), "c", "worker")
    await until(trial, [other, second], lambda: bool(second.sets), "what it had")
    assert second.sets[0] == first.owned
    assert len(other.sets) == told


@prop(Profile.GROUPED, Capability.GROUPED)
async def of_two_members_of_one_worker_id_the_newer_has_the_tasks_and_the_older_is_told(trial: Trial) -> None:
    older = Member(trial, await trial.open(), "a", "worker")
    await until(trial, [older], lambda: shared_out([older]), "all tasks")
    newer = Member(trial, await trial.open(), "b", "worker")
    await until(trial, [newer], lambda: shared_out([newer]), "all tasks")
    with contextlib.suppress(Superseded):
        await trial.soon(older.running, "the older one to be told")
        raise AssertionError("the older one was not told")
    assert not await older.holds()
    assert await newer.holds()
