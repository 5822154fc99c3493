"""The transport: a server or cluster, its connection, and what programs ask of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence

import msgspec
from thalweg.capabilities import Claim, Commit, Held, Log
from thalweg.channel import Capability, Channel, Limits, TopicInfo, TopicSpec
from thalweg.errors import BrokerError, MissingCapability
from thalweg.message import Message, Position
from thalweg.url import Url

from .connection import Connection
from .done import DoneNotes
from .fencing import NatsFencing
from .floors import Floors
from .group import NatsChannel
from .leases import Leases
from .log import NatsLog
from .options import NatsOptions, endpoint_of, warnings_of
from .publish import BATCH
from .queue import NatsQueue
from .records import HEAD_BYTES
from .streams import Streams
from .topics import Topics

__all__ = ["NatsTransport"]

_CAPABILITIES = frozenset(
    {
        Capability.LOG,
        Capability.LOCKS,
        Capability.PEERS,
        Capability.WORK_QUEUE,
        Capability.DELAY,
        Capability.EXPIRY,
    }
)

_HEADER_ROOM = 4096
"""Bytes of the server's max_payload kept for what is not key, value or header."""


class NatsTransport:
    """Satisfies Transport, Logs, Locks, Peers and Fencing; channels of queues are `WorkQueue`s.

    Topic options: `stream` and `subject` name a stream that belongs to others, with declare=False. A queue's
    `dead_letter` names the queue to which its rejected messages go.
    """

    def __init__(self, url: Url, options: NatsOptions | None = None) -> None:
        self._options = options or NatsOptions()
        self._endpoint = endpoint_of(url, self._options)
        self._open_channels: list[NatsQueue | NatsChannel] = []
        self._version = ""
        self._warnings: list[str] = []
        self._fenced = False
        self._message_bytes = self._options.message_bytes or 1 << 20
        self._opened = False
        self._closing: asyncio.Task[None] | None = None

    @classmethod
    def from_url(cls, url: Url) -> NatsTransport:
        return cls(url, url.options(NatsOptions))

    @property
    def capabilities(self) -> frozenset[Capability]:
        return _CAPABILITIES | {Capability.FENCING} if self._fenced else _CAPABILITIES

    @property
    def limits(self) -> Limits:
        return Limits(self._message_bytes, BATCH if self._fenced else None, head_bytes=HEAD_BYTES)

    @property
    def description(self) -> str:
        return f"NATS {self._version}, {self._endpoint.place}" if self._version else f"NATS, {self._endpoint.place}"

    @property
    def warnings(self) -> Sequence[str]:
        return self._warnings

    # --- opening and closing ---------------------------------------------------------------------------------

    async def open(self) -> None:
        if self._opened:
            return
        if self._closing is not None:
            await asyncio.wait([self._closing])
        options = self._options
        connection = self._connection = Connection(self._endpoint)
        self._streams = Streams(connection, options.prefix, options.replicas)
        try:
            await self._meet()
        except BaseException:
            await connection.close()
            raise
        self._floors = Floors(connection, options.prefix, options.prefix)
        self._leases = Leases(connection, self._streams, options.stuck)
        self._topics = Topics(connection, self._streams, options.lease)
        self._fencing = NatsFencing(connection, self._topics, options.prefix, self._message_bytes)
        self._opened = True
        self._closing = None

    async def close(self) -> None:
        if self._opened:
            self._opened = False
            self._closing = asyncio.get_running_loop().create_task(self._close())
        if self._closing is not None:
            await asyncio.shield(self._closing)

    async def _close(self) -> None:
        await asyncio.gather(*(channel.close() for channel in self._open_channels))
        self._open_channels.clear()
        await self._leases.close()
        await self._connection.close()

    async def _meet(self) -> None:
        """Learn what the server is and how safely it keeps things."""
        connection, streams, options = self._connection, self._streams, self._options
        await connection.wire()
        self._version = connection.info.version
        version = tuple(int(part) for part in self._version.split("-")[0].split(".")[:2])
        if version < (2, 11):
            raise BrokerError(f"{self.description}: NATS 2.11 or newer is needed (2.12 for exactly-once outputs)")
        await connection.api("INFO", msgspec.Raw)  # says why there is no JetStream
        able = version >= (2, 12) and options.fencing
        config = await streams.config(options.prefix)
        if config is not None and able and not config.allow_atomic:
            config = await streams.allow_batches()
        self._fenced = streams.atomic = able and (config is None or config.allow_atomic)
        room = max(1, connection.info.max_payload - _HEADER_ROOM)
        self._message_bytes = min(options.message_bytes or room, room)
        self._warnings = warnings_of(config, options, version, self._fenced)

    # --- topics ----------------------------------------------------------------------------------------------

    async def declare(self, topics: Sequence[TopicSpec]) -> Sequence[TopicInfo]:
        self._use()
        return await self._topics.declare(topics)

    async def topics(self) -> Sequence[TopicInfo]:
        self._use()
        return await self._topics.all()

    async def channel(self, topic: str, group: str) -> Channel:
        connection = self._use()
        found = await self._topics.get(topic)
        channel: NatsQueue | NatsChannel
        if found.queue:
            notes = DoneNotes(connection, self._streams, topic, group)
            lease, atomic = self._options.lease, self._fenced
            channel = NatsQueue(connection, self._topics, found, group, lease, self._message_bytes, atomic, notes)
            await channel.join()
        else:
            await self._streams.make_main()  # what a group has done is noted there, also of a topic of others
            log = NatsLog(connection, found, self._floors, self._message_bytes, self._fenced)
            prefix, lease = self._options.prefix, self._options.lease
            channel = NatsChannel(connection, self._leases, self._floors, log, found, group, lease, prefix)
        self._open_channels = [known for known in self._open_channels if not known.closed] + [channel]
        return channel

    async def log(self, topic: str) -> Log:
        connection = self._use()
        found = await self._topics.log(topic)
        return NatsLog(connection, found, self._floors, self._message_bytes, self._fenced)

    # --- locks, peers, fencing -------------------------------------------------------------------------------

    async def try_lock(self, name: str, lease: float) -> Held | None:
        self._use()
        return await self._leases.try_lock(name, lease)

    def peers(self, group: str, me: str, lease: float) -> AsyncGenerator[frozenset[str], None]:
        self._use()
        return self._leases.peers(group, me, lease)

    async def claim(self, topic: str, partition: int, marker: Message) -> Claim:
        self._use_fencing()
        return await self._fencing.claim(topic, partition, marker)

    async def commit(self, commits: Mapping[Claim, Commit]) -> Mapping[Claim, Sequence[Position]]:
        self._use_fencing()
        return await self._fencing.commit(commits)

    def _use_fencing(self) -> None:
        self._use()
        if not self._fenced:
            raise MissingCapability(
                f"{self.description} has no atomic batches (NATS 2.12 or newer, and not ?fencing=false): nothing can "
                "be fenced"
            )

    def _use(self) -> Connection:
        if not self._opened:
            raise BrokerError(f"NATS at {self._endpoint.place}: the transport is not open; call open() first")
        return self._connection
