"""`pgqueue://user:password@host/database`: topics and queues in PostgreSQL, for programs that need no tables.

The tables, and the functions that change them, are in `schema.sql`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from importlib import resources

import asyncpg
import msgspec
from thalweg.channel import Capability, Limits, TopicInfo, TopicSpec
from thalweg.errors import BrokerError, MessageTooLarge, MissingCapability, StaleDelivery, TopicMismatch
from thalweg.message import Delivery, Headers, Message, QueueMessage
from thalweg.url import Url

unpack = msgspec.msgpack.Decoder(Headers).decode
SCHEMA = resources.files(__name__).joinpath("schema.sql").read_text(encoding="utf-8")


class PgOptions(msgspec.Struct, frozen=True):
    """Query options of the URL.

    schema: of all tables. lease: seconds until what a dead or hung member had goes to another. timeout: seconds to
    connect, and for an answer. message_bytes: largest message (key, value and headers).
    """

    schema: str = "thalweg"
    lease: float = 30.0
    timeout: float = 10.0
    message_bytes: int = 16 << 20


class PgChannel:
    """A member of a group. `held`: the ids of the messages that it has in hand."""

    def __init__(self, transport: PgTransport, topic: str, member: int) -> None:
        self.transport, self.topic, self.member = transport, topic, member
        self.held, self.taking, self.closed = set[int](), asyncio.Lock(), False

    async def put(self, messages: Sequence[Message]) -> None:
        for m in messages:
            if m.size > (most := self.transport.options.message_bytes):
                raise MessageTooLarge(f"{m.size} bytes for {self.topic!r}; the limit is {most} (?message_bytes=)")
            if isinstance(m, QueueMessage) and (m.priority, m.delay, m.expires) != (0, 0, None):
                raise MissingCapability(f"{self.topic!r}: pgqueue:// knows no priority, delay or expiry")
        keys, values, times = ([getattr(m, name) for m in messages] for name in ("key", "value", "timestamp"))
        headers = [msgspec.msgpack.encode(m.headers) for m in messages]
        await self.ask("SELECT put($1, $2, $3, $4, $5)", self.topic.encode(), keys, values, headers, times)

    async def get(self, limit: int, timeout: float) -> Sequence[Delivery]:
        deadline = time.monotonic() + timeout
        while True:
            async with self.taking:  # cancelled within, what was taken is not in `held`, and is taken again
                rows = await self.ask("SELECT * FROM take($1, $2, $3)", self.member, limit, list(self.held))
                self.held.update(row["id"] for row in rows)
            if rows or time.monotonic() >= deadline:
                return [Delivery(Message(v, k, unpack(h), t), n, (self, id, n)) for id, n, v, k, h, t in rows]
            await asyncio.sleep(min(0.05, deadline - time.monotonic()))

    async def commit(self, deliveries: Sequence[Delivery]) -> None:
        lent = [d.handle[1:] for d in deliveries if isinstance(d.handle, tuple) and d.handle[0] is self]
        if len(lent) < len(deliveries):
            raise BrokerError(f"a delivery of another channel cannot be committed by this one of {self.topic!r}")
        [(stale,)] = await self.ask("SELECT done($1, $2, $3)", self.member, *([d[i] for d in lent] for i in (0, 1)))
        self.held.difference_update(id for id, _ in lent)
        if stale:
            raise StaleDelivery(f"{stale} of {len(lent)} of {self.topic!r} had gone to others by their lease")

    async def close(self) -> None:
        self.closed = True
        with contextlib.suppress(BrokerError):  # what cannot be given back comes back when its lease ends
            async with self.taking:
                await self.transport.ask("SELECT leave($1)", self.member)

    async def ask(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        if self.closed:
            raise BrokerError(f"this channel of {self.topic!r} is closed; open another by transport.channel()")
        return await self.transport.ask(query, *arguments)


class PgTransport:
    """Satisfies `Transport`, without any capability."""

    def __init__(self, url: Url) -> None:
        self.url, self.options, self.description = url, url.options(PgOptions), f"PostgreSQL, {url.hosts}{url.path}"
        self.limits, self.warnings = Limits(self.options.message_bytes), list[str]()
        self.channels, self.pool, self.capabilities = list[PgChannel](), None, frozenset[Capability]()

    @classmethod
    def from_url(cls, url: Url) -> PgTransport:
        return cls(url)

    async def open(self) -> None:
        dsn = "postgresql" + self.url.text.partition("?")[0].removeprefix(self.url.scheme)
        t, path = self.options.timeout, {"search_path": self.options.schema}
        self.pool = await asyncpg.create_pool(dsn, min_size=0, timeout=t, command_timeout=t, server_settings=path)
        self.renewing = asyncio.create_task(self.renew())
        try:
            await self.ask(SCHEMA)
            self.warnings = [text for (text,) in await self.ask("SELECT weak()")]
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        if self.pool is not None:
            self.renewing.cancel()
            await asyncio.gather(self.renewing, *(channel.close() for channel in self.channels), return_exceptions=True)
            with contextlib.suppress(asyncpg.InterfaceError):  # it is being closed already
                await self.pool.close()

    async def declare(self, topics: Sequence[TopicSpec]) -> Sequence[TopicInfo]:
        found = dict[str, TopicInfo]()
        for spec in sorted(topics, key=lambda spec: spec.declare):  # first those that must exist already
            arguments = (spec.name.encode(), spec.partitions or spec.default_partitions, spec.queue, spec.declare)
            if not (rows := await self.ask("SELECT * FROM declare($1, $2, $3, $4)", *arguments)):
                raise spec.absent(self.description)
            found[spec.name] = info = TopicInfo(spec.name, *rows[0])
            if info.queue != spec.queue or spec.partitions not in (None, info.partitions):
                raise TopicMismatch(f"{spec.name!r} is declared otherwise than it is: {info}")
        return [found[spec.name] for spec in topics]

    async def topics(self) -> Sequence[TopicInfo]:
        return [TopicInfo(name.decode(), *rest) for name, *rest in await self.ask("TABLE topics ORDER BY name")]

    async def channel(self, topic: str, group: str) -> PgChannel:
        if not (rows := await self.ask("SELECT enter($1, $2, $3)", topic.encode(), group.encode(), self.options.lease)):
            raise BrokerError(f"{self.description} has no topic or queue {topic!r}; declare it first")
        self.channels = [*(c for c in self.channels if not c.closed), PgChannel(self, topic, rows[0][0])]
        return self.channels[-1]

    async def renew(self) -> None:
        while True:
            await asyncio.sleep(self.options.lease / 3)
            with contextlib.suppress(BrokerError):  # what cannot be renewed goes to others in time
                await self.ask("SELECT renew($1)", [channel.member for channel in self.channels if not channel.closed])

    async def ask(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        """The pool connects anew by itself. Nothing is repeated: whoever asked knows best."""
        try:
            if self.pool is None:
                raise ConnectionError("the transport is not open")
            return await self.pool.fetch(query, *arguments)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise BrokerError(f"{self.description}: {self.url.redact(str(error) or type(error).__name__)}") from None
