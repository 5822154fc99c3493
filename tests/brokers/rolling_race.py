"""Appenders, readers and truncators of one log race each other, with pauses at any point; and what must hold then."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from thalweg.channel import TopicSpec
from thalweg.errors import BrokerError, Gap
from thalweg.message import Message, Position
from thalweg.transports.rabbitmq import RabbitTransport
from thalweg.transports.rabbitmq.generations import split
from thalweg.transports.rabbitmq.log import RabbitLog
from thalweg.transports.rabbitmq.rolling import RollingPartition

LONG = 1_000_000


class Sleepy:
    """The way to the streams, with a client that may fall asleep before and after anything that it does."""

    def __init__(self, inner: Any, dice: random.Random) -> None:
        self._inner, self._dice = inner, dice
        self.name = inner.name

    async def nap(self) -> None:
        fate = self._dice.random()
        if fate < 0.02:
            await asyncio.sleep(self._dice.random() * 0.5)  # long enough for others to roll several times
        elif fate < 0.3:
            await asyncio.sleep(self._dice.random() * 0.02)

    async def publish(self, stream: str, messages: Sequence[Message], ids: Sequence[str] | None = None) -> None:
        await self.nap()
        await self._inner.publish(stream, messages, ids)
        await self.nap()

    async def attach(self, stream: str, start: Any, receiver: Any) -> Any:
        await self.nap()
        attachment = await self._inner.attach(stream, start, receiver)
        await self.nap()
        return attachment

    def slowly(self, act: Callable[[str], Awaitable[None]]) -> Callable[[str], Awaitable[None]]:
        async def wrapped(name: str) -> None:
            await self.nap()
            await act(name)
            await self.nap()

        return wrapped


class Race:
    """Of several clients, each as a process of its own would be."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.appended: list[tuple[bytes, Position]] = []
        self.tried: set[bytes] = set()
        self.seen: dict[Position, bytes] = {}
        self.first: Position = 0
        self.stop = False
        self.gaps = 0

    async def client(self, transport: RabbitTransport) -> RabbitLog:
        log = await transport.log("journal")
        assert isinstance(log, RabbitLog)
        partition = log._partitions[0]
        assert isinstance(partition, RollingPartition)
        assert log._parts.root is not None
        sleepy = Sleepy(partition._streams, random.Random(self.dice.random()))
        partition._streams = log._parts.shelf._streams = sleepy
        log._parts.root._streams = Sleepy(log._parts.root._streams, random.Random(self.dice.random()))
        partition._make, partition._delete = sleepy.slowly(partition._make), sleepy.slowly(partition._delete)
        return log

    async def append(self, log: RabbitLog, name: str) -> None:
        number = 0
        while not self.stop:
            values = [b"%s-%d" % (name.encode(), number + n) for n in range(self.dice.randint(1, 5))]
            number += len(values)
            self.tried.update(values)
            with contextlib.suppress(BrokerError):
                positions = (await log.append({0: [Message(value) for value in values]}))[0]
                self.appended += zip(values, positions, strict=True)

    async def read(self, log: RabbitLog) -> None:
        after: Position | None = None
        while not self.stop:
            try:
                batch = (await log.read({0: after}, 20, LONG, 0.2)).get(0)
            except Gap:
                after, self.gaps = None, self.gaps + 1
                continue
            except BrokerError:
                continue
            if batch is None:
                continue
            for position, record in zip(batch.positions, batch.records, strict=True):
                self.see(position, record.value or b"", after)
                after = position

    def see(self, position: Position, value: bytes, after: Position | None) -> None:
        assert self.seen.setdefault(position, value) == value, f"readers disagree about {position}"
        if after is not None:
            assert position > after
            generation, offset = split(position)
            if generation == split(after)[0]:
                assert position == after + 1, f"skipped something between {after} and {position}"
            else:
                assert offset == 0, f"did not begin generation {generation} at its beginning"

    async def truncate(self, log: RabbitLog) -> None:
        while not self.stop:
            await asyncio.sleep(self.dice.random() * 0.1)
            if self.seen:
                before = max(self.seen) - self.dice.randint(0, 30)
                if split(before)[0] < 1 << 20:  # within its generation
                    self.first = max(self.first, before)
                    with contextlib.suppress(BrokerError):
                        await log.truncate(0, before)

    async def run(self, transports: Sequence[RabbitTransport], seconds: float) -> None:
        """The last one only reads."""
        await transports[0].declare([TopicSpec("journal", partitions=1, truncated=True)])
        logs = [await self.client(transport) for transport in transports]
        work: list[Awaitable[None]] = [self.read(log) for log in logs]
        for number, log in enumerate(logs[:-1]):
            work += (self.append(log, f"a{number}"), self.append(log, f"b{number}"), self.truncate(log))
        tasks = [asyncio.ensure_future(job) for job in work]
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        self.stop = True
        await asyncio.gather(*tasks)
        for log in logs:
            await log.close()

    async def check(self, transport: RabbitTransport) -> int:
        """What lies there in the end, for one who comes new; how many generations there were."""
        log = await transport.log("journal")
        bounds = await log.bounds(0)
        assert bounds.first is not None
        assert bounds.last is not None
        final: dict[Position, bytes] = {}
        after: Position | None = None
        while after is None or after < bounds.last:
            batch = (await log.read({0: after}, LONG, LONG, 5))[0]
            for position, record in zip(batch.positions, batch.records, strict=True):
                self.see(position, record.value or b"", after)
                final[position] = record.value or b""
                after = position
        assert after == bounds.last
        values = list(final.values())
        assert len(values) == len(set(values)), "something is there twice"
        assert set(values) <= self.tried
        for value, position in self.appended:
            assert self.seen.get(position, value) == value, f"{position} is not what its append said"
            if position >= self.first:
                assert final.get(position) == value, f"{value!r} was acknowledged at {position} and is lost"
        return split(bounds.last)[0] + 1
