"""A topic as a log: `Log` of the contract. Its partitions are subjects of one stream, positions are its sequences."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import time
from collections.abc import Mapping, Sequence

import msgspec
from thalweg.capabilities import Bounds
from thalweg.errors import BrokerError, Gap
from thalweg.message import Batch, Message, Position

from .connection import ApiError, Connection
from .feed import Feed, Part
from .floors import NOT_FOUND, Floors, StoredMessage, StreamState
from .publish import Entry, check, publish_all
from .records import header_value, stamp_of, token
from .wire import WireLost

__all__ = ["NatsLog", "Topic"]

_PULL = 10_000  # messages asked for at once
_LEAST = 64 << 10  # bytes asked for at once, however few the caller wants
_WAIT = 30.0  # seconds that the server keeps a request
_LEFT_OUT = 4 << 20  # bytes kept for a partition that nobody asks for at the moment
_APART = 50_000  # messages between two partitions' positions, from which on they are not read together
_FEEDS = 4
_SCAN_BYTES = 4 << 20


class Topic(msgspec.Struct, frozen=True):
    """A declared topic or queue. retention: seconds.

    subjects: its subject (of a queue), or that of its partitions with `{partition}` for the number.
    foreign: it belongs to others.
    """

    name: str
    partitions: int
    queue: bool
    stream: str
    subjects: str
    retention: float | None = None
    dead_letter: str = ""
    foreign: bool = False

    @property
    def token(self) -> str:
        return token(self.name)

    @property
    def wild(self) -> bool:
        """Whether its one partition has many subjects."""
        return "*" in self.subjects or ">" in self.subjects

    def subject(self, partition: int) -> bytes:
        return self.subjects.replace("{partition}", str(partition)).encode()

    def check(self, partition: int) -> int:
        if not 0 <= partition < self.partitions:
            raise BrokerError(f"topic {self.name!r} has partitions 0 to {self.partitions - 1}, none has {partition}")
        return partition


class NatsLog:
    """A reader of its own, and a writer. atomic: the stream takes atomic batches."""

    def __init__(self, connection: Connection, topic: Topic, floors: Floors, message_bytes: int, atomic: bool) -> None:
        self._connection = connection
        self._topic = topic
        self._floors = floors
        self._message_bytes = message_bytes
        self._atomic = atomic and not topic.foreign
        self._feeds: list[Feed] = []
        self._reading = asyncio.Lock()
        self._waiters: set[asyncio.Future[None]] = set()
        self._turn = 0
        self._retire_at = 0.0
        self._closed = False

    # --- writing ---------------------------------------------------------------------------------------------

    async def append(
        self, records: Mapping[int, Sequence[Message]], positions: bool = True
    ) -> Mapping[int, Sequence[Position]]:
        self._check_open()
        topic = self._topic
        if topic.wild:
            raise BrokerError(f"topic {topic.name!r} is read from {topic.subjects!r}: no message can be written there")
        entries: list[Entry] = []
        for partition, messages in records.items():
            subject = topic.subject(topic.check(partition))
            entries += [Entry(subject, message) for message in messages]
        check(self._connection, entries, self._message_bytes, topic.name)
        await self._retire()
        written = await publish_all(self._connection, entries, self._atomic)
        found: dict[int, Sequence[Position]] = {}
        start = 0
        for partition, messages in records.items():
            found[partition] = written[start : start + len(messages)]
            start += len(messages)
        return found

    # --- reading ---------------------------------------------------------------------------------------------

    async def read(
        self, after: Mapping[int, Position | None], limit: int, max_bytes: int, timeout: float
    ) -> Mapping[int, Batch]:
        deadline = time.monotonic() + timeout
        for partition in after:
            self._topic.check(partition)
        while True:
            self._check_open()
            await self._retire()
            async with self._reading:
                batches = await self._read(after, limit, max_bytes, patient=timeout > 0)
                remaining = deadline - time.monotonic()
                if batches or remaining <= 0 or not after:
                    return batches
                self._check_open()
                feeds = self._feeds_of(after)
                size = max(max_bytes, _LEAST)
                try:
                    for feed in feeds:
                        feed.wait(_wanted(limit, len(after)), size, max(0.01, min(remaining, _WAIT)))
                except WireLost:
                    continue  # made anew at the next turn
                lost = {feed.wire.closed for feed in feeds}
                woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._waiters.add(woken)
            try:
                await asyncio.wait({woken, *lost}, timeout=min(remaining, _WAIT), return_when=asyncio.FIRST_COMPLETED)
            finally:
                self._waiters.discard(woken)

    def _wake(self) -> None:
        """Something has come, or will not come any more."""
        while self._waiters:
            woken = self._waiters.pop()
            if not woken.done():
                woken.set_result(None)

    async def _read(
        self, after: Mapping[int, Position | None], limit: int, max_bytes: int, patient: bool
    ) -> dict[int, Batch]:
        """patient: what comes while the caller waits will do."""
        await self._place(after)
        batches = self._take(after, limit, max_bytes)
        if self._has_news(batches) or not after:
            return batches
        size = max(max_bytes, _LEAST)
        for feed in self._feeds_of(after):
            if patient and feed.at_end:
                continue
            try:
                await feed.fetch(_wanted(limit, len(after)), size)
            except WireLost:
                feed.dead = True
        batches = self._take(after, limit, max_bytes)
        self._has_news(batches)
        return batches

    def _has_news(self, batches: Mapping[int, Batch]) -> bool:
        """Whether something is among them that was not handed out before."""
        news = False
        for partition, batch in batches.items():
            part, last = self._part(partition), batch.positions[-1]
            if part is not None and part.shown < last:
                part.shown, news = last, True
        return news

    def _take(self, after: Mapping[int, Position | None], limit: int, max_bytes: int) -> dict[int, Batch]:
        """Of what has come: by turns, who came first last time comes last."""
        found: dict[int, Batch] = {}
        places = list(after)
        start = self._turn % len(places) if places else 0
        room = max_bytes
        for partition in places[start:] + places[:start]:
            part = self._part(partition)
            if part is None or not part.records:
                continue
            count = min(limit, len(part.records))
            if part.size <= room and count == len(part.records):
                found[partition] = Batch(part.records[:], part.positions[:])
                room -= part.size
                continue
            taken = 0
            for record in part.records[:count]:
                if room <= 0 and (taken or found):
                    break
                room -= len(record.value or b"") + 60
                taken += 1
            if taken:
                found[partition] = Batch(part.records[:taken], part.positions[:taken])
        if found:
            self._turn += 1
        return found

    def _part(self, partition: int) -> Part | None:
        subject = self._topic.subject(partition)
        return next((feed.parts[subject] for feed in self._feeds if subject in feed.parts), None)

    def _feeds_of(self, after: Mapping[int, Position | None]) -> list[Feed]:
        subjects = [self._topic.subject(partition) for partition in after]
        return [feed for feed in self._feeds if any(subject in feed.parts for subject in subjects)]

    async def _place(self, after: Mapping[int, Position | None]) -> None:
        """Every partition that is asked for belongs to a feed that will bring what follows its position."""
        self._drop([feed for feed in self._feeds if not feed.alive])
        await self._check_floors(after)
        strays: dict[int, Position] = {}
        for partition, position in after.items():
            wanted = position or 0
            part = self._part(partition)
            if part is None or wanted < part.since:
                strays[partition] = wanted
            else:
                part.forget(wanted)
        wanted_subjects = {self._topic.subject(partition) for partition in after}
        for feed in self._feeds:
            for subject, part in list(feed.parts.items()):
                if subject not in wanted_subjects and part.size > _LEFT_OUT:
                    del feed.parts[subject]  # it will get a feed of its own when it comes back
        if not strays:
            return
        await self._check_ends({p: after[p] for p in strays})
        if len(self._feeds) >= _FEEDS:
            self._drop(self._feeds)
            strays = {partition: position or 0 for partition, position in after.items()}
        for feed in self._feeds:
            for partition in strays:
                feed.parts.pop(self._topic.subject(partition), None)
        self._drop([feed for feed in self._feeds if not feed.parts])
        for group in _neighbours(strays):
            wire = await self._connection.wire()
            parts = {self._topic.subject(partition): Part(position) for partition, position in group.items()}
            feed = Feed(self._connection, wire, self._topic.stream, parts, self._wake)
            await feed.start()
            self._feeds.append(feed)
            if self._closed:
                self._drop(self._feeds)
                self._check_open()

    def _drop(self, feeds: Sequence[Feed]) -> None:
        for feed in list(feeds):
            self._feeds.remove(feed)
            feed.close()

    # --- gaps ------------------------------------------------------------------------------------------------

    async def _check_floors(self, after: Mapping[int, Position | None]) -> None:
        """Raises `Gap` where something after the position was dropped."""
        topic = self._topic
        if topic.foreign:
            return
        await self._floors.load(topic.token)
        for partition, position in after.items():
            if position is not None and position < self._floors.at(topic.token, partition):
                raise Gap(topic.name, partition, position, (await self.bounds(partition)).first)

    async def _check_ends(self, after: Mapping[int, Position | None]) -> None:
        """Raises `Gap` where a position lies beyond the stream, or before the start of one that belongs to others."""
        if all(position is None for position in after.values()):
            return
        state = (await self._connection.api(f"STREAM.INFO.{self._topic.stream}", StreamState)).state
        for partition, position in after.items():
            if position is None:
                continue
            if position > state.last_seq or (self._topic.foreign and position < state.first_seq - 1):
                raise Gap(self._topic.name, partition, position, (await self.bounds(partition)).first)

    # --- ends ------------------------------------------------------------------------------------------------

    async def bounds(self, partition: int) -> Bounds:
        self._check_open()
        await self._retire()
        subject = self._topic.subject(self._topic.check(partition)).decode()
        get = f"STREAM.MSG.GET.{self._topic.stream}"
        ends: list[Position | None] = []
        requests: list[tuple[str, dict[str, object]]] = [
            (get, {"seq": 1, "next_by_subj": subject}),
            (get, {"last_by_subj": subject}),
        ]
        for answer in await self._connection.apis(requests, StoredMessage):
            if isinstance(answer, ApiError) and answer.code != NOT_FOUND:
                raise answer
            ends.append(None if isinstance(answer, ApiError) else answer.message.seq)
        return Bounds(ends[0], ends[1])

    async def find(self, partition: int, timestamp: int) -> Position | None:
        """Reads the partition from its start: the times of records need not rise."""
        self._check_open()
        scan = NatsLog(self._connection, self._topic, self._floors, self._message_bytes, self._atomic)
        previous: Position | None = None
        try:
            while batch := (await scan.read({partition: previous}, _PULL, _SCAN_BYTES, 0)).get(partition):
                for record, position in zip(batch.records, batch.positions, strict=True):
                    if record.timestamp >= timestamp:
                        return previous
                    previous = position
        finally:
            await scan.close()
        return previous

    async def truncate(self, partition: int, before: Position) -> None:
        self._check_open()
        self._topic.check(partition)
        if self._topic.foreign:
            raise BrokerError(f"topic {self._topic.name!r} belongs to others: it is not truncated from here")
        subject = self._topic.subject(partition).decode()
        request = {"multi_last": [subject], "up_to_seq": before - 1, "batch": 1}
        dropped = await self._connection.collect(f"DIRECT.GET.{self._topic.stream}", request) if before > 1 else []
        for header, _ in dropped:
            last = int(header_value(header, b"Nats-Sequence") or 0)
            await self._floors.raise_to(self._topic.token, partition, last)
            purge = {"filter": subject, "seq": before}
            await self._connection.api(f"STREAM.PURGE.{self._topic.stream}", msgspec.Raw, purge)

    async def _retire(self) -> None:
        """Retention by the time of writing. At most 64 times per retention."""
        retention = self._topic.retention
        if retention is None or self._topic.foreign or time.monotonic() < self._retire_at:
            return
        self._retire_at = time.monotonic() + retention / 64
        now = stamp_of((await self._connection.api(f"STREAM.INFO.{self._topic.stream}", StreamState)).ts)
        oldest = datetime.datetime.fromtimestamp(now / 1e9 - retention, datetime.UTC)
        for partition in range(self._topic.partitions):
            subject = self._topic.subject(partition).decode()
            request = {"start_time": oldest.isoformat(), "next_by_subj": subject, "batch": 1}
            kept = await self._connection.collect(f"DIRECT.GET.{self._topic.stream}", request)
            if kept:
                before = int(header_value(kept[0][0], b"Nats-Sequence") or 0)
            else:
                before = ((await self.bounds(partition)).last or 0) + 1
            await self.truncate(partition, before)

    async def close(self) -> None:
        self._closed = True
        self._wake()
        with contextlib.suppress(WireLost):
            self._drop(self._feeds)

    def _check_open(self) -> None:
        if self._closed:
            raise BrokerError(f"the log of topic {self._topic.name!r} is closed; open it again by transport.log()")


def _neighbours(positions: Mapping[int, Position]) -> list[dict[int, Position]]:
    """Partitions that are read together: who is far behind would make the others come again."""
    groups: list[dict[int, Position]] = []
    start = 0
    for partition, position in sorted(positions.items(), key=lambda item: item[1]):
        if not groups or position - start > _APART:
            groups.append({})
            start = position
        groups[-1][partition] = position
    return groups


def _wanted(limit: int, partitions: int) -> int:
    """Messages to ask for, so that each partition's share is likely among them."""
    return min(max(limit * partitions, _PULL // 10), _PULL)
