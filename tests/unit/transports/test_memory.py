"""What only a memory broker has: names, options, virtual time, faults, cut networks. See also test_contract.py."""

from __future__ import annotations

import asyncio
import gc
import sys
import weakref
from contextlib import aclosing

import pytest
from thalweg.capabilities import Bounds, Commit, Fencing, Logs, require
from thalweg.channel import Capability, TopicSpec, Transport
from thalweg.clock import VirtualClock
from thalweg.errors import (
    AmbiguousCommit,
    BrokerError,
    ConfigurationError,
    Fenced,
    Gap,
    MissingCapability,
    UnknownOption,
)
from thalweg.message import Message, QueueMessage
from thalweg.transports.memory import MemoryBroker, MemoryOptions, MemoryTransport
from thalweg.url import Url

START = 1_577_836_800.0
LONG = 1_000_000


def numbered(*numbers: int, key: bytes | None = None) -> list[Message]:
    return [Message(b"%d" % number, key) for number in numbers]


def values(records):
    return [record.value for record in records]


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def move(clock: VirtualClock, seconds: float) -> None:
    await settle()
    clock.move(clock.now() + seconds)
    await settle()


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(START)


@pytest.fixture
async def broker(clock: VirtualClock, watchdog: None) -> MemoryBroker:
    return MemoryBroker(clock=clock)


async def opened(broker: MemoryBroker, **options) -> MemoryTransport:
    transport = MemoryTransport(broker, MemoryOptions(**options))
    await transport.open()
    await transport.declare([TopicSpec("t", partitions=2), TopicSpec("q", queue=True)])
    return transport


async def read_values(transport: MemoryTransport, partition: int = 0, topic: str = "t"):
    found = await (await transport.log(topic)).read({partition: None}, LONG, LONG, 0)
    return values(found[partition].records) if found else []


# --- names, options, lifetime ------------------------------------------------------------------------------


async def test_transports_of_one_name_share_a_broker_and_of_another_name_do_not():
    one, same, other, plain, bare = (
        MemoryTransport.from_url(Url(text))
        for text in ("memory://a", "memory://a?lease=5", "memory://b", "memory://", "memory://?log=false")
    )
    assert one.broker is same.broker
    assert plain.broker is bare.broker
    assert len({id(t.broker) for t in (one, other, plain)}) == 3
    assert MemoryTransport().broker is not MemoryTransport().broker


@pytest.mark.parametrize("how", ["closed", "forgotten while open"])
async def test_a_named_broker_lives_as_long_as_a_transport_on_it(how):
    one, two = (MemoryTransport.from_url(Url("memory://lifetime")) for _ in range(2))
    seen = weakref.ref(one.broker)
    for transport in (one, two):
        await transport.open()
        await transport.declare([TopicSpec("t")])
        await transport.channel("t", "g")
    await one.try_lock("x", 1)
    if how == "closed":
        await one.close()
    del one
    gc.collect()
    assert await two.topics()
    del two, transport
    gc.collect()
    assert seen() is None


async def test_description_and_warnings_say_what_it_is():
    transport = MemoryTransport.from_url(Url("memory://orders"))
    assert transport.description == "memory 'orders' (in this process)"
    assert MemoryTransport().description == "memory (in this process)"
    assert len(transport.warnings) == 1
    assert "lost with the process" in transport.warnings[0]
    assert isinstance(transport, Transport)


@pytest.mark.parametrize("query", ["message_bytes=0", "lease=0", "lease=soon", "fence=false"])
def test_an_option_that_cannot_work_is_refused_by_name(query):
    with pytest.raises(UnknownOption, match=query.split("=")[0]):
        MemoryTransport.from_url(Url(f"memory://?{query}"))


async def test_limits_are_those_of_the_url():
    transport = MemoryTransport.from_url(Url("memory://limits?message_bytes=5&commit_messages=2"))
    await transport.open()
    assert (transport.limits.message_bytes, transport.limits.commit_messages) == (5, 2)
    await transport.declare([TopicSpec("j", partitions=1)])
    claim = await transport.claim("j", 0, Message(b"m"))
    await transport.commit({claim: Commit(numbered(1), {("j", 0): numbered(2)})})
    with pytest.raises(BrokerError, match="commit_messages=2"):
        await transport.commit({claim: Commit(numbered(1), {("j", 0): numbered(2, 3)})})
    assert await read_values(transport, topic="j") == [b"m", b"1", b"2"]
    await transport.close()


async def test_a_partition_count_below_one_is_refused(broker):
    transport = await opened(broker)
    with pytest.raises(ConfigurationError, match="partitions=0"):
        await transport.declare([TopicSpec("none", partitions=0)])


SWITCHES = {
    Capability.LOG: lambda t: t.log("t"),
    Capability.LOCKS: lambda t: t.try_lock("x", 1),
    Capability.PEERS: lambda t: anext(t.peers("g", "me", 1)),
    Capability.FENCING: lambda t: t.claim("t", 0, Message(b"m")),
}


@pytest.mark.parametrize("capability", SWITCHES, ids=str)
async def test_a_capability_that_is_switched_off_is_not_declared_and_raises_when_used(capability):
    transport = MemoryTransport.from_url(Url(f"memory://off?{capability.value}=false"))
    await transport.open()
    await transport.declare([TopicSpec("t")])
    assert capability not in transport.capabilities
    with pytest.raises(MissingCapability, match=f"{capability.value}=false"):
        await SWITCHES[capability](transport)
    for other, use in SWITCHES.items():
        if other in transport.capabilities:
            await use(transport)
    await transport.close()


async def test_require_refuses_what_is_switched_off_and_gives_what_is_not():
    transport = MemoryTransport(options=MemoryOptions(fencing=False))
    assert require(transport, Capability.LOG, Logs, "tables", "memory://") is transport
    with pytest.raises(MissingCapability, match="exactly-once"):
        require(transport, Capability.FENCING, Fencing, "exactly-once", "memory://")


async def test_without_a_log_there_is_no_fencing_but_channels_work():
    transport = MemoryTransport(options=MemoryOptions(log=False))
    await transport.open()
    await transport.declare([TopicSpec("t", partitions=2)])
    assert Capability.FENCING not in transport.capabilities
    with pytest.raises(MissingCapability):
        await transport.claim("t", 0, Message(b"m"))
    channel = await transport.channel("t", "g")
    await channel.put(numbered(1))
    assert values([d.record for d in await channel.get(1, 0)]) == [b"1"]


@pytest.mark.parametrize(
    ("capability", "message"),
    [
        ("priority", QueueMessage(b"", priority=1)),
        ("delay", QueueMessage(b"", delay=1)),
        ("expiry", QueueMessage(b"", expires=1)),
    ],
)
async def test_a_queue_option_that_is_switched_off_or_used_on_a_log_raises_and_nothing_is_put(
    broker, capability, message
):
    transport = await opened(broker, **{capability: False})
    for channel in (await transport.channel("q", "g"), await transport.channel("t", "g")):
        with pytest.raises(MissingCapability, match=capability[:4]):
            await channel.put([Message(b"first"), message])
        await channel.put([QueueMessage(b"plain")])
        assert values([d.record for d in await channel.get(9, 0)]) == [b"plain"]


async def test_without_work_queue_deliveries_cannot_be_treated_one_by_one(broker):
    transport = await opened(broker, work_queue=False)
    channel = await transport.channel("q", "g")
    await channel.put(numbered(1))
    deliveries = await channel.get(1, 0)
    for call in (
        channel.extend(deliveries, 1),
        channel.retry(deliveries[0], 1),
        channel.reject(deliveries[0], "why"),
    ):
        with pytest.raises(MissingCapability, match="work_queue=false"):
            await call
    await channel.commit(deliveries)


@pytest.mark.parametrize("priority", [-1, 10])
async def test_a_priority_out_of_range_is_refused(broker, priority):
    channel = await (await opened(broker)).channel("q", "g")
    with pytest.raises(BrokerError, match=f"priority={priority}"):
        await channel.put([QueueMessage(b"", priority=priority)])
    assert not await channel.get(1, 0)


async def test_a_transport_must_be_opened_first(broker):
    transport = MemoryTransport(broker)
    for call in (transport.topics(), transport.channel("t", "g"), transport.log("t"), transport.try_lock("x", 1)):
        with pytest.raises(BrokerError, match="open"):
            await call


# --- event loops and clocks --------------------------------------------------------------------------------


def test_a_broker_outlives_the_event_loop_it_was_used_in():
    broker = MemoryBroker()
    transport = MemoryTransport(broker)
    kept = []

    async def first() -> None:
        await transport.open()
        await transport.declare([TopicSpec("t"), TopicSpec("q", queue=True)])
        await (await transport.log("t")).append({0: numbered(1)})
        for topic in ("t", "q"):
            channel = await transport.channel(topic, "g")
            await channel.put(numbered(2))
            assert await channel.get(9, 0)
        assert await transport.try_lock("x", 60)
        kept.append(transport.peers("g", "old", 60))
        assert await anext(kept[0])
        log = await transport.log("t")
        asyncio.get_running_loop().create_task(log.read({0: 1}, 9, 99, 60))  # still waits when the loop is closed
        await asyncio.sleep(0)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(first())
    leftovers = asyncio.all_tasks(loop)
    loop.close()

    async def second() -> None:
        heir = MemoryTransport(broker)
        await heir.open()
        assert await heir.try_lock("x", 60), "its holder's loop is gone"
        async with aclosing(heir.peers("g", "new", 60)) as peers:
            assert await anext(peers) == {"new"}
        log = await heir.log("t")
        await log.append({0: numbered(3)})
        assert await read_values(heir) == [b"1", b"2", b"3"]
        channel = await heir.channel("t", "g")
        assert [d.attempts for d in await channel.get(9, 0)] == [2, 2, 1]
        read = asyncio.create_task(log.read({0: 2}, 9, 99, 60))
        await asyncio.sleep(0)
        await (await transport.log("t")).append({0: numbered(4)})  # the old transport, in the new loop
        assert values((await read)[0].records) == [b"4"]
        held = await transport.try_lock("y", 60)
        assert await heir.try_lock("y", 60) is None
        await held.release()
        await heir.close()

    asyncio.run(second())
    asyncio.run(transport.close())
    for task in leftovers:
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        task.get_coro().close()


async def test_nothing_binds_an_event_loop_before_open():
    def build() -> MemoryTransport:
        return MemoryTransport.from_url(Url("memory://thread"))

    transport = await asyncio.to_thread(build)  # a thread that has no event loop
    await transport.open()
    await transport.close()


async def test_with_a_given_clock_no_timer_of_the_event_loop_is_used(broker, clock, monkeypatch):
    transport, other = await opened(broker), await opened(broker)
    log, queue, channel = await transport.log("t"), await transport.channel("q", "g"), await other.channel("t", "g")

    def refuse(*_):
        raise AssertionError("a real timer")

    monkeypatch.setattr(asyncio.get_running_loop(), "call_later", refuse)
    monkeypatch.setattr(asyncio.get_running_loop(), "call_at", refuse)
    waits = [
        asyncio.create_task(call)
        for call in (log.read({0: None}, 1, 1, 5), queue.get(1, 5), channel.get(1, 5), other.try_lock("x", 5))
    ]
    await settle()
    other.kill()
    await settle()
    await move(clock, 4)
    assert not waits[0].done()
    assert await transport.try_lock("x", 5) is None
    await move(clock, 1)
    assert await waits[0] == {}
    assert not await waits[1]
    with pytest.raises(BrokerError, match="killed"):
        await waits[2]
    assert await transport.try_lock("x", 5)
    assert clock.next() is None or clock.next() > clock.now() + 5, "no timer is left but the dead member's lease"


async def test_what_waits_leaves_no_timer_behind(broker, clock):
    transport = await opened(broker)
    log, queue, channel = await transport.log("t"), await transport.channel("q", "g"), await transport.channel("t", "g")
    tasks = [asyncio.create_task(call) for call in (log.read({0: None}, 1, 99, 9), queue.get(1, 9), channel.get(1, 9))]
    await settle()
    assert clock.next() == START + 9
    await log.append({0: numbered(1)})
    await queue.put(numbered(1))
    await asyncio.gather(*tasks)
    assert clock.next() is None
    tasks = [asyncio.create_task(call) for call in (log.read({1: None}, 1, 99, 9), queue.get(1, 9), channel.get(1, 9))]
    await settle()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert clock.next() is None


async def test_an_endless_time_out_waits_without_a_timer(broker, clock):
    transport = await opened(broker)
    log = await transport.log("t")
    read = asyncio.create_task(log.read({0: None}, 1, 99, float("inf")))
    await settle()
    assert clock.next() is None
    await log.append({0: numbered(1)})
    assert await read


async def test_timestamps_come_from_the_brokers_clock_and_given_ones_stay(broker, clock):
    transport = await opened(broker)
    log = await transport.log("t")
    mine = Message(b"mine", timestamp=7)
    await log.append({0: [mine, Message(b"now")]})
    await move(clock, 1.5)
    await log.append({0: [Message(b"later")]})
    records = (await log.read({0: None}, 9, LONG, 0))[0].records
    assert [record.timestamp for record in records] == [7, int(START * 1000), int(START * 1000) + 1500]
    assert records[0] is mine


async def test_positions_are_not_dense_if_the_broker_is_told_so(clock):
    transport = await opened(MemoryBroker(clock=clock, position_step=5))
    log = await transport.log("t")
    assert list((await log.append({0: numbered(1, 2, 3)}))[0]) == [0, 5, 10]
    assert [await log.read({0: after}, 9, LONG, 0) == {} for after in (9, 10, 14)] == [False, True, True]
    with pytest.raises(Gap):
        await log.read({0: 15}, 9, LONG, 0)
    await log.truncate(0, 6)
    assert await log.bounds(0) == Bounds(10, 10)
    for after in (5, 6, 9):
        assert list((await log.read({0: after}, 9, LONG, 0))[0].positions) == [10]
    with pytest.raises(Gap):
        await log.read({0: 4}, 9, LONG, 0)


# --- retention, truncation and loss ------------------------------------------------------------------------


async def test_records_older_than_the_retention_are_gone_and_that_is_a_gap(broker, clock):
    transport = await opened(broker)
    await transport.declare([TopicSpec("r", retention=60)])
    log, channel = await transport.log("r"), await transport.channel("r", "g")
    old = Message(b"old time, new record", timestamp=1)
    await log.append({0: [*numbered(0, 1), old]})
    await move(clock, 40)
    await log.append({0: numbered(3)})
    assert await log.bounds(0) == Bounds(0, 3)
    await move(clock, 21)
    assert await log.bounds(0) == Bounds(3, 3)
    assert await read_values(transport, topic="r") == [b"3"]
    with pytest.raises(Gap):
        await log.read({0: 1}, 9, LONG, 0)
    assert values((await log.read({0: 2}, 9, LONG, 0))[0].records) == [b"3"]
    assert values([d.record for d in await channel.get(9, 0)]) == [b"3"]
    await move(clock, 100)
    assert await log.bounds(0) == Bounds(None, None)
    assert await log.append({0: numbered(4)}) == {0: range(4, 5)}


async def test_retention_frees_memory_even_if_nobody_reads(broker, clock):
    transport = await opened(broker)
    await transport.declare([TopicSpec("r", retention=60)])
    log = await transport.log("r")
    value = bytes(100)
    before = sys.getrefcount(value)
    await log.append({0: [Message(value)]})
    await move(clock, 61)
    await log.append({0: numbered(1)})
    assert sys.getrefcount(value) == before


async def test_records_at_positions_that_were_lost_before_are_kept_for_their_own_retention(broker, clock):
    transport = await opened(broker)
    await transport.declare([TopicSpec("r", retention=60)])
    log = await transport.log("r")
    await log.append({0: numbered(0, 1, 2)})
    broker.lose_suffix("r", 0, 2)
    await move(clock, 40)
    await log.append({0: numbered(11, 12)})
    await move(clock, 30)
    assert await read_values(transport, topic="r") == [b"11", b"12"]


async def test_truncated_records_are_freed(broker):
    transport = await opened(broker)
    log = await transport.log("t")
    value = bytes(100)
    before = sys.getrefcount(value)
    await log.append({0: [Message(value), *numbered(1)]})
    assert sys.getrefcount(value) > before
    await log.truncate(0, 1)
    assert sys.getrefcount(value) == before


async def test_a_broker_that_loses_a_suffix_uses_its_positions_again(broker):
    transport = await opened(broker)
    log = await transport.log("t")
    await log.append({0: numbered(*range(5))})
    broker.lose_suffix("t", 0, 2)
    assert await log.bounds(0) == Bounds(0, 2)
    with pytest.raises(Gap):
        await log.read({0: 4}, 9, LONG, 0)
    assert await log.append({0: numbered(13)}) == {0: range(3, 4)}
    assert await read_values(transport) == [b"0", b"1", b"2", b"13"]
    with pytest.raises(BrokerError, match="cannot lose 9 of 4"):
        broker.lose_suffix("t", 0, 9)


async def test_a_group_forgets_what_the_broker_lost(broker):
    transport = await opened(broker)
    await transport.declare([TopicSpec("one", partitions=1)])
    channel, other = await transport.channel("one", "g"), await transport.channel("one", "g")
    await channel.put(numbered(0, 1, 2, 3, key=b"k"))
    first = await channel.get(3, 0)
    assert not await other.get(9, 0)
    broker.lose_suffix("one", 0, 2)
    await channel.put(numbered(12, 13, key=b"k"))
    with pytest.raises(BrokerError, match="1 of 3"):
        await channel.commit(first)
    assert values([d.record for d in await other.get(9, 0)]) == [b"12", b"13"]


# --- killed, cut off ---------------------------------------------------------------------------------------


async def test_a_killed_transport_releases_nothing_even_if_it_tries(broker, clock):
    doomed, other = await opened(broker, lease=10), await opened(broker, lease=10)
    held = await doomed.try_lock("x", 10)
    channel, mine = await doomed.channel("t", "g"), await other.channel("t", "g")
    await channel.put(numbered(1))
    await channel.get(1, 0)
    doomed.kill()
    doomed.heal()
    await held.release()
    await channel.close()
    await doomed.close()
    assert await other.try_lock("x", 10) is None
    assert not await mine.get(1, 0)
    await move(clock, 9.9)
    assert await other.try_lock("x", 10) is None
    assert not await mine.get(1, 0)
    await move(clock, 0.2)
    assert await other.try_lock("x", 10)
    assert [d.attempts for d in await mine.get(1, 0)] == [2]


async def test_everything_that_waits_in_a_killed_transport_raises_at_once(broker):
    doomed = await opened(broker)
    peers = doomed.peers("g", "me", 10)
    await anext(peers)
    waits = [
        asyncio.ensure_future(call)
        for call in (
            (await doomed.log("t")).read({0: None}, 1, 1, 60),
            (await doomed.channel("t", "g")).get(1, 60),
            (await doomed.channel("q", "g")).get(1, 60),
            anext(peers),
        )
    ]
    await settle()
    doomed.kill()
    for wait in waits:
        with pytest.raises(BrokerError, match="killed"):
            await wait


async def test_a_killed_transport_can_be_opened_again_as_another_process_would(broker):
    transport = await opened(broker, lease=10)
    assert await transport.try_lock("x", 10)
    transport.kill()
    await transport.open()
    assert await transport.try_lock("x", 10) is None
    assert await transport.topics()


async def test_a_cut_shorter_than_the_lease_loses_nothing(broker, clock):
    a, b = await opened(broker, lease=10), await opened(broker, lease=10)
    held, channel, other = await a.try_lock("x", 10), await a.channel("t", "g"), await b.channel("t", "g")
    await channel.put(numbered(1))
    deliveries = await channel.get(1, 0)
    a.cut()
    for call in (a.topics(), channel.commit(deliveries), a.try_lock("y", 1), a.open()):
        with pytest.raises(BrokerError, match="cut off"):
            await call
    await move(clock, 9)
    a.heal()
    await move(clock, 30)
    assert not held.lost.is_set()
    assert await b.try_lock("x", 10) is None
    assert not await other.get(1, 0)
    await channel.commit(deliveries)


async def test_a_cut_longer_than_the_lease_loses_locks_members_and_deliveries_and_is_told(broker, clock):
    a, b = await opened(broker, lease=10), await opened(broker, lease=10)
    held, channel, other = await a.try_lock("x", 10), await a.channel("t", "g"), await b.channel("t", "g")
    seen = b.peers("g", "b", 10)
    mine = a.peers("g", "a", 10)
    await anext(mine)
    assert await anext(seen) == {"a", "b"}
    await channel.put(numbered(1, 2))
    deliveries = await channel.get(2, 0)
    change, lost = asyncio.ensure_future(anext(seen)), asyncio.create_task(held.lost.wait())
    a.cut()
    await move(clock, 10)
    await lost
    assert await change == {"b"}
    heir = await b.try_lock("x", 10)
    assert heir.number > held.number
    assert len(await other.get(2, 0)) == 2
    a.heal()
    await held.release()
    assert await a.try_lock("x", 10) is None, "a late release frees nothing of the heir's"
    with pytest.raises(BrokerError, match="2 of 2"):
        await channel.commit(deliveries)
    assert await anext(mine) == {"a", "b"}, "it joins again"
    await channel.put(numbered(3))
    assert len(await channel.get(1, 0)) == 1, "and its channel works again"
    await aclose_all(seen, mine)


async def aclose_all(*iterators) -> None:
    for iterator in iterators:
        await iterator.aclose()


async def test_what_is_released_while_cut_off_is_free_once_healed(broker):
    a, b = await opened(broker), await opened(broker)
    held, channel, other = await a.try_lock("x", 10), await a.channel("t", "g"), await b.channel("t", "g")
    await channel.put(numbered(1))
    await channel.get(1, 0)
    peers = a.peers("g", "a", 10)
    await anext(peers)
    a.cut()
    await held.release()
    await channel.close()
    await peers.aclose()
    assert held.lost.is_set()
    assert await b.try_lock("x", 10) is None
    assert not await other.get(1, 0)
    a.heal()
    assert await b.try_lock("x", 10)
    assert [d.attempts for d in await other.get(1, 0)] == [2]
    async with aclosing(b.peers("g", "b", 10)) as seen:
        assert await anext(seen) == {"b"}


async def test_a_lock_can_be_taken_away_by_the_broker_loudly_or_silently(broker):
    a, b = await opened(broker), await opened(broker)
    loud, silent = await a.try_lock("loud", 10), await a.try_lock("silent", 10)
    broker.lose_lock("loud")
    broker.lose_lock("silent", silently=True)
    assert loud.lost.is_set()
    assert not silent.lost.is_set()
    for name, old in (("loud", loud), ("silent", silent)):
        heir = await b.try_lock(name, 10)
        assert heir.number > old.number
        await old.release()
        assert await a.try_lock(name, 10) is None
    with pytest.raises(BrokerError, match="'free'"):
        broker.lose_lock("free")


# --- queues beyond the contract ----------------------------------------------------------------------------


async def test_rejected_messages_go_to_the_queue_that_the_topic_names(broker):
    transport = await opened(broker)
    await transport.declare([TopicSpec("jobs", queue=True, options={"dead_letter": "dead"})])
    jobs, dead = await transport.channel("jobs", "g"), await transport.channel("dead", "g")
    await jobs.put([Message(b"v", b"k", (("a", b"1"),), 5)])
    (delivery,) = await jobs.get(1, 0)
    await jobs.reject(delivery, "because")
    (letter,) = await dead.get(1, 0)
    headers = (("a", b"1"), ("rejected-from", b"jobs"), ("rejected-because", b"because"))
    assert letter.record == Message(b"v", b"k", headers, 5)
    with pytest.raises(BrokerError):
        await jobs.reject(delivery, "again")
    assert not await dead.get(1, 0)


async def test_a_later_group_of_a_queue_gets_what_another_has_not_finished(broker, clock):
    transport = await opened(broker)
    first = await transport.channel("q", "first")
    await first.put([*numbered(1, 2), QueueMessage(b"later", delay=5), QueueMessage(b"urgent", priority=3)])
    deliveries = await first.get(2, 0)
    await first.commit(deliveries[:1])
    late = await transport.channel("q", "late")
    assert values([d.record for d in await late.get(9, 0)]) == [b"1", b"2"]
    await move(clock, 5)
    assert values([d.record for d in await late.get(9, 0)]) == [b"later"]


async def test_a_message_that_was_delivered_once_expires_no_more(broker, clock):
    queue = await (await opened(broker, lease=10)).channel("q", "g")
    await queue.put([QueueMessage(b"1", expires=5)])
    assert await queue.get(1, 0)
    await move(clock, 10)
    assert [d.attempts for d in await queue.get(1, 0)] == [2]


async def test_extending_twice_to_one_moment_is_harmless(broker, clock):
    queue = await (await opened(broker, lease=10)).channel("q", "g")
    await queue.put(numbered(1, 2))
    deliveries = await queue.get(2, 0)
    for _ in range(3):
        await queue.extend(deliveries, 7)
    await move(clock, 6.9)
    assert not await queue.get(2, 0)
    await move(clock, 0.2)
    assert len(await queue.get(2, 0)) == 2


async def test_finished_messages_are_not_kept_until_their_leases_would_have_ended(broker):
    queue = await (await opened(broker)).channel("q", "g")
    value = bytes(100)
    before = sys.getrefcount(value)
    await queue.put([Message(value)])
    await queue.commit(await queue.get(1, 0))
    for _ in range(3):
        await queue.put(numbered(*range(1000)))
        await queue.commit(await queue.get(1000, 0))
    assert sys.getrefcount(value) == before


async def test_who_waits_gets_what_a_faster_member_let_go(broker, clock):
    hasty, patient = await opened(broker, lease=5), await opened(broker, lease=50)
    fast, slow = await hasty.channel("q", "g"), await patient.channel("q", "g")
    get = asyncio.create_task(slow.get(1, 1000))
    await settle()
    await fast.put(numbered(1))
    assert await fast.get(1, 0), "taken before the waiting member could run"
    await move(clock, 4.9)
    assert not get.done()
    await move(clock, 0.2)
    assert [d.attempts for d in await get] == [2]


# --- injected faults ---------------------------------------------------------------------------------------


async def test_a_call_that_fails_before_its_effect_has_none_and_only_the_nth_fails(broker):
    transport = await opened(broker)
    log = await transport.log("t")
    broker.faults.fail("append", nth=2, times=2)
    for number in range(5):
        if number in (1, 2):
            with pytest.raises(BrokerError, match="injected"):
                await log.append({0: numbered(number)})
        else:
            await log.append({0: numbered(number)})
    assert await read_values(transport) == [b"0", b"3", b"4"]
    assert not broker.faults.armed, "a spent fault costs nothing"


async def test_a_call_that_fails_after_its_effect_is_ambiguous_and_has_happened(broker):
    transport = await opened(broker)
    log = await transport.log("t")
    channel, queue = await transport.channel("t", "g"), await transport.channel("q", "g")
    for operation in ("append", "put", "claim", "commit"):
        broker.faults.fail(operation, after=True)
    with pytest.raises(AmbiguousCommit):
        await log.append({0: numbered(1)})
    with pytest.raises(AmbiguousCommit):
        await queue.put(numbered(2))
    with pytest.raises(AmbiguousCommit):
        await transport.claim("t", 1, Message(b"m"))
    claim = await transport.claim("t", 1, Message(b"n"))
    with pytest.raises(AmbiguousCommit):
        await transport.commit({claim: Commit(numbered(3))})
    assert await read_values(transport, 0) == [b"1"]
    assert await read_values(transport, 1) == [b"m", b"n", b"3"]
    assert values([d.record for d in await queue.get(9, 0)]) == [b"2"]
    assert len(await channel.get(9, 0)) == 4


async def test_an_ambiguous_claim_fences_the_one_before(broker):
    a, b = await opened(broker), await opened(broker)
    claim = await a.claim("t", 0, Message(b"m"))
    broker.faults.fail("claim", after=True, transport=b)
    with pytest.raises(AmbiguousCommit):
        await b.claim("t", 0, Message(b"n"))
    with pytest.raises(Fenced):
        await a.commit({claim: Commit(numbered(1))})


async def test_deliveries_whose_answer_is_lost_come_back(broker):
    transport = await opened(broker)
    for name in ("t", "q"):
        channel = await transport.channel(name, "g")
        await channel.put(numbered(1))
        broker.faults.fail("get", after=True)
        with pytest.raises(BrokerError):
            await channel.get(1, 0)
        hold = broker.faults.hold("get", after=True)
        get = asyncio.create_task(channel.get(1, 0))
        await hold.reached.wait()
        get.cancel()
        with pytest.raises(asyncio.CancelledError):
            await get
        assert [d.attempts for d in await channel.get(1, 0)] == [3]


async def test_an_ack_that_fails_before_or_after_its_effect(broker):
    transport = await opened(broker)
    for name in ("t", "q"):
        channel = await transport.channel(name, "g")
        await channel.put(numbered(1, 2))
        deliveries = await channel.get(2, 0)
        broker.faults.fail("ack")
        with pytest.raises(BrokerError):
            await channel.commit(deliveries[:1])
        broker.faults.fail("ack", after=True)
        with pytest.raises(BrokerError):
            await channel.commit(deliveries[1:])
        await channel.close()
        heir = await transport.channel(name, "g")
        assert [d.record.value for d in await heir.get(9, 0)] == [deliveries[0].record.value]


async def test_a_held_call_stands_still_before_or_after_its_effect_until_released(broker):
    transport = await opened(broker)
    log = await transport.log("t")
    for after, seen in ((False, []), (True, [b"1", b"2"])):
        hold = broker.faults.hold("append", after=after)
        append = asyncio.create_task(log.append({0: numbered(1 + after)}))
        await hold.reached.wait()
        assert await read_values(transport) == seen
        hold.release()
        await append
    assert await read_values(transport) == [b"1", b"2"]


async def test_a_call_held_while_its_transport_dies_has_no_effect_or_no_answer(broker):
    reader = await opened(broker)
    for after, kind in ((False, BrokerError), (True, AmbiguousCommit)):
        doomed = await opened(broker)
        log = await doomed.log("t")
        hold = broker.faults.hold("append", after=after)
        append = asyncio.create_task(log.append({0: numbered(1 + after)}))
        await hold.reached.wait()
        doomed.kill()
        hold.release()
        with pytest.raises(kind, match="killed"):
            await append
    assert await read_values(reader) == [b"2"]


async def test_a_fault_can_be_limited_to_a_topic_and_to_a_transport(broker):
    a, b = await opened(broker), await opened(broker)
    await a.declare([TopicSpec("other")])
    broker.faults.fail("append", topic="t", transport=b)
    await (await a.log("t")).append({0: numbered(1)})
    await (await b.log("other")).append({0: numbered(1)})
    with pytest.raises(BrokerError):
        await (await b.log("t")).append({0: numbered(2)})
    broker.faults.fail("try_lock", topic="x", error=BrokerError("mine"))
    assert await a.try_lock("y", 1)
    with pytest.raises(BrokerError, match="mine"):
        await a.try_lock("x", 1)


async def test_every_operation_can_fail_and_clear_forgets_all_faults(broker):
    transport = await opened(broker)
    log, channel, queue = await transport.log("t"), await transport.channel("t", "g"), await transport.channel("q", "g")
    await queue.put(numbered(1, 2, 3))
    one, two, three = await queue.get(3, 0)
    claim = await transport.claim("t", 0, Message(b"m"))
    calls = {
        "append": [lambda: log.append({0: []})],
        "read": [lambda: log.read({0: None}, 1, 1, 0)],
        "bounds": [lambda: log.bounds(0)],
        "find": [lambda: log.find(0, 1)],
        "truncate": [lambda: log.truncate(0, 0)],
        "claim": [lambda: transport.claim("t", 1, Message(b""))],
        "commit": [lambda: transport.commit({claim: Commit([])})],
        "put": [lambda: channel.put([]), lambda: queue.put([])],
        "get": [lambda: channel.get(1, 0), lambda: queue.get(1, 0)],
        "ack": [
            lambda: channel.commit([]),
            lambda: queue.commit([one]),
            lambda: queue.extend([two], 1),
            lambda: queue.retry(two, 0),
            lambda: queue.reject(three, ""),
        ],
        "try_lock": [lambda: transport.try_lock("z", 1)],
    }
    for operation, uses in calls.items():
        broker.faults.fail(operation, times=float("inf"))
        for use in uses:
            for _ in range(2):
                with pytest.raises(BrokerError, match=operation):
                    await use()
        broker.faults.clear()
        for use in uses:
            await use()


async def test_an_interceptor_sees_every_call_before_and_after_its_effect(broker):
    transport = await opened(broker)
    log = await transport.log("t")
    seen = []

    async def watch(call):
        seen.append((call.operation, call.topic, call.done, broker.log("t").partition(0).end))
        assert call.session is transport.session
        await asyncio.sleep(0)

    broker.faults.intercept(watch)
    await log.append({0: numbered(1)})
    await log.read({0: None}, 1, 1, 0)
    broker.faults.intercept(None)
    await log.append({0: numbered(2)})
    assert seen == [
        ("append", "t", False, 0),
        ("append", "t", True, 1),
        ("read", "t", False, 1),
        ("read", "t", True, 1),
    ]


# --- nothing piles up --------------------------------------------------------------------------------------


async def test_a_hundred_openings_and_closings_leave_nothing_behind(broker, clock):
    await opened(broker)

    def count() -> int:
        gc.collect()
        return sum(str(type(thing).__module__).startswith("thalweg.transports.memory") for thing in gc.get_objects())

    async def use() -> None:
        transport = await opened(broker)
        log, channel, queue = (
            await transport.log("t"),
            await transport.channel("t", "g"),
            await transport.channel("q", "g"),
        )
        held = await transport.try_lock("x", 1)
        async with aclosing(transport.peers("g", "me", 1)) as peers:
            await anext(peers)
            tasks = [
                asyncio.create_task(call) for call in (log.read({0: None}, 1, 1, 9), channel.get(1, 9), queue.get(1, 9))
            ]
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        assert held is not None
        await transport.close()

    await use()
    before, tasks = count(), len(asyncio.all_tasks())
    for _ in range(100):
        await use()
    assert count() <= before
    assert len(asyncio.all_tasks()) == tasks
    assert clock.next() is None


async def test_channels_opened_and_closed_on_one_transport_leave_nothing_behind(broker):
    transport = await opened(broker)
    for _ in range(10):
        for name in ("t", "q"):
            await (await transport.channel(name, "g")).close()
    assert transport.session is not None
    assert not transport.session.channels
