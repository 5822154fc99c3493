"""One program on every real broker that runs it exactly once: the file differs by nothing, only the URL does."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import NoReturn

import pytest
import redis
from aiokafka.admin import AIOKafkaAdminClient
from rabbitmq_leftovers import delete_all
from thalweg.channel import Capability
from thalweg.errors import BrokerError
from thalweg.url import Url

from brokers.bank import Withdrawal, make_bank
from brokers.nats_server import delete_streams
from brokers.program_runs import (
    ACCOUNTS,
    alerts,
    alerts_reach,
    eventually,
    handled,
    opened,
    send_all,
    start_worker,
)


async def clean_redis(url: str, prefix: str) -> None:
    client = redis.Redis.from_url(url)
    for key in list(client.scan_iter(f"*{prefix}*", count=1000)):
        client.delete(key)
    client.close()


async def clean_kafka(url: str, prefix: str) -> None:
    client = AIOKafkaAdminClient(bootstrap_servers=Url(url).hosts)
    await client.start()
    await client.delete_topics([name for name in await client.list_topics() if name.startswith(prefix)])
    await client.close()


async def clean_rabbitmq(url: str, prefix: str) -> None:
    await delete_all(
        f"{url}{'&' if '?' in url else '?'}prefix={prefix}", ["bank", "bank-workers", "flights", "flights-workers"]
    )


RABBITMQ = os.environ.get("RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672")
SERVERS: dict[str, tuple[str, str, Callable[[str, str], Awaitable[None]]]] = {
    "redis": ("redis", os.environ.get("REDIS_URL", "redis://127.0.0.1:6379"), clean_redis),
    "kafka": ("kafka", os.environ.get("KAFKA_URL", "kafka://127.0.0.1:9092"), clean_kafka),
    "nats": ("nats", os.environ.get("NATS_URL", "nats://127.0.0.1:4222"), delete_streams),
    "nats without fencing": (
        "nats",
        f"{os.environ.get('NATS_URL', 'nats://127.0.0.1:4222')}?fencing=false",
        delete_streams,
    ),
    "rabbitmq": ("rabbitmq", RABBITMQ, clean_rabbitmq),
    "rabbitmq over AMQP": ("rabbitmq", f"{RABBITMQ}?streams=amqp", clean_rabbitmq),
}
"""Broker, URL, and what takes away all that lies under a prefix."""


@pytest.fixture(params=list(SERVERS))
async def broker(request: pytest.FixtureRequest, broker_missing: Callable[[str, str], NoReturn]) -> AsyncIterator[str]:
    """The shared server, under a prefix of this test's own."""
    name, shared, clean = SERVERS[request.param]
    prefix = f"test-{secrets.token_hex(6)}-"
    url = f"{shared}{'&' if '?' in shared else '?'}prefix={prefix}"
    try:
        async with opened(url):
            pass
    except BrokerError as error:
        broker_missing(name, str(error))
    yield url
    await clean(shared, prefix)


async def told_once(broker: str) -> list[int]:
    """What the program sent, sorted; where the broker cannot fence, a copy that Thalweg's readers drop counts once."""
    async with opened(broker) as transport:
        fenced = Capability.FENCING in transport.capabilities
    found = await alerts(broker)
    return sorted(found) if fenced else sorted(set(found))


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
    assert await told_once(broker) == [0, 1, 2]


async def test_a_worker_that_is_killed_loses_and_repeats_nothing(broker: str) -> None:
    count = 4000
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
    assert await told_once(broker) == list(range(count))


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
            await send_all(heir, range(400, 900))
            await alerts_reach(broker, 900)
    finally:
        worker.kill()
        worker.wait()
    last = make_bank(broker)
    async with last.app:
        await eventually(lambda: len(handled(last)) >= 900)
        assert handled(last) == list(range(900))
    assert await told_once(broker) == list(range(900))


async def test_the_demo_shows_the_same_as_on_memory(broker: str) -> None:
    """The file differs by nothing: only THALWEG_BROKER."""
    demo = Path(__file__).parents[2] / "examples" / "flights.py"

    def shown(url: str) -> list[str]:
        run = subprocess.run(
            [sys.executable, str(demo), "--flights", "6000"],
            env={**os.environ, "THALWEG_BROKER": url, "PYTHONIOENCODING": "utf-8"},
            capture_output=True,
            encoding="utf-8",
            check=True,
        )
        *results, last = run.stdout.strip().splitlines()
        assert "6,000 flights counted" in last
        assert "exactly once" in last
        return [line for line in results if "memory://" not in line and "flights counted" not in line]  # progress

    in_memory, on_broker = await asyncio.gather(asyncio.to_thread(shown, "memory://"), asyncio.to_thread(shown, broker))
    assert on_broker == in_memory
