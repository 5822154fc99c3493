"""Members of a group share its messages; each key is one member's at a time."""

from __future__ import annotations

import asyncio

from thalweg.channel import Channel, TopicSpec
from thalweg.contrib.conformance.properties import Profile, prop
from thalweg.contrib.conformance.trial import Trial, numbered, values
from thalweg.message import Delivery, Message

from .messages import LOG, QUEUE, TOPICS

SHARED = TopicSpec("t", default_partitions=4)


def shared(topic: TopicSpec) -> TopicSpec:
    return QUEUE if topic.queue else SHARED


@prop(Profile.CORE, cases=TOPICS)
async def members_of_a_group_share_the_messages_without_duplicates(trial: Trial, topic: TopicSpec) -> None:
    channels = await trial.members(3, shared(topic))
    count = 60 * trial.size
    got: list[bytes | None] = []

    async def consume(channel: Channel) -> None:
        while len(got) < count:
            deliveries = await channel.get(3, 0.1)
            got.extend(values(deliveries))
            await channel.commit(deliveries)
            await trial.step()

    consumers = [trial.start(consume(channel)) for channel in channels]
    await channels[0].put([Message(b"%d" % n, b"%d" % (n % 10)) for n in range(count)])
    await trial.soon(asyncio.wait(consumers), f"{count} messages among {len(channels)} members")
    assert sorted(got, key=lambda value: int(value or b"-1")) == [b"%d" % n for n in range(count)]


@prop(Profile.ORDERED)
async def a_key_is_in_the_hands_of_one_member_at_a_time_and_in_order(trial: Trial) -> None:
    channels = await trial.members(3, SHARED)
    count, keys = 20 * trial.size, [b"%d" % n for n in range(6)]
    holders: dict[bytes | None, set[int]] = {key: set() for key in keys}
    seen: dict[bytes | None, list[bytes | None]] = {key: [] for key in keys}

    async def consume(number: int) -> None:
        while sum(map(len, seen.values())) < count * len(keys):
            deliveries = await channels[number].get(4, 0.1)
            for delivery in deliveries:
                holders[delivery.record.key].add(number)
                assert holders[delivery.record.key] == {number}, "two members hold messages of one key"
                seen[delivery.record.key].append(delivery.record.value)
            await trial.step()
            for delivery in deliveries:
                holders[delivery.record.key].discard(number)
            await channels[number].commit(deliveries)

    consumers = [trial.start(consume(number)) for number in range(len(channels))]
    for number in range(count):
        await channels[0].put([Message(b"%d" % number, key) for key in keys])
    await trial.soon(asyncio.gather(*consumers), "all messages")
    assert seen == {key: [b"%d" % n for n in range(count)] for key in keys}


@prop(Profile.CORE, cases=TOPICS)
async def a_member_that_leaves_hands_its_work_to_the_others(trial: Trial, topic: TopicSpec) -> None:
    channels = await trial.members(2, shared(topic))
    keys = [b"%d" % n for n in range(12)]
    await channels[0].put([Message(b"v", key) for key in keys])
    held: list[list[Delivery]] = [[], []]
    async with trial.patience("every message to be in the hands of a member"):
        while sum(map(len, held)) < len(keys):
            for channel, hand in zip(channels, held, strict=True):
                hand += await channel.get(100, 0)
            await trial.step()
    await channels[1].commit(held[1])
    await channels[0].close()
    again = await trial.receive(channels[1], len(held[0]))
    assert sorted(d.record.key or b"" for d in again) == sorted(d.record.key or b"" for d in held[0])


@prop(Profile.CORE)
async def slow_work_of_a_living_member_stays_its_own(trial: Trial) -> None:
    channel = await trial.channel(LOG)
    await channel.put(numbered(1))
    deliveries = await trial.receive(channel, 1)
    other = await trial.channel(LOG)
    get = trial.start(trial.receive(other, 1))
    await trial.rig.pass_time(trial.rig.lease * 3)
    assert not get.done()
    await trial.stop(get)
    await channel.commit(deliveries)


@prop(Profile.CORE, cases=TOPICS)
async def many_tasks_share_one_channel_and_each_message_is_delivered_once(trial: Trial, topic: TopicSpec) -> None:
    channel = await trial.channel(topic)
    got: list[bytes | None] = []

    async def consume() -> None:
        while not (deliveries := await channel.get(1, 3600)):
            pass
        got.extend(values(deliveries))
        await channel.commit(deliveries)

    consumers = [trial.start(consume()) for _ in range(50)]
    await asyncio.gather(*(channel.put(numbered(n)) for n in range(50)))
    await trial.soon(asyncio.gather(*consumers), "50 tasks to get a message each")
    assert sorted(got, key=lambda value: int(value or b"-1")) == [b"%d" % n for n in range(50)]
