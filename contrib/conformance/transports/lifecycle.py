"""Opening and closing: nothing is bound before, nothing is left behind, nothing in flight is forgotten."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from contextlib import aclosing, suppress

from thalweg.channel import Capability, TopicSpec, Transport
from thalweg.contrib.conformance.properties import Mode, Profile, prop
from thalweg.contrib.conformance.trial import LONG, Trial, locks, logs, numbered, peers, values
from thalweg.errors import BrokerError
from thalweg.message import Message
from thalweg.registry import load_transport

from .messages import LOG, QUEUE, TOPICS


@prop(Profile.CORE)
async def a_transport_is_made_where_there_is_no_event_loop(trial: Trial) -> None:
    transport = await asyncio.to_thread(load_transport, trial.rig.url)
    await transport.open()
    await transport.close()


@prop(Profile.CORE)
async def a_transport_that_was_never_opened_closes_and_refuses_to_work(trial: Trial) -> None:
    transport = load_transport(trial.rig.url)
    await transport.close()
    try:
        await transport.topics()
    except BrokerError:
        return
    raise AssertionError("topics() of a closed transport did not raise")


@prop(Profile.CORE, cases=TOPICS)
async def closing_with_puts_in_flight_ends_each_of_them_and_forgets_none_that_returned(
    trial: Trial, topic: TopicSpec
) -> None:
    for _ in range(2 * trial.size):
        transport = await trial.open()
        channel = await trial.channel(topic, transport=transport)
        puts = [asyncio.create_task(channel.put([Message(b"%d" % n, b"k")])) for n in range(20)]
        for _ in range(trial.dice.randrange(5)):
            await asyncio.sleep(0)
        await trial.soon(transport.close(), "close to return")
        await trial.soon(asyncio.wait(puts), "puts to end when their transport closes")
        told = {b"%d" % n for n, put in enumerate(puts) if put.exception() is None}
        assert all(put.exception() is None or isinstance(put.exception(), BrokerError) for put in puts)
        heir = await trial.channel(topic)
        found = await trial.rest(heir)
        await heir.commit(found)
        await heir.close()
        assert told <= set(values(found)), "a put returned, and its message is not there"


@prop(Profile.CORE, cases=TOPICS)
async def closing_with_a_commit_in_flight_ends_it_one_way_or_the_other(trial: Trial, topic: TopicSpec) -> None:
    transport = await trial.open()
    channel = await trial.channel(topic, transport=transport)
    await channel.put(numbered(*range(10)))
    deliveries = await trial.receive(channel, 10)
    commits = [asyncio.create_task(channel.commit([delivery])) for delivery in deliveries]
    await asyncio.sleep(0)
    await trial.soon(transport.close(), "close to return")
    await trial.soon(asyncio.wait(commits), "commits to end when their transport closes")
    told = {deliveries[n].record.value for n, commit in enumerate(commits) if commit.exception() is None}
    heir = await trial.channel(topic)
    again = set(values(await trial.rest(heir)))
    assert not told & again, "a commit returned, and its message came back"


@prop(Profile.CORE)
async def nothing_is_left_behind_by_open_and_close(trial: Trial) -> None:
    """No task, thread or file descriptor, and no object of the driver's more than after the first rounds."""
    complaints: list[str] = []  # of tasks that were dropped while they waited, of failures that nobody asked for
    asyncio.get_running_loop().set_exception_handler(lambda _, what: complaints.append(str(what.get("message"))))
    await cycle(trial)
    await cycle(trial)
    before = Left(trial)
    for _ in range(8 if trial.mode is Mode.QUICK else 100):
        await cycle(trial)
    await trial.rig.pass_time(trial.rig.lease * 1.1)  # what is kept until leases end may go
    await cycle(trial)
    after = Left(trial)
    for _ in range(20):  # what the operating system and the loop still have to hear
        if after.fits(before):
            assert not complaints, f"the event loop complains: {complaints[0]} ({len(complaints)} times)"
            return
        await asyncio.sleep(0.02)
        after = Left(trial)
    raise AssertionError(f"before: {before}; after: {after}; tasks: {asyncio.all_tasks() - {asyncio.current_task()}}")


class Left:
    """What there is now of all that a transport may leave behind."""

    def __init__(self, trial: Trial) -> None:
        gc.collect()
        package = type(load_transport(trial.rig.url)).__module__.rpartition(".")[0] or "thalweg"
        self.tasks = len(asyncio.all_tasks())
        self.threads = threading.active_count()
        self.files = len(os.listdir("/dev/fd"))
        self.objects = sum(str(type(thing).__module__).startswith(package) for thing in gc.get_objects())

    def fits(self, earlier: Left) -> bool:
        return (
            self.tasks <= earlier.tasks
            and self.threads <= earlier.threads
            and self.files <= earlier.files
            and self.objects <= earlier.objects * 1.1 + 20
        )

    def __repr__(self) -> str:
        return f"{self.tasks} tasks, {self.threads} threads, {self.files} files, {self.objects} objects of the driver"


async def cycle(trial: Trial) -> None:
    """One life of a transport, with some of all it can do, and calls that still wait when it closes."""
    transport = await trial.rig.open()
    waiting: list[asyncio.Task[object]] = []
    for topic in (LOG, QUEUE):
        channel = await trial.channel(topic, transport=transport)
        await channel.put(numbered(1))
        await channel.commit(await trial.receive(channel, 1))
        waiting.append(asyncio.create_task(channel.get(1, 3600)))
    waiting += await other_powers(trial, transport)
    await asyncio.sleep(0)
    await transport.close()
    await trial.soon(asyncio.wait(waiting), "waiting calls to end when their transport closes")
    for task in waiting:
        with suppress(BrokerError):
            task.result()


async def other_powers(trial: Trial, transport: Transport) -> list[asyncio.Task[object]]:
    waiting: list[asyncio.Task[object]] = []
    if Capability.LOG in transport.capabilities:
        log = await logs(transport).log(trial.name("t"))
        await log.append({0: numbered(1)})
        end = (await log.bounds(0)).last
        waiting.append(asyncio.create_task(log.read({0: end}, LONG, LONG, 3600)))
    if Capability.LOCKS in transport.capabilities:
        await locks(transport).try_lock(trial.name("x"), trial.rig.lease)
    if Capability.PEERS in transport.capabilities:

        async def watch() -> None:
            async with aclosing(peers(transport).peers(trial.name("g"), "me", trial.rig.lease)) as live:
                async for _ in live:
                    pass

        waiting.append(asyncio.create_task(watch()))
    return waiting


@prop(Profile.CORE, cases=TOPICS, modes=frozenset({Mode.STRESS}))
async def throughput_is_the_declared_share_of_the_bare_clients(trial: Trial, topic: TopicSpec) -> None:
    count, size = 20_000, 100
    raw = await trial.rig.raw_rate(count, size)
    channel = await trial.channel(topic)
    messages = [Message(b"x" * size, b"%d" % (n % 64)) for n in range(count)]
    start = time.perf_counter()
    for begin in range(0, count, 1000):
        await channel.put(messages[begin : begin + 1000])
    done = 0
    async with trial.patience(f"{count} messages"):
        while done < count:
            deliveries = await channel.get(1000, 1.0)
            await channel.commit(deliveries)
            done += len(deliveries)
    rate = count / (time.perf_counter() - start)
    assert rate >= raw * trial.rig.share, f"{rate:.0f} messages/s, the bare client {raw:.0f}"
