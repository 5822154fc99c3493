"""Locks: one holder at a time, and none for longer than its lease once it is dead or hangs."""

from __future__ import annotations

import asyncio

from thalweg.capabilities import Held
from thalweg.channel import Capability, Transport
from thalweg.contrib.conformance.properties import Profile, prop
from thalweg.contrib.conformance.puppet import PuppetHeld
from thalweg.contrib.conformance.trial import Trial, locks


async def take(trial: Trial, transport: Transport, name: str = "x") -> Held | None:
    return await locks(transport).try_lock(trial.name(name), trial.rig.lease)


async def win(trial: Trial, transport: Transport, name: str = "x") -> Held:
    """As soon as it is free: a broker may take a moment to notice."""
    async with trial.patience("a lock to become free"):
        while (held := await take(trial, transport, name)) is None:
            await trial.step()
        return held
    raise NotImplementedError  # for type checkers


async def is_lost(held: Held) -> bool:
    return await held.is_lost() if isinstance(held, PuppetHeld) else held.lost.is_set()


@prop(Profile.LOCKS, Capability.LOCKS)
async def a_lock_has_one_holder_until_it_is_released(trial: Trial) -> None:
    a, b = await trial.open(), await trial.open()
    held = await win(trial, a)
    assert await take(trial, b) is None
    assert await take(trial, a) is None
    other = await win(trial, b, "y")
    assert not held.lost.is_set()
    await held.release()
    await held.release()
    heir = await win(trial, b)
    assert heir.number > held.number
    await held.release()
    assert await take(trial, a) is None
    assert not other.lost.is_set()


@prop(Profile.LOCKS, Capability.LOCKS)
async def rivals_for_a_lock_have_one_winner(trial: Trial) -> None:
    transports = [await trial.open() for _ in range(4)]
    for turn in range(3 * trial.size):
        won = await asyncio.gather(*(take(trial, transport, f"x{turn}") for transport in transports))
        assert sum(held is not None for held in won) == 1


@prop(Profile.LOCKS, Capability.LOCKS)
async def a_living_holder_keeps_its_lock_beyond_the_lease(trial: Trial) -> None:
    a, b = await trial.open(), await trial.open()
    held = await win(trial, a)
    for _ in range(5):
        await trial.rig.pass_time(trial.rig.lease / 2)
        assert await take(trial, b) is None
    assert not held.lost.is_set()


@prop(Profile.LOCKS, Capability.LOCKS)
async def a_lock_of_a_killed_holder_is_free_when_its_lease_has_ended(trial: Trial) -> None:
    a, b = await trial.open_elsewhere(), await trial.open()
    held = await win(trial, a)
    number = held.number
    await trial.rig.crash(a)
    await trial.rig.pass_time(trial.rig.lease * 1.1)
    assert (await win(trial, b)).number > number


@prop(Profile.LOCKS, Capability.LOCKS)
async def a_hung_holder_loses_its_lock_and_knows_it_in_the_moment_it_goes_on(trial: Trial) -> None:
    a, b = await trial.open_elsewhere(), await trial.open()
    held = await win(trial, a)
    assert not await is_lost(held)
    await trial.rig.hang(a)
    await trial.rig.pass_time(trial.rig.lease * 1.1)
    heir = await win(trial, b)
    await trial.rig.resume(a)
    assert await is_lost(held)
    assert heir.number > held.number
    assert not heir.lost.is_set()


@prop(Profile.LOCKS, Capability.LOCKS)
async def closing_a_transport_frees_its_locks_at_once_and_says_so(trial: Trial) -> None:
    a, b = await trial.open(), await trial.open()
    held = await win(trial, a)
    await a.close()
    assert held.lost.is_set()
    await win(trial, b)
