"""The transport: a cluster, and what programs ask of it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from thalweg.channel import Capability, Channel, Limits, TopicInfo, TopicSpec
from thalweg.errors import BrokerError, ConfigurationError
from thalweg.url import Url

from .connection import Cluster, Endpoint
from .names import check_prefix
from .topics import OVERHEAD, Topic, Topics, broker_settings

__all__ = ["KafkaOptions", "KafkaTransport"]


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
    lease: seconds after which a member of a group that hangs loses what it has (Kafka's session time-out).
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
    sasl: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    client_id: str = "thalweg"
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_verify: bool = True


class KafkaTransport:
    """Satisfies Transport. Topic options are Kafka's own topic settings, by name."""

    def __init__(self, url: Url, options: KafkaOptions | None = None) -> None:
        self._options = options or KafkaOptions()
        check_prefix(self._options.prefix)
        self._endpoint = _endpoint(url, self._options)
        self._version = ""
        self._warnings: list[str] = []
        self._message_bytes = 0
        self._opened = False
        self._closing: asyncio.Task[None] | None = None

    @classmethod
    def from_url(cls, url: Url) -> KafkaTransport:
        return cls(url, url.options(KafkaOptions))

    @property
    def capabilities(self) -> frozenset[Capability]:
        return frozenset()

    @property
    def limits(self) -> Limits:
        return Limits(message_bytes=self._message_bytes)

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
        self._cluster = Cluster(self._endpoint)
        self._warnings = []
        try:
            await self._cluster.open()
            await self._meet()
        except BaseException:
            await self._cluster.close()
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
        if len(cluster.brokers) == 1:
            self._warnings.append(
                "one broker, so replication factor 1: what it acknowledged is lost with its disk, and what the "
                "operating system had not yet written, with its power; run three brokers"
            )
        if settings.get("unclean.leader.election.enable") == "true":
            self._warnings.append(
                "unclean.leader.election.enable=true: a replica that lacks acknowledged messages may become "
                "the leader, and they are lost; set it to false"
            )

    async def declare(self, topics: Sequence[TopicSpec]) -> Sequence[TopicInfo]:
        self._use()
        return [topic.info for topic in await self._topics.declare(topics)]

    async def topics(self) -> Sequence[TopicInfo]:
        self._use()
        return await self._topics.all()

    async def channel(self, topic: str, group: str) -> Channel:
        self._use()
        await self._topics.get(topic)
        raise NotImplementedError

    async def _log_topic(self, name: str) -> Topic:
        self._use()
        topic = await self._topics.get(name)
        if topic.queue:
            raise BrokerError(f"{name!r} is a queue: it is no log, and is written by its channels' put")
        return topic

    def _use(self) -> Cluster:
        if not self._opened:
            raise BrokerError(f"Kafka at {self._endpoint.place}: the transport is not open; call open() first")
        return self._cluster


def _endpoint(url: Url, options: KafkaOptions) -> Endpoint:
    if url.path.strip("/"):
        raise ConfigurationError(f"{url}: a {url.scheme}:// URL has no path")
    if url.password is not None and not url.username:
        raise ConfigurationError(f"{url}: a password needs a user: {url.scheme}://user:password@host")
    context: ssl.SSLContext | None = None
    if url.scheme == "kafkas":
        try:
            context = ssl.create_default_context(cafile=options.tls_ca)
            if options.tls_cert is not None:
                context.load_cert_chain(options.tls_cert, options.tls_key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(f"{url}: its TLS files cannot be used: {error}") from None
        if not options.tls_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
    elif options.tls_ca or options.tls_cert:
        raise ConfigurationError(f"{url}: TLS options need the scheme kafkas://")
    sasl = options.sasl if url.username else ""
    return Endpoint(url, url.addresses(9092), options.client_id, context, sasl, options.timeout)


def _version(versions: dict[int, tuple[int, int]]) -> str:
    """Brokers do not tell; the newest form of their requests does."""
    produce = versions.get(0, (0, 0))[1]
    return "4.1 or newer" if produce > 12 else "4.0" if produce == 12 else "before 4.0"
