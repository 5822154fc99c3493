"""The transport: a cluster, and what programs ask of it."""

from __future__ import annotations

import asyncio
import math
import weakref
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Annotated, Literal

import msgspec
from aiokafka import codec
from thalweg.capabilities import Claim, Commit, Log, Part, Role
from thalweg.channel import Capability, Limits, TopicInfo, TopicSpec
from thalweg.errors import BrokerError, ConfigurationError, MissingCapability
from thalweg.message import Message, Position
from thalweg.pulse import STUCK, Stuck
from thalweg.tls import tls_context
from thalweg.url import Url

from .appending import Appender
from .channel import KafkaChannel, Means
from .connection import Cluster, Denied, Endpoint
from .fencing import Fencer
from .group import Sessions, TaskGroups
from .log import KafkaLog
from .member import Quarters
from .names import check_prefix
from .queue import KafkaQueue
from .topics import OVERHEAD, Topic, Topics, broker_settings

__all__ = ["KafkaOptions", "KafkaTransport"]


_TRANSACTION_TIMEOUT = 10.0
"""Seconds after which the broker aborts what a process that died left open: until then nobody reads past it."""


class KafkaOptions(msgspec.Struct, frozen=True):
    """Query options of the URL.

    prefix: goes before the name of every topic, queue, group and transactional id; letters, digits, `.`, `_`, `-`.
    timeout: seconds to connect, to wait for an answer, and until a write that gets none counts as unknown.
    message_bytes: largest message (key, value and headers); at most what the broker takes.
    replication: copies of each topic that is created (default: three where there are as many brokers, two of them in
    sync; else what the broker says).
    linger: seconds that a write waits for others to go with it.
    compression: none, gzip, snappy, lz4 or zstd.
    fencing: false takes no transactions: journals are read back instead, outputs go through an outbox.
    lease: of a queue: seconds after which a delivery comes back, unless extended.
    stuck: seconds after which a member whose event loop gives no sign of life leaves; a shorter block costs nothing.
    sasl: how user and password are shown to the broker: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512.
    client_id: what the broker's logs and quotas know this program by.
    tls_ca, tls_cert, tls_key: files, for kafkas://. tls_verify=false accepts any certificate.
    """

    prefix: str = ""
    timeout: Annotated[float, msgspec.Meta(ge=0.1, le=3600)] = 10.0
    message_bytes: Annotated[int, msgspec.Meta(ge=1, le=1 << 30)] | None = None
    replication: Annotated[int, msgspec.Meta(ge=1, le=100)] | None = None
    linger: Annotated[float, msgspec.Meta(ge=0, le=10)] = 0.0
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = "none"
    fencing: bool = True
    lease: Annotated[float, msgspec.Meta(ge=0.5, le=1800)] = 30.0
    stuck: Stuck = STUCK
    sasl: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    client_id: str = "thalweg"
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_verify: bool = True


_SESSION = 10.0
"""Seconds, at most, until a member of a channel's group that hangs or died is missed, unless the topic's spec has a
lease. Not what its deliveries take: it is heard of by a thread beside them."""

_OFFERED = frozenset({Capability.LOG, Capability.GROUPED, Capability.WORK_QUEUE, Capability.DELAY, Capability.EXPIRY})


class KafkaTransport:
    """Satisfies Transport, Logs, Grouped and, unless the cluster denies transactions, Fencing.

    Topic options are Kafka's own topic settings, by name. Beside those, a queue takes "dead_letter", the name of the
    queue to which `reject` moves its messages (known to those who declare it so), and "partitions": as many members can
    work at once.
    """

    cluster_type = Cluster

    def __init__(self, url: Url, options: KafkaOptions | None = None) -> None:
        self._options = options or KafkaOptions()
        check_prefix(self._options.prefix)
        if not getattr(codec, f"has_{self._options.compression}", lambda: True)():
            raise ConfigurationError(
                f"compression={self._options.compression}: what it takes is not installed: "
                'pip install "thalweg[kafka]", or choose gzip'
            )
        self._endpoint = _endpoint(url, self._options)
        self._version = ""
        self._warnings: list[str] = []
        self._message_bytes = 0
        self._sessions = Sessions()
        self._capabilities: frozenset[Capability] = frozenset()
        self._dead_letters: dict[str, str] = {}
        self._leases: dict[str, float] = {}
        self._swept: set[str] = set()
        self._opened = False
        self._closing: asyncio.Task[None] | None = None

    @classmethod
    def from_url(cls, url: Url) -> KafkaTransport:
        return cls(url, url.options(KafkaOptions))

    @property
    def capabilities(self) -> frozenset[Capability]:
        return self._capabilities

    @property
    def limits(self) -> Limits:
        return Limits(message_bytes=self._message_bytes, lease=self._sessions.shortest)

    @property
    def description(self) -> str:
        return f"Kafka {self._version}{', ' if self._version else ''}{self._endpoint.place}"

    @property
    def warnings(self) -> Sequence[str]:
        return self._warnings

    async def open(self) -> None:
        if self._opened:
            return
        if self._closing is not None:
            await asyncio.wait([self._closing])
        self._cluster = self.cluster_type(self._endpoint)
        self._appender = Appender(self._cluster, self._options.compression, self._options.linger)
        self._logs: weakref.WeakSet[KafkaLog] = weakref.WeakSet()
        self._channels: weakref.WeakSet[KafkaChannel] = weakref.WeakSet()
        self._warnings = []
        try:
            await self._cluster.open()
            await self._meet()
        except BaseException:
            await self._cluster.close()
            raise
        self._quarters = Quarters(self.cluster_type(self._endpoint), self._options.stuck)
        self._task_groups = TaskGroups(self._quarters, self._options.prefix, self._sessions)
        self._opened = True
        self._closing = None

    async def close(self) -> None:
        if self._opened:
            self._opened = False
            self._closing = asyncio.get_running_loop().create_task(self._close())
        if self._closing is not None:
            await asyncio.shield(self._closing)

    async def _close(self) -> None:
        await asyncio.gather(self._task_groups.close(), *(channel.close() for channel in list(self._channels)))
        await self._quarters.close()
        if self._fencer is not None:
            await self._fencer.close()
        await self._appender.close()
        await asyncio.gather(*(log.close() for log in list(self._logs)))
        await self._cluster.close()

    async def _meet(self) -> None:
        """Learn what the cluster is and how safely it keeps things."""
        cluster, options = self._cluster, self._options
        self._version = _version(cluster.versions)
        settings = await broker_settings(cluster)
        limit = int(settings.get("message.max.bytes", 1048588)) - OVERHEAD
        self._message_bytes = min(options.message_bytes or limit, limit)
        self._topics = Topics(cluster, options.prefix, options.replication, options.message_bytes, self._warnings)
        self._topics.default_replication = int(settings.get("default.replication.factor", 1))
        await self._meet_transactions(settings)
        self._capabilities = _OFFERED | ({Capability.FENCING} if self._fencer else set())
        self._sessions = sessions = Sessions(
            int(settings.get("group.min.session.timeout.ms", 0)) / 1000,
            int(settings.get("group.max.session.timeout.ms", 0)) / 1000 or math.inf,
        )
        if options.lease < sessions.shortest:
            self._warnings.append(
                f"lease={options.lease:g} is below group.min.session.timeout.ms: a member that hangs keeps what it has "
                f"for {sessions.shortest:g} s; lower that setting of the brokers if this is too long"
            )
        if len(cluster.brokers) == 1:
            self._warnings.append(
                "one broker, so replication factor 1: what it acknowledged is lost with its disk, and what the "
                "operating system had not yet written, with its power; run three brokers"
            )
        if self._endpoint.sasl == "PLAIN" and self._endpoint.tls is None:
            self._warnings.append(
                "the password crosses the network as it is: use kafkas://, or SCRAM by ?sasl=SCRAM-SHA-512"
            )
        if settings.get("unclean.leader.election.enable") == "true":
            self._warnings.append(
                "unclean.leader.election.enable=true: a replica that lacks acknowledged messages may become "
                "the leader, and they are lost; set it to false"
            )

    async def _meet_transactions(self, settings: Mapping[str, str]) -> None:
        options = self._options
        self._fencer: Fencer | None = None
        if not options.fencing:
            return
        most = int(settings.get("transaction.max.timeout.ms", 900_000)) / 1000
        timeout = min(_TRANSACTION_TIMEOUT, most)
        fencer = Fencer(self._cluster, self._topics, options.prefix, options.compression, timeout)
        try:
            await fencer.probe()
        except Denied as error:
            self._warnings.append(
                f"no transactions, so journals are read back and outputs go through an outbox: {error}; they need the "
                f"right to write as a transactional id that begins with {options.prefix + 'thalweg-'!r}"
            )
        except BrokerError as error:  # to go on without them now would let old owners commit that have them
            raise BrokerError(
                f"{error}; transactions need as many brokers as transaction.state.log.replication.factor says, "
                "and ?fencing=false takes none (on all workers alike)"
            ) from None
        else:
            self._fencer = fencer

    async def declare(self, topics: Sequence[TopicSpec]) -> Sequence[TopicInfo]:
        self._use()
        buried = {
            spec.name: spec.options["dead_letter"] for spec in topics if spec.queue and "dead_letter" in spec.options
        }
        declared = await self._topics.declare([*topics, *(TopicSpec(name, queue=True) for name in buried.values())])
        self._dead_letters.update(buried)
        self._leases.update((spec.name, spec.lease) for spec in topics if spec.lease is not None)
        self._swept |= {spec.name for spec in topics if spec.queue and spec.declare}
        return [topic.info for topic in declared[: len(topics)]]

    async def claim(self, topic: str, partition: int, marker: Message) -> Claim:
        fencer = self._use_fencer()
        return await fencer.claim(await self._topics.log(topic), partition, marker)

    async def commit(self, commits: Mapping[Claim, Commit]) -> Mapping[Claim, Sequence[Position]]:
        return await self._use_fencer().commit(commits)

    async def topics(self) -> Sequence[TopicInfo]:
        self._use()
        return await self._topics.all()

    async def channel(self, topic: str, group: str) -> KafkaChannel:
        self._use()
        found = await self._topics.get(topic)
        lease, place = self._options.lease, (found, f"{found.kafka}/{group}")
        session = self._sessions.of(self._leases.get(topic, min(lease, _SESSION)), place[1])
        means = Means(self._cluster, self._quarters, self.open_log(found), *place, lease, session)
        if not found.queue:
            channel = KafkaChannel(means)
        else:
            dead_letters = self._dead_letters.get(topic)
            letters = None if dead_letters is None else await self.channel(dead_letters, "")
            channel = KafkaQueue(means, letters, sweeps=topic in self._swept)
        self._channels.add(channel)
        return channel

    def tasks(
        self, group: str, n: int, me: str, lease: float, role: Role | None = None
    ) -> AsyncGenerator[frozenset[int], None]:
        self._use()
        return self._task_groups.tasks(group, n, me, lease, role or Role())

    def part(self, group: str, me: str) -> Part | None:
        return self._task_groups.part(group, me) if self._opened else None

    def holds(self, group: str, me: str) -> bool:
        return self._opened and self._task_groups.holds(group, me)

    async def log(self, topic: str) -> Log:
        self._use()
        return self.open_log(await self._topics.log(topic))

    def open_log(self, topic: Topic) -> KafkaLog:
        log = KafkaLog(self._use(), self._appender, topic)
        self._logs.add(log)
        return log

    def _use_fencer(self) -> Fencer:
        self._use()
        if self._fencer is None:
            raise MissingCapability(f"{self.description} offers no fencing here: see the warnings, or ?fencing=")
        return self._fencer

    def _use(self) -> Cluster:
        if not self._opened:
            raise BrokerError(f"Kafka at {self._endpoint.place}: the transport is not open; call open() first")
        return self._cluster


def _endpoint(url: Url, options: KafkaOptions) -> Endpoint:
    if url.path.strip("/"):
        raise ConfigurationError(f"{url}: a {url.scheme}:// URL has no path")
    if url.password is not None and not url.username:
        raise ConfigurationError(f"{url}: a password needs a user: {url.scheme}://user:password@host")
    context = tls_context(url, "kafkas", options)
    sasl = options.sasl if url.username else ""
    return Endpoint(url, url.addresses(9092), options.client_id, context, sasl, options.timeout)


def _version(versions: dict[int, tuple[int, int]]) -> str:
    """Brokers do not tell; the newest form of their requests does."""
    produce = versions.get(0, (0, 0))[1]
    return "4.1 or newer" if produce > 12 else "4.0" if produce == 12 else "before 4.0"
