"""The log of one topic, as one reader sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from thalweg.capabilities import Bounds
from thalweg.errors import BrokerError
from thalweg.message import Batch, Message, Position

from .broker import LogTopic, MemoryBroker
from .partition import Partition, Prepared, prepare
from .session import Session, Waiters, wake

__all__ = ["MemoryLog"]


class MemoryLog:
    """See `thalweg.capabilities.Log`. An append is atomic over all partitions of the call."""

    def __init__(self, broker: MemoryBroker, session: Session, topic: LogTopic, message_bytes: int | None) -> None:
        self._broker, self._session, self._topic, self._limit = broker, session, topic, message_bytes
        self._faults = broker.faults
        self._waiters: Waiters = {}
        self._closed = False
        self._turn = 0

    async def append(
        self, records: Mapping[int, Sequence[Message]], positions: bool = True
    ) -> Mapping[int, Sequence[Position]]:
        if self._faults.armed:
            await self._faults.before("append", self._topic.name, self._session)
        self._check()
        topic, clock = self._topic, self._broker.clock
        prepared: list[tuple[Partition, Prepared]] = []
        for number, messages in records.items():  # all checks come first: an append is whole or not at all
            prepared.append((topic.partition(number), prepare(messages, self._limit, topic.name, clock)))
        found: dict[int, Sequence[Position]] = {}
        for partition, ready in prepared:
            found[partition.number] = partition.append(ready)
        if self._faults.armed:
            await self._faults.after("append", self._topic.name, self._session)
        return found

    async def read(
        self, after: Mapping[int, Position | None], limit: int, max_bytes: int, timeout: float
    ) -> Mapping[int, Batch]:
        if self._faults.armed:
            await self._faults.before("read", self._topic.name, self._session)
        self._check()
        found = self._collect(after, limit, max_bytes)
        if not found and timeout > 0:
            clock = self._broker.clock
            deadline = clock.now() + timeout
            places = [self._waiters, *(self._topic.partition(number).waiters for number in after)]
            waiting = True
            while waiting and not found:
                waiting = await self._session.wait(places, deadline - clock.now())
                self._check()
                found = self._collect(after, limit, max_bytes)
        if self._faults.armed:
            await self._faults.after("read", self._topic.name, self._session)
        return found

    def _collect(self, after: Mapping[int, Position | None], limit: int, max_bytes: int) -> dict[int, Batch]:
        """Hot path: costs nothing per record but the slice."""
        wanted = list(after.items())
        if len(wanted) > 1:
            self._turn = turn = (self._turn + 1) % len(wanted)
            wanted = wanted[turn:] + wanted[:turn]
        found: dict[int, Batch] = {}
        for number, position in wanted:
            partition = self._topic.partition(number)
            start = partition.index_after(position)
            if start is not None and (max_bytes > 0 or not found):
                found[number], size = partition.batch(start, limit, max_bytes)
                max_bytes -= size
        return found

    async def bounds(self, partition: int) -> Bounds:
        if self._faults.armed:
            await self._faults.before("bounds", self._topic.name, self._session)
        self._check()
        return self._topic.partition(partition).bounds()

    async def find(self, partition: int, timestamp: int) -> Position | None:
        if self._faults.armed:
            await self._faults.before("find", self._topic.name, self._session)
        self._check()
        return self._topic.partition(partition).find(timestamp)

    async def truncate(self, partition: int, before: Position) -> None:
        if self._faults.armed:
            await self._faults.before("truncate", self._topic.name, self._session)
        self._check()
        self._topic.partition(partition).truncate(before)
        if self._faults.armed:
            await self._faults.after("truncate", self._topic.name, self._session)

    async def close(self) -> None:
        self._closed = True
        wake(self._waiters)

    def _check(self) -> None:
        self._session.check()
        if self._closed:
            raise BrokerError(f"this reader of {self._topic.name!r} is closed")
