"""Calls that are cancelled, or time out, while others go on."""

from __future__ import annotations

import asyncio

from thalweg.channel import Channel, TopicSpec
from thalweg.contrib.conformance.properties import Profile, prop
from thalweg.contrib.conformance.trial import Trial, numbered, values
from thalweg.message import Message

from .messages import TOPICS


async def cancelled(task: asyncio.Task[object], turns: int) -> bool:
    """Cancel it after so many turns of the loop. Whether that ended it before it had a result."""
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    return task.cancelled()


@prop(Profile.CORE, cases=TOPICS)
async def a_cancelled_get_loses_nothing(trial: Trial, topic: TopicSpec) -> None:
    channel = await trial.channel(topic)
    count, got = 12 * trial.size, list[bytes | None]()
    producer = await trial.producer(topic)
    for number in range(count):
        get = asyncio.create_task(channel.get(10, 3600))
        await asyncio.sleep(0)
        await producer.put(numbered(number))  # may well have woken it already
        if not await cancelled(get, trial.dice.randrange(6)):
            got += values(get.result())
    await channel.close()
    heir = await trial.channel(topic)
    deliveries = await trial.receive(heir, count)  # the first ones again, for nothing was committed
    found = values(deliveries)
    if topic.queue:  # promises no order
        found.sort(key=lambda value: int(value or b""))
    assert found == [b"%d" % n for n in range(count)]
    assert set(got) <= set(found)


@prop(Profile.CORE, cases=TOPICS)
async def after_a_cancelled_get_the_same_channel_delivers_what_there_is(trial: Trial, topic: TopicSpec) -> None:
    channel = await trial.channel(topic)
    for number in range(6 * trial.size):
        get = asyncio.create_task(channel.get(1, 3600))
        await channel.put(numbered(number))
        got = list[bytes | None]()
        if not await cancelled(get, trial.dice.randrange(6)):
            got = values(get.result())
            await channel.commit(get.result())
        if not got:
            deliveries = await trial.receive(channel, 1)
            got = values(deliveries)
            await channel.commit(deliveries)
        assert got == [b"%d" % number]


@prop(Profile.CORE, cases=TOPICS)
async def a_cancelled_put_is_written_or_not_and_the_channel_still_works(trial: Trial, topic: TopicSpec) -> None:
    channel = await trial.channel(topic)
    count, returned = 20 * trial.size, set[bytes | None]()
    for number in range(count):
        put = asyncio.create_task(channel.put(numbered(number)))
        if not await cancelled(put, trial.dice.randrange(8)):
            put.result()
            returned.add(b"%d" % number)
    await channel.put(numbered(count))
    seen = values(await trial.rest(channel))
    assert len(seen) == len(set(seen)), "a cancelled put was written twice"
    assert {*returned, b"%d" % count} <= set(seen)
    assert seen == sorted(seen, key=lambda value: int(value or b"-1"))


@prop(Profile.CORE, cases=TOPICS)
async def a_cancelled_commit_is_done_or_not_and_the_channel_still_works(trial: Trial, topic: TopicSpec) -> None:
    channel = await trial.channel(topic)
    count = 10 * trial.size
    await channel.put(numbered(*range(count)))
    returned: set[bytes | None] = set()
    for delivery in await trial.receive(channel, count):
        commit = asyncio.create_task(channel.commit([delivery]))
        if not await cancelled(commit, trial.dice.randrange(8)):
            commit.result()
            returned.add(delivery.record.value)
    await channel.put([Message(b"last", b"k")])
    last = await trial.receive(channel, 1)
    await channel.commit(last)
    await channel.close()
    heir = await trial.channel(topic)
    again = values(await trial.rest(heir))
    assert not returned & set(again), "what was committed has come back"
    assert b"last" not in again


@prop(Profile.CORE, cases=TOPICS)
async def one_cancelled_task_does_not_disturb_the_others(trial: Trial, topic: TopicSpec) -> None:
    channel = await trial.channel(topic)

    async def one(channel: Channel) -> bytes | None:
        while not (deliveries := await channel.get(1, 3600)):
            pass
        return deliveries[0].record.value

    tasks = [trial.start(one(channel)) for _ in range(10)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    await asyncio.wait(tasks[::2])
    await channel.put(numbered(*range(5)))
    got = await trial.soon(asyncio.gather(*tasks[1::2]), "the tasks that were not cancelled")
    assert sorted(got, key=str) == [b"%d" % n for n in range(5)]


@prop(Profile.CORE, cases=TOPICS)
async def gets_that_time_out_lose_nothing(trial: Trial, topic: TopicSpec) -> None:
    channel = await trial.channel(topic)
    producer = await trial.producer(topic)
    count, got = 20 * trial.size, list[bytes | None]()

    async def produce() -> None:
        for number in range(count):
            await producer.put(numbered(number))
            await trial.rig.pass_time(trial.dice.random() / 200)

    producing = trial.start(produce())
    async with trial.patience(f"{count} messages by gets that time out"):
        while len(got) < count:
            deliveries = await channel.get(3, 0.001)
            await channel.commit(deliveries)
            got += values(deliveries)
            await asyncio.sleep(0)
    await producing
    assert got == [b"%d" % n for n in range(count)]
