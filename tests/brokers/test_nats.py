"""What is NATS's own: batches, floors, other programs, servers that go and come, passwords, a cluster."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn

import nats
import nkeys
import pytest
from docs.snippets import blocks_of
from nats.js import api
from thalweg import App, Stream
from thalweg.capabilities import Commit, Log
from thalweg.channel import Capability, TopicSpec
from thalweg.errors import (
    AccessDenied,
    AmbiguousCommit,
    BrokerError,
    ConfigurationError,
    Fenced,
    Gap,
    MessageTooLarge,
    MissingCapability,
    TopicMismatch,
    UnknownOption,
)
from thalweg.message import Delivery, Message, QueueMessage
from thalweg.partitioner import murmur2_partitioner
from thalweg.transports.nats import NatsTransport
from thalweg.transports.nats.feed import Feed, Part
from thalweg.transports.nats.log import NatsLog
from thalweg.transports.nats.queue import NatsQueue
from thalweg.url import Url

from brokers.nats_server import PROGRAM, Server, delete_streams
from brokers.program_runs import LONG, becomes, eventually, hang, opened, survives_restarts, values

SHARED = os.environ.get("NATS_URL", "nats://127.0.0.1:4222")
QUEUE = TopicSpec("q", queue=True)


@pytest.fixture
def program(broker_missing: Callable[[str, str], NoReturn]) -> None:
    if PROGRAM is None:
        broker_missing(
            "nats", "tests that stop the server start one of their own; `scripts/brokers up nats` fetches it"
        )


@pytest.fixture
def server(tmp_path: Path, program: None) -> Iterator[Server]:
    server = Server(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture
async def broker(broker_missing: Callable[[str, str], NoReturn]) -> AsyncIterator[str]:
    """The shared server, under a prefix of this test's own."""
    prefix = f"test-{secrets.token_hex(6)}"
    url = f"{SHARED}{'&' if '?' in SHARED else '?'}prefix={prefix}"
    try:
        async with opened(url):
            pass
    except BrokerError as error:
        broker_missing("nats", str(error))
    yield url
    await delete_streams(SHARED, prefix)


@asynccontextmanager
async def opened_log(url: str, partitions: int = 1) -> AsyncIterator[tuple[NatsTransport, Log]]:
    async with opened(url) as transport:
        await transport.declare([TopicSpec("t", partitions=partitions)])
        yield transport, await transport.log("t")


@asynccontextmanager
async def foreign(url: str) -> AsyncIterator[Any]:
    """A program without Thalweg: nats-py's JetStream context."""
    client = await nats.connect(url.partition("?")[0])
    try:
        yield client.jetstream()
    finally:
        await client.close()


async def queue_of(transport: NatsTransport, name: str = "q") -> NatsQueue:
    channel = await transport.channel(name, "g")
    assert isinstance(channel, NatsQueue)
    return channel


def numbered(numbers: Sequence[int]) -> list[Message]:
    return [Message(b"%d" % number) for number in numbers]


def bodies(numbers: Sequence[int]) -> list[bytes | None]:
    return [b"%d" % number for number in numbers]


# --- writing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fencing", ["true", "false"])
async def test_an_append_that_the_server_refuses_in_its_middle_leaves_no_hole(broker: str, fencing: str) -> None:
    """Plain publishing, one after the other without waiting, would keep the first and the third."""
    prefix = Url(broker).query["prefix"]
    async with opened_log(f"{broker}&fencing={fencing}") as (_, log), foreign(broker) as other:
        config = (await other.stream_info(prefix)).config
        config.max_msg_size = 1000
        await other.update_stream(config)
        await log.append({0: numbered([0])})
        with pytest.raises(BrokerError):
            await log.append({0: [Message(b"1"), Message(b"2" * 2000), Message(b"3")]})
        kept = [b"0"] if fencing == "true" else [b"0", b"1"]
        assert await values(log) == kept
        await log.append({0: numbered([4])})
        assert await values(log) == [*kept, b"4"]


async def test_thousands_of_records_in_one_append_keep_their_order_and_positions(broker: str) -> None:
    async with opened_log(broker, partitions=3) as (_, log):
        places = await log.append({n: numbered(range(1500)) for n in range(3)})
        for partition in range(3):
            assert await values(log, partition) == bodies(range(1500))
            assert list(places[partition]) == sorted(places[partition])
            assert await values(log, partition, places[partition][1400]) == bodies(range(1401, 1500))


async def test_a_stream_that_is_full_is_a_clear_error_and_goes_on_once_there_is_room(broker: str) -> None:
    prefix = Url(broker).query["prefix"]
    async with opened_log(broker) as (transport, log), foreign(broker) as other:
        await transport.declare([TopicSpec("j", partitions=1)])
        claim = await transport.claim("j", 0, Message(b"m"))
        places = (await log.append({0: numbered([1])}))[0]
        info = await other.stream_info(prefix)
        info.config.max_bytes = info.state.bytes + 50
        await other.update_stream(info.config)
        for write in (
            log.append({0: numbered([2])}),
            log.append({0: numbered([2, 3])}),
            transport.commit({claim: Commit(numbered([2]), {("t", 0): numbered([2])})}),
        ):
            with pytest.raises(BrokerError, match=r"full.*max_bytes"):
                await write
        assert await values(log) == [b"1"]
        info.config.max_bytes = -1
        await other.update_stream(info.config)
        await transport.commit({claim: Commit(numbered([2]), {("t", 0): numbered([2])})})
        assert await values(log, after=places[0]) == [b"2"]


async def test_a_message_that_only_escaping_makes_too_large_is_refused(server: Server) -> None:
    server.kill()
    server.settings = "max_payload: 20000\n"
    server.start()
    async with opened_log(server.url) as (transport, log):
        limit = transport.limits.message_bytes
        assert limit is not None
        assert 10_000 < limit < 20_000
        with pytest.raises(MessageTooLarge, match=str(limit)):
            await log.append({0: [Message(b"v" * (limit + 1))]})
        with pytest.raises(MessageTooLarge, match="escaped"):
            await log.append({0: [Message(b"1"), Message(b"v", b"\xff" * (limit - 1))]})
        await log.append({0: [Message(b"v" * limit), Message(b"w", b"\xff" * 4000)]})
        assert len(await values(log)) == 2


# --- fencing -------------------------------------------------------------------------------------------------


async def test_a_fence_survives_the_servers_death(server: Server) -> None:
    async with opened(server.url) as old, opened(server.url) as new:
        await old.declare([TopicSpec("j", partitions=1)])
        stale = await old.claim("j", 0, Message(b"old"))
        claim = await new.claim("j", 0, Message(b"new"))
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        with pytest.raises(Fenced):
            await old.commit({stale: Commit(numbered([1]))})
        await new.commit({claim: Commit(numbered([2]))})
        assert await values(await new.log("j")) == [b"old", b"new", b"2"]


async def test_whoever_purges_the_token_fences_everybody(broker: str) -> None:
    async with opened(broker) as transport, foreign(broker) as other:
        await transport.declare([TopicSpec("j", partitions=1)])
        stale = await transport.claim("j", 0, Message(b"1"))
        prefix = Url(broker).query["prefix"]
        await other.purge_stream(prefix, subject=f"{prefix}.own.j.0")
        with pytest.raises(Fenced):
            await transport.commit({stale: Commit(numbered([2]))})
        claim = await transport.claim("j", 0, Message(b"3"))
        await transport.commit({claim: Commit(numbered([4]))})
        with pytest.raises(Fenced):
            await transport.commit({stale: Commit(numbered([5]))})
        assert await values(await transport.log("j")) == [b"1", b"3", b"4"]


async def test_without_batches_there_is_no_fencing_and_the_stream_gains_them_with_the_server(broker: str) -> None:
    async with opened_log(f"{broker}&fencing=false") as (transport, log):
        assert Capability.FENCING not in transport.capabilities
        with pytest.raises(MissingCapability, match="fencing"):
            await transport.claim("t", 0, Message(b"m"))
        await log.append({0: numbered([1, 2])})
    async with opened(broker) as transport:
        assert Capability.FENCING in transport.capabilities
        claim = await transport.claim("t", 0, Message(b"3"))
        await transport.commit({claim: Commit(numbered([4, 5]))})
        assert await values(await transport.log("t")) == bodies(range(1, 6))


async def test_events_that_send_more_than_a_batch_holds_are_still_exactly_once(broker: str) -> None:
    """What fits joins the commit, what does not follows it; nothing is split in silence."""
    app = App("many", broker=broker, partitions=2)
    orders = app.topic("orders", key=str, value=int)
    items = app.topic("items", key=str, value=int)
    seen = app.table("seen", key=str, value=list[int], default=list)

    @app.agent(orders)
    async def spread(stream: Stream[int]) -> None:
        async for size in stream:
            for number in range(size):
                await items.send(number, key=f"{size}")

    @app.agent(items)
    async def collect(stream: Stream[int]) -> None:
        async for event in stream.events():
            assert event.key is not None
            seen[event.key].append(event.value)

    sizes = [1, 999, 1000, 2500, 7]
    async with app, asyncio.timeout(60):
        for size in sizes:
            await orders.send(size, key=f"order {size}")
        await eventually(lambda: sum(len(numbers) for _, numbers in seen.items()) >= sum(sizes))
        assert {size: seen[f"{size}"] for size in sizes} == {size: list(range(size)) for size in sizes}


# --- reading -------------------------------------------------------------------------------------------------


async def test_partitions_that_are_left_out_and_come_back_miss_nothing(broker: str) -> None:
    """Each lags by its own measure; one is so far behind that its reader had to forget what it had fetched."""
    async with opened_log(broker, partitions=4) as (_, log):
        body = b"x" * 20_000
        for _ in range(5):
            await log.append({n: [Message(body) for _ in range(60)] for n in range(4)})
        places: dict[int, int | None] = dict.fromkeys(range(4))
        counts = dict.fromkeys(range(4), 0)

        async def read(partitions: Sequence[int]) -> None:
            found = await log.read({n: places[n] for n in partitions}, 50, 1 << 20, 5)
            for partition, batch in found.items():
                assert places[partition] is None or batch.positions[0] > places[partition]
                places[partition], counts[partition] = batch.positions[-1], counts[partition] + len(batch.records)

        await read(range(4))
        while counts[1] < 300 or counts[2] < 300:
            await read([1, 2])
        while counts[0] < 300:
            await read([0, 1])
        await log.append({n: [Message(b"last")] for n in range(4)})
        while sum(counts.values()) < 4 * 301:
            await read(range(4))
        assert counts == dict.fromkeys(range(4), 301)


async def test_a_request_that_takes_up_all_its_bytes_ends(broker: str) -> None:
    """The server says nothing of it: a reader that waited for its word stood still until the request expired."""
    async with opened(broker) as transport:
        assert isinstance(transport, NatsTransport)
        await transport.declare([TopicSpec("t", partitions=1)])
        log = await transport.log("t")
        assert isinstance(log, NatsLog)
        (positions,) = (await log.append({0: [Message(b"v" * 100, b"key")] * 12})).values()
        wire, subject, stream = await log._connection.wire(), log._topic.subject(0), log._topic.stream
        took_up_all = 0
        for size in range(1500, 1900):  # more than a message has, so one of them is what some messages have
            feed = Feed(log._connection, wire, stream, {subject: Part(positions[0] - 1)}, lambda: None)
            await feed.start()
            feed.wait(100, size, 60)
            assert feed._waiting is not None
            await asyncio.wait_for(feed._waiting.ended, 30)
            took_up_all += not feed._waiting.status
            feed.close()
        assert took_up_all


async def test_a_reader_that_a_truncation_overtakes_is_told(broker: str) -> None:
    async with opened_log(broker) as (_, log), opened(broker) as owner:
        places = (await log.append({0: [Message(b"x" * 1000) for _ in range(5000)]}))[0]
        first = (await log.read({0: None}, 10, 10_000, 0))[0]
        await (await owner.log("t")).truncate(0, places[4000])
        with pytest.raises(Gap) as caught:
            await log.read({0: first.positions[-1]}, 10, 10_000, 0)
        assert caught.value.first == places[4000]
        assert len(await values(log, after=places[3999])) == 1000


async def test_a_reader_goes_on_by_itself_after_a_restart(server: Server) -> None:
    async with opened_log(server.url) as (_, log):
        place = (await log.append({0: numbered([1])}))[0][0]
        waiting = asyncio.create_task(log.read({0: place}, LONG, LONG, 60))
        await asyncio.sleep(0)
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        async with opened(server.url) as other:
            await (await other.log("t")).append({0: numbered([2])})
        try:
            found = await waiting
        except BrokerError:  # it met the server while that was away
            found = await log.read({0: place}, LONG, LONG, 60)
        assert [record.value for record in found[0].records] == [b"2"]


async def test_a_hundred_readers_of_one_log_at_positions_of_their_own(broker: str) -> None:
    async with opened_log(broker) as (_, log):
        places = (await log.append({0: numbered(range(100))}))[0]

        async def read(number: int) -> list[bytes | None]:
            return [r.value for r in (await log.read({0: places[number]}, LONG, LONG, 30))[0].records]

        found = await asyncio.gather(*(read(number) for number in range(99)))
        assert found == [bodies(range(number + 1, 100)) for number in range(99)]


async def test_retention_drops_what_is_old_and_readers_of_it_are_told(broker: str) -> None:
    async with opened(broker) as transport:
        await transport.declare([TopicSpec("t", partitions=1, retention=0.3)])
        log = await transport.log("t")
        places = (await log.append({0: numbered([1, 2])}))[0]
        await becomes(lambda: log.bounds(0), lambda bounds: bounds.first is None)
        assert await values(log, after=places[1]) == []
        assert await log.read({0: places[1]}, LONG, LONG, 0) == {}
        with pytest.raises(Gap):
            await log.read({0: places[0]}, LONG, LONG, 0)
        await log.append({0: numbered([3])})
        with pytest.raises(Gap):
            await log.read({0: places[0]}, LONG, LONG, 0)


async def test_a_stream_that_was_deleted_is_a_gap(broker: str) -> None:
    prefix = Url(broker).query["prefix"]
    async with opened_log(broker) as (_, log), foreign(broker) as other:
        last = (await log.append({0: numbered(range(9))}))[0][-1]
        await other.delete_stream(prefix)
        async with opened_log(broker) as (_, anew):
            with pytest.raises(Gap):
                await anew.read({0: last}, LONG, LONG, 0)


# --- other programs ------------------------------------------------------------------------------------------


async def test_other_programs_write_and_read_a_topic_with_any_client(broker: str) -> None:
    prefix = Url(broker).query["prefix"]
    async with opened_log(broker) as (_, log), foreign(broker) as other:
        subject = f"{prefix}.log.t.0"
        await other.publish(subject, b"1")
        await other.publish(subject, b"2", headers={"thalweg-key": "ada", "trace": "x", "Nats-Msg-Id": "7"})
        await other.publish(subject, b"3", headers={"thalweg-key": "ü 100%", "thalweg-time": "yesterday", "e": ""})
        await other.publish(subject, b"", headers={"thalweg-tombstone": "1", "thalweg-time": "1700000000000"})
        batch = (await log.read({0: None}, LONG, LONG, 0))[0]
        assert [(r.key, r.value, r.headers) for r in batch.records] == [
            (None, b"1", ()),
            (b"ada", b"2", (("trace", b"x"),)),
            ("ü 100%".encode(), b"3", (("e", b""),)),
            (None, None, ()),
        ]
        assert batch.records[3].timestamp == 1_700_000_000_000
        assert all(abs(record.timestamp / 1000 - time.time()) < 60 for record in batch.records[:3])
        (place,) = (await log.append({0: [Message("ä".encode(), b"bob", (("n", b"50% of it"),), 1_700_000_000_000)]}))[
            0
        ]
        found = await other.get_msg(prefix, place)
        assert (found.subject, found.data.decode()) == (subject, "ä")
        assert found.headers == {"thalweg-key": "bob", "thalweg-time": "1700000000000", "n": "50% of it"}


async def test_the_documented_producer_and_consumer_work(broker: str) -> None:
    """Those of docs/wire.md, as they stand there but for the names of server and prefix."""
    page = Path(__file__).parents[2] / "docs" / "wire.md"
    (code,) = [block.code for block in blocks_of(page) if "import nats" in block.code]
    code = code.replace("nats://localhost:4222", broker.partition("?")[0])
    code = code.replace("thalweg.log", f"{Url(broker).query['prefix']}.log")
    code = code.replace('"thalweg"', repr(Url(broker).query["prefix"]))
    theirs: dict[str, Any] = {"partition": murmur2_partitioner(b"ada", 4)}
    exec(compile(code, str(page), "exec"), theirs)
    app = App("bank", broker=broker, partitions=4)
    withdrawals = app.topic("withdrawals", key=str, value=int)
    alerts = app.topic("alerts", key=str, value=str)
    totals = app.table("totals", key=str, value=int, default=int)

    @app.agent(withdrawals)
    async def total(stream: Stream[int]) -> None:
        async for amount in stream:
            totals["ada"] += amount
            if amount > 100:
                await alerts.send(f"{amount} at once", key="ada", headers={"level": "3"})

    async with app, asyncio.timeout(30):
        await theirs["produce"]()
        await theirs["consume"]()
        await eventually(lambda: totals["ada"] == 505)


async def test_a_stream_of_others_is_read_by_its_sequences_and_left_as_it_is(broker: str) -> None:
    name = f"{Url(broker).query['prefix']}-theirs"
    options = {"stream": name, "subject": f"{name}.orders.*"}
    spec = TopicSpec("orders", declare=False, options=options)
    async with opened(broker) as transport, foreign(broker) as other:
        with pytest.raises(BrokerError, match=r"'orders'.*declare=False"):
            await transport.declare([spec])
        await other.add_stream(api.StreamConfig(name=name, subjects=[f"{name}.>"], max_msgs=3))
        await other.publish(f"{name}.orders.new", b"1", headers={"trace": "x"})
        await other.publish(f"{name}.noise", b"-")
        (info,) = await transport.declare([spec])
        assert (info.name, info.partitions) == ("orders", 1)
        log = await transport.log("orders")
        batch = (await log.read({0: None}, LONG, LONG, 0))[0]
        assert [(r.value, r.headers) for r in batch.records] == [(b"1", (("trace", b"x"),))]
        channel = await transport.channel("orders", "g")
        (delivery,) = await channel.get(10, 10)
        await channel.commit([delivery])
        for number in range(2, 6):
            await other.publish(f"{name}.orders.new", b"%d" % number)
        with pytest.raises(Gap):
            await (await transport.log("orders")).read({0: batch.positions[0]}, LONG, LONG, 0)
        with pytest.raises(BrokerError, match="belongs to others"):
            await log.truncate(0, 3)
        with pytest.raises(TopicMismatch, match="'orders'"):
            await transport.declare([TopicSpec("orders", partitions=2, declare=False, options=options)])
        spread = TopicSpec(
            "spread", partitions=2, declare=False, options=options | {"subject": f"{name}.s.{{partition}}"}
        )
        await transport.declare([spread])
        await other.publish(f"{name}.s.1", b"one")
        assert await values(await transport.log("spread"), 1) == [b"one"]
        claim = None
        await transport.declare([TopicSpec("j", partitions=1)])
        claim = await transport.claim("j", 0, Message(b"m"))
        with pytest.raises(BrokerError, match="stream of others"):
            await transport.commit({claim: Commit(numbered([1]), {("orders", 0): numbered([2])})})
        assert name not in {topic.name for topic in await transport.topics()}


# --- queues --------------------------------------------------------------------------------------------------


async def test_other_programs_put_into_a_queue_and_see_what_is_rejected(broker: str) -> None:
    prefix = Url(broker).query["prefix"]
    async with opened(broker) as transport, foreign(broker) as other:
        buried = TopicSpec("buried", queue=True)
        await transport.declare([buried, TopicSpec("q", queue=True, options={"dead_letter": "buried"})])
        queue, dead = await queue_of(transport), await queue_of(transport, "buried")
        await other.publish(f"{prefix}.queue.q", b"1", headers={"thalweg-key": "k", "thalweg-delay": "0.3"})
        await other.publish(f"{prefix}.queue.q", b"2", headers={"thalweg-expires": "0"})
        started = time.monotonic()
        (delivery,) = await queue.get(10, 10)
        assert time.monotonic() - started > 0.2
        assert (delivery.record.value, delivery.record.key, delivery.attempts) == (b"1", b"k", 1)
        await queue.reject(delivery, "no\r\nreason")
        (found,) = await dead.get(10, 10)
        assert dict(found.record.headers) == {"rejected-from": b"q", "rejected-because": b"no\r\nreason"}
        await dead.commit([found])
        for name in ("q", "buried"):
            assert (await other.stream_info(f"{prefix}+queue+{name}")).state.messages == 0


async def test_an_extension_beyond_the_servers_lease_holds(broker: str) -> None:
    async with opened(f"{broker}&lease=0.3") as transport:
        await transport.declare([QUEUE])
        queue = await queue_of(transport)
        await queue.put(numbered([1]))
        deliveries = await queue.get(1, 10)
        await queue.extend(deliveries, 60)
        other = await queue_of(transport)
        assert await other.get(1, 1.0) == []
        await queue.commit(deliveries)
        assert await other.get(1, 0.5) == []


async def test_what_expires_is_dropped_by_the_server_itself(broker: str) -> None:
    prefix = Url(broker).query["prefix"]
    async with opened(broker) as transport, foreign(broker) as other:
        await transport.declare([QUEUE])
        queue = await queue_of(transport)
        await queue.put([QueueMessage(b"1", expires=0.5), QueueMessage(b"2")])

        async def left() -> int:
            return int((await other.stream_info(f"{prefix}+queue+q")).state.messages)

        await becomes(left, lambda count: count == 1)
        assert [d.record.value for d in await queue.get(10, 10)] == [b"2"]


@pytest.mark.parametrize("queue", [False, True], ids=["topic", "queue"])
async def test_what_was_lent_in_an_answer_that_got_lost_comes_again(server: Server, queue: bool) -> None:
    async with opened(f"{server.url}?timeout=0.5&lease=1") as transport:
        await transport.declare([TopicSpec("t", queue=queue)])
        channel = await transport.channel("t", "g")
        await channel.get(1, 0)
        await channel.put(numbered([1]))
        hang(server.process)
        try:
            with pytest.raises(BrokerError):
                await channel.get(1, 5)
        finally:
            server.process.send_signal(signal.SIGCONT)

        async def got() -> Sequence[Delivery]:
            try:
                return await channel.get(1, 1)
            except BrokerError:
                return []

        (delivery,) = await becomes(got, bool)
        assert delivery.record.value == b"1"
        await channel.commit([delivery])


@pytest.mark.parametrize("queue", [False, True], ids=["topic", "queue"])
async def test_a_commit_whose_answer_got_lost_may_be_repeated(server: Server, queue: bool) -> None:
    async with opened(f"{server.url}?timeout=0.5") as transport:
        await transport.declare([TopicSpec("t", queue=queue)])
        channel = await transport.channel("t", "g")
        await channel.put(numbered([1]))
        deliveries = await channel.get(1, 10)
        hang(server.process)
        try:
            with pytest.raises(AmbiguousCommit):
                await channel.commit(deliveries)
        finally:
            server.process.send_signal(signal.SIGCONT)

        async def committed() -> bool:
            try:
                await channel.commit(deliveries)
            except AmbiguousCommit:
                return False
            return True

        await becomes(committed, bool)
        await channel.close()
        heir = await transport.channel("t", "g")
        await heir.put(numbered([2]))
        assert [d.record.value for d in await heir.get(10, 10)] == [b"2"]


# --- servers that go and come --------------------------------------------------------------------------------


async def test_a_server_that_restarts_loses_nothing_and_the_program_goes_on_by_itself(server: Server) -> None:
    await survives_restarts(server, server.url)


async def test_a_server_that_hangs_leaves_a_write_in_doubt_and_says_so_within_the_time_out(server: Server) -> None:
    async with opened_log(server.url + "?timeout=0.5") as (_, log):
        hang(server.process)
        try:
            async with asyncio.timeout(10):
                with pytest.raises(AmbiguousCommit, match="unknown"):
                    await log.append({0: numbered([1])})
        finally:
            server.process.send_signal(signal.SIGCONT)

        async def appended() -> bool:
            try:
                await log.append({0: numbered([2])})
            except BrokerError:
                return False
            return True

        await becomes(appended, bool)
        assert (await values(log))[-1] == b"2"


async def test_an_unreachable_host_is_told_within_the_time_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection, and never answers
        port = silent.getsockname()[1]
        async with asyncio.timeout(5):
            with pytest.raises(BrokerError, match=rf"127.0.0.1:{port}.*no answer within 0.2 s"):
                await NatsTransport.from_url(Url(f"nats://127.0.0.1:{port}?timeout=0.2")).open()
    async with asyncio.timeout(5):
        with pytest.raises(BrokerError, match=f"127.0.0.1:{port}"):
            await NatsTransport.from_url(Url(f"nats://127.0.0.1:{port}")).open()


async def test_what_is_no_nats_is_told(broker_missing: Callable[[str, str], NoReturn]) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    other = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with other:
        port = other.sockets[0].getsockname()[1]
        with pytest.raises(BrokerError, match="not NATS"):
            await NatsTransport.from_url(Url(f"nats://127.0.0.1:{port}")).open()


async def test_of_several_hosts_one_that_answers_is_enough(server: Server) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        dead = free.getsockname()[1]
    async with opened_log(f"nats://127.0.0.1:{dead},127.0.0.1:{server.port}") as (_, log):
        await log.append({0: numbered([1])})
        assert await values(log) == [b"1"]


async def test_a_lock_is_kept_while_the_event_loop_is_busy_and_lost_when_the_server_hangs(server: Server) -> None:
    async with opened(server.url + "?timeout=0.5") as a, opened(server.url) as b:
        held = await a.try_lock("x", 0.6)
        assert held is not None
        time.sleep(1.5)  # noqa: ASYNC251 - the point: the loop is stuck, the thread renews
        assert not held.lost.is_set()
        assert await b.try_lock("x", 0.6) is None
        hang(server.process)
        try:
            await asyncio.wait_for(held.lost.wait(), 10)
        finally:
            server.process.send_signal(signal.SIGCONT)
        heir = await becomes(lambda: b.try_lock("x", 0.6), lambda heir: heir is not None)
        assert heir is not None
        assert heir.number > held.number


async def test_a_cluster_that_loses_a_server_goes_on(tmp_path: Path, program: None) -> None:
    """Three servers, three replicas; one after the other dies, whoever leads."""
    with socket.socket() as one, socket.socket() as two, socket.socket() as three:
        sockets = (one, two, three)
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        routes = [each.getsockname()[1] for each in sockets]
    cluster: list[Server] = []
    for number, port in enumerate(routes):
        (tmp_path / str(number)).mkdir()
        peers = ", ".join(f'"nats-route://127.0.0.1:{other}"' for other in routes)
        settings = f'server_name: s{number}\ncluster {{ name: c, listen: "127.0.0.1:{port}", routes: [{peers}] }}\n'
        cluster.append(Server(tmp_path / str(number), settings))
    try:
        for server in cluster:
            await asyncio.to_thread(server.start)
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in cluster)
        url = f"nats://{hosts}?replicas=3&timeout=5"

        async def formed() -> bool:
            try:
                async with opened(url) as transport:
                    await transport.declare([TopicSpec("t", partitions=1), TopicSpec("j", partitions=1)])
                    return not transport.warnings
            except BrokerError:
                return False

        await becomes(formed, bool, 60)
        async with opened(url) as transport:
            assert transport.warnings == []
            log = await transport.log("t")
            claim = await transport.claim("j", 0, Message(b"m"))
            done: list[int] = []
            for victim in range(3):
                await asyncio.to_thread(cluster[victim].kill)
                for number in range(victim * 10, victim * 10 + 10):

                    async def committed(number: int = number) -> bool:
                        nonlocal claim
                        try:
                            await transport.commit({claim: Commit(numbered([number]), {("t", 0): numbered([number])})})
                        except BrokerError:
                            try:
                                claim = await transport.claim("j", 0, Message(b"m"))
                                return b"%d" % number in await values(log)
                            except BrokerError:
                                return False
                        return True

                    await becomes(committed, bool, 60)
                    done.append(number)
                await asyncio.to_thread(cluster[victim].start)

            async def all_read() -> list[bytes | None]:
                try:
                    return await values(log)
                except BrokerError:
                    return []

            assert await becomes(all_read, lambda found: len(found) >= 30, 60) == bodies(done)
    finally:
        for server in cluster:
            server.kill()


# --- who may enter -------------------------------------------------------------------------------------------

USERS = """
authorization { users: [
  { user: ada, password: "s3cret" }
  { user: eve, password: "pw", permissions: { publish: ["$JS.API.INFO", "$JS.API.STREAM.INFO.>",
    "$JS.API.STREAM.MSG.GET.>", "$JS.API.CONSUMER.>", "$JS.API.DIRECT.GET.>"],
    subscribe: ["mine.>", "thalweg.floor.>"] } }
] }
"""


async def test_a_wrong_password_is_told_and_not_shown(tmp_path: Path, program: None) -> None:
    server = Server(tmp_path, USERS)
    server.start()
    try:
        for wrong in (server.url_of("ada:hunter2"), server.url):
            with pytest.raises(BrokerError, match=r"Authorization Violation.*user and password") as caught:
                await NatsTransport.from_url(Url(wrong)).open()
            assert "hunter2" not in str(caught.value)
        async with opened(server.url_of("ada:s3cret")) as transport:
            await transport.declare([TopicSpec("t")])
            assert "s3cret" not in transport.description
    finally:
        server.kill()


async def test_a_token_lets_in(tmp_path: Path, program: None) -> None:
    server = Server(tmp_path, 'authorization { token: "s3cret" }\n')
    server.start()
    try:
        async with opened_log(server.url_of("s3cret")) as (_, log):
            await log.append({0: numbered([1])})
        with pytest.raises(BrokerError, match="Authorization"):
            await NatsTransport.from_url(Url(server.url_of("other"))).open()
    finally:
        server.kill()


async def test_a_user_who_may_only_read_gets_clear_errors(tmp_path: Path, program: None) -> None:
    server = Server(tmp_path, USERS)
    server.start()
    try:
        async with opened_log(server.url_of("ada:s3cret")) as (owner, log):
            await log.append({0: numbered([1])})
            await owner.declare([TopicSpec("j", partitions=1)])
        async with opened(server.url_of("eve:pw") + "?inbox=mine&timeout=5") as transport:
            log = await transport.log("t")
            assert await values(log) == [b"1"]
            for write in (
                log.append({0: numbered([2])}),
                log.append({0: numbered([2, 3])}),
                transport.claim("j", 0, Message(b"m")),
                transport.declare([TopicSpec("new")]),
            ):
                with pytest.raises(AccessDenied, match=r"(?i)permissions violation.*let the user publish") as caught:
                    await write
                assert not isinstance(caught.value, AmbiguousCommit)
            assert await values(log) == [b"1"]
    finally:
        server.kill()


async def test_nkeys_and_credentials_files_let_in(tmp_path: Path, program: None) -> None:
    operator, account, user = (
        keys(kind) for kind in (nkeys.PREFIX_BYTE_OPERATOR, nkeys.PREFIX_BYTE_ACCOUNT, nkeys.PREFIX_BYTE_USER)
    )
    (tmp_path / "seed").write_text(user.seed.decode() + "\n")
    server = Server(tmp_path, f"authorization {{ users: [ {{ nkey: {user.public_key.decode()} }} ] }}\n")
    server.start()
    async with opened_log(f"{server.url}?nkey={tmp_path}/seed") as (_, log):
        await log.append({0: numbered([1])})
    server.kill()

    (tmp_path / "jwt").mkdir()
    unlimited = {
        "mem_storage": -1,
        "disk_storage": -1,
        "streams": -1,
        "consumer": -1,
        "conn": -1,
        "subs": -1,
        "data": -1,
    }
    limits = unlimited | {"payload": -1, "leaf": -1, "imports": -1, "exports": -1, "wildcards": True}
    no_storage = {name: limit for name, limit in limits.items() if name not in ("mem_storage", "disk_storage")}
    system = keys(nkeys.PREFIX_BYTE_ACCOUNT)
    names = {"operator": operator, "account": account, "system": system}
    public = {name: pair.public_key.decode() for name, pair in names.items()}
    claims = {
        "operator": jwt(
            operator, public["operator"], {"type": "operator", "version": 2, "system_account": public["system"]}
        ),
        "account": jwt(operator, public["account"], {"type": "account", "version": 2, "limits": limits}),
        "system": jwt(operator, public["system"], {"type": "account", "version": 2, "limits": no_storage}),
    }
    nothing = {"type": "user", "version": 2, "pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1}
    mine = jwt(account, user.public_key.decode(), nothing)
    (tmp_path / "user.creds").write_text(
        f"-----BEGIN NATS USER JWT-----\n{mine}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n"
    )
    preload = f"{public['account']}: {claims['account']}\n{public['system']}: {claims['system']}"
    server.settings = (
        f"operator: {claims['operator']}\nsystem_account: {public['system']}\nresolver: MEMORY\n"
        f"resolver_preload: {{\n{preload}\n}}\n"
    )
    (tmp_path / "data").mkdir()
    server.folder = tmp_path / "data"
    server.start()
    try:
        async with opened_log(f"{server.url}?credentials={tmp_path}/user.creds") as (_, log):
            await log.append({0: numbered([1])})
            assert await values(log) == [b"1"]
        with pytest.raises(BrokerError, match="Authorization"):
            await NatsTransport.from_url(Url(f"{server.url}?nkey={tmp_path}/seed")).open()
        with pytest.raises(ConfigurationError, match="credentials="):
            await NatsTransport.from_url(Url(f"{server.url}?credentials={tmp_path}/seed")).open()
        with pytest.raises(ConfigurationError, match="nkey="):
            await NatsTransport.from_url(Url(f"{server.url}?nkey={tmp_path}/nowhere")).open()
    finally:
        server.kill()


def keys(kind: int) -> Any:
    return nkeys.from_seed(nkeys.encode_seed(secrets.token_bytes(32), kind))


def jwt(issuer: Any, subject: str, claims: dict[str, Any]) -> str:
    """As `nsc` makes them."""

    def part(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    payload = {"iat": int(time.time()), "iss": issuer.public_key.decode(), "name": "x", "sub": subject, "nats": claims}
    payload["jti"] = hashlib.sha256(json.dumps(payload).encode()).hexdigest()
    text = f"{part(json.dumps({'typ': 'JWT', 'alg': 'ed25519-nkey'}).encode())}.{part(json.dumps(payload).encode())}"
    return f"{text}.{part(issuer.sign(text.encode()))}"


@pytest.mark.parametrize("first", [False, True], ids=["after INFO", "at once"])
async def test_tls(tmp_path: Path, program: None, first: bool) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:broker", "-days", "1"]
    command = [*make, *subject, "-keyout", str(key), "-out", str(certificate)]
    await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)
    rule = "handshake_first: 300ms, " if first else ""
    server = Server(tmp_path, f'tls {{ {rule}cert_file: "{certificate}", key_file: "{key}" }}\n')
    server.start()
    try:
        secure = server.url.replace("nats:", "tls:")
        early = "&tls_first=true" if first else ""
        for options in (f"tls_ca={certificate}", f"tls_ca={certificate}&tls_hostname=broker", "tls_verify=false"):
            async with opened_log(f"{secure}?{options}{early}") as (_, log):
                await log.append({0: numbered([1])})
        for wrong in (secure, f"{secure}?tls_ca={certificate}&tls_hostname=other"):
            with pytest.raises(BrokerError, match="certificate"):
                await NatsTransport.from_url(Url(wrong)).open()
    finally:
        server.kill()


async def test_tls_that_the_server_does_not_offer_is_not_given_up_in_silence(server: Server) -> None:
    with pytest.raises(BrokerError, match="offers no TLS"):
        await NatsTransport.from_url(Url(server.url.replace("nats:", "tls:"))).open()


async def test_a_server_without_jetstream_is_refused_with_the_remedy(tmp_path: Path, program: None) -> None:
    server = Server(tmp_path, "jetstream: disabled\n")
    server.start()
    try:
        with pytest.raises(BrokerError, match=r"JetStream.*-js"):
            await NatsTransport.from_url(Url(server.url)).open()
    finally:
        server.kill()


async def test_what_does_not_last_is_warned_of(broker: str) -> None:
    prefix = Url(broker).query["prefix"]
    async with opened(broker) as transport:
        (warning,) = transport.warnings
        assert "replicas=1" in warning
        assert "sync_interval" in warning
        await transport.declare([TopicSpec("t")])
    async with foreign(broker) as other:
        config = (await other.stream_info(prefix)).config
        config.max_age = 3600
        await other.update_stream(config)
        async with opened(broker) as transport:
            assert "max_age" in transport.warnings[1]
        await other.delete_stream(prefix)
        await other.add_stream(api.StreamConfig(name=prefix, subjects=[f"{prefix}.>"], storage=api.StorageType.MEMORY))
        async with opened(broker) as transport:
            assert "storage=memory" in transport.warnings[0]


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("nats://h?nonsense=1", UnknownOption),
        ("nats://h?prefix=a.b", UnknownOption),
        ("nats://h?replicas=0", UnknownOption),
        ("nats://h/orders", ConfigurationError),
        ("nats://h?tls_ca=x", ConfigurationError),
        ("tls://h?tls_ca=/nowhere", ConfigurationError),
    ],
)
def test_a_url_that_cannot_work_is_refused_at_once(url: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        NatsTransport.from_url(Url(url))
