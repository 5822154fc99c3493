"""Processes that are killed: what they had in hand is another's, what they were told is done stays done."""

from __future__ import annotations

from thalweg.channel import TopicSpec
from thalweg.contrib.conformance.properties import Profile, prop
from thalweg.contrib.conformance.trial import Trial, numbered, values

from .messages import TOPICS


@prop(Profile.DURABLE, cases=TOPICS)
async def what_a_killed_member_had_in_hand_comes_back_and_what_it_committed_does_not(
    trial: Trial, topic: TopicSpec
) -> None:
    doomed = await trial.open_elsewhere()
    channel = await trial.channel(topic, transport=doomed)
    await channel.put(numbered(1, 2, 3))
    deliveries = await trial.receive(channel, 3)
    await channel.commit(deliveries[:1])
    other = await trial.channel(topic)
    get = trial.start(trial.receive(other, 2))
    await trial.rig.crash(doomed)
    again = await trial.in_time(get, trial.rig.lease * 1.1)
    assert [(d.record.value, d.attempts) for d in again] == [(b"2", 2), (b"3", 2)]
    assert not await trial.rest(other)


@prop(Profile.DURABLE, cases=TOPICS)
async def what_a_hung_member_had_in_hand_comes_back(trial: Trial, topic: TopicSpec) -> None:
    hung = await trial.open_elsewhere()
    channel = await trial.channel(topic, transport=hung)
    await channel.put(numbered(1))
    await trial.receive(channel, 1)
    other = await trial.channel(topic)
    get = trial.start(trial.receive(other, 1))
    await trial.rig.hang(hung)
    assert [d.attempts for d in await trial.in_time(get, trial.rig.lease * 1.1)] == [2]
    await trial.rig.resume(hung)


@prop(Profile.DURABLE, cases=TOPICS)
async def what_was_acknowledged_to_a_producer_survives_its_death(trial: Trial, topic: TopicSpec) -> None:
    doomed = await trial.open_elsewhere()
    channel = await trial.channel(topic, transport=doomed)
    count = 50 * trial.size
    for number in range(count):
        await channel.put(numbered(number))
    await trial.rig.crash(doomed)
    heir = await trial.channel(topic)
    assert values(await trial.receive(heir, count)) == [b"%d" % n for n in range(count)]
    assert not await trial.rest(heir)


@prop(Profile.DURABLE, cases=TOPICS)
async def a_process_that_starts_over_goes_on_where_the_killed_one_stopped(trial: Trial, topic: TopicSpec) -> None:
    producer = await trial.producer(topic)
    count = 12 * trial.size
    for number in range(count):
        await producer.put(numbered(number))
    got: list[bytes | None] = []
    while len(got) < count:
        doomed = await trial.open_elsewhere()
        channel = await trial.channel(topic, transport=doomed)
        get = trial.start(trial.receive(channel, min(6, count - len(got))))
        deliveries = await trial.in_time(get, trial.rig.lease * 1.1)  # what the one before had in hand, first
        await channel.commit(deliveries[:4])
        got += values(deliveries[:4])
        await trial.rig.crash(doomed)
    if topic.queue:  # others go on while the dead one's messages are away
        got.sort(key=lambda value: int(value or b"-1"))
    assert got == [b"%d" % n for n in range(count)]
