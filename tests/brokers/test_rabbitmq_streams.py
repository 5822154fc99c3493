"""Logs on a real RabbitMQ, over the stream protocol and over AMQP: whole programs, faults, and what others see."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from docs.snippets import blocks_of
from missing import missing
from rabbitmq_leftovers import delete_all
from rstream import AMQPMessage, Consumer, ConsumerOffsetSpecification, OffsetType, Producer, amqp_decoder
from thalweg import App, Stream
from thalweg.capabilities import Bounds, Log
from thalweg.channel import TopicSpec
from thalweg.errors import AmbiguousCommit, BrokerError, Gap, MessageTooLarge, TopicMismatch
from thalweg.message import Message
from thalweg.partitioner import murmur2_partitioner
from thalweg.transports.rabbitmq import RabbitTransport
from thalweg.transports.rabbitmq.generations import join, split
from thalweg.transports.rabbitmq.log import RabbitLog
from thalweg.transports.rabbitmq.rolling import RollingPartition
from thalweg.url import Url

from brokers.bank import make_bank
from brokers.program_runs import becomes, eventually, opened, survives_restarts
from brokers.rabbit_server import RabbitServer
from brokers.rolling_race import Race

SHARED = os.environ.get("RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672")
LONG = 1_000_000
WAYS = pytest.mark.parametrize("way", ["native", "amqp"])
GROUPS = ["bank", "bank-workers", "t"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitServer]:
    """It lives as long as the tests of this file; each takes a prefix of its own."""
    if lacking := RabbitServer.lacking():
        missing("rabbitmq", lacking)
    server = RabbitServer(tmp_path_factory.mktemp("rabbitmq"))
    try:
        server.start()
        asyncio.run(make_first_stream(server))
        server.settle()
        yield server
    finally:
        server.close()


async def make_first_stream(server: RabbitServer) -> None:
    """What the server remembers too late is that it has streams at all."""
    async with await aio_pika.connect(server.url.partition("?")[0]) as connection:
        channel = await connection.channel()
        await channel.declare_queue("first", durable=True, arguments={"x-queue-type": "stream"})


def with_options(url: str, way: str, more: str = "") -> str:
    prefix = f"test-{secrets.token_hex(6)}."
    return f"{url}{'&' if '?' in url else '?'}prefix={prefix}&streams={way}{more}"


@pytest.fixture
async def broker(way: str) -> AsyncIterator[str]:
    """The shared server, under a prefix of this test's own."""
    url = with_options(SHARED, way)
    try:
        async with opened(url):
            pass
    except BrokerError as error:
        missing("rabbitmq", str(error))
    yield url
    await delete_all(url, GROUPS)


@asynccontextmanager
async def opened_log(url: str, truncated: bool = False, partitions: int = 1) -> AsyncIterator[RabbitLog]:
    async with opened(url) as transport:
        await transport.declare([TopicSpec("t", partitions=partitions, truncated=truncated)])
        yield await log_of(transport)


async def log_of(transport: RabbitTransport) -> RabbitLog:
    log = await transport.log("t")
    assert isinstance(log, RabbitLog)
    return log


def rolling(log: RabbitLog) -> RollingPartition:
    partition = log._partitions[0]
    assert isinstance(partition, RollingPartition)
    return partition


def numbered(*numbers: int) -> list[Message]:
    return [Message(b"%d" % number, b"k") for number in numbers]


async def values(log: Log, after: int | None = None, partition: int = 0) -> list[bytes | None]:
    """All that lies after the position now, however many reads it takes."""
    found: list[bytes | None] = []
    while (batch := (await log.read({partition: after}, LONG, LONG, 0)).get(partition)) is not None:
        found += [record.value for record in batch.records]
        after = batch.positions[-1]
    return found


# --- whole programs ------------------------------------------------------------------------------------------


@WAYS
async def test_a_server_that_restarts_loses_nothing_and_the_program_goes_on_by_itself(
    server: RabbitServer, way: str
) -> None:
    broker = with_options(server.url, way)
    async with make_bank(broker).app:
        pass  # it makes its queue
    await asyncio.to_thread(server.settle)
    await survives_restarts(server, broker, copies=True)


async def tried(call: Awaitable[object]) -> bool:
    try:
        await call
    except BrokerError:
        return False
    return True


# --- truncation: generations ---------------------------------------------------------------------------------


@WAYS
async def test_appenders_rollers_and_readers_that_race_agree_and_lose_nothing(broker: str) -> None:
    url = f"{broker}&roll_bytes=1"
    async with opened(url) as a, opened(url) as b, opened(url) as reader:
        race = Race(secrets.randbelow(1 << 30))
        await race.run([a, b, reader], seconds=5)
        assert await race.check(a) > 1
        assert race.appended


@WAYS
async def test_truncation_frees_generations_and_positions_go_on(broker: str) -> None:
    async with opened_log(f"{broker}&roll_bytes=1", truncated=True) as log:
        last = (await log.append({0: numbered(1, 2, 3)}))[0][-1]
        await log.truncate(0, last)  # seals the generation: it has grown enough
        after = (await log.append({0: numbered(4)}))[0][-1]
        assert (split(last), split(after)) == ((0, 2), (1, 0))
        assert await log.bounds(0) == Bounds(last, after)
        assert await values(log) == [b"3", b"4"]
        assert await values(log, last) == [b"4"]
        first = rolling(log).generations.streams[0]
        assert await exists(log, first)
        await log.truncate(0, after)
        assert rolling(log).generations.gone == 1
        assert await values(log) == [b"4"]
        with pytest.raises(Gap):
            await values(log, last - 1)
        assert await values(log, last) == [b"4"], "nothing after it is gone"
        assert not await exists(log, first)


@WAYS
async def test_logs_of_a_journal_share_what_they_know_and_read_each_record_once(broker: str) -> None:
    async with opened(f"{broker}&roll_bytes=1000") as transport:
        await transport.declare([TopicSpec("t", partitions=1, truncated=True)])
        writer, reader, looker = [await log_of(transport) for _ in range(3)]
        before = (await writer.append({0: numbered(0)}))[0][-1]
        for number in range(1, 20):
            reading = asyncio.create_task(reader.read({0: before}, 10, LONG, 30))
            before = (await writer.append({0: [Message(b"%100d" % number)]}))[0][-1]
            assert (await reading)[0].positions[-1] == before
        (cursor,) = [cursor for cursors in writer._parts.shelf._cursors.values() for cursor in cursors]
        assert cursor.tail, "what the writer reads back serves the readers, too"
        await looker.truncate(0, before)  # and who truncates knows how much was written
        assert split((await writer.append({0: numbered(20)}))[0][-1])[0] == 1
        await writer.close()
        assert await values(reader, before) == [b"20"], "the others go on"


@WAYS
async def test_a_reader_that_falls_silent_costs_one_append_and_is_replaced(broker: str) -> None:
    async with opened_log(f"{broker}&timeout=3", truncated=True) as log:
        await log.append({0: numbered(1)})
        (tail,), root = log._partitions[0]._tails.values(), log._parts.root
        assert root is not None
        tail.feed = root.feed = lambda block: None  # type: ignore[method-assign]
        with pytest.raises(AmbiguousCommit):
            await log.append({0: numbered(2)})
        with pytest.raises(AmbiguousCommit):
            await root.sync()
        del root.feed
        assert (await log.append({0: numbered(3)}))[0] == [2]
        assert await values(log) == [b"1", b"2", b"3"]


@WAYS
async def test_who_comes_new_reads_from_where_the_log_begins_and_on_without_a_gap(broker: str) -> None:
    async with opened_log(broker, truncated=True) as log:
        last = (await log.append({0: numbered(*range(20))}))[0][-1]
        await log.truncate(0, last - 9)  # within the first stream, which stays
        async with opened_log(broker, truncated=True) as newcomer:
            begun = (await newcomer.read({0: None}, 5, LONG, 0))[0]
            assert begun.positions[0] == last - 9
            await newcomer.bounds(0)  # by which it learns where the log begins, if it did not know
            assert await values(newcomer, begun.positions[-1]) == [b"%d" % number for number in range(15, 20)]


@WAYS
async def test_who_sleeps_through_rolls_and_truncations_appends_where_the_log_ends_now(broker: str) -> None:
    async with opened_log(broker, truncated=True) as sleeper, opened_log(broker, truncated=True) as other:
        first = (await sleeper.append({0: numbered(1)}))[0][-1]
        end = first
        for number in range(2, 5):
            await rolling(other).roll()
            end = (await other.append({0: numbered(number)}))[0][-1]
        await other.truncate(0, end)
        assert rolling(other).generations.gone == 3
        late = (await sleeper.append({0: numbered(5)}))[0][-1]
        assert late > end
        assert await values(other) == [b"4", b"5"]
        with pytest.raises(Gap):
            await values(sleeper, first)


@WAYS
async def test_a_roller_that_dies_at_any_point_leaves_a_log_that_goes_on(broker: str) -> None:
    async with opened_log(broker, truncated=True) as dying, opened_log(broker, truncated=True) as other:
        await dying.append({0: numbered(1)})

        async def die(*_: object) -> None:
            raise RuntimeError("dies here")

        partition, root = rolling(dying), dying._parts.root
        assert root is not None
        make, write, wrote = partition._make, root.write, list[object]()
        partition._make = die  # between the candidate and its stream
        with pytest.raises(RuntimeError):
            await partition.roll()
        assert await values(other) == [b"1"]
        await other.append({0: numbered(2)})
        partition._make = make

        async def write_once(what: Any) -> None:
            if wrote:
                raise RuntimeError("dies here")
            wrote.append(what)
            await write(what)

        root.write = write_once  # type: ignore[method-assign]  # after the seal, before anybody is told
        with pytest.raises(RuntimeError):
            await partition.roll()
        async with opened_log(broker, truncated=True) as heir:
            assert await values(heir) == [b"1", b"2"]
            bounds = await heir.bounds(0)
            assert bounds == Bounds(join(0, 0), join(0, 1))
            assert (await heir.append({0: numbered(3)}))[0] == [join(1, 0)]
        assert (await other.append({0: numbered(4)}))[0] == [join(1, 1)]
        assert await values(other) == [b"1", b"2", b"3", b"4"]
        await rolling(other).roll()
        await other.truncate(0, join(1, 1))
        lost = [name for names in rolling(other).generations.candidates.values() for name in names]
        kept = rolling(other).generations.streams
        assert len(lost) == 3
        assert [name for name in lost if await exists(other, name)] == [kept[1], kept[2]]


@WAYS
async def test_of_two_who_roll_at_once_one_wins_and_the_others_stream_goes(broker: str) -> None:
    async with opened_log(broker, truncated=True) as a, opened_log(broker, truncated=True) as b:
        await a.append({0: numbered(1)})
        await b.append({0: numbered(2)})
        await asyncio.gather(rolling(a).roll(), rolling(b).roll())
        await asyncio.gather(*(log.append({0: numbered(3)}) for log in (a, b)))
        assert rolling(a).generations.streams == rolling(b).generations.streams
        streams = set(rolling(a).generations.streams.values())
        for log in (a, b):
            assert log._parts.root is not None
            await log._parts.root.refresh()
        for name in rolling(a).generations.everything:
            assert await exists(a, name) == (name in streams)


@WAYS
async def test_a_topic_that_is_not_declared_as_truncated_keeps_all(broker: str) -> None:
    async with opened_log(broker) as log:
        last = (await log.append({0: numbered(1, 2)}))[0][-1]
        await log.truncate(0, last + 1)
        assert await values(log) == [b"1", b"2"]


async def exists(log: RabbitLog, stream: str) -> bool:
    streams = log._parts.shelf._streams
    try:
        attachment = await streams.attach(stream, "first", Nowhere())
    except BrokerError:
        return False
    await attachment.close()
    return True


class Nowhere:
    def feed(self, block: object) -> None:
        pass

    def lost(self, error: BrokerError) -> None:
        pass


# --- what happens to streams ---------------------------------------------------------------------------------


@WAYS
async def test_what_retention_dropped_is_a_gap(broker: str) -> None:
    small = {"x-max-length-bytes": "20000", "x-stream-max-segment-size-bytes": "10000"}
    async with opened(broker) as transport:
        await transport.declare([TopicSpec("t", partitions=1, options=small)])
        log = await log_of(transport)
        first = (await log.append({0: numbered(0)}))[0][0]
        for _ in range(30):
            await log.append({0: [Message(b"x" * 2000)]})
        other = await log_of(transport)
        kept = await becomes(lambda: other.bounds(0), lambda bounds: (bounds.first or 0) > 5)
        with pytest.raises(Gap) as caught:
            await values(other, first)
        assert caught.value.first is not None
        assert caught.value.first >= (kept.first or 0)
        assert len(await values(await log_of(transport), (kept.last or 0) - 3)) == 3
        assert (await values(await log_of(transport)))[-1:] == [b"x" * 2000]


@WAYS
async def test_a_stream_that_was_deleted_and_made_anew_is_a_gap_for_who_read_the_old_one(broker: str) -> None:
    async with opened(broker) as transport:
        await transport.declare([TopicSpec("t", partitions=1)])
        log = await log_of(transport)
        last = (await log.append({0: numbered(*range(5))}))[0][-1]
        assert len(await values(log)) == 5
        name = transport._names.topic("t", 0)
        async with foreign() as channel:
            await channel.queue_delete(name)
        await becomes(lambda: tried(values(log, last)), lambda worked: not worked)
        with pytest.raises(BrokerError):
            await log.append({0: numbered(5)})
        await transport.declare([TopicSpec("t", partitions=1)])
        with pytest.raises(Gap):
            await values(log, last)
        await log.append({0: numbered(0)})
        with pytest.raises(Gap):
            await values(log, last)
        assert await values(log) == [b"0"]


@WAYS
async def test_a_queue_of_another_kind_under_the_name_of_a_stream_is_a_mismatch(broker: str) -> None:
    async with opened(broker) as transport:
        name = transport._names.topic("t", 0)
        async with foreign() as channel:
            await channel.declare_queue(name, durable=True)
            with pytest.raises(TopicMismatch, match="x-queue-type"):
                await transport.declare([TopicSpec("t", partitions=1)])


@WAYS
async def test_a_slow_reader_bounds_what_lies_ready_for_it(broker: str) -> None:
    async with opened_log(broker) as writing, opened_log(broker) as log:
        value = b"x" * 10_000
        for _ in range(40):
            await writing.append({0: [Message(value)] * 100}, positions=False)
        batch = (await log.read({0: None}, 1, LONG, 10))[0]
        assert len(batch.records) == 1
        (cursor,) = next(iter(log._parts.shelf._cursors.values()))
        before = -1
        while before != cursor.arrived:  # until the server sends no more
            before = cursor.arrived
            await cursor.catch_up()
            await asyncio.sleep(0.05)
        assert cursor.size < 20_000_000
        assert len(await values(log)) == 4000
        assert cursor.size > 40_000_000


@WAYS
async def test_messages_above_a_frame_of_the_protocol_keep_their_place(broker: str) -> None:
    large = [Message(b"%d" % n * (3_000_000 if n % 2 else 1), b"k") for n in range(5)]
    async with opened_log(broker) as log:
        positions = (await log.append({0: large}))[0]
        assert list(positions) == list(range(5))
        assert await values(log) == [message.value for message in large]
        with pytest.raises(MessageTooLarge):
            await log.append({0: [Message(b"x" * (17 << 20))]})


# --- faults --------------------------------------------------------------------------------------------------


@WAYS
@pytest.mark.parametrize("truncated", [False, True])
async def test_appends_while_the_server_is_killed_are_there_or_ambiguous(
    server: RabbitServer, way: str, truncated: bool
) -> None:
    async with opened_log(with_options(server.url, way, "&timeout=5"), truncated) as log:
        acknowledged: list[tuple[int, int]] = []
        stop = False

        async def write() -> None:
            number = 0
            while not stop:
                number += 1
                try:
                    position = (await log.append({0: numbered(number)}))[0][0]
                    acknowledged.append((position, number))
                except BrokerError:
                    await asyncio.sleep(0.05)

        read: dict[int, bytes | None] = {}

        async def follow() -> None:
            after = None
            while not stop:
                try:
                    found = await log.read({0: after}, LONG, LONG, 0.5)
                except Gap:
                    raise
                except BrokerError:
                    await asyncio.sleep(0.05)
                    continue
                for position, record in zip(found[0].positions, found[0].records, strict=True) if found else ():
                    assert position == (0 if after is None else after + 1)
                    read[position], after = record.value, position

        tasks = [asyncio.create_task(write()), asyncio.create_task(follow())]
        await eventually(lambda: len(acknowledged) > 100)
        await asyncio.to_thread(server.kill)
        before = len(acknowledged)
        await asyncio.to_thread(server.start)
        await eventually(lambda: len(acknowledged) > before + 100)
        stop = True
        await asyncio.gather(*tasks)
        final = await values(log)
        assert len(final) == len(set(final))
        assert all(final[position] == b"%d" % number for position, number in acknowledged)
        assert all(final[position] == value for position, value in read.items())


@WAYS
async def test_a_server_that_hangs_makes_an_append_ambiguous_within_the_time_out(
    server: RabbitServer, way: str
) -> None:
    async with opened_log(with_options(server.url, way, "&timeout=1")) as log:
        await log.append({0: numbered(1)})
        server.signal(signal.SIGSTOP)
        try:
            with pytest.raises(AmbiguousCommit):
                await log.append({0: numbered(2)}, positions=False)
        finally:
            server.signal(signal.SIGCONT)
        await becomes(lambda: tried(log.append({0: numbered(3)})), bool)
        found = await becomes(lambda: read_or_none(log), bool)
        assert found is not None
        assert found[0] == b"1"
        assert found.count(b"2") <= 1
        assert b"3" in found


async def read_or_none(log: Log) -> list[bytes | None] | None:
    try:
        return await values(log)
    except BrokerError:
        return None


@WAYS
async def test_opening_and_closing_leaves_nothing_behind(broker: str) -> None:
    async with opened_log(broker, truncated=True, partitions=3):
        pass  # made, so that the rounds are alike
    for _ in range(3):
        async with opened_log(broker, truncated=True, partitions=3) as log:
            await log.append({n: numbered(1) for n in range(3)})
            waiting = asyncio.create_task(log.read({0: LONG * LONG}, 1, 1, 60))
            await log.read({0: None, 1: None}, 1, LONG, 0)
            waiting.cancel()
            await asyncio.wait([waiting])
        await eventually(lambda: len(asyncio.all_tasks()) == 1)  # the client's own may take a moment


@pytest.mark.parametrize("way", ["auto"])
async def test_without_the_plug_in_streams_go_over_amqp_with_a_warning(broker: str) -> None:
    async with opened(broker) as transport:
        assert transport.warnings == []
        assert "stream protocol" in transport.description
    async with opened(f"{broker}&stream_port=1") as transport:
        assert "AMQP" in transport.description
        (warning,) = transport.warnings
        assert "rabbitmq-plugins enable rabbitmq_stream" in warning
        assert "guest:guest" not in warning
        await transport.declare([TopicSpec("t", partitions=1)])
        await (await transport.log("t")).append({0: numbered(1)})
    with pytest.raises(BrokerError, match="cannot be reached"):
        async with opened(broker.replace("streams=auto", "streams=native") + "&stream_port=1"):
            pass


@pytest.mark.parametrize("way", ["native"])
async def test_a_node_that_advertises_what_cannot_be_reached_is_a_clear_error(broker: str) -> None:
    async with opened(broker) as transport:
        native = transport._logs.way
        with pytest.raises(BrokerError, match=r"advertised_host.*streams=amqp"):
            await native._link(native._readers, ("127.0.0.1", 1), "sinks")  # type: ignore[attr-defined]


@pytest.mark.parametrize("way", ["native"])
async def test_a_wrong_password_is_told_and_not_shown(server: RabbitServer, way: str) -> None:
    native = RabbitTransport.from_url(Url(with_options(server.url_of("guest", "hunter2"), way)))
    with pytest.raises(BrokerError) as caught:
        await native.open()
    assert "hunter2" not in str(caught.value)


# --- what others write and read ------------------------------------------------------------------------------


@asynccontextmanager
async def foreign() -> AsyncIterator[aio_pika.abc.AbstractChannel]:
    """Another program, with aio-pika."""
    async with await aio_pika.connect(SHARED.partition("?")[0]) as connection:
        yield await connection.channel()


def login() -> dict[str, Any]:
    url = Url(SHARED)
    host, _ = url.addresses(5672)[0]
    port = int(os.environ.get("RABBITMQ_STREAM_PORT", "5552"))
    return {"host": host, "port": port, "username": url.username or "guest", "password": url.password or "guest"}


@WAYS
async def test_the_documented_producer_and_consumer_work(broker: str) -> None:
    """Those of docs/wire.md, as they stand there but for the names of host and topics."""
    page = Path(__file__).parents[2] / "docs" / "wire.md"
    (code,) = [block.code for block in blocks_of(page) if "rstream" in block.code]
    prefix = broker.partition("prefix=")[2].partition("&")[0]
    code = code.replace("withdrawals:", f"{prefix}withdrawals:").replace("alerts:", f"{prefix}alerts:")
    theirs: dict[str, Any] = {"partition": murmur2_partitioner(b"ada", 4)}
    exec(compile(code, str(page), "exec"), theirs)
    theirs["login"] = login()
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


@WAYS
async def test_streams_of_others_are_topics_and_what_is_none_is_told(broker: str) -> None:
    theirs = f"theirs-{secrets.token_hex(6)}"
    spec = TopicSpec("t", 2, options={"stream": theirs + "-{partition}"}, declare=False)
    async with opened(broker) as transport, foreign() as channel:
        with pytest.raises(BrokerError, match=f"{theirs}-0"):
            await transport.declare([spec])
        for number in range(2):
            arguments: Any = {"x-queue-type": "stream", "x-max-age": "7D"}
            await channel.declare_queue(f"{theirs}-{number}", durable=True, arguments=arguments)
        await channel.declare_queue(theirs, durable=True)
        try:
            await transport.declare([spec])
            await channel.default_exchange.publish(aio_pika.Message(b"1"), routing_key=f"{theirs}-1")
            log = await transport.log("t")
            await log.append({1: numbered(2)})
            assert await values(log, None, 1) == [b"1", b"2"]
            assert await values(log) == []
            with pytest.raises(TopicMismatch, match="another kind"):
                await transport.declare([TopicSpec("q", options={"stream": theirs}, declare=False)])
        finally:
            for name in (theirs, f"{theirs}-0", f"{theirs}-1"):
                await channel.queue_delete(name)


@WAYS
async def test_others_write_and_we_read(broker: str) -> None:
    async with opened(broker) as transport:
        await transport.declare([TopicSpec("t", partitions=1)])
        name = transport._names.topic("t", 0)
        async with foreign() as channel:
            headers: dict[str, Any] = {"thalweg-key": "ada", "trace": "x", "n": 5, "raw": bytearray(b"\xff")}
            message = aio_pika.Message(b"1", headers=headers, timestamp=1_700_000_000)
            await channel.default_exchange.publish(message, routing_key=name)
            await channel.default_exchange.publish(aio_pika.Message(b""), routing_key=name)
        async with Producer(**login()) as producer:
            properties = {"thalweg-key": "bob", "level": "3", "timestamp_in_ms": 1_700_000_000_123}
            await producer.send_wait(name, AMQPMessage(body=b"3", application_properties=properties))
        batch = await becomes(lambda: read_all(transport), lambda batch: len(batch) == 3)
        assert [(r.key, r.value, tuple(sorted(r.headers))) for r in batch] == [
            (b"ada", b"1", (("n", b"5"), ("raw", b"\xff"), ("trace", b"x"))),
            (None, b"", ()),
            (b"bob", b"3", (("level", b"3"),)),
        ]
        assert [record.timestamp for record in batch[::2]] == [1_700_000_000_000, 1_700_000_000_123]
        assert abs(batch[1].timestamp / 1000 - time.time()) < 600


@WAYS
async def test_we_write_and_others_read(broker: str) -> None:
    ours = [
        Message(b"1", b"ada", (), 1_700_000_000_123),
        Message(None, b"\xff\x00"),
        Message(b"3", None, (("trace", b"x"), ("trace", b"y"))),
    ]
    async with opened(broker) as transport:
        await transport.declare([TopicSpec("t", partitions=1)])
        await (await transport.log("t")).append({0: ours})
        name = transport._names.topic("t", 0)
        async with foreign() as channel:
            await channel.set_qos(10)
            queue = await channel.get_queue(name, ensure=False)
            found: asyncio.Queue[aio_pika.abc.AbstractIncomingMessage] = asyncio.Queue()
            await queue.consume(found.put, arguments={"x-stream-offset": "first"})
            one, two, three = [await asyncio.wait_for(found.get(), 20) for _ in range(3)]
        assert one.body == b"1"
        assert {k: v for k, v in one.headers.items() if k != "x-stream-offset"} == {
            "thalweg-key": "ada",
            "timestamp_in_ms": 1_700_000_000_123,
        }
        assert two.headers["thalweg-tombstone"] is True
        assert bytes(two.headers["thalweg-key"]) == b"\xff\x00"
        assert three.headers["trace"] == "x"
        consumer, seen, done = Consumer(**login()), list[AMQPMessage](), asyncio.Event()

        async def take(message: Any, _: object) -> None:
            seen.append(message)
            if len(seen) == 3:
                done.set()

        await consumer.start()
        place = ConsumerOffsetSpecification(OffsetType.FIRST)
        await consumer.subscribe(name, take, decoder=amqp_decoder, offset_specification=place)
        await asyncio.wait_for(done.wait(), 20)
        await consumer.close()
        first = seen[0]
        assert bytes(first.body) == b"1"  # type: ignore[arg-type]
        assert first.application_properties[b"thalweg-key"] == b"ada"


async def read_all(transport: RabbitTransport) -> list[Any]:
    log = await transport.log("t")
    batch = (await log.read({0: None}, LONG, LONG, 1)).get(0)
    await log.close()
    return list(batch.records) if batch else []


@pytest.mark.parametrize("way", ["native"])
async def test_what_its_publisher_packed_is_read_and_bare_bytes_are_values(broker: str) -> None:
    from rstream import CompressionType

    async with opened(broker) as transport:
        await transport.declare([TopicSpec("t", partitions=1)])
        name = transport._names.topic("t", 0)
        packed = [AMQPMessage(body=b"%d" % n, application_properties={"thalweg-key": "k"}) for n in range(50)]
        async with Producer(**login()) as producer:
            await producer.send_sub_entry(name, packed[:25], compression_type=CompressionType.Gzip)
            await producer.send_sub_entry(name, packed[25:], compression_type=CompressionType.No)
            await becomes(lambda: read_all(transport), lambda records: len(records) == 50)
            await producer.send_wait(name, b"bare bytes")
        found = await becomes(lambda: read_all(transport), lambda records: len(records) == 51)
        assert [record.value for record in found] == [*(b"%d" % n for n in range(50)), b"bare bytes"]
        assert found[0].key == b"k"
        log = await transport.log("t")
        assert (await log.bounds(0)).last == 50
        assert await values(log, 30) == [*(b"%d" % n for n in range(31, 50)), b"bare bytes"]
