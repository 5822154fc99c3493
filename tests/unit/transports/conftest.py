"""Brokers for the contract tests: each rig opens transports on one fresh broker, crashes them and lets time pass."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Protocol

import pytest

from thalweg.channel import Transport
from thalweg.transports.memory import MemoryBroker, MemoryOptions, MemoryTransport


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


class FakeTimer:
    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        self.callback = None


class FakeClock:
    """Stands still until it is moved."""

    def __init__(self, start: float = 1_577_836_800.0) -> None:
        self.time = start
        self.timers: list[tuple[float, int, FakeTimer]] = []
        self._count = itertools.count()

    def now(self) -> float:
        return self.time

    def call_later(self, delay: float, callback: Callable[[], object], /) -> FakeTimer:
        timer = FakeTimer(callback)
        heapq.heappush(self.timers, (self.time + delay, next(self._count), timer))
        return timer

    def pending(self) -> int:
        return sum(timer.callback is not None for _, _, timer in self.timers)

    async def move(self, seconds: float) -> None:
        end = self.time + seconds
        await settle()
        while self.timers and self.timers[0][0] <= end:
            self.time, _, timer = heapq.heappop(self.timers)
            callback, timer.callback = timer.callback, None
            if callback is not None:
                callback()
                await settle()
        self.time = end
        await settle()


async def settle() -> None:
    """Let everything run that can run without time passing."""
    for _ in range(20):
        await asyncio.sleep(0)


class MemoryRig:
    lease = 30.0
    message_bytes = 10_000

    def __init__(self, position_step: int = 1) -> None:
        self.clock = FakeClock()
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
        await self.clock.move(seconds)

    async def close(self) -> None:
        for transport in self._transports:
            await transport.close()


RIGS: dict[str, Callable[[], Rig]] = {
    "memory": MemoryRig,
    "memory with gaps between positions": lambda: MemoryRig(position_step=7),
}


@pytest.fixture(params=list(RIGS))
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    rig = RIGS[request.param]()
    yield rig
    await rig.close()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()
