"""Members that come, go, die and hang while messages flow: nothing is lost, repeated or overtaken."""

from __future__ import annotations

from thalweg.channel import TopicSpec
from thalweg.contrib.conformance.properties import Profile, prop
from thalweg.contrib.conformance.traffic import Traffic
from thalweg.contrib.conformance.trial import Trial

from .groups import shared
from .messages import TOPICS


async def begin(trial: Trial, topic: TopicSpec, count: int) -> Traffic:
    """Two producers, on transports of their own."""
    traffic = Traffic(trial, shared(topic))
    for _ in range(2):
        await traffic.produce(await trial.producer(shared(topic)), count * trial.size)
    return traffic


@prop(Profile.CORE, cases=TOPICS)
async def members_that_come_and_go_lose_and_repeat_nothing(trial: Trial, topic: TopicSpec) -> None:
    traffic = await begin(trial, topic, 60)
    await traffic.join()
    for _ in range(3 * trial.size):
        await traffic.some(8)
        await traffic.join()
        await traffic.some(8)
        await traffic.leave(traffic.members[0])
    await traffic.finish()


@prop(Profile.DURABLE, cases=TOPICS)
async def members_that_are_killed_lose_nothing_and_repeat_only_what_they_had_in_hand(
    trial: Trial, topic: TopicSpec
) -> None:
    traffic = await begin(trial, topic, 60)
    await traffic.join()
    for _ in range(2 * trial.size):
        doomed = await traffic.join(await trial.open_elsewhere())
        await traffic.some(10)
        await traffic.kill(doomed)
    await traffic.pass_time(trial.rig.lease * 1.1)
    await traffic.finish()


@prop(Profile.DURABLE, cases=TOPICS)
async def a_member_that_hangs_and_goes_on_loses_nothing_and_settles_nothing_of_others(
    trial: Trial, topic: TopicSpec
) -> None:
    traffic = await begin(trial, topic, 60)
    await traffic.join()
    hung = await traffic.join(await trial.open_elsewhere())
    for _ in range(trial.size):
        await traffic.some(10)
        await traffic.hang(hung)
        await traffic.pass_time(trial.rig.lease * 1.3)
        await traffic.resume(hung)
    await traffic.finish()
