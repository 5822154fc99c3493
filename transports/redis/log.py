"""A topic as a log: `Log` of the contract, a stream for each partition."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence

import msgspec
from thalweg.capabilities import Bounds
from thalweg.errors import BrokerError, Gap
from thalweg.message import Batch, Message, Position

from . import scripts
from .connection import Connection
from .waker import Waker, Watch
from .wire import HIGH, before, decode, encode, entry_id, pack
from .wire import positions as positions_of

__all__ = ["RedisLog", "Topic"]

_FIRST_COUNT = 8  # entries asked for a partition while nothing is known of their size
_ENTRY = 60  # bytes of an entry beside its value, about
_PAGE = 1000


class Topic(msgspec.Struct, frozen=True):
    """A declared topic or queue, with its prefix. retention: seconds. tag: the hash tag of all keys, on a cluster."""

    name: str
    partitions: int
    queue: bool
    prefix: str
    retention: float | None = None
    dead_letter: str = ""
    tag: str = ""

    def stream(self, partition: int) -> bytes:
        return f"{self.tag}{{{partition}}}:{self.prefix}{self.name}".encode()

    def key(self, kind: str) -> str:
        """Of what belongs to the topic as a whole."""
        return f"{kind}:{self.tag}{{{self.prefix}{self.name}}}"

    def fence(self, partition: int) -> bytes:
        return b"fence:" + self.stream(partition)

    def trim_mark(self, partition: int) -> bytes:
        return b"trimmed:" + self.stream(partition)

    def check(self, partition: int) -> int:
        if not 0 <= partition < self.partitions:
            raise BrokerError(f"topic {self.name!r} has partitions 0 to {self.partitions - 1}, none has {partition}")
        return partition


class _Fetch(msgspec.Struct):
    """What a read has of one partition so far. check: the position whose record must come first, if it still exists."""

    next: bytes
    check: Position | None
    records: list[Message]
    positions: list[Position]
    more: bool = True


class RedisLog:
    """`append` is one script for all its partitions: all or nothing. `find` scans the partition from its first record.

    A read asks for the record *at* the given position too: while that exists, none after it can have been dropped from
    the front, so that only a reader whose position is gone pays for the question whether there is a gap.
    """

    def __init__(self, connection: Connection, waker: Waker, topic: Topic, message_bytes: int) -> None:
        self._connection = connection
        self._waker = waker
        self._topic = topic
        self._message_bytes = message_bytes
        self._waiting: set[Watch] = set()
        self._turn = 0
        self._average = 0.0  # bytes of a record, lately
        self._retire_at = 0.0
        self._closed = False

    async def append(
        self, records: Mapping[int, Sequence[Message]], positions: bool = True
    ) -> Mapping[int, Sequence[Position]]:
        self._check_open()
        await self._retire()
        topic, keys, arguments = self._topic, list[bytes](), list[bytes | int]()
        written = {topic.check(partition): messages for partition, messages in records.items() if messages}
        for partition in records:
            topic.check(partition)
        for partition, messages in written.items():
            keys.append(topic.stream(partition))
            arguments += (len(messages), *encode(messages, self._message_bytes, topic.name))
        if not keys:
            return {partition: [] for partition in records}
        ids = await self._connection.write(scripts.APPEND, keys, *arguments)
        found: dict[int, Sequence[Position]] = {partition: [] for partition in records}
        for index, (partition, messages) in enumerate(written.items()):
            found[partition] = positions_of(ids[2 * index], ids[2 * index + 1], len(messages))
        return found

    async def read(
        self, after: Mapping[int, Position | None], limit: int, max_bytes: int, timeout: float
    ) -> Mapping[int, Batch]:
        deadline = time.monotonic() + timeout
        for partition in after:
            self._topic.check(partition)
        while True:
            self._check_open()
            await self._retire()
            batches = await self._read(after, limit, max_bytes)
            self._turn += 1
            remaining = deadline - time.monotonic()
            if batches or remaining <= 0 or not after:
                return batches
            self._check_open()
            watch = self._waker.watch(
                {self._topic.stream(partition): max(position or 0, 0) for partition, position in after.items()}
            )
            self._waiting.add(watch)
            try:
                await watch.wait(remaining)
            finally:
                self._waiting.discard(watch)

    async def _read(self, after: Mapping[int, Position | None], limit: int, max_bytes: int) -> dict[int, Batch]:
        # Whoever came first last time comes last: what fits into max_bytes is shared in turns.
        places = list(after.items())
        start = self._turn % len(places) if places else 0
        fetches = {
            partition: _Fetch(b"0-0" if position is None else before(position), position, [], [])
            for partition, position in places[start:] + places[:start]
        }
        room = max_bytes
        while open_fetches := {partition: fetch for partition, fetch in fetches.items() if fetch.more}:
            fits = room / (self._average * len(open_fetches)) if self._average else _FIRST_COUNT
            count = max(1, min(limit, int(fits), _PAGE)) + 1  # the one at the position itself comes again
            found = await self._connection.call(
                *(b"XREAD", b"COUNT", count, b"STREAMS"),
                *map(self._topic.stream, open_fetches),
                *(fetch.next for fetch in open_fetches.values()),
            )
            entries = dict(found or ())
            for partition, fetch in open_fetches.items():
                arrived = entries.get(self._topic.stream(partition), ())
                fetch.more = len(arrived) == count
                if fetch.check is not None:
                    if arrived and pack(arrived[0][0]) == fetch.check:
                        arrived = arrived[1:]
                    else:
                        await self._check_gap(partition, fetch.check)
                    fetch.check = None
                room = self._take(fetch, arrived, limit, room, first=not any(f.records for f in fetches.values()))
            if room <= 0:
                break
        return {n: Batch(fetch.records, fetch.positions) for n, fetch in fetches.items() if fetch.records}

    def _take(
        self, fetch: _Fetch, entries: Sequence[tuple[bytes, Sequence[bytes]]], limit: int, room: int, first: bool
    ) -> int:
        """Decode what there is room for; returns the room left. Hot: 0.6 us for a record of key, value, timestamp."""
        fetch.more &= len(fetch.records) + len(entries) < limit
        entries = entries[: limit - len(fetch.records)]
        if room <= 0 and not first:
            entries = ()
        start, taken = room, 0
        milliseconds, high = b"", 0
        for entry, fields in entries:
            stamp, _, sequence = entry.partition(b"-")
            if stamp != milliseconds or len(sequence) > 6:
                milliseconds, high = stamp, pack(entry) & HIGH
            record = decode(stamp, fields)
            fetch.records.append(record)
            fetch.positions.append(high | int(sequence))
            taken += 1
            room -= _ENTRY + (len(record.value or b"") if not record.headers else record.size)
            if room <= 0:
                break
        if taken:
            fetch.next = entries[taken - 1][0]
            size = (start - room) / taken
            self._average = size if not self._average else (self._average + size) / 2
        if room <= 0:
            fetch.more = False
        return room

    async def _check_gap(self, partition: int, after: Position) -> None:
        """There is no record at `after`. Were there any after it that are gone?"""
        first, _, generated, removed, marked, removed_then = await self._ends(partition)
        end = pack(generated)
        start = pack(first) if first else None
        if after > end:
            lost = True  # the topic was deleted, or the server lost its last records
        elif start is not None and after >= start:
            lost = False
        elif removed == removed_then or not removed:
            lost = bool(removed) and after < pack(marked)
        else:
            lost = after < end  # others removed records too: it cannot be told which
        if lost:
            raise Gap(self._topic.name, partition, after, start)

    async def bounds(self, partition: int) -> Bounds:
        self._check_open()
        await self._retire()
        first, last, *_ = await self._ends(partition)
        return Bounds(pack(first) if first else None, pack(last) if last else None)

    async def _ends(self, partition: int) -> tuple[bytes, bytes, bytes, int, bytes, int]:
        self._topic.check(partition)
        keys = [self._topic.stream(partition), self._topic.trim_mark(partition)]
        first, last, generated, removed, marked, removed_then = await self._connection.run(scripts.BOUNDS, keys)
        return first, last, generated, removed, marked, removed_then

    async def find(self, partition: int, timestamp: int) -> Position | None:
        self._check_open()
        await self._retire()
        stream = self._topic.stream(self._topic.check(partition))
        previous: Position | None = None
        start = b"-"
        while entries := await self._connection.call(b"XRANGE", stream, start, b"+", b"COUNT", _PAGE):
            for entry, fields in entries:
                if decode(entry.partition(b"-")[0], fields).timestamp >= timestamp:
                    return previous
                previous = pack(entry)
            start = b"(" + entries[-1][0]
        return previous

    async def truncate(self, partition: int, before: Position) -> None:
        self._check_open()
        self._topic.check(partition)
        if before > 0:
            await self._trim(partition, entry_id(before))

    async def _trim(self, partition: int, until: bytes) -> None:
        keys = [self._topic.stream(partition), self._topic.trim_mark(partition)]
        await self._connection.write(scripts.TRIM, keys, until)

    async def close(self) -> None:
        self._closed = True
        for watch in list(self._waiting):
            watch.wake()

    async def _retire(self) -> None:
        """Retention by the time of writing. At most 64 times per retention."""
        if self._topic.retention is not None and time.monotonic() >= self._retire_at:
            self._retire_at = time.monotonic() + self._topic.retention / 64
            seconds, micros = await self._connection.call(b"TIME")
            oldest = int(seconds) * 1000 + int(micros) // 1000 - round(self._topic.retention * 1000)
            await asyncio.gather(*(self._trim(n, b"%d-0" % oldest) for n in range(self._topic.partitions)))

    def _check_open(self) -> None:
        if self._closed:
            raise BrokerError(f"the log of topic {self._topic.name!r} is closed; open it again by transport.log()")
