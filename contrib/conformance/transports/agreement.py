"""What channels, logs and commits say of one topic, they say of the same messages."""

from __future__ import annotations

from thalweg.capabilities import Commit
from thalweg.channel import Capability, TopicSpec
from thalweg.contrib.conformance.properties import Profile, prop
from thalweg.contrib.conformance.trial import Trial, fences, numbered, values
from thalweg.message import Message
from thalweg.partitioner import murmur2_partitioner

FOUR = TopicSpec("t", partitions=4)
JOURNAL = TopicSpec("j", partitions=1)


@prop(Profile.REPLAY, Capability.LOG)
async def a_channel_puts_a_key_where_murmur2_puts_it(trial: Trial) -> None:
    """Elsewhere, no table would find the rows of the key."""
    transport = await trial.open()
    channel = await trial.channel(FOUR, transport=transport)
    log = await trial.reader(transport)
    keys = [b"%d" % n for n in range(20)] + [b"", b"\xff\x00", "schlüssel".encode()]
    await channel.put([Message(b"v", key) for key in keys])
    for partition in range(4):
        found = {record.key for record in await trial.records(log, partition)}
        assert found == {key for key in keys if murmur2_partitioner(key, 4) == partition}


@prop(Profile.REPLAY, Capability.LOG)
async def a_log_and_its_channels_see_the_same_messages(trial: Trial) -> None:
    transport, log = await trial.log()
    channel = await trial.channel(TopicSpec("t", partitions=1), transport=transport)
    await log.append({0: numbered(1)})
    await channel.put(numbered(2))
    await log.append({0: numbered(3)})
    assert await trial.read(log) == [b"1", b"2", b"3"]
    assert values(await trial.receive(channel, 3)) == [b"1", b"2", b"3"]


@prop(Profile.FENCED, Capability.FENCING)
async def what_a_commit_sends_is_delivered_by_channels_in_its_order(trial: Trial) -> None:
    transport = await trial.open()
    await trial.declare(transport, JOURNAL)
    channel = await trial.channel(FOUR, transport=transport)
    claim = await fences(transport).claim(trial.name("j"), 0, Message(b"m"))
    count = 30 * trial.size
    await channel.put(numbered(0))
    place = trial.name("t"), murmur2_partitioner(b"k", 4)
    for number in range(1, count, 5):
        await fences(transport).commit({claim: Commit(numbered(number), {place: numbered(*range(number, number + 5))})})
    assert values(await trial.rest(channel))[: count + 1] == [b"%d" % n for n in range(count + 1)]


@prop(Profile.FENCED, Capability.FENCING)
async def a_commit_of_outputs_alone_and_one_of_nothing_are_commits_too(trial: Trial) -> None:
    transport, journal = await trial.log(name="j")
    await trial.declare(transport, FOUR)
    log = await trial.reader(transport)
    claim = await fences(transport).claim(trial.name("j"), 0, Message(b"m"))
    assert list((await fences(transport).commit({claim: Commit([])}))[claim]) == []
    written = await fences(transport).commit({claim: Commit([], {(trial.name("t"), 2): numbered(1, 2)})})
    assert list(written[claim]) == []
    assert await trial.read(log, 2) == [b"1", b"2"]
    assert await trial.read(journal) == [b"m"]


@prop(Profile.REPLAY, Capability.LOG)
async def a_retention_of_minutes_drops_nothing_within_seconds(trial: Trial) -> None:
    """Seconds are not milliseconds."""
    transport = await trial.open()
    await trial.declare(transport, TopicSpec("t", partitions=1, retention=600.0))
    log = await trial.reader(transport)
    await log.append({0: numbered(1, 2)})
    await trial.rig.pass_time(1.0)
    await log.append({0: numbered(3)})
    assert await trial.read(log) == [b"1", b"2", b"3"]
