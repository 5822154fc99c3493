"""Much at once, nothing for long, and some for all."""

from __future__ import annotations

import asyncio

from thalweg.channel import Capability, TopicSpec
from thalweg.contrib.conformance.properties import Profile, prop
from thalweg.contrib.conformance.trial import LONG, Trial, numbered, values
from thalweg.message import Message

from .messages import TOPICS


@prop(Profile.CORE, cases=TOPICS)
async def a_put_of_many_messages_is_delivered_whole_and_in_order(trial: Trial, topic: TopicSpec) -> None:
    channel = await trial.channel(topic)
    count = 2000 * trial.size
    await channel.put([Message(b"%d" % n, b"k") for n in range(count)])
    got: list[bytes | None] = []
    async with trial.patience(f"{count} messages"):
        while len(got) < count:
            deliveries = await channel.get(500, 1.0)
            await channel.commit(deliveries)
            got += values(deliveries)
    assert got == [b"%d" % n for n in range(count)]


@prop(Profile.CORE, cases=TOPICS)
async def a_member_that_pauses_between_gets_misses_nothing(trial: Trial, topic: TopicSpec) -> None:
    channel = await trial.channel(topic)
    await channel.put(numbered(1))
    await channel.commit(await trial.receive(channel, 1))
    producer = await trial.producer(topic)
    for number in range(2, 8):
        await producer.put(numbered(number))
        await trial.rig.pass_time(trial.rig.lease / 2)
    assert values(await trial.receive(channel, 6)) == [b"%d" % n for n in range(2, 8)]


@prop(Profile.CORE, cases=TOPICS)
async def a_waiting_get_holds_up_no_put_and_no_commit(trial: Trial, topic: TopicSpec) -> None:
    channel = await trial.channel(topic)
    await channel.put(numbered(1))
    deliveries = await trial.receive(channel, 1)
    get = trial.start(channel.get(1, 3600))
    await trial.step()
    await trial.soon(channel.commit(deliveries), "a commit beside a waiting get")
    await trial.soon(channel.put(numbered(2)), "a put beside a waiting get")
    async with trial.patience("the waiting get to return"):
        got = await get
        while not got:
            got = await channel.get(1, 1.0)
    assert values(got) == [b"2"]


@prop(Profile.CORE, cases=TOPICS)
async def many_puts_at_once_are_all_written_once(trial: Trial, topic: TopicSpec) -> None:
    channel = await trial.channel(topic)
    count = 100 * trial.size
    await asyncio.gather(*(channel.put([Message(b"%d" % n, b"k")]) for n in range(count)))
    seen = values(await trial.rest(channel))
    assert sorted(seen, key=lambda value: int(value or b"-1")) == [b"%d" % n for n in range(count)]


@prop(Profile.REPLAY, Capability.LOG)
async def a_partition_that_is_left_out_slows_no_other(trial: Trial) -> None:
    _, log = await trial.log(partitions=2)
    for _ in range(5):
        await log.append({0: [Message(b"x" * 1000) for _ in range(200)]})
    await log.append({1: numbered(*range(5))})
    assert await trial.read(log, 1) == [b"%d" % n for n in range(5)]
    assert set(await trial.some(log, [1])) == {1}
    await log.append({1: numbered(5)})
    assert await trial.read(log, 1) == [b"%d" % n for n in range(6)]


@prop(Profile.REPLAY, Capability.LOG)
async def a_log_of_many_records_is_read_whole_and_in_order_from_anywhere(trial: Trial) -> None:
    _, log = await trial.log(partitions=2)
    count, positions = 3000 * trial.size, list[int]()
    for begin in range(0, count, 500):
        records = [Message(b"%d" % n) for n in range(begin, begin + 500)]
        written = await log.append({0: records, 1: records[:7]})
        positions += written[0]
    assert await trial.read(log) == [b"%d" % n for n in range(count)]
    for start in trial.dice.sample(range(count), 5):
        found = await trial.read(log, after=positions[start])
        assert found == [b"%d" % n for n in range(start + 1, count)]
    seen, after = 0, None
    async with trial.patience("the log in small reads"):
        while seen < count:
            batch = (await log.read({0: after}, 97, LONG, 1.0)).get(0)
            if batch is not None:
                assert values(batch.records) == [b"%d" % n for n in range(seen, seen + len(batch.records))]
                seen, after = seen + len(batch.records), batch.positions[-1]
