"""Work queues: leases, retries and rejections of single deliveries; priority, delay and expiry."""

from __future__ import annotations

import asyncio

import pytest
from thalweg.capabilities import WorkQueue
from thalweg.channel import Capability
from thalweg.contrib.conformance.properties import Profile, prop
from thalweg.contrib.conformance.trial import Trial, numbered, values, work_queue
from thalweg.errors import BrokerError, StaleDelivery
from thalweg.message import QueueMessage

from .messages import QUEUE


async def open_queue(trial: Trial) -> WorkQueue:
    return work_queue(await trial.channel(QUEUE))


async def commit_next(trial: Trial, queue: WorkQueue) -> bytes | None:
    (delivery,) = await trial.receive(queue, 1)
    await queue.commit([delivery])
    return delivery.record.value


@prop(Profile.PRIORITY, Capability.PRIORITY)
async def higher_priority_goes_first_and_equal_priority_in_order(trial: Trial) -> None:
    queue = await trial.channel(QUEUE)
    for number, priority in enumerate([0, 9, 4, 9, 0]):
        await queue.put([QueueMessage(b"%d" % number, priority=priority)])
    assert values(await trial.receive(queue, 5)) == [b"1", b"3", b"2", b"0", b"4"]


@prop(Profile.DELAY, Capability.DELAY)
async def a_delayed_message_is_not_delivered_before_its_time_and_wakes_a_waiting_get_then(trial: Trial) -> None:
    queue, delay = await trial.channel(QUEUE), trial.rig.lease
    await queue.put([QueueMessage(b"later", b"k", delay=delay), QueueMessage(b"now", b"k")])
    now = await trial.receive(queue, 1)
    assert values(now) == [b"now"]
    await queue.commit(now)
    get = trial.start(trial.receive(queue, 1))
    await trial.rig.pass_time(delay / 3)
    assert not get.done()
    assert values(await trial.in_time(get, delay)) == [b"later"]


@prop(Profile.EXPIRY, Capability.EXPIRY)
async def an_expired_message_is_not_delivered(trial: Trial) -> None:
    queue, lease = await trial.channel(QUEUE), trial.rig.lease
    await queue.put([QueueMessage(b"short", b"k", expires=lease / 4), QueueMessage(b"long", b"k", expires=lease * 99)])
    await trial.rig.pass_time(lease / 2)
    assert values(await trial.rest(queue)) == [b"long"]


@prop(Profile.WORK_QUEUE, Capability.WORK_QUEUE)
async def a_delivery_comes_back_when_its_lease_ends_and_wakes_a_waiting_get(trial: Trial) -> None:
    a, b = await open_queue(trial), await open_queue(trial)
    await a.put(numbered(1))
    first = await trial.receive(b, 1)
    get = trial.start(trial.receive(a, 1))
    assert [d.attempts for d in await trial.in_time(get, trial.rig.lease * 1.1)] == [2]
    with pytest.raises(StaleDelivery):
        await b.commit(first)
    await a.close()
    assert [d.attempts for d in await trial.receive(b, 1)] == [3]


@prop(Profile.WORK_QUEUE, Capability.WORK_QUEUE)
async def a_late_commit_does_not_settle_the_delivery_of_another(trial: Trial) -> None:
    a, b = await open_queue(trial), await open_queue(trial)
    await a.put(numbered(1, 2))
    late = await trial.receive(a, 2)
    others = await trial.in_time(trial.start(trial.receive(b, 2)), trial.rig.lease * 1.1)
    with pytest.raises(StaleDelivery):
        await a.commit(late)
    await b.commit(others[:1])
    await b.close()
    (again,) = await trial.receive(a, 1)
    assert (again.record.value, again.attempts) == (others[1].record.value, 3)


@prop(Profile.WORK_QUEUE, Capability.WORK_QUEUE)
async def an_extended_delivery_stays_and_comes_back_when_the_extension_ends(trial: Trial) -> None:
    a, b = await open_queue(trial), await open_queue(trial)
    await a.put(numbered(1, 2, key=None))  # of one key, they may have to stay together
    first, second = await trial.receive(a, 2)
    get = trial.start(commit_next(trial, b))
    for _ in range(4):
        await trial.rig.pass_time(trial.rig.lease / 2)
        await a.extend([first], trial.rig.lease)
    assert await trial.soon(get, "the delivery that was not extended") == second.record.value
    with pytest.raises(StaleDelivery):
        await a.extend([second], trial.rig.lease)
    again = await trial.in_time(trial.start(trial.receive(b, 1)), trial.rig.lease * 1.1)
    assert [(d.record.value, d.attempts) for d in again] == [(first.record.value, 2)]


@prop(Profile.WORK_QUEUE, Capability.WORK_QUEUE)
async def a_retried_delivery_comes_back_after_its_delay_with_one_more_attempt(trial: Trial) -> None:
    queue = await open_queue(trial)
    await queue.put(numbered(1, 2))
    one, two = await trial.receive(queue, 2)
    await queue.retry(one, trial.rig.lease)
    await queue.retry(two, 0)
    (again,) = await trial.receive(queue, 1)
    assert (again.record.value, again.attempts) == (b"2", 2)
    await queue.commit([again])
    for settled in (queue.retry(one, 0), queue.commit([one]), queue.extend([one], 1.0), queue.reject(one, "late")):
        with pytest.raises(BrokerError):
            await settled
    get = trial.start(trial.receive(queue, 1))
    await trial.rig.pass_time(trial.rig.lease / 3)
    assert not get.done()
    (last,) = await trial.in_time(get, trial.rig.lease)
    assert (last.record.value, last.attempts) == (b"1", 2)


@prop(Profile.WORK_QUEUE, Capability.WORK_QUEUE)
async def a_delay_between_attempts_holds_up_no_other_message(trial: Trial) -> None:
    queue = await open_queue(trial)
    await queue.put(numbered(1))
    (one,) = await trial.receive(queue, 1)
    await queue.retry(one, trial.rig.lease * 50)
    for number in range(2, 6):
        await queue.put(numbered(number))
        (delivery,) = await trial.receive(queue, 1)
        assert delivery.record.value == b"%d" % number
        await queue.commit([delivery])


@prop(Profile.WORK_QUEUE, Capability.WORK_QUEUE)
async def a_retry_survives_the_death_of_the_consumer(trial: Trial) -> None:
    doomed = await trial.open_elsewhere()
    queue = work_queue(await trial.channel(QUEUE, transport=doomed))
    await queue.put(numbered(1))
    (one,) = await trial.receive(queue, 1)
    await queue.retry(one, trial.rig.lease / 2)
    await trial.rig.crash(doomed)
    heir = await open_queue(trial)
    (again,) = await trial.in_time(trial.start(trial.receive(heir, 1)), trial.rig.lease * 1.1)
    assert (again.record.value, again.attempts) == (b"1", 2)


@prop(Profile.WORK_QUEUE, Capability.WORK_QUEUE)
async def a_rejected_delivery_is_gone_for_good(trial: Trial) -> None:
    queue = await open_queue(trial)
    await queue.put(numbered(1, 2))
    one, two = await trial.receive(queue, 2)
    await queue.reject(one, "because")
    with pytest.raises(BrokerError):
        await queue.retry(one, 0)
    await queue.commit([two])
    await trial.rig.pass_time(trial.rig.lease * 1.5)
    await queue.close()
    heir = await trial.channel(QUEUE)
    assert not await trial.rest(heir)


@prop(Profile.WORK_QUEUE, Capability.WORK_QUEUE)
async def each_delivery_is_settled_by_itself(trial: Trial) -> None:
    queue = await open_queue(trial)
    await queue.put(numbered(*range(6)))
    d = await trial.receive(queue, 6)
    await asyncio.gather(
        queue.commit([d[4]]), queue.retry(d[1], 0), queue.reject(d[3], "no"), queue.commit([d[0], d[5]])
    )
    await queue.close()
    heir = await trial.channel(QUEUE)
    again = await trial.receive(heir, 2)
    assert sorted(values(again), key=str) == [b"1", b"2"]
    assert not await trial.rest(heir)
