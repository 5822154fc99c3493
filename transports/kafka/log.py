"""A topic as a log: `Log` of the contract. Reads are purely positional, whatever was fetched last.

What is fetched for a partition is kept until it has been handed on, and while more is known to lie there the next piece
is fetched ahead. Fetches run in tasks of their own: a read that is cancelled leaves them to the reads to come.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from thalweg.capabilities import Bounds
from thalweg.errors import BrokerError, Gap
from thalweg.finishing import ignore_failure
from thalweg.message import Batch, Message, Position

from .appending import Appender
from .buffer import Buffer
from .connection import RETRIABLE, Cluster, Lost, Unreachable
from .fetching import OUT_OF_RANGE, Fetched, fetch
from .partition import Partition
from .records import OWNER
from .topics import Topic

__all__ = ["KafkaLog"]

_FETCH_BYTES = 1 << 20
"""A fetch asks for this much at least, so that small reads do not become small fetches."""

_PARTITION_BYTES = 1 << 17
"""And for this much of each partition."""

_PAUSE, _LONGEST_PAUSE = 0.02, 1.0
"""Seconds after a fetch that failed until the next."""


class _Flight:
    """A fetch under way, from one broker. wait: seconds that the broker may hold it. began: what was written after that
    moment it may have missed."""

    def __init__(self, lane: int, offsets: Mapping[int, Position], wait: float) -> None:
        self.lane, self.offsets, self.wait = lane, offsets, wait
        self.began = time.monotonic()
        self.task: asyncio.Task[Mapping[int, Fetched]]


class KafkaLog:
    """Of one topic. An append is atomic for each batch of a partition; where its records lie comes with the answer."""

    def __init__(self, cluster: Cluster, appender: Appender, topic: Topic) -> None:
        self._cluster, self._appender, self._topic = cluster, appender, topic
        self._buffers: defaultdict[int, Buffer] = defaultdict(Buffer)
        self._flights: set[_Flight] = set()
        self._turn = 0
        self._closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def append(
        self, records: Mapping[int, Sequence[Message]], positions: bool = True
    ) -> Mapping[int, Sequence[Position]]:
        self._check_open()
        return await self._appender.append(self._topic, records)

    # --- reading -------------------------------------------------------------------------------------------------

    async def read(
        self, after: Mapping[int, Position | None], limit: int, max_bytes: int, timeout: float
    ) -> Mapping[int, Batch]:
        for partition in after:
            self._topic.check(partition)
        began = time.monotonic()
        deadline, patience = began + timeout, began + max(timeout, self._cluster.endpoint.timeout)
        offsets = {n: self._buffers[n].start if position is None else position + 1 for n, position in after.items()}
        asked: set[int] = set()  # what a fetch that began after this read did has answered
        pause = _PAUSE
        while offsets:
            self._check_open()
            found = self._take(offsets, limit, max_bytes)
            if found:
                self._fetch_ahead(found, max_bytes)
                return found
            remaining = deadline - time.monotonic()
            if remaining <= 0 and (timeout > 0 or asked >= offsets.keys()):
                break
            try:
                for flight in await self._fetch(offsets, max(0.0, remaining), max_bytes):
                    for partition, fetched in flight.task.result().items():
                        if offsets.get(partition) != flight.offsets[partition]:
                            continue  # it was asked for another read
                        if fetched.code:
                            await self._failed(partition, fetched.code, offsets, after)
                            continue
                        self._buffers[partition].keep(fetched.chunk)
                        if flight.began >= began and fetched.chunk.next >= fetched.end:
                            asked.add(partition)
            except (Unreachable, Lost):
                if time.monotonic() + pause > patience:
                    raise
                self._cluster.forget_leaders([self._topic.kafka])
                await asyncio.wait([self._closed], timeout=pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
        return {}

    def passed(self, partition: int, after: Position) -> Position:
        return self._buffers[partition].across(after + 1) - 1

    def _take(self, offsets: dict[int, Position], limit: int, max_bytes: int) -> dict[int, Batch]:
        """What follows, of what was fetched already."""
        found: dict[int, Batch] = {}
        room = max_bytes
        for partition in self._in_turns(offsets):
            buffer = self._buffers[partition]
            offsets[partition] = buffer.across(offsets[partition])
            taken = buffer.take(offsets[partition], limit, room) if room > 0 or not found else None
            if taken is not None:
                found[partition], size = taken
                room -= size
        if found:
            self._turn += 1
        return found

    def _in_turns(self, partitions: Mapping[int, object]) -> list[int]:
        """Whoever came first last time comes last."""
        places = list(partitions)
        start = self._turn % len(places)
        return places[start:] + places[:start]

    def _fetch_ahead(self, found: Mapping[int, Batch], max_bytes: int) -> None:
        """Of whom the last piece was handed on, and of whom more is known to lie there."""
        flying = {partition for flight in self._flights for partition in flight.offsets}
        by_node: defaultdict[int, dict[int, Position]] = defaultdict(dict)
        for partition, batch in found.items():
            offset = self._buffers[partition].following(batch.positions[-1] + 1)
            node = self._cluster.known_leader(self._topic.kafka, partition)
            if offset is not None and node is not None and partition not in flying:
                by_node[node][partition] = offset
        for node, wanted in by_node.items():
            self._launch(node, wanted, 0, max_bytes)

    async def _fetch(self, offsets: Mapping[int, Position], wait: float, max_bytes: int) -> Sequence[_Flight]:
        """Ask for what lies at these offsets, if nobody did yet; the fetches that came back."""
        flights: set[_Flight] = set()
        by_node: defaultdict[int, dict[int, Position]] = defaultdict(dict)
        for partition in self._in_turns(offsets):
            offset = offsets[partition]
            for flight in self._flights:
                if flight.offsets.get(partition) == offset and (wait > 0 or not flight.wait):
                    flights.add(flight)
                    break
            else:
                node = await self._cluster.leader(self._topic.kafka, partition)
                by_node[node][partition] = offset
        for node, wanted in by_node.items():
            flights.add(self._launch(node, wanted, min(wait, self._cluster.endpoint.timeout / 2), max_bytes))
        tasks = [flight.task for flight in flights]
        waiting: list[asyncio.Future[Any]] = [*tasks, self._closed]
        await asyncio.wait(waiting, timeout=wait or None, return_when=asyncio.FIRST_COMPLETED)
        self._check_open()
        return [flight for flight in flights if flight.task.done()]

    def _launch(self, node: int, offsets: Mapping[int, Position], wait: float, max_bytes: int) -> _Flight:
        taken = {flight.lane for flight in self._flights}
        flight = _Flight(next(n for n in range(len(taken) + 1) if n not in taken), offsets, wait)
        self._flights.add(flight)
        flight.task = asyncio.get_running_loop().create_task(self._fly(flight, node, max(max_bytes, _FETCH_BYTES)))
        flight.task.add_done_callback(ignore_failure)
        return flight

    async def _fly(self, flight: _Flight, node: int, max_bytes: int) -> Mapping[int, Fetched]:
        try:
            found = await fetch(
                self._cluster,
                node,
                self._lane(flight.lane),
                self._topic.kafka,
                flight.offsets,
                max_bytes=max_bytes,
                partition_bytes=max(max_bytes // len(flight.offsets), _PARTITION_BYTES),
                wait=flight.wait,
            )
        finally:
            self._flights.discard(flight)
        for partition, fetched in found.items():
            if not fetched.code:
                buffer = self._buffers[partition]
                buffer.start, buffer.end = fetched.start, fetched.end
                buffer.keep(fetched.chunk)
        return found

    async def _failed(
        self, partition: int, code: int, offsets: dict[int, Position], after: Mapping[int, Position | None]
    ) -> None:
        """Raises Unreachable for what may be better in a moment, Gap, or BrokerError."""
        what = f"reading topic {self._topic.name!r} partition {partition}: "
        if code in RETRIABLE:
            raise Unreachable(self._cluster.endpoint.explain(code, what))
        if code != OUT_OF_RANGE:
            raise self._cluster.explain(code, what)
        start, end = await self._partition(partition).range()
        self._buffers[partition].start = start
        position = after[partition]
        if position is None:
            offsets[partition] = start
        elif not start <= offsets[partition] <= end:
            raise Gap(self._topic.name, partition, position, (await self.bounds(partition)).first)

    # --- its ends ------------------------------------------------------------------------------------------------

    async def bounds(self, partition: int) -> Bounds:
        self._check_open()
        place = self._partition(partition)
        last = await place.last()
        if last is None:
            return Bounds(None, None)
        first = await place.first()
        return Bounds(last[0] if first is None else first[0], last[0])

    async def find(self, partition: int, timestamp: int) -> Position | None:
        self._check_open()
        place = self._partition(partition)
        offset = await place.offset(timestamp)
        last = await place.last()
        if last is None or offset < 0:
            return None if last is None else last[0]
        start, _ = await place.range()
        return None if offset <= start else min(offset - 1, last[0])

    async def truncate(self, partition: int, before: Position) -> None:
        self._check_open()
        place = self._partition(partition)
        last = await place.last(hide=False)
        if last is not None and before > last[0] and any(name == OWNER for name, _ in last[1].headers):
            before = last[0]  # who claims a journal must find the name of its last owner
        await place.delete(before)
        self._buffers[partition].clear()

    async def close(self) -> None:
        if self._closed.done():
            return
        self._closed.set_result(None)
        tasks = [flight.task for flight in self._flights]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._cluster.hang_up(self._lane(""))

    def _partition(self, partition: int) -> Partition:
        return Partition(self._cluster, self._lane("ends"), self._topic, self._topic.check(partition))

    def _lane(self, name: object) -> str:
        return f"log {id(self)} {name}"

    def _check_open(self) -> None:
        if self._closed.done():
            raise BrokerError(f"the log of topic {self._topic.name!r} is closed; open it again by transport.log()")
