"""Questions about one partition: where it begins and ends, and what lies at its ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from aiokafka.protocol.admin import DeleteRecordsRequest
from aiokafka.protocol.offset import OffsetRequest
from thalweg.message import Position, Record

from .connection import RETRIABLE, Cluster, Lost, Unreachable
from .fetching import OUT_OF_RANGE, Fetched, fetch
from .topics import Topic

__all__ = ["Partition"]

T = TypeVar("T")

_EARLIEST, _LATEST = -2, -1
_POLICY = 44

_WINDOW, _WIDER = 8, 8
"""How many offsets before the end are looked at first for the last record, and how many times as many next."""

_FETCH_BYTES = 1 << 20
_PAUSE, _LONGEST_PAUSE = 0.02, 1.0


class _Moved(Exception):
    """The start of the partition moved on while it was looked at."""


class Partition:
    """Each question is asked again until the cluster answers, for at most its time-out."""

    def __init__(self, cluster: Cluster, lane: str, topic: Topic, number: int) -> None:
        self._cluster, self._lane, self._topic, self._number = cluster, lane, topic, number

    async def range(self, committed: bool = True) -> tuple[Position, Position]:
        """The first offset kept, and the one after the last that can be read."""
        start, end = await asyncio.gather(self._offset(_EARLIEST, committed), self._offset(_LATEST, committed))
        return start, end

    async def offset(self, timestamp: int) -> Position:
        """Of the first record as late as that; -1: there is none."""
        return await self._offset(timestamp, True)

    async def last(
        self, wanted: Callable[[Record], bool] = lambda record: True, hide: bool = True
    ) -> tuple[Position, Record] | None:
        """The last record that is as wanted, and where it lies. hide: not one of those that no reader sees."""

        async def look() -> tuple[Position, Record] | None:
            start, end = await self.range()
            window = _WINDOW
            while end > start:
                begin = max(start, end - window)
                found = await self._scan(begin, end, wanted, first=False, hide=hide)
                if found is not None:
                    return found
                end, window = begin, window * _WIDER
            return None

        return await self._patiently(look)

    async def first(self) -> tuple[Position, Record] | None:
        async def look() -> tuple[Position, Record] | None:
            start, end = await self.range()
            return await self._scan(start, end, lambda record: True, first=True, hide=True)

        return await self._patiently(look)

    async def between(self, begin: Position, end: Position, wanted: Callable[[Record], bool]) -> list[Record]:
        """Of the records from `begin` on and before `end`, committed or not, those that are as wanted."""

        async def look() -> list[Record]:
            found: list[Record] = []
            offset = begin
            while offset < end:
                chunk = (await self._fetch(offset, committed=False, hide=False)).chunk
                places = zip(chunk.positions, chunk.records, strict=True)
                found += [record for position, record in places if position < end and wanted(record)]
                if chunk.next <= offset:
                    raise Unreachable(self._cluster.endpoint.explain(f"{self._topic.name!r} ends before {end}"))
                offset = chunk.next
            return found

        return await self._patiently(look)

    async def delete(self, before: Position) -> None:
        """Drop what lies before an offset, as far as the topic's settings allow it."""

        async def drop() -> None:
            start, end = await self.range(committed=False)
            until = min(before, end)
            if until <= start:
                return
            timeout = round(self._cluster.endpoint.timeout * 900)
            request = DeleteRecordsRequest([(self._topic.kafka, [(self._number, until)])], timeout)
            answer = await self._ask(request)
            code = answer.topics[0][1][0][2]
            if code not in (0, _POLICY, OUT_OF_RANGE):  # a compacted topic keeps what is newest
                self._check(code, "truncating")

        await self._patiently(drop)

    async def _offset(self, timestamp: int, committed: bool) -> Position:
        async def ask() -> Position:
            answer = await self._ask(
                OffsetRequest(-1, int(committed), [(self._topic.kafka, [(self._number, timestamp)])])
            )
            _, ((_, code, _, offset),) = answer.topics[0]
            self._check(code, "looking for an offset in")
            return int(offset)

        return await self._patiently(ask)

    async def _scan(
        self, begin: Position, end: Position, wanted: Callable[[Record], bool], first: bool, hide: bool
    ) -> tuple[Position, Record] | None:
        found: tuple[Position, Record] | None = None
        offset = begin
        while offset < end:
            fetched = await self._fetch(offset, committed=True, hide=hide)
            for position, record in zip(fetched.chunk.positions, fetched.chunk.records, strict=True):
                if position < end and wanted(record):
                    found = position, record
                    if first:
                        return found
            if fetched.chunk.next <= offset:
                break
            offset = fetched.chunk.next
        return found

    async def _fetch(self, offset: Position, committed: bool, hide: bool) -> Fetched:
        node = await self._cluster.leader(self._topic.kafka, self._number)
        found = await fetch(
            self._cluster,
            node,
            self._lane,
            self._topic.kafka,
            {self._number: offset},
            max_bytes=_FETCH_BYTES,
            partition_bytes=_FETCH_BYTES,
            committed=committed,
            hide=hide,
        )
        fetched = found[self._number]
        if fetched.code == OUT_OF_RANGE:
            raise _Moved
        self._check(fetched.code, "reading")
        return fetched

    async def _ask(self, request: object) -> Any:
        return await self._cluster.ask(await self._cluster.leader(self._topic.kafka, self._number), request, self._lane)

    def _check(self, code: int, what: str) -> None:
        what = f"{what} topic {self._topic.name!r} partition {self._number}: "
        if code in RETRIABLE:
            raise Unreachable(self._cluster.endpoint.explain(code, what))
        if code:
            raise self._cluster.explain(code, what)

    async def _patiently(self, attempt: Callable[[], Awaitable[T]]) -> T:
        deadline = time.monotonic() + self._cluster.endpoint.timeout
        pause = _PAUSE
        while True:
            try:
                return await attempt()
            except (Unreachable, Lost):
                if time.monotonic() + pause > deadline:
                    raise
                self._cluster.forget_leaders([self._topic.kafka])
            except _Moved:
                if time.monotonic() > deadline:
                    raise self._cluster.explain(f"topic {self._topic.name!r} is truncated faster than read") from None
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
