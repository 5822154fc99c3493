"""Logs on a real RabbitMQ, over the stream protocol and over AMQP: whole programs, faults, and what others see."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import aio_pika
import pytest
from missing import missing
from rabbitmq_leftovers import delete_all
from rstream import AMQPMessage, Consumer, ConsumerOffsetSpecification, OffsetType, Producer, amqp_decoder
from thalweg.capabilities import Bounds, Log
from thalweg.channel import TopicSpec
from thalweg.errors import AmbiguousCommit, BrokerError, Gap, MessageTooLarge, TopicMismatch
from thalweg.message import Message
from thalweg.transports.rabbitmq import RabbitTransport
from thalweg.transports.rabbitmq.generations import join, split
from thalweg.transports.rabbitmq.log import RabbitLog
from thalweg.transports.rabbitmq.rolling import RollingPartition
from thalweg.url import Url

from brokers.bank import Withdrawal, make_bank
from brokers.rabbit_server import RabbitServer
from brokers.rolling_race import Race

T = TypeVar("T")

SHARED = os.environ.get("RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672")
LONG = 1_000_000
ACCOUNTS = [f"account-{n}" for n in range(8)]
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
        asyncio.run(server.settle())
        yield server
    finally:
        server.close()


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
async def opened(url: str) -> AsyncIterator[RabbitTransport]:
    transport = RabbitTransport.from_url(Url(url))
    await transport.open()
    try:
        yield transport
    finally:
        await transport.close()


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


async def becomes(ask: Callable[[], Awaitable[T]], answer: Callable[[T], bool], seconds: float = 30) -> T:
    async with asyncio.timeout(seconds):
        while not answer(found := await ask()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return found


async def eventually(condition: Callable[[], bool], seconds: float = 60) -> None:
    """What other processes and the server do gives no event to wait for."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


# --- whole programs ------------------------------------------------------------------------------------------


def start_worker(broker: str) -> subprocess.Popen[bytes]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("THALWEG_")}
    program = Path(__file__).with_name("bank.py")
    return subprocess.Popen(
        [sys.executable, str(program), "worker"],
        env={**clean, "THALWEG_BROKER": broker},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


async def alerts(broker: str) -> list[int]:
    """What the program sent, as a program reads it: copies, which may follow after a crash, are left out."""
    async with opened(broker) as transport:
        log = await transport.log("alerts")
        found = [int(value or b"") for number in range(4) for value in await values(log, None, number)]
        await log.close()
        return sorted(set(found))


async def alerts_reach(broker: str, count: int) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                if len(await alerts(broker)) >= count:
                    return
            except BrokerError:
                pass  # not declared yet
            await asyncio.sleep(0.1)


async def send_all(bank: Any, numbers: range) -> None:
    for start in range(numbers.start, numbers.stop, 100):
        batch = range(start, min(start + 100, numbers.stop))
        await asyncio.gather(*(send(bank, number) for number in batch))


async def send(bank: Any, number: int) -> None:
    account = ACCOUNTS[number % len(ACCOUNTS)]
    await bank.withdrawals.send(Withdrawal(number, account, number), key=account)


def handled(bank: Any) -> list[int]:
    return sorted(number for _, numbers in bank.seen.items() for number in numbers)


@WAYS
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
    assert await alerts(broker) == [0, 1, 2]


@WAYS
async def test_a_worker_that_is_killed_loses_and_repeats_nothing(broker: str) -> None:
    count = 2000
    bank = make_bank(broker)
    worker = start_worker(broker)
    try:
        async with bank.app.client():
            await send_all(bank, range(count))
        await alerts_reach(broker, 1)
    finally:
        worker.kill()
        worker.wait()
    heir = make_bank(broker)
    async with heir.app:
        await eventually(lambda: len(handled(heir)) >= count)
        assert handled(heir) == list(range(count))
        for account in ACCOUNTS:
            assert heir.seen[account] == sorted(heir.seen[account])
            assert heir.totals[account] == sum(heir.seen[account])
        await alerts_reach(broker, count)
    assert await alerts(broker) == list(range(count))


@WAYS
async def test_a_worker_that_was_stopped_counts_for_nobody_when_it_goes_on(broker: str) -> None:
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
    assert await alerts(broker) == list(range(1000))


@WAYS
async def test_a_server_that_restarts_loses_nothing_and_the_program_goes_on_by_itself(
    server: RabbitServer, way: str
) -> None:
    url = with_options(server.url, way)
    bank = make_bank(url)
    acknowledged: list[int] = []
    async with bank.app:

        async def produce() -> None:
            for number in range(1500):
                try:
                    await send(bank, number)
                    acknowledged.append(number)
                except BrokerError:
                    await asyncio.sleep(0.05)

        producing = asyncio.create_task(produce())
        for goal in (200, 500):
            await eventually(lambda goal=goal: len(acknowledged) >= goal)  # type: ignore[misc]
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
        await producing
        await eventually(lambda: set(handled(bank)) >= set(acknowledged))
        await becomes(lambda: tried(send(bank, 9999)), bool)
        await eventually(lambda: 9999 in handled(bank))
        found = handled(bank)
        assert len(found) == len(set(found))
        await alerts_reach(url, len(found))
    assert await alerts(url) == found


async def tried(call: Awaitable[object]) -> bool:
    try:
        await call
    except BrokerError:
        return False
    return True
