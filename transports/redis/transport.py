"""The transport: a server, its connections, and what programs ask of it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Annotated

import msgspec
from thalweg.capabilities import Claim, Commit, Held, Log
from thalweg.channel import Capability, Channel, Limits, TopicInfo, TopicSpec
from thalweg.errors import BrokerError, ConfigurationError, Fenced
from thalweg.message import Message, Position
from thalweg.pulse import STUCK, Stuck
from thalweg.tls import tls_context
from thalweg.url import Url

from . import scripts
from .channel import ChannelOptions, RedisChannel, RedisQueue
from .connection import Connection, Endpoint
from .leases import Leases
from .log import RedisLog, Topic
from .waker import Waker
from .wire import encode, pack, positions

__all__ = ["RedisOptions", "RedisTransport"]


class RedisOptions(msgspec.Struct, frozen=True):
    """Query options of the URL.

    prefix: goes before the name of every topic, queue, lock and group, so that several programs can share a database.
    database: number of the database; the path means the same (redis://host/3).
    socket: path of a Unix domain socket, instead of host and port.
    timeout: seconds to connect, and to wait for an answer.
    message_bytes: largest message (key, value and headers).
    replicas: how many replicas must have a write before it counts as done, for a server that fails over (0: none).
    lease: seconds after which a consumer that hangs loses its deliveries (of a queue: each delivery, unless extended).
    stuck: seconds without a sign of life from the event loop, after which it loses all that it holds.
    tls_ca, tls_cert, tls_key: files, for rediss://. tls_verify=false accepts any certificate.
    """

    prefix: str = ""
    database: Annotated[int, msgspec.Meta(ge=0)] | None = None
    socket: str | None = None
    timeout: Annotated[float, msgspec.Meta(ge=0.1, le=3600)] = 10.0
    message_bytes: Annotated[int, msgspec.Meta(ge=1, le=400 << 20)] = 16 << 20
    lease: Annotated[float, msgspec.Meta(ge=0.01, le=86400)] = 30.0
    stuck: Stuck = STUCK
    replicas: Annotated[int, msgspec.Meta(ge=0, le=10)] = 0
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_verify: bool = True


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


class _Declared(msgspec.Struct):
    """How a topic lies in the hash of topics, as JSON."""

    partitions: int
    queue: bool = False
    retention: float | None = None
    options: dict[str, str] = {}


class RedisClaim:
    """Ownership of a journal partition: good as long as `token` is what its fence holds."""

    def __init__(self, topic: Topic, partition: int, position: Position, token: bytes) -> None:
        self.topic = topic.name
        self.partition = partition
        self.position = position
        self.token = token
        self.log = topic


class RedisTransport:
    """Satisfies Transport, Logs, Locks, Peers and Fencing; channels of queues are `WorkQueue`s.

    The one topic option is a queue's `dead_letter`: the name of the queue to which its rejected messages go.
    """

    def __init__(self, url: Url, options: RedisOptions | None = None) -> None:
        self._options = options or RedisOptions()
        self._endpoint = _endpoint(url, self._options)
        self._topics: dict[str, Topic] = {}
        self._open_channels: list[RedisChannel] = []
        self._version = ""
        self._warnings: list[str] = []
        self._opened = False
        self._closing: asyncio.Task[None] | None = None

    @classmethod
    def from_url(cls, url: Url) -> RedisTransport:
        return cls(url, url.options(RedisOptions))

    @property
    def capabilities(self) -> frozenset[Capability]:
        return _CAPABILITIES

    @property
    def limits(self) -> Limits:
        return Limits(message_bytes=self._options.message_bytes)

    @property
    def description(self) -> str:
        return f"{self._version or 'Redis'}, {self._endpoint.place}"

    @property
    def warnings(self) -> Sequence[str]:
        return self._warnings

    async def open(self) -> None:
        if self._opened:
            return
        if self._closing is not None:
            await asyncio.wait([self._closing])
        self._topics.clear()
        self._connection = Connection(self._endpoint)
        try:
            await self._meet()
        except BaseException:
            await self._connection.close()
            raise
        self._waker = Waker(self._connection)
        self._leases = Leases(self._connection, self._waker, self._name, self._options.stuck)
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
        await self._waker.close()
        await self._connection.close()

    async def _meet(self) -> None:
        """Learn what the server is and how safely it keeps things."""
        connection = self._connection
        info = _parse(await connection.call(b"INFO"))
        number = info.get("redis_version", "0")
        product = "Valkey" if "valkey_version" in info else "Redis"
        self._version = f"{product} {info.get('valkey_version', number)}"
        if tuple(int(part) for part in number.split(".")[:2]) < (7, 0):
            raise BrokerError(f"{self.description}: Redis 7.0 or newer (or Valkey) is needed")
        if connection.cluster:
            self._version += " cluster"
        connection.waitaof = tuple(int(part) for part in number.split(".")[:2]) >= (7, 2)
        self._warnings = _warnings(info, await self._settings(), self._options.replicas)

    async def _settings(self) -> Mapping[str, str]:
        try:
            found = await self._connection.call(b"CONFIG", b"GET", b"append*")
        except BrokerError:  # hosted servers keep them to themselves
            return {}
        texts = [part.decode() for part in found]
        return dict(zip(texts[::2], texts[1::2], strict=True))

    async def declare(self, topics: Sequence[TopicSpec]) -> Sequence[TopicInfo]:
        key = self._name("topics")
        known = await self._declared(topics)
        missing = [spec for spec in topics if known[spec.name] is None]
        arguments: list[tuple[bytes | str | int, ...]] = []
        for spec in missing:
            unknown = spec.options.keys() - ({"dead_letter"} if spec.queue else set())
            if unknown:
                raise ConfigurationError(
                    f"{spec.name!r}: redis:// has no option {min(unknown)!r} for it; a queue has dead_letter"
                )
            partitions = 1 if spec.queue else spec.partitions or spec.default_partitions
            declared = _Declared(partitions, spec.queue, spec.retention, dict(spec.options))
            arguments.append((b"HSETNX", key, spec.name, msgspec.json.encode(declared)))
        if arguments:
            await self._use().calls(arguments)
            known = await self._declared(topics)
        infos: list[TopicInfo] = []
        for spec in topics:
            topic = known[spec.name]
            assert topic is not None
            self._topics[spec.name] = topic
            infos.append(TopicInfo(topic.name, topic.partitions, topic.queue))
        return infos

    async def _declared(self, specs: Sequence[TopicSpec]) -> dict[str, Topic | None]:
        """What exists of these. Raises `TopicMismatch`."""
        if not specs:
            return {}
        found = await self._use().call(b"HMGET", self._name("topics"), *(spec.name for spec in specs))
        topics: dict[str, Topic | None] = {}
        for spec, text in zip(specs, found, strict=True):
            topics[spec.name] = topic = None if text is None else self._read_topic(spec.name, text)
            if topic is None:
                if not spec.declare:
                    raise spec.absent(f"Redis at {self._endpoint.place}")
                continue
            spec.check(topic.queue, topic.partitions, f"Redis at {self._endpoint.place}")
        return topics

    async def topics(self) -> Sequence[TopicInfo]:
        found = await self._use().call(b"HGETALL", self._name("topics"))
        topics = [self._read_topic(n.decode(), text) for n, text in zip(found[::2], found[1::2], strict=True)]
        return [TopicInfo(t.name, t.partitions, t.queue) for t in sorted(topics, key=lambda topic: topic.name)]

    async def channel(self, topic: str, group: str) -> Channel:
        found = await self._topic(topic)
        options = ChannelOptions(self._options.message_bytes, self._options.lease)
        kind = RedisQueue if found.queue else RedisChannel
        channel = kind(self._use(), self._waker, self._leases, found, group, options)
        await channel.join()
        self._open_channels = [known for known in self._open_channels if not known.closed] + [channel]
        return channel

    async def log(self, topic: str) -> Log:
        found = await self._log_topic(topic)
        return RedisLog(self._use(), self._waker, found, self._options.message_bytes)

    async def try_lock(self, name: str, lease: float) -> Held | None:
        self._use()
        return await self._leases.try_lock(name, lease)

    def peers(self, group: str, me: str, lease: float) -> AsyncGenerator[frozenset[str], None]:
        self._use()
        return self._leases.peers(group, me, lease)

    async def claim(self, topic: str, partition: int, marker: Message) -> Claim:
        found = await self._log_topic(topic)
        keys = [found.fence(partition), found.stream(found.check(partition))]
        token = secrets.token_hex(16).encode()  # a counter could repeat: a server may lose its last writes
        batch = (1, *encode([marker], self._options.message_bytes, topic))
        position = pack(await self._use().write(scripts.CLAIM, keys, token, *batch))
        return RedisClaim(found, partition, position, token)

    async def commit(self, commits: Mapping[Claim, Commit]) -> Mapping[Claim, Sequence[Position]]:
        limit = self._options.message_bytes
        claims: list[RedisClaim] = []
        batches: dict[bytes, tuple[int, list[bytes | int]]] = {}
        journals: list[tuple[RedisClaim, bytes, int]] = []

        def add(stream: bytes, messages: Sequence[Message], name: str) -> None:
            count, arguments = batches.setdefault(stream, (0, []))
            arguments += encode(messages, limit, name)
            batches[stream] = count + len(messages), arguments

        for claim, commit in commits.items():
            if not isinstance(claim, RedisClaim):
                raise BrokerError(f"a claim of another transport cannot commit here: {claim!r}")
            claims.append(claim)
            journals.append((claim, claim.log.stream(claim.partition), len(commit.records)))
            if commit.records:
                add(claim.log.stream(claim.partition), commit.records, claim.topic)
        for commit in commits.values():
            for (name, partition), messages in commit.outputs.items():
                target = await self._log_topic(name)
                if messages:
                    add(target.stream(target.check(partition)), messages, name)
        keys = [*(claim.log.fence(claim.partition) for claim in claims), *batches]
        arguments: list[bytes | int] = [len(claims), *(claim.token for claim in claims)]
        for count, batch in batches.values():
            arguments += (count, *batch)
        ids = await self._use().write(scripts.COMMIT, keys, *arguments)
        if ids and ids[0] == b"FENCED":
            lost = frozenset((claims[index].topic, claims[index].partition) for index in ids[1:])
            names = ", ".join(f"{topic}[{partition}]" for topic, partition in sorted(lost))
            raise Fenced(f"a newer owner has claimed {names}; nothing was written", lost)
        order = {stream: index for index, stream in enumerate(batches)}
        found: dict[Claim, Sequence[Position]] = {}
        for claim, stream, count in journals:
            index = 2 * order.get(stream, 0)
            whole = positions(ids[index], ids[index + 1], batches[stream][0]) if count else []
            found[claim] = whole[:count]
        return found

    def _name(self, kind: str, name: str = "") -> bytes:
        return f"thalweg:{self._tag}{self._options.prefix}{kind}{f':{name}' if name else ''}".encode()

    @property
    def _tag(self) -> str:
        """On a cluster, all keys of a URL have this hash tag and lie in one slot, so that one script can reach them."""
        return self._endpoint.tag if self._connection.cluster else ""

    def _read_topic(self, name: str, text: bytes) -> Topic:
        declared = msgspec.json.decode(text, type=_Declared)
        dead_letter = declared.options.get("dead_letter", "")
        prefix = self._options.prefix
        return Topic(name, declared.partitions, declared.queue, prefix, declared.retention, dead_letter, self._tag)

    async def _topic(self, name: str) -> Topic:
        topic = self._topics.get(name)
        if topic is None:
            text = await self._use().call(b"HGET", self._name("topics"), name)
            if text is None:
                raise BrokerError(f"Redis at {self._endpoint.place} has no topic or queue {name!r}; declare it first")
            self._topics[name] = topic = self._read_topic(name, text)
        return topic

    async def _log_topic(self, name: str) -> Topic:
        topic = await self._topic(name)
        if topic.queue:
            raise BrokerError(f"{name!r} is a queue: it is no log, and is written by its channels' put")
        return topic

    def _use(self) -> Connection:
        if not self._opened:
            raise BrokerError(f"Redis at {self._endpoint.place}: the transport is not open; call open() first")
        return self._connection


def _endpoint(url: Url, options: RedisOptions) -> Endpoint:
    path = url.path.strip("/")
    if path and not path.isdigit():
        raise ConfigurationError(f"{url}: the path of a redis:// URL is the number of a database, as in redis://host/3")
    if path and options.database is not None and options.database != int(path):
        raise ConfigurationError(f"{url} names two databases: {path} as its path and {options.database} as an option")
    context = tls_context(url, "rediss", options)
    database = int(path) if path else options.database or 0
    tag = f"{{{options.prefix.translate({ord('{'): None, ord('}'): None}) or 'thalweg'}}}"
    addresses = url.addresses(6379)
    return Endpoint(url, addresses, options.socket, database, context, options.timeout, options.replicas, tag)


def _parse(info: bytes) -> Mapping[str, str]:
    lines = [line.partition(":") for line in info.decode(errors="replace").splitlines()]
    return {name: value for name, colon, value in lines if colon}


def _warnings(info: Mapping[str, str], settings: Mapping[str, str], replicas: int) -> list[str]:
    found: list[str] = []
    if info.get("aof_enabled") == "0":
        found.append(
            "appendonly=no: a crash of the server takes back what it had acknowledged since its last snapshot; set "
            "appendonly yes and appendfsync always"
        )
    elif settings.get("appendfsync", "always") != "always":
        found.append(
            f"appendfsync={settings['appendfsync']}: a crash of the server's machine takes back the last acknowledged "
            "writes (everysec: up to two seconds of them); set appendfsync always"
        )
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        found.append(
            f"maxmemory-policy={policy}: when memory is full Redis deletes keys, journals and messages among them; set "
            "maxmemory-policy noeviction"
        )
    connected = int(info.get("connected_slaves", "0"))
    if connected and not replicas:
        found.append(
            f"the server has {connected} replicas: a fail-over loses writes that were acknowledged but not yet copied, "
            "so nothing is exactly once after one; demand the copies by ?replicas=1"
        )
    elif connected < replicas:
        found.append(f"replicas={replicas}: only {connected} are connected, so that no write will count as done")
    return found
