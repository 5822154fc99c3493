"""The broker is killed and started again."""

from __future__ import annotations

import asyncio

import pytest
from thalweg.capabilities import Commit
from thalweg.channel import Capability, TopicSpec, Transport
from thalweg.contrib.conformance.properties import Profile, prop
from thalweg.contrib.conformance.traffic import Traffic
from thalweg.contrib.conformance.trial import LONG, Trial, fences, numbered, values
from thalweg.errors import BrokerError, Fenced
from thalweg.message import Message

from .faults import working_again
from .groups import shared
from .messages import LOG, TOPICS


async def reopened(trial: Trial) -> Transport:
    """As soon as the broker answers."""
    async with trial.patience("the broker to answer"):
        while True:
            try:
                return await trial.open()
            except BrokerError:
                await trial.step()
    raise NotImplementedError  # for type checkers


@prop(Profile.DURABLE, cases=TOPICS)
async def what_was_acknowledged_survives_a_restart_of_the_broker(trial: Trial, topic: TopicSpec) -> None:
    await trial.rig.own_broker()
    transport = await trial.open()
    channel = await trial.channel(topic, transport=transport)
    await channel.put(numbered(*range(20)))
    deliveries = await trial.receive(channel, 20)
    await channel.commit(deliveries[:10])
    await transport.close()
    await trial.rig.restart_broker()
    heir = await trial.channel(topic, transport=await reopened(trial))
    assert sorted(values(await trial.receive(heir, 10)), key=lambda v: int(v or b"")) == [
        b"%d" % n for n in range(10, 20)
    ]
    assert not await trial.rest(heir)


@prop(Profile.DURABLE, cases=TOPICS)
async def an_open_channel_works_again_by_itself_after_a_restart(trial: Trial, topic: TopicSpec) -> None:
    await trial.rig.own_broker()
    channel = await trial.channel(topic)
    await channel.put(numbered(1))
    await channel.commit(await trial.receive(channel, 1))
    waiting = trial.start(channel.get(1, 3600))
    await asyncio.sleep(0)
    await trial.rig.restart_broker()
    waiting.cancel()
    await asyncio.wait([waiting])
    await working_again(trial, channel)


@prop(Profile.DURABLE, cases=TOPICS)
async def a_restart_in_the_middle_of_puts_gets_and_commits_loses_nothing(trial: Trial, topic: TopicSpec) -> None:
    await trial.rig.own_broker()
    traffic = Traffic(trial, shared(topic))
    await traffic.produce(await trial.producer(shared(topic)), 200 * trial.size)
    await traffic.join()
    await traffic.join()
    for _ in range(trial.size):
        await traffic.some(10)
        traffic.disturbed("restart")
        await trial.rig.restart_broker()
        traffic.disturbed("restarted")
    await traffic.finish()


@prop(Profile.CORE)
async def opening_while_the_broker_is_down_fails_with_a_broker_error(trial: Trial) -> None:
    await trial.rig.own_broker()
    transport = await trial.open()
    await transport.close()
    await trial.rig.stop_broker()
    try:
        with pytest.raises(BrokerError):
            await trial.soon(transport.open(), "open to give up")
    finally:
        await trial.rig.start_broker()
    transport = await reopened(trial)
    await trial.channel(LOG, transport=transport)


@prop(Profile.REPLAY, Capability.LOG)
async def a_log_is_the_same_after_a_restart(trial: Trial) -> None:
    await trial.rig.own_broker()
    transport, log = await trial.log(partitions=2)
    first = await log.append({0: numbered(*range(10)), 1: numbered(7)})
    await log.truncate(0, first[0][3])
    before = await trial.positioned(log, 0, first[0][2])
    await transport.close()
    await trial.rig.restart_broker()
    log = await trial.reader(await reopened(trial))
    records, positions = await trial.positioned(log, 0, first[0][2])
    assert (values(records), positions) == (values(before[0]), before[1])
    later = await log.append({0: numbered(99)})
    assert later[0][0] > positions[-1]
    assert await trial.read(log, 1) == [b"7"]


@prop(Profile.REPLAY, Capability.LOG)
async def a_waiting_read_goes_on_or_fails_at_a_restart_and_the_next_one_works(trial: Trial) -> None:
    await trial.rig.own_broker()
    _, log = await trial.log()
    last = (await log.append({0: numbered(1)}))[0][-1]
    read = trial.start(log.read({0: last}, LONG, LONG, 3600))
    await asyncio.sleep(0)
    await trial.rig.restart_broker()
    async with trial.patience("an append after the restart"):
        while True:
            try:
                await log.append({0: numbered(2)})
                break
            except BrokerError:
                await trial.step()
    await trial.stop(read)
    async with trial.patience("a read after the restart"):
        while True:
            try:
                found = await log.read({0: last}, LONG, LONG, 1.0)
                if found:
                    break
            except BrokerError:
                await trial.step()
    assert set(values(found[0].records)) == {b"2"}


@prop(Profile.FENCED, Capability.FENCING)
async def a_restart_of_the_broker_lets_no_fenced_owner_in_again(trial: Trial) -> None:
    await trial.rig.own_broker()
    a, b = await trial.open(), await trial.open()
    await trial.declare(a, TopicSpec("j", partitions=1))
    stale = await fences(a).claim(trial.name("j"), 0, Message(b"m"))
    heir = await fences(b).claim(trial.name("j"), 0, Message(b"n"))
    await fences(b).commit({heir: Commit(numbered(1))})
    await trial.rig.restart_broker()
    refused = False
    async with trial.patience("a stale owner to be refused"):
        while not refused:
            try:
                await fences(a).commit({stale: Commit(numbered(2))})
            except Fenced:
                refused = True
            except BrokerError:  # it may not have heard yet that the broker is back
                await trial.step()
            else:
                raise AssertionError("a stale owner has committed")
    log = await trial.reader(await reopened(trial), "j")
    assert await trial.read(log) == [b"m", b"n", b"1"]
