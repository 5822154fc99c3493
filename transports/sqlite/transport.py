"""The transport: a file, its two threads, its door, and what programs ask of it."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from thalweg.capabilities import Claim, Commit, Held, Log
from thalweg.channel import Capability, Channel, Limits, TopicInfo, TopicSpec
from thalweg.errors import BrokerError, ConfigurationError, Fenced
from thalweg.message import Message, Position
from thalweg.pulse import STUCK, Stuck
from thalweg.url import Url

from . import records
from .channel import SqliteChannel, SqliteQueue
from .database import Database, Transaction
from .doorbell import Doorbell
from .leases import Leases
from .log import SqliteLog

__all__ = ["SqliteOptions", "SqliteTransport"]


class SqliteOptions(msgspec.Struct, frozen=True):
    """Query options of the URL.

    synchronous: "full" survives a power cut; "normal" only a crash of processes, and is faster.
    busy_timeout: seconds to wait for another process's write transaction.
    message_bytes: largest message (key, value and headers).
    lease: seconds after which a consumer that hangs loses its deliveries (of a queue: each delivery, unless extended).
    stuck: seconds without a sign of life from the event loop, after which it loses all that it holds.
    """

    synchronous: Literal["full", "normal"] = "full"
    busy_timeout: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 10.0
    message_bytes: Annotated[int, msgspec.Meta(ge=1, le=500 << 20)] = 16 << 20
    lease: Annotated[float, msgspec.Meta(ge=0.01, le=86400)] = 30.0
    stuck: Stuck = STUCK


_CAPABILITIES = frozenset(
    {
        Capability.LOG,
        Capability.LOCKS,
        Capability.PEERS,
        Capability.FENCING,
        Capability.WORK_QUEUE,
        Capability.PRIORITY,
        Capability.DELAY,
        Capability.EXPIRY,
    }
)


class SqliteClaim:
    """Ownership of a journal partition: good as long as `number` is the partition's fence."""

    def __init__(self, topic: records.Topic, partition: int, position: Position, number: int) -> None:
        self.topic = topic.name
        self.partition = partition
        self.position = position
        self.number = number
        self.log = topic


class SqliteTransport:
    """Satisfies Transport, Logs, Locks, Peers and Fencing; channels of queues are `WorkQueue`s.

    The one topic option is a queue's `dead_letter`: the name of the queue to which its rejected messages go.
    """

    def __init__(self, file: str | os.PathLike[str], options: SqliteOptions | None = None) -> None:
        self._given = Path(file)
        self._options = options or SqliteOptions()
        self._topics: dict[str, records.Topic] = {}
        self._opened = False
        self._closing: asyncio.Future[None] | None = None
        self._version = -1

    @classmethod
    def from_url(cls, url: Url) -> SqliteTransport:
        if url.hosts or not url.file or url.file == ":memory:":
            remedy = "memory:// keeps everything in memory" if ":memory:" in str(url) else "a file is needed"
            raise ConfigurationError(
                f"{url} names no file: {remedy}; write sqlite:///broker.db (relative) or sqlite:////var/lib/broker.db"
            )
        return cls(url.file, url.options(SqliteOptions))

    @property
    def capabilities(self) -> frozenset[Capability]:
        return _CAPABILITIES

    @property
    def limits(self) -> Limits:
        return Limits(message_bytes=self._options.message_bytes)

    @property
    def description(self) -> str:
        return f"SQLite {sqlite3.sqlite_version}, {self._given}"

    @property
    def warnings(self) -> Sequence[str]:
        if self._options.synchronous == "full":
            return ()
        return (
            "synchronous=normal: a power cut or a crash of the operating system may take back the last commits, though "
            "they were acknowledged; remove the option from the broker's URL to make every commit durable",
        )

    async def open(self) -> None:
        if self._opened:
            return
        if self._closing is not None and not self._closing.done():
            await asyncio.wait([self._closing])
        self._topics.clear()
        file = _absolute(self._given)
        self._bell = Doorbell(file)
        self._leases = Leases(self._bell, self._options.stuck)
        self._database = Database(file, self._options.synchronous, self._options.busy_timeout, self._bell, self._leases)
        await self._database.open()
        try:
            self._bell.open()
            self._leases.open(self._database)
            self._bell.listen(self._look)
            self._opened = True
            abandoned = self._bell.abandoned()
            await self._database.write(self._leases.reap)
            for door in abandoned:
                door.unlink(missing_ok=True)
        except BaseException:
            self._opened = True
            await self.close()
            raise

    async def close(self) -> None:
        if self._opened:
            self._opened = False
            self._closing = asyncio.ensure_future(self._close())
        if self._closing is not None:
            await asyncio.shield(self._closing)

    async def _close(self) -> None:
        given_back = False
        try:
            self._leases.end_all()
            await self._database.write(self._leases.drop_all)
            given_back = True
        except BrokerError:
            pass  # whoever looks at our door will see that we have left
        finally:
            self._leases.end_all()  # those that were being taken meanwhile
            await self._bell.deaf()
            await self._database.close()
            self._bell.close(leave_door=not given_back)

    async def declare(self, topics: Sequence[TopicSpec]) -> Sequence[TopicInfo]:
        declared = await self._use().write(partial(records.declare, specs=topics))
        self._topics.update((topic.name, topic) for topic in declared)
        return [topic.info for topic in declared]

    async def topics(self) -> Sequence[TopicInfo]:
        return await self._use().read(records.list_topics)

    async def channel(self, topic: str, group: str) -> Channel:
        found = await self._topic(topic)

        def join(transaction: Transaction) -> int:
            place = (found.id, group)
            transaction.execute("INSERT OR IGNORE INTO groups (topic, name) VALUES (?, ?)", place)
            (number,) = transaction.execute("SELECT id FROM groups WHERE topic = ? AND name = ?", place).fetchone()
            return int(number)

        number = await self._use().write(join)
        kind = SqliteQueue if found.queue else SqliteChannel
        options = self._options
        return kind(self._database, self._bell, self._leases, found, number, options.message_bytes, options.lease)

    async def log(self, topic: str) -> Log:
        found = await self._log_topic(topic)
        return SqliteLog(self._database, self._bell, found, self._options.message_bytes)

    async def try_lock(self, name: str, lease: float) -> Held | None:
        self._use()
        return await self._leases.try_lock(name, lease)

    def peers(self, group: str, me: str, lease: float) -> AsyncGenerator[frozenset[str], None]:
        self._use()
        return self._leases.peers(group, me, lease)

    async def claim(self, topic: str, partition: int, marker: Message) -> Claim:
        ready = records.prepare([marker], self._options.message_bytes, topic)
        found = await self._log_topic(topic)

        def work(transaction: Transaction) -> tuple[Position, int]:
            (position,) = records.append(transaction, found, partition, ready)
            ((number,),) = transaction.execute(
                "UPDATE partitions SET fence = fence + 1 WHERE topic = ? AND partition = ? RETURNING fence",
                (found.id, partition),
            ).fetchall()
            return position, number

        position, number = await self._use().write(work)
        return SqliteClaim(found, partition, position, number)

    async def commit(self, commits: Mapping[Claim, Commit]) -> Mapping[Claim, Sequence[Position]]:
        limit = self._options.message_bytes
        claims: dict[SqliteClaim, Sequence[Message]] = {}
        outputs: dict[tuple[str, int], list[Message]] = {}
        for claim, commit in commits.items():
            if not isinstance(claim, SqliteClaim):
                raise BrokerError(f"a claim of another transport cannot commit here: {claim!r}")
            claims[claim] = records.prepare(commit.records, limit, claim.topic)
            for place, messages in commit.outputs.items():
                outputs.setdefault(place, []).extend(records.prepare(messages, limit, place[0]))
        targets = {name: await self._log_topic(name) for name, _ in outputs}

        def work(transaction: Transaction) -> dict[Claim, Sequence[Position]]:
            _check_claims(transaction, claims)
            positions: dict[Claim, Sequence[Position]] = {
                claim: records.append(transaction, claim.log, claim.partition, messages)
                for claim, messages in claims.items()
            }
            for (name, partition), messages in outputs.items():
                records.append(transaction, targets[name], partition, messages)
            return positions

        return await self._use().write(work)

    async def _topic(self, name: str) -> records.Topic:
        topic = self._topics.get(name)
        if topic is None:
            topic = await self._use().read(partial(records.find_topic, name=name))
            if topic is None:
                raise BrokerError(f"{self._given} has no topic or queue {name!r}; declare it first")
            self._topics[name] = topic
        return topic

    async def _log_topic(self, name: str) -> records.Topic:
        topic = await self._topic(name)
        if topic.queue:
            raise BrokerError(f"{name!r} is a queue: it is no log, and is written by its channels' put")
        return topic

    def _use(self) -> Database:
        if not self._opened:
            raise BrokerError(f"{self._given}: the transport is not open; call open() first")
        return self._database

    async def _look(self) -> None:
        """Wake sleepers if someone wrote without ringing; end the leases of the dead."""

        def look(connection: sqlite3.Connection) -> tuple[int, bool]:
            (version,) = connection.execute("PRAGMA data_version").fetchone()
            return version, self._leases.any_ended(connection)

        try:
            version, ended = await self._use().read(look)
            if ended:
                await self._database.write(self._leases.reap)
        except BrokerError:
            return  # whoever is waiting will meet the error itself
        if version != self._version:
            self._version = version
            self._bell.ring_all_here()


def _check_claims(transaction: Transaction, claims: Iterable[SqliteClaim]) -> None:
    lost = frozenset(
        (claim.topic, claim.partition)
        for claim in claims
        if transaction.execute(
            "SELECT fence FROM partitions WHERE topic = ? AND partition = ?", (claim.log.id, claim.partition)
        ).fetchone()
        != (claim.number,)
    )
    if lost:
        names = ", ".join(f"{topic}[{partition}]" for topic, partition in sorted(lost))
        raise Fenced(f"a newer owner has claimed {names}; nothing was written", lost)


def _absolute(given: Path) -> Path:
    """As of now, whatever the process makes its working directory later."""
    file = Path(os.path.abspath(given))
    if not file.parent.is_dir():
        raise BrokerError(f"{file}: the folder {file.parent} does not exist; create it, or name another file")
    return file
