"""The transport: a server, its connections, and what programs ask of it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Sequence

from thalweg.capabilities import Log
from thalweg.channel import Capability, Channel, Limits, TopicInfo, TopicSpec
from thalweg.errors import BrokerError, ConfigurationError, MissingCapability
from thalweg.keeper import Keeper
from thalweg.url import Url

from .connection import Connection, Refused, no_streams
from .delays import Delays
from .exclusive import ExclusiveQueues
from .group_channel import GroupChannel, Means
from .locks import Lock, Locks
from .logs import Logs, LogSettings
from .names import Names
from .options import RabbitOptions, endpoint_of
from .peers import Peers
from .place import Place
from .registry import Registry, Topic
from .tail import Tail
from .topology import (
    create_log,
    create_queue,
    create_stream,
    exists,
    group_queue,
    stream_of,
)
from .wire import HEADER_BYTES
from .work_queue import RabbitQueue

__all__ = ["RabbitOptions", "RabbitTransport"]


_NUMBERS = {"x-max-length-bytes": 1_000_000, "x-stream-max-segment-size-bytes": 500_000}
"""The offset of an entry is a number larger than all before; the entry itself may go."""

_NO_STREAMS = (
    "this server has no streams (RabbitMQ 3.9 or newer; rabbitmqctl enable_feature_flag stream_queue): it has queues "
    "only, all consumer groups of a queue are one, and only what this program declares is listed"
)

_QUEUE_OPTIONS = frozenset({"dead_letter", "type"})
_EXISTING_OPTIONS = frozenset({"exchange", "queue", "routing_key"})
_STREAM_OPTIONS = frozenset({"stream"})


class RabbitTransport:
    """Satisfies Transport, Locks and Peers; channels of queues are `WorkQueue`s.

    Options of a queue: `type`, quorum or classic; `dead_letter`, the queue to which its rejected messages go; and all
    arguments of RabbitMQ that begin with `x-`. With `declare=False`: `queue`, where messages are read (else the name
    itself), and `exchange` and `routing_key`, where they are put (else straight to the queue).
    """

    def __init__(self, url: Url, options: RabbitOptions | None = None) -> None:
        self._options = options or RabbitOptions()
        self._endpoint = endpoint_of(url, self._options)
        self._names = Names(self._options.prefix)
        self._existing: dict[str, Topic] = {}
        self._places: dict[tuple[str, str], asyncio.Task[Place]] = {}
        self._open_channels: list[RabbitQueue | GroupChannel] = []
        self._version = ""
        self._opened = False
        self._closing: asyncio.Task[None] | None = None

    @classmethod
    def from_url(cls, url: Url) -> RabbitTransport:
        return cls(url, url.options(RabbitOptions))

    @property
    def capabilities(self) -> frozenset[Capability]:
        found = {
            *(Capability.LOCKS, Capability.PEERS),
            *(Capability.WORK_QUEUE, Capability.DELAY, Capability.EXPIRY),
        }
        if not (self._opened and self._registry.alone):
            found.add(Capability.LOG)
        if self._options.queues == "classic":
            found.add(Capability.PRIORITY)
        return frozenset(found)

    @property
    def limits(self) -> Limits:
        return Limits(self._options.message_bytes, head_bytes=HEADER_BYTES // 2)

    @property
    def description(self) -> str:
        way = ""
        if self._opened:
            way = ", without streams" if self._registry.alone else f", streams by {self._logs.way.name}"
        return f"{self._version or 'RabbitMQ'}, {self._endpoint.place}{way}"

    @property
    def warnings(self) -> Sequence[str]:
        if not self._opened:
            return []
        found = [_NO_STREAMS] if self._registry.alone else list(self._logs.warnings)
        if self._options.queues == "classic":
            found.append(
                "queues=classic: a queue lies on one node of the server only, and is away or lost with it; leave it "
                "out for quorum queues, unless you need priorities"
            )
        return found

    async def open(self) -> None:
        if self._opened:
            return
        if self._closing is not None:
            await asyncio.wait([self._closing])
        self._places.clear()
        self._connection = Connection(self._endpoint, "writing")
        # Apart, as an alarm of the server stops a connection that writes, and reading is what may end the alarm.
        self._reading = Connection(self._endpoint, "reading")
        # And apart from both: while a queue has no leader, the server holds up all that goes by the same connection.
        self._queue_writing = Connection(self._endpoint, "writing queues")
        self._queue_reading = Connection(self._endpoint, "reading queues")
        self._registry = Registry(self._connection, self._names)
        self._delays = Delays(self._connection, self._names)
        options = self._options
        port = options.stream_port or (5551 if self._endpoint.tls else 5552)
        settings = LogSettings(options.streams, port, options.message_bytes, options.roll_bytes)
        self._logs = Logs(self._endpoint, self._names, self._reading, self._connection, settings)
        self._numbers = Tail(
            self._connection, self._names.own("numbers"), "the numbers of locks", _nothing, "next", _NUMBERS
        )
        queues = ExclusiveQueues(self._endpoint)
        self._keeper = Keeper("rabbitmq keeper", queues, options.stuck)
        self._locks = Locks(self._keeper, queues, self._names, self._number)
        self._peers = Peers(self._keeper, queues.connection, self._names)
        try:
            link = await self._connection.link()
            properties = getattr(link, "server_properties", {})
            self._version = f"{properties.get('product', 'RabbitMQ')} {properties.get('version', '')}".strip()
            try:
                await self._registry.read()
            except BrokerError as error:
                self._registry.alone = no_streams(str(error))
                if not (self._registry.alone or isinstance(error, Refused)):  # whoever needs it will hear why
                    raise
            if not self._registry.alone:
                await self._logs.open()
        except BaseException:
            await self._close()
            raise
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
        if self._places:
            await asyncio.wait(self._places.values())
        await self._logs.close()
        await asyncio.gather(self._locks.close(), self._peers.close())
        await self._keeper.close()
        await self._registry.close()
        await self._numbers.close()
        connections = (self._queue_writing, self._queue_reading, self._reading, self._connection)
        await asyncio.gather(*(connection.close() for connection in connections))

    async def declare(self, topics: Sequence[TopicSpec]) -> Sequence[TopicInfo]:
        self._use()
        existing: dict[str, Topic] = {}
        for spec in topics:  # before anything is made
            if not spec.declare:
                existing[spec.name] = await self._find_existing(spec)
            self._check(spec, existing.get(spec.name) or self._registry.topics.get(spec.name))
        found: list[TopicInfo] = []
        for spec in topics:
            topic = existing.get(spec.name) or await self._create(spec)
            found.append(TopicInfo(topic.name, topic.partitions, topic.queue))
        return found

    async def _create(self, spec: TopicSpec) -> Topic:
        partitions = 1 if spec.queue else spec.partitions or spec.default_partitions
        kind = spec.options.get("type", self._options.queues) if spec.queue else "stream"
        if self._registry.alone and not spec.queue:
            raise MissingCapability(
                f"topic {spec.name!r} needs the capability 'log', which {self.description} does not offer: topics lie "
                "in streams (RabbitMQ 3.9 or newer; rabbitmqctl enable_feature_flag stream_queue)"
            )
        topic = await self._registry.declare(
            Topic(spec.name, partitions, spec.queue, kind, spec.retention, dict(spec.options), spec.truncated)
        )
        self._check(spec, topic)
        if not topic.queue:
            await create_log(self._connection, self._names, topic)
            return topic
        if letters := topic.options.get("dead_letter"):
            await self.declare([TopicSpec(letters, queue=True)])
        await create_queue(self._connection, self._names, topic)
        return topic

    async def _find_existing(self, spec: TopicSpec) -> Topic:
        """What others have made: nothing is created. A topic of this driver's, or any queue or exchange."""
        own = None
        with contextlib.suppress(Refused):
            own = await self._registry.find(spec.name)
        if own is not None:
            return own
        if not spec.queue:
            return await self._find_streams(spec)
        topic = Topic(spec.name, 1, True, "existing", None, dict(spec.options))
        queue, exchange = topic.options.get("queue", spec.name), topic.options.get("exchange", "")
        if exchange and not await exists(self._connection, exchange=exchange):
            raise spec.absent(f"{self._place} (exchange {exchange!r})")
        if ("queue" in topic.options or not exchange) and not await exists(self._connection, queue=queue):
            raise spec.absent(f"{self._place} (queue {queue!r})")
        self._existing[spec.name] = topic
        return topic

    async def _find_streams(self, spec: TopicSpec) -> Topic:
        topic = Topic(spec.name, spec.partitions or 1, False, "existing", None, dict(spec.options))
        if topic.partitions > 1 and "{partition}" not in topic.options.get("stream", ""):
            raise ConfigurationError(
                f"topic {spec.name!r} has {topic.partitions} partitions: say which stream is which by "
                'options={"stream": "…{partition}…"}'
            )
        for number in range(topic.partitions):
            stream = stream_of(self._names, topic, number)
            if not await exists(self._connection, queue=stream):
                raise spec.absent(f"{self._place} (stream {stream!r})")
            await create_stream(self._connection, stream, Topic(spec.name, 1))  # it is there: is it a stream?
        self._existing[spec.name] = topic
        return topic

    def _check(self, spec: TopicSpec, topic: Topic | None) -> None:
        if spec.queue:
            allowed = _QUEUE_OPTIONS if spec.declare else _EXISTING_OPTIONS
        else:
            allowed = frozenset[str]() if spec.declare else _STREAM_OPTIONS
        unknown = [name for name in spec.options if name not in allowed and not name.startswith("x-")]
        if unknown:
            raise ConfigurationError(
                f"{spec.name!r}: amqp:// has no option {min(unknown)!r} for it; it has: "
                f"{', '.join(sorted(allowed)) or 'none'}, and what RabbitMQ calls x-…"
            )
        if spec.options.get("type", "quorum") not in ("quorum", "classic"):
            raise ConfigurationError(f"{spec.name!r}: option type={spec.options['type']!r}; expected quorum or classic")
        if topic is not None:
            spec.check(topic.queue, topic.partitions, f"RabbitMQ at {self._endpoint.place}")

    async def topics(self) -> Sequence[TopicInfo]:
        self._use()
        await self._registry.sync()
        found = sorted(self._registry.topics.values(), key=lambda topic: topic.name)
        return [TopicInfo(topic.name, topic.partitions, topic.queue) for topic in found]

    async def channel(self, topic: str, group: str) -> Channel:
        found = await self._topic(topic)
        channel: RabbitQueue | GroupChannel
        if not found.queue:
            means = Means(self._connection, self._names, self.try_lock, self.peers, self._options.lease)
            channel = GroupChannel(means, self._logs.log(found), topic, found.partitions, group)
            self._open_channels = [known for known in self._open_channels if not known.closed] + [channel]
            return channel
        place = await self._place_of(found, group)
        options = self._options
        channel = RabbitQueue(
            self._queue_writing, self._queue_reading, self._delays, place, options.lease, options.message_bytes
        )
        self._open_channels = [known for known in self._open_channels if not known.closed] + [channel]
        return channel

    async def log(self, topic: str) -> Log:
        return self._logs.log(await self._log_topic(topic))

    async def _place_of(self, topic: Topic, group: str) -> Place:
        name = topic.name
        if topic.kind == "existing":
            queue, exchange = topic.options.get("queue", name), topic.options.get("exchange", "")
            key = topic.options.get("routing_key", "" if exchange else queue)
            return Place(name, "existing", exchange, key, queue, "", self._names.address(queue))
        known = self._places.get((name, group))
        if known is None:
            known = self._places[name, group] = asyncio.get_running_loop().create_task(self._make_place(topic, group))
        try:
            return await asyncio.shield(known)
        except BrokerError:
            self._places.pop((name, group), None)
            raise

    async def _make_place(self, topic: Topic, group: str) -> Place:
        names, name = self._names, topic.name
        groups = await self._registry.groups(name, group)
        queue = await group_queue(self._connection, names, topic, None if groups[0] == group else group)
        exchange, letters = names.topic(name), topic.options.get("dead_letter", "")
        return Place(
            name,
            topic.kind,
            exchange,
            "",
            queue,
            names.address(f"exchange {exchange}"),
            names.address(queue),
            names.topic(letters) if letters else "",
        )

    async def try_lock(self, name: str, lease: float) -> Lock | None:
        self._use()
        return await self._locks.try_lock(name, lease)

    def peers(self, group: str, me: str, lease: float) -> AsyncGenerator[frozenset[str], None]:
        self._use()
        return self._peers.peers(group, me, lease)

    async def _number(self) -> int:
        return time.time_ns() if self._registry.alone else await self._numbers.append(b"")

    async def _topic(self, name: str) -> Topic:
        self._use()
        topic = self._existing.get(name) or await self._registry.find(name)
        if topic is None:
            raise BrokerError(f"{self._place} has no topic or queue {name!r}; declare it first")
        return topic

    async def _log_topic(self, name: str) -> Topic:
        topic = await self._topic(name)
        if topic.queue:
            raise BrokerError(f"{name!r} is a queue: it is no log, and is written by its channels' put")
        return topic

    @property
    def _place(self) -> str:
        return f"RabbitMQ at {self._endpoint.place}"

    def _use(self) -> Connection:
        if not self._opened:
            raise BrokerError(f"{self._place}: the transport is not open; call open() first")
        return self._connection


def _nothing(offset: int, body: bytes) -> None:
    """Nobody reads it."""
