"""Messages through channels: what goes in comes out, and sizes have limits."""

from __future__ import annotations

import asyncio

import pytest
from thalweg.channel import TopicSpec
from thalweg.contrib.conformance.properties import Profile, cases, prop
from thalweg.contrib.conformance.trial import Trial, numbered, values
from thalweg.errors import MessageTooLarge, MissingCapability
from thalweg.message import Message, QueueMessage

LOG = TopicSpec("t", default_partitions=2)
QUEUE = TopicSpec("q", queue=True)
KINDS = {"topic": LOG, "queue": QUEUE}
TOPICS = cases(KINDS)

ODD = {
    "empty value": Message(b"", b"k"),
    "tombstone": Message(None, b"k"),
    "tombstone without key": Message(None),
    "empty key": Message(b"v", b""),
    "binary": Message(bytes(range(256)), bytes(range(256))),
    "headers": Message(b"v", b"k", (("a", b"1"), ("a", b""), ("\N{SNOWMAN}", b"\x00\xff"), ("", b"x"))),
    "timestamp": Message(b"v", timestamp=1_234_567_890_123),
}
BIG = {
    "value": lambda size: Message(b"v" * size, b"k"),
    "key": lambda size: Message(None, b"k" * size),
    "header name": lambda size: Message(b"v", b"k", (("n" * size, b""),)),
    "header value": lambda size: Message(b"v", b"k", (("n", b"h" * size),)),
}


@prop(Profile.CORE, cases=cases(KINDS, ODD))
async def a_message_is_delivered_as_it_was_put(trial: Trial, topic: TopicSpec, message: Message) -> None:
    channel = await trial.channel(topic)
    await channel.put([message])
    (delivery,) = await trial.receive(channel, 1)
    record = delivery.record
    assert (record.value, record.key, tuple(record.headers)) == (message.value, message.key, message.headers)
    assert record.timestamp == message.timestamp if message.timestamp else record.timestamp > 1_500_000_000_000
    assert delivery.attempts == 1


@prop(Profile.CORE, cases=TOPICS)
async def a_message_of_the_largest_size_is_delivered(trial: Trial, topic: TopicSpec) -> None:
    transport = await trial.open()
    channel = await trial.channel(topic, transport=transport)
    message = Message(b"v" * (trial.message_bytes(transport) - 10), b"key", (("name", b"val"),))
    assert message.size == trial.message_bytes(transport)
    await channel.put([message])
    (delivery,) = await trial.receive(channel, 1)
    assert delivery.record.value == message.value


@prop(Profile.CORE, cases=cases(KINDS, BIG))
async def an_oversize_message_is_refused_and_nothing_of_the_put_is_written(
    trial: Trial, topic: TopicSpec, big: object
) -> None:
    assert callable(big)
    transport = await trial.open()
    channel = await trial.channel(topic, transport=transport)
    limit = trial.message_bytes(transport)
    with pytest.raises(MessageTooLarge, match=str(limit)):
        await channel.put([*numbered(1), big(limit + 1)])
    assert not await trial.rest(channel)


@prop(Profile.CORE, cases=TOPICS)
async def a_put_of_nothing_does_nothing(trial: Trial, topic: TopicSpec) -> None:
    channel = await trial.channel(topic)
    await channel.put([])
    assert not await trial.rest(channel)


@prop(Profile.CORE, cases=TOPICS)
async def topics_are_separate(trial: Trial, topic: TopicSpec) -> None:
    channel = await trial.channel(topic)
    other = await trial.channel(TopicSpec("other", queue=topic.queue))
    await channel.put(numbered(1))
    assert not await trial.rest(other)
    assert values(await trial.rest(channel)) == [b"1"]


@prop(Profile.CORE)
async def a_topic_takes_no_priority_delay_or_expiry(trial: Trial) -> None:
    channel = await trial.channel(LOG)
    for message in (
        QueueMessage(b"p", b"k", priority=1),
        QueueMessage(b"d", b"k", delay=0.01),
        QueueMessage(b"e", b"k", expires=60),
    ):
        with pytest.raises(MissingCapability):
            await channel.put([message])
    assert not await trial.rest(channel)


@prop(Profile.CORE)
async def what_was_put_on_a_topic_before_a_group_existed_is_delivered_to_it(trial: Trial) -> None:
    first = await trial.channel(LOG)
    await first.put(numbered(1, 2))
    late = await trial.channel(LOG, group="late")
    assert values(await trial.receive(late, 2)) == [b"1", b"2"]


@prop(Profile.CORE, cases=TOPICS)
async def each_group_gets_every_message(trial: Trial, topic: TopicSpec) -> None:
    channels = [await trial.channel(topic, group) for group in ("a", "b")]
    await channels[0].put(numbered(*range(5)))
    for channel in channels:
        deliveries = await trial.receive(channel, 5)
        assert values(deliveries) == [b"%d" % n for n in range(5)]
        await channel.commit(deliveries)


@prop(Profile.CORE, cases=TOPICS)
async def a_waiting_get_wakes_for_a_message_of_another_transport(trial: Trial, topic: TopicSpec) -> None:
    channel, other = await trial.channel(topic, "a"), await trial.channel(topic, "b")
    get = trial.start(channel.get(10, 3600))
    await asyncio.sleep(0)
    await other.put(numbered(1))
    assert values(await trial.soon(get, "a waiting get to return")) == [b"1"]


@prop(Profile.CORE, cases=TOPICS)
async def a_get_without_messages_is_empty_at_its_time_out(trial: Trial, topic: TopicSpec) -> None:
    channel = await trial.channel(topic)
    assert not await channel.get(1, 0)
    get = trial.start(channel.get(1, 0.2))
    await asyncio.sleep(0)
    assert not get.done()
    await trial.rig.pass_time(0.25)
    assert not await trial.soon(get, "a get to end at its time-out")
    await channel.put(numbered(1))
    assert values(await trial.receive(channel, 1)) == [b"1"]


@prop(Profile.CORE, cases=TOPICS)
async def a_get_gives_at_most_its_limit(trial: Trial, topic: TopicSpec) -> None:
    channel = await trial.channel(topic)
    await channel.put(numbered(*range(10)))
    assert values(await trial.receive(channel, 10, limit=3)) == [b"%d" % n for n in range(10)]
