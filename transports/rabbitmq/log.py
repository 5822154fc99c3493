"""A topic as a log: `Log` of the contract, a chain of streams for each partition."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

from thalweg.capabilities import Bounds
from thalweg.errors import AmbiguousCommit, BrokerError
from thalweg.finishing import finish
from thalweg.message import Batch, Message, Position

from .generations import Root
from .partition import Partition
from .shelf import Shelf
from .wire import check

__all__ = ["Parts", "RabbitLog"]

_FAREWELL = 2.0  # seconds that appends under way have when the log is closed


class Parts:
    """What a log consists of. root: of one that is truncated.

    Several logs of a topic may share it: what one of them appends, the others read without asking the server again. It
    ends with the last of them.
    """

    def __init__(self, partitions: Sequence[Partition], shelf: Shelf, root: Root | None) -> None:
        self.partitions, self.shelf, self.root = partitions, shelf, root
        self.logs: set[RabbitLog] = set()
        shelf.changed = self._changed

    def _changed(self) -> None:
        for log in self.logs:
            log.changed()

    async def leave(self, log: RabbitLog) -> None:
        self.logs.discard(log)
        if not self.logs:
            await self.shelf.close()
            if self.root is not None:
                await self.root.close()


class RabbitLog:
    def __init__(self, topic: str, parts: Parts, message_bytes: int) -> None:
        self._topic, self._parts = topic, parts
        self._partitions = parts.partitions
        self._message_bytes = message_bytes
        self._waiting: set[asyncio.Future[None]] = set()
        self._background: set[asyncio.Task[Any]] = set()
        self._turn = 0
        self.closed = False
        parts.logs.add(self)

    def changed(self) -> None:
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)

    async def append(
        self, records: Mapping[int, Sequence[Message]], positions: bool = True
    ) -> Mapping[int, Sequence[Position]]:
        """Without `positions` one confirm a record is all it costs, unless the log is truncated: then all is read back.

        Cancelled, it goes on to the end.
        """
        self._check_open()
        for number, messages in records.items():
            self._partition(number)
            check(messages, self._message_bytes, self._topic)
        return await finish(self._append(records, positions), self._background)

    async def _append(
        self, records: Mapping[int, Sequence[Message]], positions: bool
    ) -> Mapping[int, Sequence[Position]]:
        written = {number: messages for number, messages in records.items() if messages}
        if len(written) == 1:
            ((number, messages),) = written.items()
            outcomes: list[Sequence[Position] | BaseException] = [
                await self._partition(number).append(messages, positions)
            ]
        else:
            calls = (self._partition(number).append(messages, positions) for number, messages in written.items())
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
        found: dict[int, Sequence[Position]] = {number: [] for number in records}
        problems: list[BaseException] = []
        for number, outcome in zip(written, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                problems.append(outcome)
            else:
                found[number] = outcome
        for problem in problems:
            if not isinstance(problem, BrokerError) or len(problems) == len(outcomes) == 1:
                raise problem
        if problems:
            unknown = len(problems) < len(outcomes) or any(isinstance(p, AmbiguousCommit) for p in problems)
            said = f"{len(problems)} of {len(outcomes)} partitions of topic {self._topic!r} failed: {problems[0]}"
            raise AmbiguousCommit(said) if unknown else BrokerError(said)
        return found

    async def read(
        self, after: Mapping[int, Position | None], limit: int, max_bytes: int, timeout: float
    ) -> Mapping[int, Batch]:
        deadline = time.monotonic() + timeout
        for number in after:
            self._partition(number)
        places = list(after.items())
        self._turn += 1
        start = self._turn % len(places) if places else 0
        places = places[start:] + places[:start]  # what fits into max_bytes is shared in turns
        while True:
            self._check_open()
            news: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.add(news)
            try:
                found = await self._collect(places, limit, max_bytes)
                if not found and timeout <= 0 and await self._catch_up(places):
                    found = await self._collect(places, limit, max_bytes)
                remaining = deadline - time.monotonic()
                if found or remaining <= 0 or not places:
                    return found
                await asyncio.wait([news], timeout=remaining)
            finally:
                self._waiting.discard(news)

    async def _collect(
        self, places: Sequence[tuple[int, Position | None]], limit: int, max_bytes: int
    ) -> dict[int, Batch]:
        found: dict[int, Batch] = {}
        room = max_bytes
        missing = [place for place in places if self._partitions[place[0]].ready(place[1]) is None]
        while True:
            if missing:
                await self._prepare(missing)
                missing = []
            for number, position in places:
                if number in found or (room <= 0 and found):
                    continue
                batch, size = self._partitions[number].take(position, limit, room)
                if batch is not None:
                    found[number] = batch
                    room -= size
                elif not size:
                    missing.append((number, position))
            if not missing or found:
                return found

    async def _prepare(self, places: Sequence[tuple[int, Position | None]]) -> None:
        for error in await asyncio.gather(*(self._settled(number, position) for number, position in places)):
            if error is not None:
                raise error

    async def _settled(self, number: int, position: Position | None) -> BrokerError | None:
        try:
            await self._partitions[number].prepare(position)
        except BrokerError as error:
            return error
        return None

    async def _catch_up(self, places: Sequence[tuple[int, Position | None]]) -> bool:
        """Whether anything came."""
        cursors = [self._partitions[number].ready(position) for number, position in places]
        arrived = sum(cursor.arrived for cursor in cursors if cursor is not None)
        await asyncio.gather(*(cursor.catch_up() for cursor in cursors if cursor is not None))
        return arrived < sum(cursor.arrived for cursor in cursors if cursor is not None)

    async def bounds(self, partition: int) -> Bounds:
        self._check_open()
        return await self._partition(partition).bounds()

    async def find(self, partition: int, timestamp: int) -> Position | None:
        self._check_open()
        return await self._partition(partition).find(timestamp)

    async def truncate(self, partition: int, before: Position) -> None:
        """Of a topic that was not declared as one to be truncated, nothing: its streams keep all."""
        self._check_open()
        await finish(self._partition(partition).truncate(before), self._background)

    async def close(self) -> None:
        self.closed = True
        self.changed()
        if self._background:  # what is being written may well still arrive
            await asyncio.wait(self._background, timeout=_FAREWELL)
        for task in list(self._background):
            task.cancel()
        if self._background:
            await asyncio.wait(self._background)
        await self._parts.leave(self)

    def _partition(self, number: int) -> Partition:
        if not 0 <= number < len(self._partitions):
            raise BrokerError(
                f"topic {self._topic!r} has partitions 0 to {len(self._partitions) - 1}, none has {number}"
            )
        return self._partitions[number]

    def _check_open(self) -> None:
        if self.closed:
            raise BrokerError(f"the log of topic {self._topic!r} is closed; open it again by transport.log()")
