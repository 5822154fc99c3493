"""Locks: one holder at a time, and none for longer than its lease once it is dead or hangs."""

from __future__ import annotations

import asyncio

from thalweg.capabilities import Held
from thalweg.channel import Capability, Transport
from thalweg.contrib.conformance.properties import Mode, Profile, cases, prop
from thalweg.contrib.conformance.puppet import PuppetHeld
from thalweg.contrib.conformance.trial import Trial, locks
from thalweg.errors import BrokerError

from .restarts import reopened

LONG_LEASE = 1_000_000.0
"""Seconds: no property lasts so long, by any clock."""

BLOCKED = cases({"waiting": False, "computing": True})
"""By what an event loop is kept from turning."""


async def take(trial: Trial, transport: Transport, name: str = "x", lease: float = 0.0) -> Held | None:
    return await locks(transport).try_lock(trial.name(name), lease or trial.rig.lease)


async def win(trial: Trial, transport: Transport, name: str = "x", lease: float = 0.0) -> Held:
    """As soon as it is free: a broker may take a moment to notice."""
    async with trial.patience("a lock to become free"):
        while (held := await take(trial, transport, name, lease)) is None:
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
    transports = [await trial.open() for _ in range(4)] * 2
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


@prop(Profile.LOCKS, Capability.LOCKS, cases=cases({"released": False, "closed": True}))
async def what_is_given_back_is_free_long_before_its_lease_would_have_ended(trial: Trial, closed: bool) -> None:
    a, b = await trial.open(), await trial.open()
    held = await win(trial, a, lease=LONG_LEASE)
    if closed:
        await a.close()
    else:
        await held.release()
    await win(trial, b)


@prop(Profile.LOCKS, Capability.LOCKS)
async def many_locks_of_one_holder_are_all_kept_while_others_come_and_go(trial: Trial) -> None:
    a, b = await trial.open(), await trial.open()
    names, lease = [f"x{number}" for number in range(100)], 3 * trial.rig.lease
    held = await asyncio.gather(*(win(trial, a, name, lease) for name in names))

    async def come_and_go() -> None:
        while True:
            await (await win(trial, a, "y", lease)).release()
            await trial.step()

    coming = trial.start(come_and_go())
    await trial.rig.pass_time(2 * lease)
    await trial.stop(coming)
    assert not [one for one in held if one.lost.is_set()]
    assert set(await asyncio.gather(*(take(trial, b, name) for name in names))) == {None}


# --- the holder's event loop -----------------------------------------------------------------------------------


@prop(Profile.LOCKS, Capability.LOCKS, cases=BLOCKED)
async def a_lock_is_kept_while_its_holders_event_loop_is_blocked(trial: Trial, computing: bool) -> None:
    a, b = await trial.open_elsewhere(), await trial.open()
    held = await win(trial, a)
    blocked = trial.start(trial.rig.block(a, 3 * trial.rig.lease, computing))
    while not blocked.done():
        assert await take(trial, b) is None
        await trial.step()
    await blocked
    assert not await is_lost(held)
    assert await take(trial, b) is None


@prop(Profile.LOCKS, Capability.LOCKS)
async def a_lock_is_lost_once_its_holders_event_loop_is_stuck(trial: Trial) -> None:
    a, b = await trial.open_impatient(2 * trial.rig.lease), await trial.open()
    held = await win(trial, a)
    blocked = trial.start(trial.rig.block(a, 5 * trial.rig.lease, False))
    heir = await win(trial, b)
    await blocked
    assert await is_lost(held)
    assert not heir.lost.is_set()


# --- the holder's connection, the broker -----------------------------------------------------------------------


async def is_kept_or_known_to_be_lost(trial: Trial, held: Held, other: Transport, lease: float) -> None:
    """Renewed, when what had disturbed it is over; or its holder knows, if the broker may drop it."""
    if trial.rig.locks_outlast_connections:
        await trial.rig.pass_time(lease)
        assert await take(trial, other) is None
        assert not held.lost.is_set()
    else:
        await trial.soon(held.lost.wait(), "the holder of a lock to know that it is lost")
        await win(trial, other)


@prop(Profile.LOCKS, Capability.LOCKS, cases=cases({"cut": False, "silent": True}))
async def a_lock_outlasts_a_broken_network_for_less_than_its_lease_or_its_holder_knows(
    trial: Trial, silent: bool
) -> None:
    (a, link), b, lease = await trial.open_linked(), await trial.open(), 4 * trial.rig.lease
    held = await win(trial, a, lease=lease)
    if silent:
        link.silence()
    else:
        link.cut()
    await trial.rig.pass_time(lease / 2)
    link.heal()
    await is_kept_or_known_to_be_lost(trial, held, b, lease)


@prop(Profile.LOCKS, Capability.LOCKS)
async def a_holder_cut_off_for_longer_than_the_lease_knows_that_its_lock_is_lost(trial: Trial) -> None:
    (a, link), b = await trial.open_linked(), await trial.open()
    held = await win(trial, a)
    link.cut()
    await trial.rig.pass_time(trial.rig.lease * 1.1)
    assert held.lost.is_set()
    heir = await win(trial, b)
    link.heal()
    assert held.lost.is_set()
    assert heir.number > held.number
    await trial.rig.pass_time(trial.rig.lease)
    assert not heir.lost.is_set()


@prop(Profile.LOCKS, Capability.LOCKS, modes=frozenset({Mode.FULL}))
async def a_lock_outlasts_a_restart_of_the_broker_within_its_lease_or_its_holder_knows(trial: Trial) -> None:
    await trial.rig.own_broker()
    lease = max(10.0, 10 * trial.rig.lease)
    held = await win(trial, await trial.open(), lease=lease)
    await trial.rig.restart_broker()
    await is_kept_or_known_to_be_lost(trial, held, await reopened(trial), lease)


@prop(Profile.LOCKS, Capability.LOCKS, modes=frozenset({Mode.FULL}))
async def a_holder_knows_that_its_lock_is_lost_when_the_broker_was_down_for_longer_than_the_lease(
    trial: Trial,
) -> None:
    await trial.rig.own_broker()
    held = await win(trial, await trial.open())
    await trial.rig.stop_broker()
    try:
        await trial.rig.pass_time(trial.rig.lease * 1.1)
        assert held.lost.is_set()
    finally:
        await trial.rig.start_broker()
    other = await reopened(trial)
    async with trial.patience("the lock to be free after the restart"):
        while True:
            try:
                heir = await win(trial, other)
                break
            except BrokerError:
                await trial.step()
    assert heir.number > held.number
    assert held.lost.is_set()
