"""Programs with queues and single calls on a real RabbitMQ; those that hurt the server have one of their own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from docs.snippets import blocks_of
from missing import missing
from rabbitmq_leftovers import delete_all
from thalweg import App, Stream
from thalweg.channel import Capability, Channel, TopicSpec
from thalweg.errors import (
    AccessDenied,
    AmbiguousCommit,
    BrokerError,
    ConfigurationError,
    MessageTooLarge,
    MissingCapability,
    StaleDelivery,
    UnknownOption,
)
from thalweg.message import Delivery, Message, QueueMessage
from thalweg.starting import looking
from thalweg.transports.rabbitmq import RabbitTransport
from thalweg.transports.rabbitmq.cell import Cell
from thalweg.transports.rabbitmq.connection import ConnectionLost
from thalweg.transports.rabbitmq.work_queue import RabbitQueue
from thalweg.url import Url

from brokers.bank import make_bank
from brokers.letters import make_letters
from brokers.program_runs import opened
from brokers.rabbit_server import RabbitServer

SHARED = os.environ.get("RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672")
QUEUE = TopicSpec("q", queue=True)


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitServer]:
    if lacking := RabbitServer.lacking():
        missing("rabbitmq", lacking)
    server = RabbitServer(tmp_path_factory.mktemp("rabbitmq"))
    server.settings = "max_message_size = 300000\n"
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
def server(own_server: RabbitServer) -> RabbitServer:
    """It lives as long as the tests of this file; each takes a prefix of its own."""
    return own_server


@pytest.fixture
async def broker() -> AsyncIterator[str]:
    """The shared server, under a prefix of this test's own."""
    url = with_prefix(SHARED)
    try:
        async with opened(url):
            pass
    except BrokerError as error:
        missing("rabbitmq", str(error))
    yield url
    await delete_all(url, ["letters-workers", "g"])


def with_prefix(url: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}prefix=test-{secrets.token_hex(6)}."


@asynccontextmanager
async def opened_queue(url: str, spec: TopicSpec = QUEUE, group: str = "g") -> AsyncIterator[RabbitQueue]:
    async with opened(url) as transport:
        await transport.declare([spec])
        yield await queue_of(transport, spec.name, group)


async def queue_of(transport: RabbitTransport, name: str = "q", group: str = "g") -> RabbitQueue:
    channel = await transport.channel(name, group)
    assert isinstance(channel, RabbitQueue)
    return channel


@asynccontextmanager
async def foreign(url: str = SHARED) -> AsyncIterator[aio_pika.abc.AbstractChannel]:
    """Another program, with aio-pika."""
    async with await aio_pika.connect(url.partition("?")[0]) as connection:
        yield await connection.channel(on_return_raises=True)


async def receive(channel: Channel, count: int, seconds: float = 20) -> list[Delivery]:
    got: list[Delivery] = []
    async with asyncio.timeout(seconds):
        while len(got) < count:
            got += await channel.get(count - len(got), 1)
    return got


def numbered(numbers: range) -> list[Message]:
    return [Message(b"%d" % number) for number in numbers]


def values(deliveries: Sequence[Delivery]) -> list[bytes | None]:
    return [delivery.record.value for delivery in deliveries]


async def eventually(condition: Callable[[], bool], seconds: float = 40) -> None:
    """What other processes and the server do gives no event to wait for."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


# --- whole programs ------------------------------------------------------------------------------------------


def start_worker(broker: str, notes: Path) -> subprocess.Popen[bytes]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("THALWEG_")}
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("letters.py")), "worker"],
        env={**clean, "THALWEG_BROKER": broker, "LETTERS": str(notes)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def noted(notes: Path) -> list[int]:
    return [int(line) for line in notes.read_text().split()] if notes.exists() else []


async def test_a_program_with_queues_retries_delays_and_buries(broker: str, tmp_path: Path) -> None:
    program = make_letters(broker, str(tmp_path / "notes"))
    async with program.app:
        await asyncio.gather(*(program.letters.send(number) for number in range(100)))
        await program.letters.send(100, delay=0.2)
        await program.bad.send("x")
        await eventually(lambda: len(noted(tmp_path / "notes")) == 101)
        await eventually(lambda: program.tried == ["x"] * 2)

        async def buried() -> list[bytes | None]:
            return [letter.value async for letter in program.app.dead_letters(program.bad)]

        async with asyncio.timeout(20):
            while not (found := await buried()):
                pass
    assert found == [b"x"]
    assert sorted(noted(tmp_path / "notes")) == list(range(101))


async def test_a_worker_that_is_killed_and_one_that_is_stopped_lose_nothing(broker: str, tmp_path: Path) -> None:
    count, notes = 2000, tmp_path / "notes"
    program = make_letters(broker, str(notes))  # without their short lease, for its loop may be late
    workers = [start_worker(f"{broker}&lease=3", notes) for _ in range(3)]
    try:
        async with program.app.client():
            for start in range(0, count, 200):
                await asyncio.gather(*(program.letters.send(number) for number in range(start, start + 200)))
                if start == 400:
                    await eventually(lambda: len(noted(notes)) > 200)
                    workers[0].kill()
                    workers[1].send_signal(signal.SIGSTOP)
        await eventually(lambda: set(noted(notes)) == set(range(count)))
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    assert len(noted(notes)) < count + 100  # the few that were in hand come twice


async def test_what_could_not_be_noted_as_delivered_is_not_passed_over(
    broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that is lost between reading and noting must not make later messages overtake."""
    written = Cell.write

    async def lost(cell: Cell, value: bytes) -> None:
        monkeypatch.setattr(Cell, "write", written)
        raise ConnectionLost("in the midst")

    async with opened(broker) as transport:
        await transport.declare([TopicSpec("t", partitions=1)])
        channel = await transport.channel("t", "g")
        await channel.put([Message(b"1", b"k"), Message(b"2", b"k")])
        monkeypatch.setattr(Cell, "write", lost)
        with pytest.raises(ConnectionLost):
            await channel.get(10, 20)
        await channel.put([Message(b"3", b"k")])
        got: list[Delivery] = []
        async with asyncio.timeout(20):
            while len(got) < 3:
                got += await channel.get(10, 1)
        assert [(delivery.record.value, delivery.attempts) for delivery in got] == [(b"1", 1), (b"2", 1), (b"3", 1)]
        await channel.commit(got)


async def test_a_program_goes_on_by_itself_when_its_server_restarts(server: RabbitServer, tmp_path: Path) -> None:
    notes, url = tmp_path / "notes", with_prefix(server.url)
    async with make_letters(url, str(notes)).app.client():
        pass
    await asyncio.to_thread(server.settle)
    program = make_letters(url, str(notes))
    acknowledged: list[int] = []
    async with program.app:

        async def produce() -> None:
            for number in range(600):
                try:
                    await program.letters.send(number)
                    acknowledged.append(number)
                except BrokerError:
                    await asyncio.sleep(0.05)

        producing = asyncio.create_task(produce())
        await eventually(lambda: len(acknowledged) >= 100)
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        await producing
        await eventually(lambda: set(noted(notes)) >= set(acknowledged))
        await program.letters.send(9999)
        await eventually(lambda: 9999 in noted(notes))


async def test_a_server_without_streams_runs_programs_with_queues_and_refuses_tables(tmp_path: Path) -> None:
    if lacking := RabbitServer.lacking():
        missing("rabbitmq", lacking)
    folder = tmp_path / "server"
    folder.mkdir()
    server = RabbitServer(folder)
    server.plugins, server.variables = "[].", {"RABBITMQ_FEATURE_FLAGS": "quorum_queue"}
    try:
        await asyncio.to_thread(server.start)
        url = with_prefix(server.url)
        program = make_letters(url, str(tmp_path / "notes"))
        async with program.app:
            assert program.app.guarantee == "at_least_once"
            await asyncio.gather(*(program.letters.send(number) for number in range(50)))
            await program.letters.send(50, delay=0.2)
            await eventually(lambda: len(noted(tmp_path / "notes")) == 51)
        async with opened(url) as transport:
            assert Capability.LOG not in transport.capabilities
            assert "stream_queue" in transport.warnings[0]
        with pytest.raises(MissingCapability, match="log"):
            async with make_bank(url).app:
                pass
    finally:
        await asyncio.to_thread(server.close)


# --- a server that fails -------------------------------------------------------------------------------------


async def test_a_restart_during_put_get_and_commit_loses_nothing(server: RabbitServer) -> None:
    url = with_prefix(server.url)
    put: list[int] = []
    got: list[int] = []
    errors: list[BrokerError] = []
    async with opened_queue(url):
        pass
    await asyncio.to_thread(server.settle)
    async with opened_queue(url) as producer, opened_queue(url) as consumer:

        async def produce() -> None:
            for number in range(300):
                while True:
                    try:
                        await producer.put(numbered(range(number, number + 1)))
                        put.append(number)
                        break
                    except BrokerError as error:
                        errors.append(error)
                        await asyncio.sleep(0.05)

        async def consume() -> None:
            while not set(got) >= set(range(300)):
                try:
                    deliveries = await consumer.get(10, 1)
                    got.extend(int(value or b"") for value in values(deliveries))
                    await consumer.commit(deliveries)
                except BrokerError as error:
                    errors.append(error)
                    await asyncio.sleep(0.05)

        async with asyncio.timeout(90):
            tasks = asyncio.create_task(produce()), asyncio.create_task(consume())
            await eventually(lambda: len(put) > 100 and len(got) > 20)
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            await asyncio.gather(*tasks)
        assert set(got) == set(range(300))
        assert len(errors) < 1000  # bounded pauses between the attempts to connect
        assert not await consumer.get(1, 0.5)


async def test_a_server_that_hangs_fails_a_put_within_the_time_out_and_it_may_have_happened(
    server: RabbitServer,
) -> None:
    url = with_prefix(server.url) + "&timeout=1"
    async with opened_queue(url) as queue:
        await queue.put(numbered(range(1)))
        server.signal(signal.SIGSTOP)
        try:
            async with asyncio.timeout(8):
                with pytest.raises(AmbiguousCommit, match=r"timeout="):
                    await queue.put(numbered(range(1, 2)))
                with pytest.raises(BrokerError, match="cannot be reached"):
                    await queue.put(numbered(range(2, 3)))
        finally:
            server.signal(signal.SIGCONT)
        await queue.put(numbered(range(3, 4)))
        assert {b"0", b"3"} <= set(values(await receive(queue, 3)))


async def test_an_alarm_of_the_server_stops_writing_with_a_clear_error_but_not_reading(server: RabbitServer) -> None:
    url = with_prefix(server.url) + "&timeout=1"
    async with opened_queue(url) as queue:
        await queue.put(numbered(range(3)))
        server.control("set_vm_memory_high_watermark", "0.000001")
        try:
            with pytest.raises(AmbiguousCommit, match="alarm"):
                await queue.put(numbered(range(3, 4)))
            await queue.commit(await receive(queue, 3))
        finally:
            server.control("set_vm_memory_high_watermark", "0.4")
        await queue.put(numbered(range(4, 5)))
        assert b"4" in values(await receive(queue, 1)) + values(await queue.get(1, 0.2))


async def test_a_queue_that_takes_nothing_holds_up_nothing_else(server: RabbitServer) -> None:
    """As one whose leader is gone: the server then stops the connection by which messages for it come."""
    url = with_prefix(server.url) + "&timeout=60"
    async with opened_queue(url) as queue, opened(url) as transport:
        await transport.declare([QUEUE, TopicSpec("t", partitions=1)])
        stuck = await queue_of(transport)
        process = f'whereis(binary_to_atom(<<"%2F_{stuck._place.queue}">>))'
        await asyncio.to_thread(server.control, "eval", f"sys:suspend({process}).")
        putting = asyncio.create_task(stuck.put(numbered(range(2000))))
        try:
            await asyncio.wait([putting], timeout=1)
            assert await transport.try_lock("of something else", 60) is not None
            log = await transport.log("t")
            await log.append({0: numbered(range(1))})
            assert not putting.done()
        finally:
            await asyncio.to_thread(server.control, "eval", f"sys:resume({process}).")
            await putting
        await queue.commit(await receive(queue, 2000))


async def test_what_is_lent_when_the_connection_breaks_is_stale_and_comes_back(broker: str) -> None:
    async with opened_queue(broker) as queue:
        await queue.put(numbered(range(2)))
        deliveries = await receive(queue, 2)
        queue._reading.drop()
        again = await receive(queue, 2)
        assert [delivery.attempts for delivery in again] == [2, 2]
        with pytest.raises(StaleDelivery):
            await queue.commit(deliveries)
        await queue.commit(again)


# --- what a server refuses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("amqp://guest:s3cret@127.0.0.1:1", "cannot be reached"),
        ("amqp://guest:s3cret@127.0.0.1:PORT", "check user and password"),
        ("amqp://guest:guest@127.0.0.1:PORT/nowhere", "virtual host 'nowhere'"),
        ("amqps://guest:s3cret@127.0.0.1:PORT", "cannot be reached"),
        ("amqp://guest:s3cret@127.0.0.1:SILENT", "no answer within 1 s"),
    ],
)
async def test_who_cannot_enter_is_told_why_in_time_and_without_secrets(
    server: RabbitServer, url: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = url.replace("SILENT", str(silent.getsockname()[1])).replace("PORT", str(server.port))
        async with asyncio.timeout(8):
            with pytest.raises(BrokerError, match=said) as caught:
                await RabbitTransport.from_url(Url(f"{url}?timeout=1")).open()
    assert "s3cret" not in str(caught.value) + caplog.text
    assert caught.value.__cause__ is None


async def test_of_several_hosts_the_first_that_answers_is_taken(server: RabbitServer) -> None:
    async with opened(f"amqp://guest:guest@127.0.0.1:1,127.0.0.1:{server.port}") as transport:
        assert transport.description.startswith("RabbitMQ ")
        assert "guest" not in transport.description


async def test_users_with_few_rights_get_clear_errors_and_can_do_what_they_may(server: RabbitServer) -> None:
    url = with_prefix(server.url)
    async with opened_queue(url) as queue, opened(url) as owner:
        await queue.put(numbered(range(1)))
        await owner.declare([TopicSpec("t", partitions=1)])
        await (await owner.log("t")).append({0: numbered(range(1))})
        stream = owner._names.topic("t", 0)
    server.control("add_user", "reader", "s3cret")
    server.control("set_permissions", "reader", "^$", "^$", ".*")
    try:
        async with opened(url.replace("guest:guest", "reader:s3cret")) as transport:
            for call in (transport.declare([TopicSpec("new", queue=True)]), transport.topics()):
                with pytest.raises(AccessDenied, match="set_permissions") as caught:
                    await call
                assert "s3cret" not in str(caught.value)
            name = transport._names.topic("q")
            await transport.declare([TopicSpec("theirs", queue=True, declare=False, options={"queue": name})])
            queue = await queue_of(transport, "theirs")
            deliveries = await receive(queue, 1)
            with pytest.raises(AccessDenied, match="set_permissions"):
                await queue.put(numbered(range(1)))
            await queue.commit(deliveries)
        for way in ("native", "amqp"):
            async with opened(f"{url.replace('guest:guest', 'reader:s3cret')}&streams={way}") as transport:
                spec = TopicSpec("theirs", partitions=1, declare=False, options={"stream": stream})
                await transport.declare([spec])
                log = await transport.log("theirs")
                with pytest.raises(AccessDenied, match="set_permissions"):
                    await log.append({0: numbered(range(1))})
                assert (await log.bounds(0)).last == 0
    finally:
        server.control("delete_user", "reader")


async def test_a_message_above_the_limits_is_refused_and_nothing_is_written(server: RabbitServer) -> None:
    async with opened_queue(with_prefix(server.url)) as queue:
        with pytest.raises(BrokerError, match=r"max_message_size .*message_bytes="):
            await queue.put([Message(b"x" * 300_001), *numbered(range(1))])  # of which the other may be written
        for messages in ([Message(b"x" * 300_001)], [*numbered(range(1)), Message(b"x" * 300_001)]):
            with pytest.raises(MessageTooLarge, match=r"max_message_size .*message_bytes="):
                await queue.put(messages)
        with pytest.raises(MessageTooLarge, match="one frame"):
            await queue.put([*numbered(range(1)), Message(b"", headers=(("h", b"x" * 130_000),))])
        await queue.put([Message(b"y" * 300_000, b"k" * 100_000)])
        (delivery,) = await receive(queue, 1)
        assert delivery.record.value == b"y" * 300_000


@pytest.mark.parametrize(
    "rest", ["?nonsense=1", "?queues=mirrored", "?tls_ca=x", "?heartbeat=0", "?prefix=" + 50 * "x"]
)
def test_a_url_that_cannot_be_is_refused_before_anything_is_done(rest: str) -> None:
    with pytest.raises((UnknownOption, ConfigurationError), match=rest[1:7]):
        RabbitTransport.from_url(Url(f"amqp://guest:s3cret@h{rest}"))


# --- what others have made -----------------------------------------------------------------------------------


@pytest.fixture
async def theirs() -> AsyncIterator[str]:
    """Exchange, queue and dead letters that another program has made, all of this name."""
    name = f"theirs-{secrets.token_hex(6)}"
    async with foreign() as channel:
        exchange = await channel.declare_exchange(name, "topic", durable=True)
        letters = await channel.declare_queue(f"{name}-dead", durable=True)
        arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": letters.name}
        queue = await channel.declare_queue(name, durable=True, arguments=arguments)
        await queue.bind(exchange, "orders.*")
        yield name
        await queue.delete(if_unused=False, if_empty=False)
        await letters.delete(if_unused=False, if_empty=False)
        await exchange.delete()


async def test_foreign_messages_are_read_and_ours_are_plain(broker: str, theirs: str) -> None:
    options = {"exchange": theirs, "routing_key": "orders.new", "queue": theirs}
    spec = TopicSpec("orders", queue=True, declare=False, options=options)
    async with opened_queue(broker, spec) as queue, foreign() as channel:
        exchange = await channel.get_exchange(theirs)
        await exchange.publish(
            aio_pika.Message(b"1", headers={"thalweg-key": "ada", "n": 7, "flag": True, "list": [1, "a"]}),
            "orders.old",
        )
        (delivery,) = await receive(queue, 1)
        record = delivery.record
        assert (record.value, record.key) == (b"1", b"ada")
        assert dict(record.headers) == {"n": b"7", "flag": b"true", "list": b'[1,"a"]'}
        assert record.timestamp > 1_500_000_000_000
        await queue.commit([delivery])

        await queue.put([Message(b"2", b"bob", (("raw", b"\xff"), ("trace", b"7")), 1_700_000_000_123)])
        await queue.close()
        answer = await (await channel.get_queue(theirs)).get(timeout=5)
        assert answer.body == b"2"
        assert answer.routing_key == "orders.new"
        assert {**answer.headers} == {
            "thalweg-key": "bob",
            "trace": "7",
            "raw": b"\xff",
            "timestamp_in_ms": 1_700_000_000_123,
        }
        await answer.ack()


async def test_the_documented_producer_and_consumer_of_queues_work(broker: str) -> None:
    """Those of docs/wire.md, as they stand there but for the names of host and queues."""
    page = Path(__file__).parents[2] / "docs" / "wire.md"
    (code,) = [block.code for block in blocks_of(page) if "import aio_pika" in block.code]
    code = code.replace("amqp://localhost", SHARED)
    for name in ("orders", "receipts"):
        code = code.replace(f'"{name}"', repr(Url(broker).query["prefix"] + name))
    theirs: dict[str, Any] = {}
    exec(compile(code, str(page), "exec"), theirs)
    app = App("shop", broker=broker)
    orders = app.queue("orders", key=str, value=int)
    receipts = app.queue("receipts", key=str, value=str)

    @app.agent(orders)
    async def sell(stream: Stream[int]) -> None:
        async for event in stream.events():
            await receipts.send(f"{event.value} sold", key=event.key, headers={"till": "3"})

    async with app, asyncio.timeout(30):
        await theirs["order"]()
        await theirs["receive"]()


async def test_what_looks_without_touching_sees_the_queue_of_others(broker: str, theirs: str) -> None:
    app = App("looks", broker=broker)
    for name, queue in (("orders", theirs), ("missing", f"{theirs}-nope")):
        app.queue(name, declare=False, options={"queue": queue})
    async with looking(app) as existing:
        assert {name: info.queue for name, info in existing.items() if name in app.topics} == {"orders": True}


async def test_a_rejected_message_goes_where_the_existing_queue_sends_it(broker: str, theirs: str) -> None:
    spec = TopicSpec(theirs, queue=True, declare=False)
    async with opened_queue(broker, spec) as queue:
        await queue.put(numbered(range(2)))
        one, two = await receive(queue, 2)
        await queue.reject(one, "because")
        await queue.retry(two, 0.2)
        (again,) = await receive(queue, 1)
        assert (again.record.value, again.attempts) == (b"1", 2)
        await queue.commit([again])
    async with foreign() as channel:
        letter = await (await channel.get_queue(f"{theirs}-dead")).get(timeout=5)
        assert letter.body == b"0"
        await letter.ack()


async def test_what_cannot_be_routed_is_an_error_and_the_channel_still_works(broker: str, theirs: str) -> None:
    options = {"exchange": theirs, "routing_key": "invoices.new", "queue": theirs}
    async with opened_queue(broker, TopicSpec("i", queue=True, declare=False, options=options)) as queue:
        with pytest.raises(BrokerError, match="could not be routed"):
            await queue.put(numbered(range(3)))
        with pytest.raises(MissingCapability, match="routing key"):
            await queue.put([QueueMessage(b"1", delay=1)])
        with pytest.raises(BrokerError, match="could not be routed"):
            await queue.put(numbered(range(3)))
        assert not await queue.get(1, 0)


async def test_what_does_not_exist_is_named_and_not_created(broker: str) -> None:
    async with opened(broker) as transport:
        for options, name in (({}, "nowhere"), ({"exchange": "nowhere-exchange"}, "nowhere-exchange")):
            spec = TopicSpec("nowhere", queue=True, declare=False, options=options)
            with pytest.raises(BrokerError, match=f"'{name}'"):
                await transport.declare([TopicSpec("ours", queue=True), spec])
        assert await transport.topics() == []


async def test_an_option_that_nobody_knows_is_refused(broker: str) -> None:
    async with opened(broker) as transport:
        for options, said in (({"dead_leter": "x"}, "dead_leter"), ({"type": "stream"}, "quorum or classic")):
            with pytest.raises(ConfigurationError, match=said):
                await transport.declare([TopicSpec("q", queue=True, options=options)])


# --- queues --------------------------------------------------------------------------------------------------


async def test_rejected_messages_go_to_the_dead_letter_queue_with_the_reason(broker: str) -> None:
    spec = TopicSpec("q", queue=True, options={"dead_letter": "letters", "x-max-length": "1000"})
    async with opened_queue(broker, spec) as queue:
        await queue.put([Message(b"1", b"k", (("a", b"b"),))])
        (delivery,) = await receive(queue, 1)
        await queue.reject(delivery, "because")
        async with opened(broker) as transport:
            (letter,) = await receive(await queue_of(transport, "letters"), 1)
    assert (letter.record.value, letter.record.key) == (b"1", b"k")
    assert letter.record.headers == (("a", b"b"), ("rejected-from", b"q"), ("rejected-because", b"because"))


async def test_a_full_queue_refuses_what_does_not_fit(broker: str) -> None:
    spec = TopicSpec("q", queue=True, options={"x-max-length": "2", "x-overflow": "reject-publish"})
    async with opened_queue(broker, spec) as queue:
        await queue.put(numbered(range(20)))  # it takes what is on its way already
        with pytest.raises(BrokerError, match="full"):
            await queue.put(numbered(range(20, 21)))


async def test_classic_queues_have_priorities_and_quorum_queues_say_that_they_have_none(broker: str) -> None:
    async with opened_queue(broker) as queue:
        with pytest.raises(MissingCapability, match="queues=classic"):
            await queue.put([QueueMessage(b"1", priority=1)])
    async with opened(f"{broker}&queues=classic") as transport:
        assert Capability.PRIORITY in transport.capabilities
        await transport.declare([TopicSpec("c", queue=True)])
        classic = await queue_of(transport, "c")
        await classic.put([QueueMessage(b"%d" % n, priority=p) for n, p in enumerate([0, 9, 4, 9, 0])])
        assert values(await receive(classic, 5)) == [b"1", b"3", b"2", b"0", b"4"]
        old = await queue_of(transport, "q")
        with pytest.raises(MissingCapability):
            await old.put([QueueMessage(b"1", priority=1)])


async def test_attempts_are_counted_over_delays(broker: str) -> None:
    async with opened_queue(broker) as queue:
        await queue.put([Message(b"1", b"k", (("b", b"1"), ("a", b"2"), ("a", b"3")))])
        for attempt, delay in enumerate([0, 0.06, 0, 0.15, 0.05], 1):
            (delivery,) = await receive(queue, 1)
            assert delivery.attempts == attempt
            await queue.retry(delivery, delay)
        (delivery,) = await receive(queue, 1)
        assert (delivery.attempts, delivery.record.key) == (6, b"k")
        assert delivery.record.headers == (("b", b"1"), ("a", b"2"), ("a", b"3"))


async def test_an_idle_member_keeps_nothing_from_the_others(broker: str) -> None:
    async with opened_queue(broker) as idle, opened_queue(broker) as busy:
        assert not await idle.get(100, 0)
        await busy.put(numbered(range(50)))
        assert len(await receive(busy, 50)) == 50


async def test_opening_and_closing_leaves_nothing_behind(broker: str) -> None:
    threads, tasks = threading.active_count(), len(asyncio.all_tasks())
    files = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        async with opened_queue(broker) as queue, opened(broker) as transport:
            getting = asyncio.create_task(queue.get(1, 60))
            held = await transport.try_lock("x", 1)
            assert held is not None
            await queue.put(numbered(range(1)))
            await getting
    await eventually(lambda: len(asyncio.all_tasks()) == tasks)
    assert threading.active_count() <= threads + 1  # the loop's own pool
    with contextlib.suppress(TimeoutError):
        await eventually(lambda: len(os.listdir("/proc/self/fd")) <= files, 5)
    assert len(os.listdir("/proc/self/fd")) <= files
