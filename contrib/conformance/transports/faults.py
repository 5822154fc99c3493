"""The network is cut, goes silent, or is slow."""

from __future__ import annotations

import asyncio

import pytest
from thalweg.channel import Capability, Channel, TopicSpec
from thalweg.contrib.conformance.link import Link
from thalweg.contrib.conformance.properties import Profile, prop
from thalweg.contrib.conformance.traffic import Traffic
from thalweg.contrib.conformance.trial import LONG, Trial, numbered, values
from thalweg.errors import BrokerError
from thalweg.message import Message

from .groups import shared
from .messages import LOG, TOPICS


async def storm(trial: Trial, topic: TopicSpec, link: Link, traffic: Traffic) -> None:
    """Cut it again and again, at moments of chance."""
    for _ in range(3 * trial.size):
        await traffic.some(trial.dice.randint(1, 10))
        traffic.disturbed("cut off")
        link.cut()
        await trial.rig.pass_time(trial.dice.random() * 0.1)
        link.heal()
        traffic.disturbed("connects anew")


@prop(Profile.DURABLE, cases=TOPICS)
async def a_consumer_whose_connection_is_cut_loses_nothing_and_goes_on_by_itself(
    trial: Trial, topic: TopicSpec
) -> None:
    transport, link = await trial.open_linked()
    traffic = Traffic(trial, shared(topic))
    await traffic.produce(await trial.producer(shared(topic)), 80 * trial.size)
    await traffic.join(transport)
    await storm(trial, topic, link, traffic)
    await traffic.finish()


@prop(Profile.DURABLE, cases=TOPICS)
async def a_producer_whose_connection_is_cut_writes_each_message_once_at_most(trial: Trial, topic: TopicSpec) -> None:
    transport, link = await trial.open_linked()
    traffic = Traffic(trial, shared(topic))
    await traffic.produce(await trial.producer(shared(topic), transport), 120 * trial.size)
    await traffic.join()
    for _ in range(4 * trial.size):
        await traffic.some(trial.dice.randint(1, 10))
        link.cut()
        await trial.rig.pass_time(trial.dice.random() * 0.05)
        link.heal()
    await traffic.finish()


@prop(Profile.DURABLE, cases=TOPICS)
async def a_put_whose_answer_is_lost_ends_with_a_broker_error(trial: Trial, topic: TopicSpec) -> None:
    transport, link = await trial.open_linked()
    channel = await trial.channel(topic, transport=transport)
    await channel.put(numbered(1))
    link.silence(to_broker=False)
    with pytest.raises(BrokerError):
        await trial.soon(channel.put(numbered(2)), "a put without an answer to give up")
    link.heal()
    other = await trial.channel(topic)
    seen = values(await trial.rest(other))
    assert seen in ([b"1"], [b"1", b"2"])


@prop(Profile.DURABLE, cases=TOPICS)
async def calls_on_a_silent_network_end_in_time_and_the_channel_works_again_afterwards(
    trial: Trial, topic: TopicSpec
) -> None:
    transport, link = await trial.open_linked()
    channel = await trial.channel(topic, transport=transport)
    await channel.put(numbered(1))
    (delivery,) = await trial.receive(channel, 1)
    link.silence()
    calls = [trial.start(call) for call in (channel.put(numbered(2)), channel.get(1, 0.1), channel.commit([delivery]))]
    await trial.soon(asyncio.wait(calls), "put, get and commit on a silent network to end")
    for call in calls[::2]:
        assert isinstance(call.exception(), BrokerError), "it can only have failed"
    link.heal()
    await working_again(trial, channel)


async def working_again(trial: Trial, channel: Channel) -> None:
    """The same channel puts and gets by itself, once the network or the broker is back."""
    async with trial.patience("the channel to work again"):
        while True:
            try:
                await channel.put([Message(b"again", b"k")])
                break
            except BrokerError:
                await trial.step()
        while True:
            try:
                if b"again" in values(await channel.get(10, 0.5)):
                    return
            except BrokerError:
                await trial.step()


@prop(Profile.CORE, cases=TOPICS)
async def a_slow_network_changes_nothing_but_the_time(trial: Trial, topic: TopicSpec) -> None:
    transport, link = await trial.open_linked()
    channel = await trial.channel(topic, transport=transport)
    link.slow(0.003, 2_000_000)
    await channel.put(numbered(*range(20)))
    deliveries = await trial.receive(channel, 20)
    assert values(deliveries) == [b"%d" % n for n in range(20)]
    await channel.commit(deliveries)
    await channel.close()
    heir = await trial.channel(topic)
    assert not await trial.rest(heir)


@prop(Profile.REPLAY, Capability.LOG)
async def a_reader_whose_connection_is_cut_goes_on_where_it_was(trial: Trial) -> None:
    _, writer = await trial.log()
    transport, link = await trial.open_linked()
    log = await trial.reader(transport)
    count, seen, after = 60 * trial.size, list[bytes | None](), None

    async def write() -> None:
        for number in range(count):
            await writer.append({0: numbered(number)})

    writing = trial.start(write())
    async with trial.patience(f"{count} records"):
        while len(seen) < count:
            if trial.dice.random() < 0.2:
                link.cut()
                await trial.step()
                link.heal()
            try:
                found = (await log.read({0: after}, 5, LONG, 0.2)).get(0)
            except BrokerError:
                await trial.step()
                continue
            if found is not None:
                seen += values(found.records)
                after = found.positions[-1]
    await writing
    assert seen == [b"%d" % n for n in range(count)]


@prop(Profile.REPLAY, Capability.LOG)
async def an_append_that_failed_is_in_the_log_once_at_most_and_in_order(trial: Trial) -> None:
    transport, link = await trial.open_linked()
    await trial.declare(transport, TopicSpec("t", partitions=1))
    log = await trial.reader(transport)
    certain: list[bytes] = []
    for number in range(60 * trial.size):
        if trial.dice.random() < 0.1:
            asyncio.get_running_loop().call_later(trial.dice.random() * 0.003, link.cut)
        try:
            await trial.soon(log.append({0: numbered(number)}), "an append to end")
            certain.append(b"%d" % number)
        except BrokerError:
            link.heal()
            await trial.step()
    link.heal()
    _, other = await trial.log()
    seen = [value or b"" for value in await trial.read(other)]
    assert seen == sorted(set(seen), key=int), "a record lies in the log twice, or out of order"
    assert set(certain) <= set(seen), "an append that returned is not in the log"


@prop(Profile.CORE)
async def opening_a_silent_broker_fails_with_a_broker_error(trial: Trial) -> None:
    transport, link = await trial.open_linked()
    await transport.close()
    link.silence()
    with pytest.raises(BrokerError):
        await trial.soon(transport.open(), "open to give up")
    link.heal()
    await transport.open()
    await trial.channel(LOG, transport=transport)
