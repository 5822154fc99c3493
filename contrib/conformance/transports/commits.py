"""What is committed never comes back, what is not does."""

from __future__ import annotations

import asyncio

import pytest
from thalweg.channel import TopicSpec
from thalweg.contrib.conformance.properties import Profile, prop
from thalweg.contrib.conformance.trial import Trial, numbered, values
from thalweg.errors import BrokerError

from .messages import TOPICS


@prop(Profile.CORE, cases=TOPICS)
async def what_is_committed_never_comes_back_and_the_rest_does_with_one_more_attempt(
    trial: Trial, topic: TopicSpec
) -> None:
    channel = await trial.channel(topic)
    await channel.put(numbered(*range(5)))
    deliveries = await trial.receive(channel, 5)
    await channel.commit([deliveries[3], deliveries[1]])  # gaps, and out of order
    await channel.close()
    heir = await trial.channel(topic)
    again = await trial.receive(heir, 3)
    assert [(d.record.value, d.attempts) for d in again] == [(b"0", 2), (b"2", 2), (b"4", 2)]
    await heir.commit(again)
    await heir.close()
    last = await trial.channel(topic)
    assert not await trial.rest(last)


@prop(Profile.CORE, cases=TOPICS)
async def many_deliveries_are_committed_in_one_call(trial: Trial, topic: TopicSpec) -> None:
    channel = await trial.channel(topic)
    count = 600  # a driver may lend no more at a time than it has room for
    await channel.put(numbered(*range(count)))
    deliveries = await trial.receive(channel, count)
    await channel.commit(deliveries[::-1])
    await channel.close()
    heir = await trial.channel(topic)
    assert not await trial.rest(heir)


@prop(Profile.CORE, cases=TOPICS)
async def the_count_of_attempts_grows_with_each_return(trial: Trial, topic: TopicSpec) -> None:
    counted = []
    for attempt in range(4):
        channel = await trial.channel(topic)
        if attempt == 0:
            await channel.put(numbered(1))
        (delivery,) = await trial.receive(channel, 1)
        counted.append(delivery.attempts)
        await channel.close()
    assert counted == [1, 2, 3, 4]


@prop(Profile.CORE, cases=TOPICS)
async def a_closed_channel_gives_back_what_it_had_in_hand_at_once(trial: Trial, topic: TopicSpec) -> None:
    channel = await trial.channel(topic)
    await channel.put(numbered(1))
    await trial.receive(channel, 1)
    other = await trial.channel(topic)
    get = trial.start(trial.receive(other, 1))
    await asyncio.sleep(0)
    await channel.close()
    assert [d.attempts for d in await get] == [2]


@prop(Profile.CORE, cases=TOPICS)
async def a_closed_transport_gives_back_what_its_channels_had_in_hand_at_once(trial: Trial, topic: TopicSpec) -> None:
    transport = await trial.open()
    channel = await trial.channel(topic, transport=transport)
    await channel.put(numbered(1))
    await trial.receive(channel, 1)
    other = await trial.channel(topic)
    get = trial.start(trial.receive(other, 1))
    await asyncio.sleep(0)
    await transport.close()
    assert [d.attempts for d in await get] == [2]


@prop(Profile.CORE, cases=TOPICS)
async def committing_twice_is_harmless(trial: Trial, topic: TopicSpec) -> None:
    channel = await trial.channel(topic)
    await channel.put(numbered(1, 2))
    deliveries = await trial.receive(channel, 2)
    await channel.commit(deliveries[:1])
    await channel.commit(deliveries)
    await channel.commit(deliveries)
    await channel.commit([])
    await channel.close()
    heir = await trial.channel(topic)
    assert not await trial.rest(heir)


@prop(Profile.CORE, cases=TOPICS)
async def a_delivery_of_another_channel_cannot_be_committed(trial: Trial, topic: TopicSpec) -> None:
    channel, other = await trial.channel(topic), await trial.channel(topic, "other group")
    await channel.put(numbered(1))
    deliveries = await trial.receive(channel, 1)
    with pytest.raises(BrokerError):
        await other.commit(deliveries)
    await channel.close()
    heir = await trial.channel(topic)
    assert [d.attempts for d in await trial.receive(heir, 1)] == [2]


@prop(Profile.CORE, cases=TOPICS)
async def a_delivery_given_back_by_a_close_cannot_be_committed(trial: Trial, topic: TopicSpec) -> None:
    channel = await trial.channel(topic)
    await channel.put(numbered(1))
    deliveries = await trial.receive(channel, 1)
    await channel.close()
    with pytest.raises(BrokerError):
        await channel.commit(deliveries)
    heir = await trial.channel(topic)
    assert values(await trial.receive(heir, 1)) == [b"1"]


@prop(Profile.CORE, cases=TOPICS)
async def closing_a_channel_twice_is_harmless_and_wakes_a_waiting_get(trial: Trial, topic: TopicSpec) -> None:
    channel = await trial.channel(topic)
    get = trial.start(channel.get(1, 3600))
    await asyncio.sleep(0)
    await asyncio.gather(channel.close(), channel.close())
    try:
        assert not await trial.soon(get, "a get to end with its channel")
    except BrokerError:
        pass
    await channel.close()
    with pytest.raises(BrokerError):
        await channel.get(1, 0)
    with pytest.raises(BrokerError):
        await channel.put(numbered(1))
