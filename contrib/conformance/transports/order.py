"""The order of a key's messages, whoever reads them."""

from __future__ import annotations

import asyncio

from thalweg.channel import Channel, TopicSpec
from thalweg.contrib.conformance.properties import Profile, prop
from thalweg.contrib.conformance.trial import Trial, numbered, values
from thalweg.message import Message

from .messages import LOG, TOPICS


@prop(Profile.ORDERED, cases=TOPICS)
async def messages_of_one_key_come_in_order_within_and_across_puts(trial: Trial, topic: TopicSpec) -> None:
    channel = await trial.channel(topic)
    await channel.put(numbered(*range(4)))
    await channel.put(numbered(*range(4, 10)))
    assert values(await trial.receive(channel, 10, limit=3)) == [b"%d" % n for n in range(10)]


@prop(Profile.ORDERED, cases=TOPICS)
async def many_keys_are_each_in_order(trial: Trial, topic: TopicSpec) -> None:
    channel = await trial.channel(topic)
    count, keys = 40 * trial.size, [b"a", b"b", b"c", b"d", b"e"]
    for number in range(0, count, 10):
        await channel.put([Message(b"%d" % n, key) for n in range(number, number + 10) for key in keys])
    got: dict[bytes | None, list[bytes | None]] = {}
    for delivery in await trial.receive(channel, count * len(keys), limit=17):
        got.setdefault(delivery.record.key, []).append(delivery.record.value)
    assert got == {key: [b"%d" % n for n in range(count)] for key in keys}


@prop(Profile.ORDERED)
async def what_came_back_is_delivered_before_later_messages_of_its_key(trial: Trial) -> None:
    channel = await trial.channel(LOG)
    await channel.put(numbered(1, 2))
    await trial.receive(channel, 2)
    await channel.put(numbered(3, 4))
    await channel.close()
    heir = await trial.channel(LOG)
    again = [(d.record.value, d.attempts) for d in await trial.receive(heir, 4)]
    assert [value for value, _ in again] == [b"1", b"2", b"3", b"4"]
    assert [attempts for _, attempts in again[:2]] == [2, 2]


@prop(Profile.ORDERED)
async def order_holds_across_reconnects_of_the_consumer(trial: Trial) -> None:
    count, got = 30 * trial.size, list[bytes | None]()
    producer = await trial.producer(LOG)
    for number in range(0, count, 5):
        await producer.put(numbered(*range(number, number + 5)))
    while len(got) < count:
        channel = await trial.channel(LOG)
        deliveries = await trial.receive(channel, min(7, count - len(got)))
        await channel.commit(deliveries[:5])
        got += values(deliveries[:5])
        await channel.close()
    assert got == [b"%d" % n for n in range(count)]


@prop(Profile.ORDERED)
async def each_producers_messages_of_a_key_keep_their_order(trial: Trial) -> None:
    channel, other = await trial.channel(LOG), await trial.producer(LOG)
    count = 20 * trial.size

    async def produce(name: bytes, through: Channel) -> None:
        for number in range(count):
            await through.put([Message(b"%s%d" % (name, number), b"k")])

    await asyncio.gather(produce(b"a", channel), produce(b"b", other))
    seen = values(await trial.receive(channel, 2 * count))
    for name in (b"a", b"b"):
        assert [value for value in seen if value and value.startswith(name)] == [
            b"%s%d" % (name, n) for n in range(count)
        ]
