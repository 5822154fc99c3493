"""A topic as a log: `Log` of the contract, by position."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial

from thalweg.capabilities import Bounds
from thalweg.errors import BrokerError
from thalweg.message import Batch, Message, Position

from . import records
from .database import Database, Transaction
from .doorbell import Doorbell

__all__ = ["SqliteLog"]


class SqliteLog:
    """`append` is one transaction for all its partitions. `find` scans the partition from its first record."""

    def __init__(self, database: Database, bell: Doorbell, topic: records.Topic, message_bytes: int) -> None:
        self._database = database
        self._bell = bell
        self._topic = topic
        self._message_bytes = message_bytes
        self._turn = 0
        self._retire_at = 0.0
        self._closed = False

    async def append(
        self, records_of: Mapping[int, Sequence[Message]], positions: bool = True
    ) -> Mapping[int, Sequence[Position]]:
        self._check_open()
        topic = self._topic
        ready = {p: records.prepare(messages, self._message_bytes, topic.name) for p, messages in records_of.items()}

        def work(transaction: Transaction) -> dict[int, Sequence[Position]]:
            return {p: records.append(transaction, topic, p, messages) for p, messages in ready.items()}

        return await self._database.write(work)

    async def read(
        self, after: Mapping[int, Position | None], limit: int, max_bytes: int, timeout: float
    ) -> Mapping[int, Batch]:
        deadline = time.monotonic() + timeout
        while True:
            self._check_open()
            await self._retire()
            rung = self._bell.event(self._topic.id)
            # Whoever came first last time comes last: what fits into max_bytes is shared in turns.
            places = list(after.items())
            start = self._turn % len(places) if places else 0
            places = places[start:] + places[:start]
            batches = await self._database.read(
                partial(records.read, topic=self._topic, after=places, limit=limit, max_bytes=max_bytes)
            )
            remaining = deadline - time.monotonic()
            if batches or remaining <= 0:
                self._turn += 1
                return batches
            await self._bell.wait(rung, remaining)

    async def bounds(self, partition: int) -> Bounds:
        self._check_open()
        await self._retire()
        return await self._database.read(partial(records.bounds, topic=self._topic, partition=partition))

    async def find(self, partition: int, timestamp: int) -> Position | None:
        self._check_open()
        await self._retire()
        return await self._database.read(
            partial(records.find, topic=self._topic, partition=partition, timestamp=timestamp)
        )

    async def truncate(self, partition: int, before: Position) -> None:
        self._check_open()
        step = partial(records.truncate, topic=self._topic, partition=partition, before=before)
        while await self._database.write(step):
            pass  # in steps, so that others can write in between

    async def close(self) -> None:
        self._closed = True
        self._bell.ring_here((self._topic.id,))

    async def _retire(self) -> None:
        """Retention of a topic that nobody writes to. At most 64 times per retention."""
        if self._topic.retention is not None and time.monotonic() >= self._retire_at:
            self._retire_at = time.monotonic() + self._topic.retention / 64_000
            for partition in range(self._topic.partitions):
                step = partial(records.retire, topic=self._topic, partition=partition)
                while await self._database.write(step):
                    pass

    def _check_open(self) -> None:
        if self._closed:
            raise BrokerError(f"the log of topic {self._topic.name!r} is closed; open it again by transport.log()")
