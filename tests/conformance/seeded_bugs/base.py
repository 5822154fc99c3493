"""What the buggy drivers share: the memory transport, with its channels and logs wrapped where a bug wants to sit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from thalweg.capabilities import Bounds, Log
from thalweg.channel import Channel
from thalweg.clock import Clock
from thalweg.message import Batch, Delivery, Message, Position
from thalweg.transports.memory import MemoryBroker, MemoryOptions, MemoryTransport
from thalweg.url import Url

__all__ = ["BUGS", "ChannelThrough", "LogThrough", "Seeded", "caught_by"]

Bug = TypeVar("Bug", bound=type)

BUGS: dict[type, tuple[str, str]] = {}
"""Each bug's class, the property that must fail for it, and options of its URL."""


def caught_by(name: str, options: str = "") -> Callable[[Bug], Bug]:
    def remember(bug: Bug) -> Bug:
        BUGS[bug] = (name, options)
        return bug

    return remember


class ChannelThrough:
    """A channel (of a queue, too) that passes everything on to another."""

    def __init__(self, inner: Any, transport: Seeded) -> None:
        self.inner, self.transport = inner, transport

    async def put(self, messages: Sequence[Message]) -> None:
        await self.inner.put(messages)

    async def get(self, limit: int, timeout: float) -> Sequence[Delivery]:
        found: Sequence[Delivery] = await self.inner.get(limit, timeout)
        return found

    async def commit(self, deliveries: Sequence[Delivery]) -> None:
        await self.inner.commit(deliveries)

    async def close(self) -> None:
        await self.inner.close()

    async def extend(self, deliveries: Sequence[Delivery], lease: float) -> None:
        await self.inner.extend(deliveries, lease)

    async def retry(self, delivery: Delivery, delay: float) -> None:
        await self.inner.retry(delivery, delay)

    async def reject(self, delivery: Delivery, reason: str) -> None:
        await self.inner.reject(delivery, reason)


class LogThrough:
    """A log that passes everything on to another."""

    def __init__(self, inner: Any, transport: Seeded) -> None:
        self.inner, self.transport = inner, transport

    async def append(
        self, records: Mapping[int, Sequence[Message]], positions: bool = True
    ) -> Mapping[int, Sequence[Position]]:
        found: Mapping[int, Sequence[Position]] = await self.inner.append(records)
        return found

    async def read(
        self, after: Mapping[int, Position | None], limit: int, max_bytes: int, timeout: float
    ) -> Mapping[int, Batch]:
        found: Mapping[int, Batch] = await self.inner.read(after, limit, max_bytes, timeout)
        return found

    async def bounds(self, partition: int) -> Bounds:
        found: Bounds = await self.inner.bounds(partition)
        return found

    async def find(self, partition: int, timestamp: int) -> Position | None:
        found: Position | None = await self.inner.find(partition, timestamp)
        return found

    async def truncate(self, partition: int, before: Position) -> None:
        await self.inner.truncate(partition, before)

    async def close(self) -> None:
        await self.inner.close()


class Seeded(MemoryTransport):
    """Without a bug of its own: the suite must find nothing."""

    channels: type[ChannelThrough] = ChannelThrough
    logs: type[LogThrough] = LogThrough

    @classmethod
    def from_url(cls, url: Url) -> Seeded:
        return cls(options=url.options(MemoryOptions))

    def private(self, clock: Clock) -> Seeded:
        return type(self)(MemoryBroker(clock=clock), self.options)

    def again(self) -> Seeded:
        return type(self)(self.broker, self.options)

    async def channel(self, topic: str, group: str) -> Channel:
        return self.channels(await super().channel(topic, group), self)

    async def log(self, topic: str) -> Log:
        return self.logs(await super().log(topic), self)
