"""Brokers for the contract tests: each rig opens transports on one fresh broker, crashes them and lets time pass."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Protocol

import pytest
from thalweg.channel import Transport
from thalweg.clock import VirtualClock
from thalweg.transports.memory import MemoryBroker, MemoryOptions, MemoryTransport
from thalweg.transports.sqlite import SqliteOptions, SqliteTransport


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


RIGS: dict[str, Callable[[], Rig]] = {
    "memory": MemoryRig,
    "memory with gaps between positions": lambda: MemoryRig(position_step=7),
    "sqlite": SqliteRig,
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
async def rig(request: pytest.FixtureRequest, watchdog: None) -> AsyncIterator[Rig]:
    rig = RIGS[request.param]()
    yield rig
    await rig.close()
