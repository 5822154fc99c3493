"""What is Kafka's own: transactions, offsets without a record, other programs, brokers that go and come, passwords."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import random
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from docs.snippets import blocks_of
from msgspec import structs
from thalweg import App, Stream
from thalweg.capabilities import Bounds, Commit, Log
from thalweg.channel import Capability, TopicSpec
from thalweg.errors import AccessDenied, AmbiguousCommit, BrokerError, ConfigurationError, Fenced, Gap, MessageTooLarge
from thalweg.journal.replay import committed_rows
from thalweg.journal.rows import Reached, decode
from thalweg.message import Message, Record
from thalweg.runtime import growth
from thalweg.starting import worker_running
from thalweg.transports.kafka import KafkaTransport
from thalweg.transports.kafka.names import kafka_names, plain_name
from thalweg.url import Url

from brokers.bank import Withdrawal, make_bank
from brokers.kafka_server import USERS, Server, check_installed, cluster, new_identity
from brokers.program_runs import (
    ACCOUNTS,
    alerts_reach,
    eventually,
    handled,
    hang,
    opened,
    send_all,
    start_worker,
    survives_restarts,
)

T = TypeVar("T")

LONG = 1_000_000
SHARED = os.environ.get("KAFKA_URL", "kafka://127.0.0.1:9092")


@pytest.fixture
def server(tmp_path: Path, broker_missing: Callable[[str, str], NoReturn]) -> Iterator[Server]:
    """A broker of the test's own."""
    check_installed(broker_missing)
    server = Server(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture
async def broker(broker_missing: Callable[[str, str], NoReturn]) -> AsyncIterator[str]:
    async with shared_cluster(broker_missing) as url:
        yield url


@asynccontextmanager
async def shared_cluster(broker_missing: Callable[[str, str], NoReturn], options: str = "") -> AsyncIterator[str]:
    """Under a prefix of this test's own."""
    prefix = f"test-{secrets.token_hex(6)}."
    url = f"{SHARED}{'&' if '?' in SHARED else '?'}prefix={prefix}{options}"
    try:
        async with opened(url):
            pass
    except BrokerError as error:
        broker_missing("kafka", str(error))
    yield url
    async with admin(url) as client:
        await client.delete_topics([name for name in await client.list_topics() if name.startswith(prefix)])


def hosts(url: str) -> str:
    return Url(url).hosts


def name(url: str, topic: str) -> str:
    """As Kafka calls it."""
    return Url(url).query.get("prefix", "") + topic


@asynccontextmanager
async def opened_log(url: str, partitions: int = 1) -> AsyncIterator[tuple[KafkaTransport, Log]]:
    async with opened(url) as transport:
        await transport.declare([TopicSpec("t", partitions=partitions)])
        yield transport, await transport.log("t")


@asynccontextmanager
async def admin(url: str) -> AsyncIterator[AIOKafkaAdminClient]:
    client = AIOKafkaAdminClient(bootstrap_servers=hosts(url))
    await client.start()
    try:
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def producer(url: str, **options: Any) -> AsyncIterator[AIOKafkaProducer]:
    client = AIOKafkaProducer(bootstrap_servers=hosts(url), **options)
    await client.start()
    try:
        yield client
    finally:
        await client.stop()


async def consumed(url: str, topic: str, partitions: int = 1) -> list[bytes | None]:
    """What a plain consumer sees of a topic up to now, as most are set up: committed messages only."""
    client = AIOKafkaConsumer(bootstrap_servers=hosts(url), isolation_level="read_committed", enable_auto_commit=False)
    await client.start()
    try:
        places = [TopicPartition(name(url, topic), number) for number in range(partitions)]
        client.assign(places)
        await client.seek_to_beginning(*places)
        ends = await client.end_offsets(places)
        found: list[bytes | None] = []
        async with asyncio.timeout(30):
            for place in places:
                while await client.position(place) < ends[place]:
                    for records in (await client.getmany(place, timeout_ms=100)).values():
                        found += [record.value for record in records]
        return found
    finally:
        await client.stop()


async def all_closed(url: str, topic: str) -> None:
    """Wait until no transaction is open in partition 0: its marker may come after the answer to who ended it."""
    place = TopicPartition(name(url, topic), 0)
    clients = [
        AIOKafkaConsumer(bootstrap_servers=hosts(url), isolation_level=level)
        for level in ("read_committed", "read_uncommitted")
    ]
    async with AsyncExitStack() as stack, asyncio.timeout(30):
        for client in clients:
            stack.push_async_callback(client.stop)
            await client.start()
        while len({(await client.end_offsets([place]))[place] for client in clients}) > 1:  # noqa: ASYNC110 - the broker says it only when asked
            await asyncio.sleep(0.01)


async def everything(log: Log, partition: int = 0, after: int | None = None) -> list[tuple[int, Record]]:
    """All that lies there now: one read may give a part of it, as one fetch gives no more than a segment."""
    found: list[tuple[int, Record]] = []
    while batch := (await log.read({partition: after}, LONG, LONG, 0)).get(partition):
        found += zip(batch.positions, batch.records, strict=True)
        after = batch.positions[-1]
    return found


async def values(log: Log, partition: int = 0, after: int | None = None) -> list[bytes | None]:
    return [record.value for _, record in await everything(log, partition, after)]


def numbered(*numbers: int) -> list[Message]:
    return [Message(b"%d" % number) for number in numbers]


# --- offsets that hold no record -----------------------------------------------------------------------------


async def test_the_ends_of_transactions_are_no_records_and_end_no_log(broker: str) -> None:
    async with opened_log(broker) as (transport, log):
        await transport.declare([TopicSpec("j", partitions=1)])
        claim = await transport.claim("j", 0, Message(b"m"))
        for number in range(3):
            await transport.commit({claim: Commit(numbered(number), {("t", 0): numbered(number)})})
        batch = (await log.read({0: None}, LONG, LONG, 0))[0]
        assert list(batch.positions) == [0, 2, 4]
        assert [record.value for record in batch.records] == [b"0", b"1", b"2"]
        assert await log.bounds(0) == Bounds(0, 4)
        assert await values(log, after=4) == []
        assert await values(log, after=0) == [b"1", b"2"]
        written = (await log.append({0: numbered(3)}))[0]
        assert list(written) == [6]
        assert await values(log, after=4) == [b"3"]


async def test_what_was_aborted_is_never_read_and_moves_no_bound(broker: str) -> None:
    async with opened_log(broker) as (_, log), producer(broker, transactional_id=name(broker, "foreign")) as other:
        topic = name(broker, "t")
        for number, keep in enumerate([True, False, False, True, False]):
            await other.begin_transaction()
            for part in range(3):
                await other.send(topic, b"%d.%d" % (number, part), partition=0)
            await (other.commit_transaction() if keep else other.abort_transaction())
        assert await values(log) == [b"0.0", b"0.1", b"0.2", b"3.0", b"3.1", b"3.2"]
        assert await log.bounds(0) == Bounds(0, 14)
        for after in range(14, 20):
            assert await values(log, after=after) == []
        # Each offset of the whole log, as a reader may have stored any of them.
        for after in range(14):
            follows = [(n, p) for n in (0, 3) for p in range(3) if n * 4 + p > after]
            assert await values(log, after=after) == [b"%d.%d" % pair for pair in follows]
        await other.begin_transaction()
        await other.send_and_wait(topic, b"open", partition=0)
        await log.append({0: numbered(9)})
        assert await values(log, after=14) == []  # behind an open transaction nothing can be read yet
        assert (await log.bounds(0)).last == 14
        waiting = asyncio.create_task(log.read({0: 14}, LONG, LONG, 30))
        await other.abort_transaction()
        assert [record.value for record in (await waiting)[0].records] == [b"9"]


@pytest.mark.parametrize("seed", range(3))
async def test_of_transactions_that_overlap_a_reader_sees_what_other_clients_see(broker: str, seed: int) -> None:
    chance = random.Random(seed)
    async with opened_log(broker) as (transport, log), AsyncExitStack() as stack:
        topic = name(broker, "t")
        others = [
            await stack.enter_async_context(producer(broker, transactional_id=f"{topic}-{number}"))
            for number in range(3)
        ]
        began: set[int] = set()
        for step in range(80):
            number = chance.randrange(4)
            if number == 3:
                await log.append({0: numbered(step)})
            elif number not in began:
                await others[number].begin_transaction()
                began.add(number)
            elif chance.random() < 0.6:
                for part in range(chance.randint(1, 3)):
                    await others[number].send_and_wait(topic, b"%d.%d" % (step, part), partition=0)
            else:
                await (
                    others[number].commit_transaction() if chance.random() < 0.5 else others[number].abort_transaction()
                )
                began.discard(number)
            if step % 20 == 19:  # while some are open
                # Ends of transactions are written after they were confirmed: others may see more by now, and in order.
                before, seen = await consumed(broker, "t"), await values(await transport.log("t"))
                assert seen[: len(before)] == before
                assert (await consumed(broker, "t"))[: len(seen)] == seen
        for number in began:
            await others[number].abort_transaction()
        await all_closed(broker, "t")
        found = await everything(await transport.log("t"))
        assert [record.value for _, record in found] == await consumed(broker, "t")
        places = [position for position, _ in found]
        assert await log.bounds(0) == Bounds(places[0], places[-1])
        for after in range(places[-1] + 1):
            follows = [record.value for position, record in found if position > after]
            assert await values(log, after=after) == follows


async def test_a_reader_at_the_end_misses_nothing_when_everything_is_deleted(broker: str) -> None:
    """Between its last record and the new start there is only the end of a transaction."""
    async with opened_log(broker) as (transport, log), admin(broker) as client:
        await transport.declare([TopicSpec("j", partitions=1)])
        claim = await transport.claim("j", 0, Message(b"m"))
        await transport.commit({claim: Commit(numbered(1), {("t", 0): numbered(1, 2)})})
        reader = await transport.log("t")
        batch = (await reader.read({0: None}, LONG, LONG, 0))[0]
        last = batch.positions[-1]
        assert await values(reader, after=last) == []
        await client.delete_records({TopicPartition(name(broker, "t"), 0): RecordsToDelete(before_offset=-1)})
        assert await values(reader, after=last) == []
        await log.append({0: numbered(3)})
        assert await values(reader, after=last) == [b"3"]
        with pytest.raises(Gap):
            await values(reader, after=0)


async def test_compaction_leaves_positions_as_they_were(
    tmp_path: Path, broker_missing: Callable[..., NoReturn]
) -> None:
    check_installed(broker_missing)
    server = Server(tmp_path, "log.cleaner.backoff.ms=50", "log.cleaner.dedupe.buffer.size=2097152")
    server.start()
    try:
        async with opened(server.url) as transport:
            options = {"segment.ms": "1", "min.cleanable.dirty.ratio": "0.001", "segment.bytes": "1048576"}
            await transport.declare([TopicSpec("t", partitions=1, compact=True, options=options)])
            log = await transport.log("t")
            written: dict[int, bytes] = {}
            for number in range(60):
                batch = [Message(b"%d.%d" % (number, key), b"k%d" % key) for key in range(0, 10, 1 + number % 3)]
                batch.insert(number % 4, Message(b"stays", b"only %d" % number))
                for position, message in zip((await log.append({0: batch}))[0], batch, strict=True):
                    written[position] = message.value or b""
            async with asyncio.timeout(60):
                while True:
                    fresh = await transport.log("t")
                    found = await everything(fresh)
                    for position, record in found:
                        assert record.value == written[position]
                    if len(found) < len(written) / 2:
                        break
                    await log.append({0: [Message(b"x", b"roll the segment")]})
                    written[(await log.bounds(0)).last or 0] = b"x"
                    await asyncio.sleep(0.1)
            places = [position for position, _ in found]
            assert places != list(range(places[0], places[0] + len(places)))
            for position, follows in itertools.pairwise(places):
                assert (await fresh.read({0: position}, 1, LONG, 0))[0].positions[0] >= follows  # compacted meanwhile
            await log.truncate(0, places[-1])  # which a topic that is only compacted keeps, and says nothing
            assert places[0] <= ((await log.bounds(0)).first or 0) < places[-1]
    finally:
        server.kill()


async def test_many_read_at_many_places_of_one_log_at_once(broker: str) -> None:
    async with opened_log(broker) as (_, log):
        for number in range(100):
            await log.append({0: numbered(number)})

        async def read(after: int) -> None:
            seen = after
            while seen < 99:
                batch = (await log.read({0: seen}, 7, LONG, 5))[0]
                assert [record.value for record in batch.records] == [b"%d" % place for place in batch.positions]
                assert batch.positions[0] == seen + 1
                seen = batch.positions[-1]

        async with asyncio.timeout(60):
            await asyncio.gather(*(read(after) for after in range(100)))


# --- topics that change under a reader -----------------------------------------------------------------------


async def test_a_topic_that_was_deleted_and_made_again_is_a_gap_and_can_be_written(broker: str) -> None:
    async with opened_log(broker) as (transport, log), admin(broker) as client:
        await transport.declare([TopicSpec("j", partitions=1)])
        claim = await transport.claim("j", 0, Message(b"m"))
        await transport.commit({claim: Commit(numbered(0), {("t", 0): numbered(0)})})
        last = (await log.append({0: numbered(*range(5))}))[0][-1]
        topic = name(broker, "t")
        await client.delete_topics([topic])
        await eventually_gone(client, topic)
        await client.create_topics([NewTopic(topic, 1, 1)])
        async with asyncio.timeout(30):
            while True:
                try:
                    with pytest.raises(Gap) as caught:
                        await (await transport.log("t")).read({0: last}, LONG, LONG, 5)
                    break
                except BrokerError:  # the broker has not made it yet
                    await asyncio.sleep(0.05)
        assert (caught.value.topic, caught.value.after, caught.value.first) == ("t", last, None)
        assert list((await log.append({0: numbered(7)}))[0]) == [0]
        await transport.commit({claim: Commit(numbered(1), {("t", 0): numbered(8)})})
        assert await values(await transport.log("t")) == [b"7", b"8"]


async def eventually_gone(client: AIOKafkaAdminClient, topic: str) -> None:
    async with asyncio.timeout(30):
        while topic in await client.list_topics():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_a_topic_whose_limit_shrank_refuses_by_its_name_and_the_rest_goes_on(broker: str) -> None:
    async with opened_log(broker, partitions=2) as (transport, log), admin(broker) as client:
        await transport.declare([TopicSpec("j", partitions=1)])
        claim = await transport.claim("j", 0, Message(b"m"))
        resource = ConfigResource(ConfigResourceType.TOPIC, name(broker, "t"), configs={"max.message.bytes": "2000"})
        await client.alter_configs([resource])
        big = Message(b"x" * 5000)
        with pytest.raises(MessageTooLarge, match="'t'"):
            await log.append({0: [big]})
        with pytest.raises(MessageTooLarge, match=r"max\.message\.bytes"):
            await transport.commit({claim: Commit(numbered(1), {("t", 1): numbered(1), ("t", 0): [big]})})
        await log.append({0: numbered(2)})
        await transport.commit({claim: Commit(numbered(3), {("t", 0): numbered(3)})})
        assert await values(log) == [b"2", b"3"]
        assert await values(log, 1) == []
        assert await values(await transport.log("j")) == [b"m", b"3"]
    async with opened(broker) as again:
        small = await again.log("t")  # who meets it now knows its limit
        with pytest.raises(MessageTooLarge, match=r"max\.message\.bytes"):
            await small.append({1: [*numbered(1), Message(b"x" * 1500)]})
        assert await values(small, 1) == []


# --- other programs ------------------------------------------------------------------------------------------


async def test_other_programs_write_and_read_a_topic_with_any_client(broker: str) -> None:
    async with opened_log(broker) as (_, log), producer(broker, compression_type="gzip") as other:
        topic, then = name(broker, "t"), round(time.time() * 1000) - 1234
        headers = [("trace", b"x"), ("a", b"1"), ("a", b""), ("nothing", None)]
        await other.send_and_wait(topic, b"1", b"ada", partition=0, headers=headers, timestamp_ms=then)
        await other.send_and_wait(topic, None, b"gone", partition=0)
        first, second = (await log.read({0: None}, LONG, LONG, 0))[0].records
        assert (first.key, first.value, first.timestamp) == (b"ada", b"1", then)
        assert tuple(first.headers) == (("trace", b"x"), ("a", b"1"), ("a", b""), ("nothing", b""))
        assert (second.key, second.value, tuple(second.headers)) == (b"gone", None, ())
        await log.append({0: [Message(b"2", b"bob", (("n", b"h"),), then)]})
    client = AIOKafkaConsumer(bootstrap_servers=hosts(broker), auto_offset_reset="earliest")
    await client.start()
    try:
        client.assign([TopicPartition(topic, 0)])
        record = [await client.getone() for _ in range(3)][2]
        assert (record.key, record.value, record.timestamp) == (b"bob", b"2", then)
        assert list(record.headers) == [("n", b"h")]
    finally:
        await client.stop()


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
async def test_compressed_batches_come_back_whole(broker: str, codec: str) -> None:
    messages = [Message(b"%d " % n * 50, b"k%d" % n) for n in range(3000)]
    async with opened_log(f"{broker}&compression={codec}") as (transport, log):
        await transport.declare([TopicSpec("j", partitions=1)])
        await log.append({0: messages})
        claim = await transport.claim("j", 0, Message(b"m"))
        await transport.commit({claim: Commit(numbered(1), {("t", 0): messages})})
        assert await values(await transport.log("t")) == [message.value for message in messages] * 2


async def test_the_documented_producer_and_consumer_work(broker: str) -> None:
    """Those of docs/wire.md, as they stand there but for the names of host and topics."""
    page = Path(__file__).parents[2] / "docs" / "wire.md"
    (code,) = [block.code for block in blocks_of(page) if "aiokafka" in block.code]
    code = code.replace("localhost:9092", hosts(broker))
    for topic in ("withdrawals", "alerts"):
        code = code.replace(f'"{topic}"', repr(name(broker, topic)))
    theirs: dict[str, Any] = {}
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


# --- fencing -------------------------------------------------------------------------------------------------


@asynccontextmanager
async def rivals(url: str, count: int, journals: int = 1) -> AsyncIterator[list[KafkaTransport]]:
    transports = [KafkaTransport.from_url(Url(url)) for _ in range(count)]
    try:
        for transport in transports:
            await transport.open()
        await transports[0].declare([TopicSpec("j", partitions=journals), TopicSpec("out", partitions=1)])
        yield transports
    finally:
        for transport in transports:
            await transport.close()


class Held:
    """Stops a call of an object when it has done its work, until it is let go."""

    def __init__(self, owner: object, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.go_on = asyncio.Event(), asyncio.Event()
        original = getattr(owner, method)

        async def held(*arguments: Any) -> Any:
            result = await original(*arguments)
            self.reached.set()
            await self.go_on.wait()
            return result

        monkeypatch.setattr(owner, method, held)


@pytest.mark.parametrize("where", ["_tails", "_fence"])
async def test_a_claimant_that_slept_while_another_claimed_and_committed_sees_it(
    broker: str, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    async with rivals(broker, 3) as (a, b, c):
        owner = await a.claim("j", 0, Message(b"marker a"))
        await a.commit({owner: Commit(numbered(1), {("out", 0): numbered(1)})})
        held = Held(b._fencer, where, monkeypatch)
        claiming = asyncio.create_task(b.claim("j", 0, Message(b"marker b")))
        await held.reached.wait()
        rival = await c.claim("j", 0, Message(b"marker c"))
        await c.commit({rival: Commit(numbered(2), {("out", 0): numbered(2)})})
        held.go_on.set()
        last = await claiming
        with pytest.raises(Fenced):
            await c.commit({rival: Commit(numbered(3), {("out", 0): numbered(33)})})
        await b.commit({last: Commit(numbered(3), {("out", 0): numbered(3)})})
        with pytest.raises(Fenced):
            await a.commit({owner: Commit(numbered(2), {("out", 0): numbered(22)})})
        journal = await b.log("j")
        assert await values(journal) == [b"marker a", b"1", b"marker c", b"2", b"marker b", b"3"]
        assert last.position == list((await journal.read({0: None}, LONG, LONG, 0))[0].positions)[4]
    assert await consumed(broker, "out") == [b"1", b"2", b"3"]


async def test_in_a_race_of_many_every_commit_stands_under_its_own_marker(broker: str) -> None:
    """And what each believed is what lies there: nothing counts that was fenced, nothing is lost that was confirmed."""
    chance = random.Random(5)
    believed: dict[bytes, bool | None] = {}
    async with rivals(broker, 4, journals=3) as transports:

        async def race(number: int) -> None:
            transport = transports[number]
            for turn in range(6):
                places = chance.sample(range(3), chance.randint(1, 3))
                token = b"%d.%d" % (number, turn)
                marker = Message(b"marker " + token)
                try:
                    claims = await asyncio.gather(*(transport.claim("j", place, marker) for place in places))
                except BrokerError:
                    continue  # too many rivals: backs off, as workers do
                for step in range(chance.randint(0, 4)):
                    value = token + b".%d" % step
                    commits = {
                        claim: Commit([Message(value + b"@%d" % claim.partition)], {("out", 0): [Message(value)]})
                        for claim in claims[:1]
                    } | {claim: Commit([Message(value + b"@%d" % claim.partition)]) for claim in claims[1:]}
                    try:
                        await transport.commit(commits)
                        believed[value] = True
                    except Fenced as error:
                        believed[value] = False
                        claims = [claim for claim in claims if ("j", claim.partition) not in error.partitions]
                        if not claims:
                            break
                    except AmbiguousCommit:
                        believed[value] = None
                        break
                    await asyncio.sleep(chance.random() / 50)

        await asyncio.gather(*(race(number) for number in range(4)))
        journal = await transports[0].log("j")
        there: set[bytes] = set()
        for place in range(3):
            owner = b""
            for value in await values(journal, place):
                assert value is not None
                if value.startswith(b"marker "):
                    owner = value.removeprefix(b"marker ")
                else:
                    assert value.startswith(owner + b"."), "a commit after a newer marker"
                    there.add(value.partition(b"@")[0])
    assert any(believed.values())
    assert {value for value, done in believed.items() if done} <= there
    assert not there & {value for value, done in believed.items() if done is False}
    out = await consumed(broker, "out")
    assert len(out) == len(set(out))
    assert set(out) == there


async def test_an_owner_whose_id_was_taken_by_nobody_who_claims_goes_on_under_another(broker: str) -> None:
    """As when the broker ended its transaction because it took too long."""
    async with rivals(broker, 2, journals=2) as (a, b):
        claims = [await a.claim("j", number, Message(b"m")) for number in range(2)]
        await a.commit({claims[0]: Commit(numbered(1))})
        assert a._fencer is not None
        for number in range(2, 5):
            async with producer(broker, transactional_id=a._fencer._last_id):
                pass
            await a.commit({claim: Commit(numbered(number), {("out", 0): numbered(number)}) for claim in claims})
        journal = await b.log("j")
        assert await values(journal, 0) == [b"m", b"1", b"2", b"3", b"4"]
        assert await values(journal, 1) == [b"m", b"2", b"3", b"4"]
        await b.claim("j", 1, Message(b"n"))
        with pytest.raises(Fenced) as caught:
            await a.commit({claim: Commit(numbered(5)) for claim in claims})
        assert caught.value.partitions == {("j", 1)}
        await a.commit({claims[0]: Commit(numbered(5))})
        assert await values(journal, 0) == [b"m", b"1", b"2", b"3", b"4", b"5"]
        assert await values(journal, 1) == [b"m", b"2", b"3", b"4", b"n"]


async def test_an_owner_that_hangs_within_a_transaction_is_cut_short_by_the_next_claim(
    broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from thalweg.transports.kafka import transactions

    async with rivals(broker, 2) as (a, b):
        claim = await a.claim("j", 0, Message(b"m"))
        held = Held(transactions, "_write", monkeypatch)
        hanging = asyncio.create_task(a.commit({claim: Commit(numbered(1), {("out", 0): numbered(1)})}))
        await held.reached.wait()
        monkeypatch.undo()
        heir = await b.claim("j", 0, Message(b"n"))
        await b.commit({heir: Commit(numbered(1), {("out", 0): numbered(1)})})
        assert await consumed(broker, "out") == [b"1"]
        held.go_on.set()
        with pytest.raises(Fenced):
            await hanging
        assert await values(await b.log("j")) == [b"m", b"n", b"1"]
    assert await consumed(broker, "out") == [b"1"]


async def test_a_journal_that_was_given_back_is_taken_without_disturbing_its_former_owner(broker: str) -> None:
    async with rivals(broker, 2, journals=2) as (a, b):
        assert a._fencer is not None
        first, second = [await a.claim("j", number, Message(b"m")) for number in range(2)]
        identity = a._fencer._last_id
        await a.commit({first: Commit(numbered(1), release=True), second: Commit(numbered(1))})
        with pytest.raises(Fenced):
            await a.commit({first: Commit(numbered(2))})
        heir = await b.claim("j", 0, Message(b"n"))
        await a.commit({second: Commit(numbered(2))})
        assert a._fencer._last_id == identity
        await b.commit({heir: Commit(numbered(2))})
        assert await values(await a.log("j")) == [b"m", b"1", b"n", b"2"]


async def test_the_last_owner_of_a_journal_is_known_after_any_truncation(broker: str) -> None:
    async with rivals(broker, 2) as (a, b):
        claim = await a.claim("j", 0, Message(b"m"))
        last = (await a.commit({claim: Commit(numbered(1))}))[claim][-1]
        journal = await a.log("j")
        await journal.truncate(0, last + 10)
        assert await values(journal) == [b"1"]
        await b.claim("j", 0, Message(b"n"))
        with pytest.raises(Fenced):
            await a.commit({claim: Commit(numbered(2))})


async def test_a_journal_that_cannot_be_claimed_stands_in_no_other_ones_way(broker: str) -> None:
    async with rivals(broker, 1) as (a,), admin(broker) as client:
        a._cluster.endpoint = structs.replace(a._cluster.endpoint, timeout=1.0)
        await a.declare([TopicSpec("gone", partitions=1)])
        await client.delete_topics([name(broker, "gone")])
        await eventually_gone(client, name(broker, "gone"))
        good, bad = await asyncio.gather(
            a.claim("j", 0, Message(b"m")), a.claim("gone", 0, Message(b"m")), return_exceptions=True
        )
        assert isinstance(bad, BrokerError)
        assert not isinstance(good, BaseException)
        await a.commit({good: Commit(numbered(1))})


async def test_what_is_in_doubt_is_not_written_again(broker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the connection breaks after the broker has decided."""
    from thalweg.transports.kafka import transactions

    end = transactions._end

    async def lost(*arguments: Any) -> None:
        await end(*arguments)
        raise AmbiguousCommit("the answer was lost")

    async with rivals(broker, 1, journals=2) as (a,):
        monkeypatch.setattr(transactions, "_end", lost)
        claiming = [a.claim("j", number, Message(b"m")) for number in range(2)]
        for result in await asyncio.gather(*claiming, return_exceptions=True):
            assert isinstance(result, AmbiguousCommit)
        monkeypatch.undo()
        claims = [await a.claim("j", number, Message(b"n")) for number in range(2)]
        monkeypatch.setattr(transactions, "_end", lost)
        with pytest.raises(AmbiguousCommit):
            await a.commit({claim: Commit(numbered(1), {("out", 0): numbered(1)}) for claim in claims})
        monkeypatch.undo()
        await a.commit({claim: Commit(numbered(2), {("out", 0): numbered(2)}) for claim in claims})
        for number in range(2):
            assert await values(await a.log("j"), number) == [b"m", b"n", b"1", b"2"]
    assert await consumed(broker, "out") == [b"1", b"1", b"2", b"2"]


async def test_a_cancelled_commit_is_whole_or_absent_and_the_next_one_works(broker: str) -> None:
    chance = random.Random(7)
    async with rivals(broker, 1) as (a,):
        claim = await a.claim("j", 0, Message(b"m"))
        for number in range(30):
            commit = asyncio.create_task(a.commit({claim: Commit(numbered(number), {("out", 0): numbered(number)})}))
            await asyncio.wait([commit], timeout=chance.random() / 50)
            commit.cancel()
            await asyncio.wait([commit])
        await a.commit({claim: Commit(numbered(99), {("out", 0): numbered(99)})})
        assert (await values(await a.log("j")))[1:] == await values(await a.log("out"))
        assert (await values(await a.log("out")))[-1] == b"99"


# --- brokers that go and come --------------------------------------------------------------------------------


class Traffic:
    """Appends, commits and reads without end, and checks at the end that all of it is there once, in order."""

    def __init__(self, transport: KafkaTransport) -> None:
        self._transport = transport
        self._over = asyncio.Event()
        self.appended = self.committed = 0
        self._seen: list[bytes | None] = []

    def start(self) -> None:
        self._running = asyncio.create_task(self._run())

    async def _run(self) -> None:
        await self._transport.declare([TopicSpec("t", partitions=2), TopicSpec("j", partitions=1)])
        self._claim = await self._transport.claim("j", 0, Message(b"m"))
        async with asyncio.TaskGroup() as group:
            for work in (self._append, self._commit, self._read):
                group.create_task(work())

    async def progress(self) -> None:
        goals = self.appended + 50, self.committed + 20
        await eventually(lambda: self._running.done() or (self.appended >= goals[0] and self.committed >= goals[1]), 90)
        if self._running.done():
            await self._running  # raises

    async def check(self) -> None:
        self._over.set()
        await self._running
        log, journal = await self._transport.log("t"), await self._transport.log("j")
        assert self._seen == [b"%d" % number for number in range(self.appended)]
        committed = [b"%d" % number for number in range(self.committed)]
        assert await values(log, 1) == committed
        assert await values(journal, after=self._claim.position) == committed

    async def _append(self) -> None:
        log = await self._transport.log("t")
        while not self._over.is_set():
            await log.append({0: numbered(self.appended)})
            self.appended += 1
            await asyncio.sleep(0.005)

    async def _commit(self) -> None:
        while not self._over.is_set():
            record = numbered(self.committed)
            await self._transport.commit({self._claim: Commit(record, {("t", 1): record})})
            self.committed += 1
            await asyncio.sleep(0.005)

    async def _read(self) -> None:
        log, after = await self._transport.log("t"), None
        while not self._over.is_set() or len(self._seen) < self.appended:
            batch = (await log.read({0: after}, LONG, LONG, 1)).get(0)
            if batch is not None:
                self._seen += [record.value for record in batch.records]
                after = batch.positions[-1]


async def test_a_broker_that_restarts_loses_nothing_and_nobody_has_to_do_anything(server: Server) -> None:
    async with opened(f"{server.url}?timeout=30") as transport:
        traffic = Traffic(transport)
        traffic.start()
        for _ in range(2):
            await traffic.progress()
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
        await traffic.progress()
        await traffic.check()


async def test_of_three_brokers_any_may_die_and_come_back(
    tmp_path: Path, broker_missing: Callable[[str, str], NoReturn]
) -> None:
    check_installed(broker_missing)
    servers, identity = cluster(tmp_path), new_identity()
    try:
        for one in servers:
            one.begin(identity)
        for one in servers:
            await asyncio.to_thread(one.wait)
        hosts = ",".join(f"127.0.0.1:{one.port}" for one in servers)
        async with opened(f"kafka://{hosts}?timeout=30") as transport, admin(f"kafka://{hosts}") as client:
            traffic = Traffic(transport)
            traffic.start()
            await traffic.progress()
            config = (await settings(client, f"kafka://{hosts}", ["t"]))["t"]
            assert config["min.insync.replicas"] == "2"
            for one in servers:
                await asyncio.to_thread(one.kill)
                await traffic.progress()
                await asyncio.to_thread(one.start)
                await whole(client, ["t", "j", "__transaction_state"])
            await traffic.check()
            assert not [warning for warning in transport.warnings if "replica" in warning]
    finally:
        for one in servers:
            one.kill()


async def whole(client: AIOKafkaAdminClient, topics: Sequence[str]) -> None:
    """Return when each partition has three copies in sync."""
    async with asyncio.timeout(60):
        while True:
            found = await client.describe_topics(list(topics))
            if all(len(partition["isr"]) == 3 for topic in found for partition in topic["partitions"]):
                return
            await asyncio.sleep(0.1)


async def test_a_broker_that_hangs_leaves_writes_in_doubt_and_says_so_within_the_time_out(server: Server) -> None:
    assert server.process is not None
    async with opened(server.url):
        pass  # a new broker needs more than a second until it has transactions
    async with opened_log(f"{server.url}?timeout=1", partitions=2) as (transport, log):
        await transport.declare([TopicSpec("j", partitions=1)])
        claim = await transport.claim("j", 0, Message(b"m"))
        await log.append({0: numbered(0)})
        hang(server.process)
        try:
            with pytest.raises(AmbiguousCommit, match="t"):
                await log.append({0: numbered(1)})
            with pytest.raises(BrokerError):
                await transport.commit({claim: Commit(numbered(1), {("t", 1): numbered(1)})})
            with pytest.raises(BrokerError):
                await log.read({0: None}, LONG, LONG, 0)
            with pytest.raises(BrokerError):
                await log.bounds(0)
        finally:
            server.process.send_signal(signal.SIGCONT)
        await works_again(lambda: log.append({0: numbered(2)}))
        await works_again(lambda: transport.commit({claim: Commit(numbered(2), {("t", 1): numbered(2)})}))
        found = await values(await transport.log("t"))
        assert found[0] == b"0"
        assert found[-1] == b"2"
        assert found.count(b"1") <= 1
        outputs = await values(await transport.log("t"), 1)
        assert outputs == await values(await transport.log("j"), after=claim.position)
        assert outputs[-1] == b"2"


async def works_again(ask: Callable[[], Awaitable[T]], seconds: float = 30) -> T:
    async with asyncio.timeout(seconds):
        while True:
            try:
                return await ask()
            except BrokerError:
                await asyncio.sleep(0.05)


async def test_a_commit_whose_answer_was_lost_is_resolved_after_the_restart(server: Server) -> None:
    async with opened_log(server.url) as (transport, _):
        await transport.declare([TopicSpec("j", partitions=1)])
        claim = await transport.claim("j", 0, Message(b"m"))
        confirmed: list[int] = []
        for number in range(4):
            commit = asyncio.create_task(
                transport.commit({claim: Commit(numbered(number), {("t", 0): numbered(number)})})
            )
            await asyncio.sleep(number / 1000)  # somewhere within
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            try:
                await commit
                confirmed.append(number)
            except BrokerError:
                pass
        await works_again(lambda: transport.commit({claim: Commit(numbered(99), {("t", 0): numbered(99)})}))
        found = await values(await transport.log("t"))
        assert found == await values(await transport.log("j"), after=claim.position)
        assert len(found) == len(set(found))
        assert {b"%d" % number for number in confirmed} <= set(found)


async def test_what_nobody_serves_is_an_error_within_the_time_out_that_says_where(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        for url in (f"kafka://ada:secret@127.0.0.1:{port}/?timeout=0.3", "kafka://ada:secret@127.0.0.1:1/?timeout=5"):
            transport = KafkaTransport.from_url(Url(url))
            began = time.monotonic()
            with pytest.raises(BrokerError, match=Url(url).hosts) as caught:
                await transport.open()
            assert time.monotonic() - began < 5
            assert "secret" not in str(caught.value)
            await transport.close()


async def test_of_several_hosts_one_that_answers_is_enough(broker: str) -> None:
    async with opened(broker.replace("kafka://", "kafka://127.0.0.1:1,")) as transport:
        assert Capability.LOG in transport.capabilities


async def test_nothing_is_left_after_close(broker: str) -> None:
    async with opened_log(broker):
        pass
    tasks, descriptors = len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        async with opened_log(broker) as (transport, log):
            await transport.declare([TopicSpec("j", partitions=1)])
            claim = await transport.claim("j", 0, Message(b"m"))
            await transport.commit({claim: Commit(numbered(1))})
            await log.append({0: numbered(1)})
            reading = asyncio.create_task(log.read({0: LONG // 2}, 1, LONG, 60))
            other = asyncio.create_task((await transport.log("j")).read({0: claim.position + 10}, 1, LONG, 60))
            await asyncio.sleep(0.01)
        await asyncio.wait([reading, other])
        assert isinstance(reading.exception(), BrokerError)
        assert isinstance(other.exception(), BrokerError)
    await asyncio.sleep(0.05)
    assert len(asyncio.all_tasks()) == tasks
    assert len(os.listdir("/proc/self/fd")) <= descriptors


# --- who may enter -------------------------------------------------------------------------------------------


@pytest.fixture
def guarded(tmp_path: Path, broker_missing: Callable[[str, str], NoReturn]) -> Iterator[Server]:
    """A broker with passwords, certificates and rights."""
    check_installed(broker_missing)
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    both = tmp_path / "both.pem"
    both.write_text(key.read_text() + certificate.read_text())
    server = Server(
        tmp_path,
        "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users=User:ANONYMOUS",
        "allow.everyone.if.no.acl.found=true",
        certificate=both,
    )
    server.start()
    yield server
    server.kill()


async def test_passwords_certificates_and_rights(
    guarded: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One test, for a broker takes its time to start."""
    caplog.set_level(logging.DEBUG)
    place = f"127.0.0.1:{guarded.password_port}"
    password = USERS["ada"].replace(" ", "%20")
    for mechanism in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"):
        async with opened_log(f"kafka://ada:{password}@{place}?sasl={mechanism}") as (_, log):
            await log.append({0: numbered(1)})
        wrong = KafkaTransport.from_url(Url(f"kafka://ada:wr0ng@{place}?sasl={mechanism}&timeout=5"))
        with pytest.raises(BrokerError, match="user and password in the URL") as caught:
            await wrong.open()
        assert "wr0ng" not in str(caught.value)
        await wrong.close()
    with pytest.raises(BrokerError):
        await KafkaTransport.from_url(Url(f"kafka://{place}?timeout=1")).open()

    async with opened_log(f"kafkas://127.0.0.1:{guarded.tls_port}?tls_ca={tmp_path}/certificate.pem") as (_, log):
        assert await values(log) == [b"1"] * 3
    async with opened_log(f"kafkas://127.0.0.1:{guarded.tls_port}?tls_verify=false"):
        pass
    with pytest.raises(BrokerError, match="certificate"):
        await KafkaTransport.from_url(Url(f"kafkas://127.0.0.1:{guarded.tls_port}?timeout=5")).open()

    await deny(guarded, "User:eve", kind=5, name="*", operation=4)  # to write as any transactional id
    await deny(guarded, "User:eve", kind=2, name="secrets", operation=2)  # to do anything with this topic
    password = USERS["eve"].replace(" ", "%20")
    async with opened_log(f"kafka://eve:{password}@{place}?timeout=5") as (transport, log):
        assert Capability.FENCING not in transport.capabilities
        assert any("no transactions" in warning for warning in transport.warnings)
        with pytest.raises(ConfigurationError, match="fencing"):
            await transport.claim("t", 0, Message(b"m"))
        await log.append({0: numbered(2)})
        assert await values(log) == [b"1"] * 3 + [b"2"]
        with pytest.raises(AccessDenied, match="ACL"):
            await transport.declare([TopicSpec("secrets", partitions=1)])
        await log.append({0: [Message(b"private")]})
    for secret in (*USERS.values(), "wr0ng", "private"):
        assert secret not in caplog.text


async def deny(server: Server, user: str, kind: int, name: str, operation: int) -> None:
    from aiokafka.protocol.admin import CreateAclsRequest

    async with opened(server.url) as transport:
        cluster = transport._cluster
        request = CreateAclsRequest(kind, name, 3, user, "*", operation, 2)
        answer = await cluster.ask(cluster.controller, request)
        assert all(code == 0 for code, *_ in answer.creation_responses), answer


# --- settings ------------------------------------------------------------------------------------------------


async def test_topics_are_made_as_declared_and_others_are_left_alone(broker: str) -> None:
    async with opened(broker) as transport, admin(broker) as client:
        await client.create_topics([NewTopic(name(broker, "theirs"), 3, 1, topic_configs={"retention.ms": "1000"})])
        specs = [
            TopicSpec("theirs", retention=99.0, compact=True),
            TopicSpec("kept"),
            TopicSpec("short", retention=60.0, options={"segment.bytes": "2000000"}),
            TopicSpec("table", compact=True),
            TopicSpec("both", compact=True, retention=60.0),
        ]
        found = await transport.declare(specs)
        assert found[0].partitions == 3
        configs = await settings(client, broker, [spec.name for spec in specs])
        assert configs["theirs"]["retention.ms"] == "1000"
        assert configs["theirs"]["cleanup.policy"] == "delete"
        assert (configs["kept"]["retention.ms"], configs["kept"]["retention.bytes"]) == ("-1", "-1")
        assert (configs["short"]["retention.ms"], configs["short"]["segment.bytes"]) == ("60000", "2000000")
        assert (configs["table"]["cleanup.policy"], configs["table"]["retention.ms"]) == ("compact", "-1")
        assert set(configs["both"]["cleanup.policy"].split(",")) == {"compact", "delete"}
        with pytest.raises(ConfigurationError, match=r"no\.such\.setting"):
            await transport.declare([TopicSpec("new", options={"no.such.setting": "1"})])
        with pytest.raises(BrokerError, match="there"):
            await transport.declare([TopicSpec("there", declare=False)])


async def settings(client: AIOKafkaAdminClient, url: str, topics: Sequence[str]) -> Mapping[str, Mapping[str, str]]:
    resources = [ConfigResource(ConfigResourceType.TOPIC, name(url, topic)) for topic in topics]
    (answer,) = await client.describe_configs(resources)
    return {
        resource[3].removeprefix(name(url, "")): {entry[0]: entry[1] for entry in resource[4]}
        for resource in answer.resources
    }


async def test_too_few_brokers_for_the_replication_that_was_asked_for_is_a_wrong_setting(broker: str) -> None:
    async with opened(f"{broker}&replication=3") as transport:
        if len(transport._cluster.brokers) >= 3:
            await transport.declare([TopicSpec("t")])
            return
        with pytest.raises(ConfigurationError, match="replication="):
            await transport.declare([TopicSpec("t")])


async def test_without_fencing_there_is_none(broker: str) -> None:
    async with opened(f"{broker}&fencing=false") as transport:
        assert Capability.FENCING not in transport.capabilities


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("kafka://h/path", "path"),
        ("kafka://h?prefix=a/b", "prefix"),
        ("kafka://h?tls_ca=x", "kafkas"),
        ("kafkas://h?tls_ca=/nowhere", "TLS"),
        ("kafka://:secret@h", "user"),
        ("kafka://h?sasl=GUESS", "sasl"),
        ("kafka://h?acks=1", "acks"),
    ],
)
def test_a_url_that_cannot_work_is_refused_at_once(url: str, word: str) -> None:
    with pytest.raises(ConfigurationError, match=word) as caught:
        KafkaTransport.from_url(Url(url))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "plain",
    ["t", "a.b", "a_b", "", ".", "..", "...", "queue.x", "queue.", "ü/x y", "_-20-_", "\N{SNOWMAN}", "a\0b", "_--_"],
)
@pytest.mark.parametrize("queue", [False, True])
def test_names_come_back_as_they_were(plain: str, queue: bool) -> None:
    for prefix in ("", "p.", "queue."):
        for found in kafka_names(prefix, plain, queue):
            assert found
            assert found not in (".", "..")
            assert plain_name(prefix, found) == (plain, queue)
            assert all(character.isascii() and (character.isalnum() or character in "._-") for character in found)


def test_a_name_that_is_too_long_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="249"):
        kafka_names("", "\N{SNOWMAN}" * 40, False)


# --- whole programs ------------------------------------------------------------------------------------------


async def test_a_program_runs_exactly_once_with_tables_outputs_queues_and_answers(broker: str) -> None:
    bank = make_bank(broker)
    async with bank.app:
        assert bank.app.guarantee == "exactly_once"
        assert await bank.total.ask(Withdrawal(0, "ada", 5), key="ada") == 5
        assert await bank.total.ask(Withdrawal(1, "ada", 500), key="ada") == 505
        assert await bank.mail.ask("bob") == "BOB"
        await eventually(lambda: sorted(bank.mailed) == ["ada", "bob"])
    again = make_bank(broker)
    async with again.app:
        assert await again.total.ask(Withdrawal(2, "ada", 1), key="ada") == 506
        assert handled(again) == [0, 1, 2]
    assert sorted(await alerts(broker)) == [0, 1, 2]


@pytest.mark.parametrize("fencing", ["true", "false"], ids=["fenced", "read back"])
async def test_a_worker_that_is_killed_loses_and_repeats_nothing(broker: str, fencing: str) -> None:
    count = 4000
    url = f"{broker}&fencing={fencing}"
    bank, worker = make_bank(url), start_worker(url)
    try:
        async with bank.app.client():
            await send_all(bank, range(count))
        await alerts_reach(broker, 1)
    finally:
        worker.kill()
        worker.wait()
    heir = make_bank(url)
    async with heir.app:
        assert heir.app.guarantee == "exactly_once"
        await eventually(lambda: len(handled(heir)) >= count)
        assert handled(heir) == list(range(count))
        for account in ACCOUNTS:
            assert heir.seen[account] == sorted(heir.seen[account])
            assert heir.totals[account] == sum(heir.seen[account])
        await alerts_reach(broker, count)
    if fencing == "true":  # else a plain consumer may see some twice, and a Thalweg program each once
        assert sorted(await alerts(broker)) == list(range(count))


async def test_a_worker_that_was_stopped_is_fenced_when_it_goes_on(broker: str) -> None:
    bank, worker = make_bank(broker), start_worker(broker)
    try:
        async with bank.app.client():
            await send_all(bank, range(200))
            await alerts_reach(broker, 200)
            worker.send_signal(signal.SIGSTOP)
            await send_all(bank, range(200, 400))
        heir = make_bank(broker)
        async with heir.app:
            await eventually(lambda: len(handled(heir)) >= 400)
            worker.send_signal(signal.SIGCONT)
            await send_all(heir, range(400, 1000))
            await alerts_reach(broker, 1000)
    finally:
        worker.kill()
        worker.wait()
    last = make_bank(broker)
    async with last.app:
        await eventually(lambda: len(handled(last)) >= 1000)
        assert handled(last) == list(range(1000))
    assert sorted(await alerts(broker)) == list(range(1000))


async def test_workers_that_come_and_go_repeat_nothing_that_a_plain_consumer_could_see(broker: str) -> None:
    """Some are killed, some stopped for a while, some end in good order, while messages come."""
    chance, count, over = random.Random(3), 0, asyncio.Event()
    bank = make_bank(broker)
    workers = [start_worker(broker) for _ in range(2)]
    started = list(workers)
    try:
        async with bank.app.client():

            async def produce() -> None:
                nonlocal count
                while not over.is_set():
                    await send_all(bank, range(count, count + 25))
                    count += 25
                    await asyncio.sleep(0.01)

            sending = asyncio.create_task(produce())
            for turn in range(9):
                await asyncio.sleep(0.5)
                victim = workers.pop(chance.randrange(len(workers)))
                if turn % 3 == 0:
                    victim.kill()
                elif turn % 3 == 1:
                    victim.terminate()
                else:
                    victim.send_signal(signal.SIGSTOP)
                    await asyncio.sleep(1.5)
                    victim.send_signal(signal.SIGCONT)
                    workers.append(victim)
                while len(workers) < 2:
                    workers.append(start_worker(broker))
                    started.append(workers[-1])
            over.set()
            await sending
        await alerts_reach(broker, count, 60)
    finally:
        for worker in started:
            worker.kill()
            worker.wait()
    assert sorted(await alerts(broker)) == list(range(count))
    last = make_bank(broker)
    async with last.app:
        await eventually(lambda: len(handled(last)) >= count)
        assert handled(last) == list(range(count))


async def test_a_broker_that_restarts_under_a_program_loses_and_repeats_nothing(server: Server) -> None:
    await survives_restarts(server, server.url, told=alerts)


async def alerts(broker: str) -> list[int]:
    """What the program sent, as a plain consumer sees it."""
    return [int(value or b"") for value in await consumed(broker, "alerts", 4)]


@pytest.mark.parametrize("lost", [False, True], ids=["nothing lost", "a record lost"])
async def test_a_program_that_was_away_while_all_expired_goes_on_unless_it_had_something_still_to_read(
    broker: str, lost: bool
) -> None:
    """After the last record that it has handled lie the ends of transactions, one of them aborted."""
    handled: list[int] = []

    def make() -> tuple[App, Any]:
        app = App("away", broker=broker, partitions=1)
        source = app.topic("t", value=int)

        @app.agent(source)
        async def handle(stream: Stream[int]) -> None:
            async for number in stream:
                handled.append(number)

        return app, source

    async def transactions(*numbers: int, keep: bool = True) -> None:
        async with producer(broker, transactional_id=name(broker, secrets.token_hex(4))) as other:
            await other.begin_transaction()
            for number in numbers:
                await other.send(name(broker, "t"), b"%d" % number, partition=0)
            await (other.commit_transaction() if keep else other.abort_transaction())

    async def reached(app: App) -> bool:
        journal = await app.running.open_log("away-journal-1")
        try:
            rows = await committed_rows(journal, 0, b"p", b"q")
            return any((decode(row, type=Reached).passed or 0) == 5 for row in rows.values())
        finally:
            await journal.close()

    app, _ = make()
    async with app:
        await transactions(1, 2)
        await eventually(lambda: handled == [1, 2])
        await transactions(3, 4, keep=False)
        async with asyncio.timeout(30):
            while not await reached(app):  # noqa: ASYNC110 - the broker tells nobody
                await asyncio.sleep(0.05)
    if lost:
        await transactions(5)
    async with admin(broker) as client:
        await client.delete_records({TopicPartition(name(broker, "t"), 0): RecordsToDelete(-1)})
    app, source = make()
    async with app:
        await source.send(6)
        if lost:
            assert app.running.worker is not None
            (task,) = app.running.worker.tasks.values()
            await eventually(lambda: any(agent.halted for agent in task.agents))
        await eventually(lambda: lost or handled == [1, 2, 6])
        assert 5 not in handled


async def test_a_topic_that_grows_while_the_program_runs_is_said_once(
    broker: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growth, "LOOK_EVERY", 0.05)
    async with worker_running(make_bank(broker).app), admin(broker) as client:
        await client.create_partitions({name(broker, "withdrawals"): NewPartitions(6)})
        await eventually(lambda: bool(grown(caplog)))
        await client.create_partitions({name(broker, "withdrawals"): NewPartitions(7)})
        await eventually(lambda: len(grown(caplog)) == 2)
    assert "'withdrawals' has 6 partitions now, and had 4" in grown(caplog)[0]
    assert "'withdrawals' has 7 partitions now, and had 6" in grown(caplog)[1]


def grown(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [message for message in caplog.messages if "partitions now, and had" in message]
