"""Groups whose members share tasks out: one owner a task, and none before the last one has let go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing

from thalweg.channel import Capability, Transport
from thalweg.contrib.conformance.properties import Profile, prop
from thalweg.contrib.conformance.puppet import Puppet
from thalweg.contrib.conformance.trial import Trial, groups
from thalweg.errors import BrokerError

TASKS = 8


class Member:
    """Owns what it is given, and lets go of the rest as soon as it is told."""

    def __init__(self, trial: Trial, transport: Transport, name: str) -> None:
        self.transport, self.name, self.group = transport, name, trial.name("g")
        self.owned: frozenset[int] = frozenset()
        self.sets: list[frozenset[int]] = []
        self._changed = asyncio.Event()
        self.tasks = self._join(trial)
        self.running = trial.start(self._run())

    def _join(self, trial: Trial) -> AsyncGenerator[frozenset[int], None]:
        return groups(self.transport).tasks(self.group, TASKS, self.name, trial.rig.lease)

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
    async with trial.patience("the hung member to learn what it owns"):
        await asyncio.wait([hung.running, trial.start(hung.change())], return_when=asyncio.FIRST_COMPLETED)
    assert hung.running.done() or disjoint([living, hung])
