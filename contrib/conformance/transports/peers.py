"""Members that see one another come and go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress

from thalweg.channel import Capability, Transport
from thalweg.contrib.conformance.properties import Profile, prop
from thalweg.contrib.conformance.trial import Trial, peers
from thalweg.errors import BrokerError

from .locks import BLOCKED, LONG_LEASE


def join(trial: Trial, transport: Transport, me: str) -> AsyncGenerator[frozenset[str], None]:
    return peers(transport).peers(trial.name("g"), me, trial.rig.lease)


async def until(trial: Trial, seen: AsyncGenerator[frozenset[str], None], members: set[str]) -> None:
    """Wait for this set of members, whatever is seen on the way."""
    async with trial.patience(f"the members {sorted(members)}"):
        while await anext(seen) != members:
            pass


@prop(Profile.PEERS, Capability.PEERS)
async def a_member_sees_itself_then_each_change(trial: Trial) -> None:
    a, b = await trial.open(), await trial.open()
    async with aclosing(join(trial, a, "a")) as seen:
        await until(trial, seen, {"a"})
        change = trial.start(until(trial, seen, {"a", "b"}))
        async with aclosing(join(trial, b, "b")) as seen_by_b:
            await until(trial, seen_by_b, {"a", "b"})
            await change
        await until(trial, seen, {"a"})


@prop(Profile.PEERS, Capability.PEERS)
async def groups_of_members_are_separate(trial: Trial) -> None:
    a, b = await trial.open(), await trial.open()
    async with (
        aclosing(peers(a).peers(trial.name("one"), "a", trial.rig.lease)) as one,
        aclosing(peers(b).peers(trial.name("other"), "b", trial.rig.lease)) as other,
        trial.patience("the members of a new group"),
    ):
        assert await anext(one) == {"a"}
        assert await anext(other) == {"b"}


@prop(Profile.PEERS, Capability.PEERS)
async def a_killed_member_is_gone_when_its_lease_has_ended_and_a_living_one_stays(trial: Trial) -> None:
    a, b = await trial.open(), await trial.open_elsewhere()
    seen, dying = join(trial, a, "a"), join(trial, b, "b")
    async with aclosing(seen), aclosing(dying):
        await anext(dying)
        await until(trial, seen, {"a", "b"})
        await trial.rig.crash(b)
        change = trial.start(until(trial, seen, {"a"}))
        await trial.in_time(change, trial.rig.lease * 1.1)
        change = trial.start(until(trial, seen, set()))
        await trial.rig.pass_time(trial.rig.lease * 3)
        assert not change.done()
        await trial.stop(change)


async def stay(trial: Trial, transport: Transport, me: str) -> None:
    """As a member that waits for each change, and joins again if its iterator fails."""
    while True:
        try:
            async with aclosing(join(trial, transport, me)) as seen:
                async for _ in seen:
                    pass
        except BrokerError:
            await trial.step()


@prop(Profile.PEERS, Capability.PEERS)
async def a_hung_member_is_gone_and_comes_back_when_it_goes_on(trial: Trial) -> None:
    a, b = await trial.open(), await trial.open_elsewhere()
    async with aclosing(join(trial, a, "a")) as seen:
        staying = trial.start(stay(trial, b, "b"))
        await until(trial, seen, {"a", "b"})
        await trial.rig.hang(b)
        await trial.in_time(trial.start(until(trial, seen, {"a"})), trial.rig.lease * 1.1)
        change = trial.start(until(trial, seen, {"a", "b"}))
        await trial.rig.resume(b)
        await trial.in_time(change, trial.rig.lease)
        await trial.stop(staying)


@prop(Profile.PEERS, Capability.PEERS)
async def a_member_that_leaves_is_gone_long_before_its_lease_would_have_ended(trial: Trial) -> None:
    a, b = await trial.open(), await trial.open()
    async with aclosing(join(trial, a, "a")) as seen:
        await until(trial, seen, {"a"})
        async with aclosing(peers(b).peers(trial.name("g"), "b", LONG_LEASE)) as leaving:
            await until(trial, leaving, {"a", "b"})
            await until(trial, seen, {"a", "b"})
        await until(trial, seen, {"a"})


@prop(Profile.PEERS, Capability.PEERS)
async def a_member_whose_transport_closes_while_it_watches_leaves_and_does_not_come_back(trial: Trial) -> None:
    a, b, c = await trial.open(), await trial.open(), await trial.open()
    async with aclosing(join(trial, a, "a")) as seen:
        leaving = [peers(b).peers(trial.name("g"), f"b{n}", LONG_LEASE) for n in range(5)]
        watching = [trial.start(watch(one)) for one in leaving]
        await until(trial, seen, {"a", *(f"b{n}" for n in range(5))})
        await trial.soon(b.close(), "close to return")
        await trial.soon(asyncio.wait(watching), "members to hear of it")
        async with aclosing(join(trial, c, "c")) as last:
            await until(trial, last, {"a", "c"})
            await until(trial, seen, {"a", "c"})


async def watch(members: AsyncGenerator[frozenset[str], None]) -> None:
    """To the end, which a closed transport may tell by an error."""
    with suppress(BrokerError):
        async with aclosing(members):
            async for _ in members:
                pass


@prop(Profile.PEERS, Capability.PEERS, cases=BLOCKED)
async def a_member_stays_while_its_event_loop_is_blocked(trial: Trial, computing: bool) -> None:
    a, b = await trial.open(), await trial.open_elsewhere()
    async with aclosing(join(trial, a, "a")) as seen:
        staying = trial.start(stay(trial, b, "b"))
        await until(trial, seen, {"a", "b"})
        change = trial.start(until(trial, seen, {"a"}))
        await trial.rig.block(b, 3 * trial.rig.lease, computing)
        assert not change.done(), "it was given up"
        await trial.stop(change)
        await trial.stop(staying)


@prop(Profile.PEERS, Capability.PEERS)
async def a_member_whose_event_loop_is_stuck_is_gone_and_comes_back_when_it_turns(trial: Trial) -> None:
    a, b = await trial.open(), await trial.open_impatient(2 * trial.rig.lease)
    async with aclosing(join(trial, a, "a")) as seen:
        staying = trial.start(stay(trial, b, "b"))
        await until(trial, seen, {"a", "b"})
        blocked = trial.start(trial.rig.block(b, 5 * trial.rig.lease, False))
        await until(trial, seen, {"a"})
        await until(trial, seen, {"a", "b"})
        await blocked
        await trial.stop(staying)
