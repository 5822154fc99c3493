"""Brokers for the contract tests: each rig opens transports on one fresh broker, crashes them and lets time pass."""

from __future__ import annotations

import asyncio
import os
import secrets
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import NoReturn, Protocol

import pytest
from thalweg.channel import Transport
from thalweg.clock import VirtualClock
from thalweg.errors import BrokerError
from thalweg.transports.memory import MemoryBroker, MemoryOptions, MemoryTransport
from thalweg.transports.redis import RedisTransport
from thalweg.transports.redis.connection import Connection
from thalweg.transports.sqlite import SqliteOptions, SqliteTransport
from thalweg.url import Url

from .nats_rig import NatsRig
from .rabbit_rig import RabbitRig


class Rig(Protocol):
    """What a contract test needs of a broker. A new transport is tested by adding its rig to `RIGS`."""

    lease: float
    """Seconds: for locks and members in the tests, and until what a dead or slow consumer was lent comes back."""

    message_bytes: int
    """The largest message that the broker takes."""

    async def open(self) -> Transport:
        """One more transport on the same broker; closed when the test ends."""
        ...

    async def crash(self, transport: Transport) -> None:
        """As if its process died."""
        ...

    async def pass_time(self, seconds: float) -> None: ...

    async def close(self) -> None: ...


async def settle() -> None:
    """Let everything run that can run without time passing."""
    for _ in range(20):
        await asyncio.sleep(0)


async def pass_time(clock: VirtualClock, seconds: float) -> None:
    """Stop at each timer on the way, so that what it wakes sees its own time."""
    end = clock.now() + seconds
    await settle()
    while (due := clock.next()) is not None and due <= end:
        clock.move(due)
        await settle()
    clock.move(end)
    await settle()


class MemoryRig:
    lease = 30.0
    message_bytes = 10_000

    def __init__(self, position_step: int = 1) -> None:
        self.clock = VirtualClock(1_577_836_800.0)
        self.broker = MemoryBroker(clock=self.clock, position_step=position_step)
        self._transports: list[MemoryTransport] = []

    async def open(self) -> MemoryTransport:
        transport = MemoryTransport(self.broker, MemoryOptions(message_bytes=self.message_bytes, lease=self.lease))
        self._transports.append(transport)
        await transport.open()
        return transport

    async def crash(self, transport: Transport) -> None:
        assert isinstance(transport, MemoryTransport)
        transport.kill()

    async def pass_time(self, seconds: float) -> None:
        await pass_time(self.clock, seconds)

    async def close(self) -> None:
        for transport in self._transports:
            await transport.close()


class SqliteRig:
    lease = 0.6  # real time: long enough for renewals on a busy machine
    message_bytes = 10_000

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._transports: list[SqliteTransport] = []

    async def open(self) -> SqliteTransport:
        options = SqliteOptions(message_bytes=self.message_bytes, lease=self.lease)
        transport = SqliteTransport(Path(self._folder.name) / "broker.db", options)
        self._transports.append(transport)
        await transport.open()
        return transport

    async def crash(self, transport: Transport) -> None:
        """Its threads end, and nothing more is renewed or given back; but as its process lives, only leases tell."""
        assert isinstance(transport, SqliteTransport)
        await transport._database.close()

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def close(self) -> None:
        for transport in self._transports:
            await transport.close()
        self._folder.cleanup()


class RedisRig:
    """On the server of REDIS_URL, with a prefix of its own for all it writes."""

    lease = 0.6
    message_bytes = 10_000

    def __init__(self) -> None:
        self._prefix = f"test-{secrets.token_hex(6)}-"
        server = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379")
        options = f"prefix={self._prefix}&message_bytes={self.message_bytes}&lease={self.lease}"
        self._url = Url(f"{server}{'&' if '?' in server else '?'}{options}")
        self._transports: list[RedisTransport] = []

    async def check(self, missing: Callable[[str, str], NoReturn]) -> None:
        try:
            await (await self.open()).close()
        except BrokerError as error:
            missing("redis", str(error))

    async def open(self) -> RedisTransport:
        transport = RedisTransport.from_url(self._url)
        self._transports.append(transport)
        await transport.open()
        return transport

    async def crash(self, transport: Transport) -> None:
        """Nothing more is renewed or given back, and its connections are gone."""
        assert isinstance(transport, RedisTransport)
        transport._leases.end_all()
        await transport._waker.close()
        await transport._connection.close()

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def close(self) -> None:
        for transport in self._transports:
            await transport.close()
        connection = Connection(self._transports[0]._endpoint)
        cursor: bytes = b"0"
        while True:
            cursor, keys = await connection.call(b"SCAN", cursor, b"MATCH", f"*{self._prefix}*", b"COUNT", 1000)
            if keys:
                await connection.call(b"DEL", *keys)
            if cursor == b"0":
                break
        await connection.close()


RIGS: dict[str, Callable[[], Rig]] = {
    "memory": MemoryRig,
    "memory with gaps between positions": lambda: MemoryRig(position_step=7),
    "sqlite": SqliteRig,
    "redis": RedisRig,
    "nats": NatsRig,
    "nats without fencing": lambda: NatsRig("&fencing=false"),
}


@pytest.fixture
async def watchdog() -> AsyncIterator[None]:
    """A call that hangs fails its test instead of hanging the run."""
    loop = asyncio.get_running_loop()

    def bite() -> None:
        for task in asyncio.all_tasks(loop):
            task.cancel("this test hangs")

    timer = loop.call_later(30, bite)
    yield
    timer.cancel()


@pytest.fixture(params=list(RIGS))
async def rig(
    request: pytest.FixtureRequest, watchdog: None, broker_missing: Callable[[str, str], NoReturn]
) -> AsyncIterator[Rig]:
    rig = RIGS[request.param]()
    if isinstance(rig, NatsRig | RabbitRig | RedisRig):
        await rig.check(broker_missing)
    yield rig
    await rig.close()
