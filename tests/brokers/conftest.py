"""The shared servers, as every test of a program on real brokers meets them: under a prefix of its own."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NoReturn

import pytest
import redis
from aiokafka.admin import AIOKafkaAdminClient
from rabbitmq_leftovers import delete_all
from thalweg.errors import BrokerError
from thalweg.url import Url

from brokers.nats_server import delete_streams
from brokers.program_runs import opened


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
    names = [
        name for app in ("bank", "flights", "reminding", "sitting", "standing") for name in (app, f"{app}-workers")
    ]
    await delete_all(f"{url}{'&' if '?' in url else '?'}prefix={prefix}", names)


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
