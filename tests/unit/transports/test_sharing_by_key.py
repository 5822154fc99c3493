"""Where members of a group share every partition, key by key: memory, SQLite and Redis."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from missing import missing
from thalweg.channel import Channel, TopicSpec, Transport
from thalweg.errors import BrokerError
from thalweg.message import Message
from thalweg.registry import load_transport

TOPIC = TopicSpec(f"t-{secrets.token_hex(6)}", partitions=1)


@pytest.fixture(params=["memory", "sqlite", "redis"])
async def members(request: pytest.FixtureRequest, watchdog: None, tmp_path: Path) -> AsyncIterator[list[Channel]]:
    """Two, on transports of their own."""
    urls = {
        "memory": f"memory://{TOPIC.name}",
        "sqlite": f"sqlite:///{tmp_path}/broker.db",
        "redis": os.environ.get("REDIS_URL", "redis://127.0.0.1:6379"),
    }
    transports: list[Transport] = [load_transport(urls[request.param]) for _ in range(2)]
    for transport in transports:
        try:
            await transport.open()
        except BrokerError as error:
            missing(request.param, str(error))
        await transport.declare([TOPIC])
    group = secrets.token_hex(6)
    yield [await transport.channel(TOPIC.name, group) for transport in transports]
    for transport in transports:
        await transport.close()


async def test_what_was_passed_over_goes_to_another_member_once_its_key_is_free(members: list[Channel]) -> None:
    a, b = members
    await a.put([Message(b"1", b"k"), Message(b"2", b"k"), Message(b"3", b"k"), Message(b"4")])
    mine = await a.get(1, 60)
    assert [d.record.value for d in await b.get(10, 0)] == [b"4"]
    assert not await b.get(10, 0)
    get = asyncio.create_task(b.get(10, 60))
    await asyncio.sleep(0)
    assert not get.done()
    await a.commit(mine)
    assert [d.record.value for d in await get] == [b"2", b"3"]
