"""The transport itself: topics, and the odd ends of its life."""

from __future__ import annotations

import asyncio

import pytest
from thalweg.channel import Capability, TopicInfo, TopicSpec, Transport
from thalweg.contrib.conformance.properties import Profile, cases, prop
from thalweg.contrib.conformance.trial import Trial, logs, numbered, values
from thalweg.errors import BrokerError, TopicMismatch

from .messages import QUEUE, TOPICS

NAMES = {
    "dots": "a.b..c",
    "case": "AbC",
    "internal": "-internal-",
    "unicode and blanks": "\N{SNOWMAN} ü/x y",
    "what brokers use themselves": "#*>$:{}%0A",
    "long": "n" * 120,
}


@prop(Profile.CORE)
async def declare_creates_what_is_missing_and_reports_what_exists_in_the_order_asked(trial: Trial) -> None:
    transport, other = await trial.open(), await trial.open()
    first = await trial.declare(transport, TopicSpec("b", default_partitions=2), TopicSpec("a"), QUEUE)
    again = await trial.declare(other, TopicSpec("a", default_partitions=9), TopicSpec("b"))
    assert [info.name for info in first] == [trial.name(name) for name in ("b", "a", "q")]
    assert [info.queue for info in first] == [False, False, True]
    assert first[1].partitions == 1
    assert list(again) == [first[1], first[0]]


@prop(Profile.REPLAY, Capability.LOG)
async def a_log_has_the_partitions_it_was_declared_with(trial: Trial) -> None:
    transport, other = await trial.open(), await trial.open()
    first = await trial.declare(transport, TopicSpec("b", partitions=3), TopicSpec("a", default_partitions=2))
    again = await trial.declare(other, TopicSpec("a", default_partitions=9), TopicSpec("b", partitions=3))
    expected = [TopicInfo(trial.name("b"), 3), TopicInfo(trial.name("a"), 2)]
    assert list(first) == expected
    assert list(again) == expected[::-1]


@prop(Profile.CORE)
async def topics_are_listed_sorted_whoever_declared_them(trial: Trial) -> None:
    transport, other = await trial.open(), await trial.open()
    await trial.declare(transport, TopicSpec("b"), QUEUE)
    await trial.declare(other, TopicSpec("-internal-"))
    found = {info.name: info for info in await transport.topics()}
    assert list(found) == sorted(found)
    assert [found[trial.name(name)].queue for name in ("-internal-", "b", "q")] == [False, False, True]


@prop(Profile.CORE, cases=cases({name: TopicSpec(text) for name, text in NAMES.items()}))
async def any_name_is_a_topics_name_and_is_given_back(trial: Trial, spec: TopicSpec) -> None:
    for queue in (False, True):
        topic = TopicSpec(f"{'q' if queue else ''}{spec.name}", queue=queue)
        channel = await trial.channel(topic, group=spec.name)
        await channel.put(numbered(1))
        assert values(await trial.receive(channel, 1)) == [b"1"]
        listed = await (await trial.open()).topics()
        assert [info.queue for info in listed if info.name == trial.name(topic.name)] == [queue]


@prop(Profile.CORE)
async def topics_whose_names_are_alike_are_different_topics(trial: Trial) -> None:
    names = ["a.b", "a-b", "a_b", "A.B", "a b", "a/b", "a%2Eb"]
    channels = [await trial.channel(TopicSpec(name)) for name in names]
    for number, channel in enumerate(channels):
        await channel.put(numbered(number))
    for number, channel in enumerate(channels):
        assert values(await trial.rest(channel)) == [b"%d" % number]


@prop(
    Profile.CORE,
    cases=cases({"a log wanted": TopicSpec("q"), "a queue wanted": TopicSpec("t", queue=True)}),
)
async def a_topic_of_the_other_kind_is_a_mismatch_and_stays_as_it_is(trial: Trial, spec: TopicSpec) -> None:
    transport = await trial.open()
    declared = await trial.declare(transport, TopicSpec("t"), QUEUE)
    with pytest.raises(TopicMismatch, match=spec.name):
        await trial.declare(transport, spec)
    assert set(await transport.topics()) >= set(declared)


@prop(Profile.CORE, cases=TOPICS)
async def what_belongs_to_others_must_exist_and_is_not_created(trial: Trial, topic: TopicSpec) -> None:
    transport = await trial.open()
    theirs = TopicSpec("theirs", queue=topic.queue, declare=False)
    with pytest.raises(BrokerError, match=f"{trial.name('theirs')}.*declare=False"):
        await trial.declare(transport, TopicSpec("ours"), theirs)
    names = {info.name for info in await transport.topics()}
    assert not names & {trial.name("ours"), trial.name("theirs")}
    created = await trial.declare(transport, TopicSpec("theirs", queue=topic.queue))
    assert list(await trial.declare(transport, theirs)) == list(created)


@prop(Profile.REPLAY, Capability.LOG)
async def another_partition_count_is_a_mismatch_and_the_topic_stays_as_it_is(trial: Trial) -> None:
    transport = await trial.open()
    declared = await trial.declare(transport, TopicSpec("t", partitions=2))
    for partitions in (1, 3):
        with pytest.raises(TopicMismatch, match="t"):
            await trial.declare(transport, TopicSpec("t", partitions=partitions))
    assert set(await transport.topics()) >= set(declared)


@prop(Profile.CORE)
async def a_topic_that_was_not_declared_is_an_error(trial: Trial) -> None:
    transport = await trial.open()
    with pytest.raises(BrokerError, match=trial.name("nowhere")):
        await transport.channel(trial.name("nowhere"), trial.name("g"))


@prop(Profile.REPLAY, Capability.LOG)
async def a_log_that_was_not_declared_is_an_error(trial: Trial) -> None:
    transport = await trial.open()
    with pytest.raises(BrokerError, match=trial.name("nowhere")):
        await logs(transport).log(trial.name("nowhere"))


@prop(Profile.CORE, cases=TOPICS)
async def closing_twice_and_at_once_is_harmless_and_later_calls_raise(trial: Trial, topic: TopicSpec) -> None:
    transport = await trial.open()
    channel = await trial.channel(topic, transport=transport)
    await asyncio.gather(transport.close(), transport.close())
    await transport.close()
    for call in (transport.topics(), channel.get(1, 0), channel.put(numbered(1))):
        with pytest.raises(BrokerError):
            await call


@prop(Profile.CORE)
async def a_closed_transport_can_be_opened_again_and_finds_what_was_written(trial: Trial) -> None:
    transport = await trial.open()
    channel = await trial.channel(TopicSpec("t"), transport=transport)
    await channel.put(numbered(1, 2))
    await trial.open()  # a broker may live only as long as someone uses it
    await transport.close()
    await transport.open()
    again = await trial.channel(TopicSpec("t"), transport=transport)
    assert values(await trial.receive(again, 2)) == [b"1", b"2"]


@prop(Profile.CORE)
async def a_transport_describes_itself_in_a_line(trial: Trial) -> None:
    transport = await trial.open()
    assert isinstance(transport, Transport)
    assert transport.description
    assert len(transport.description.splitlines()) == 1
    assert all(warning.strip() for warning in transport.warnings)
