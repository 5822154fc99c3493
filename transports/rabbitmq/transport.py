"""The transport: a server, its connections, and what programs ask of it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from thalweg.channel import Capability, Channel, Limits, TopicInfo, TopicSpec
from thalweg.errors import BrokerError, ConfigurationError, TopicMismatch
from thalweg.url import Url

from .connection import Connection, Endpoint
from .names import Names
from .registry import Registry, Topic
from .topology import create_log

__all__ = ["RabbitOptions", "RabbitTransport"]


class RabbitOptions(msgspec.Struct, frozen=True):
    """Query options of the URL.

    prefix: goes before the name of all that is made, so that several programs can share a virtual host.
    timeout: seconds to connect, and to wait for an answer.
    message_bytes: largest message (key, value and headers); the server's own max_message_size counts as well.
    lease: seconds after which a consumer that hangs loses its deliveries (of a queue: each delivery, unless extended).
    heartbeat: seconds after which a dead network is noticed, and of silence after which the server gives up a client.
    streams: how logs are read and written: amqp, rstream (the stream plug-in's own protocol), or auto, the faster one
    that answers. stream_port: of the plug-in.
    queues: what queues are made as: quorum (replicated), or classic, which alone have priorities.
    tls_ca, tls_cert, tls_key: files, for amqps://. tls_verify=false accepts any certificate.
    """

    prefix: str = ""
    timeout: Annotated[float, msgspec.Meta(ge=0.1, le=3600)] = 10.0
    message_bytes: Annotated[int, msgspec.Meta(ge=1, le=512 << 20)] = 16 << 20
    lease: Annotated[float, msgspec.Meta(ge=0.1, le=86400)] = 30.0
    heartbeat: Annotated[int, msgspec.Meta(ge=1, le=3600)] = 10
    streams: Literal["auto", "amqp", "rstream"] = "auto"
    stream_port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 5552
    queues: Literal["quorum", "classic"] = "quorum"
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_verify: bool = True


class RabbitTransport:
    """Satisfies Transport."""

    def __init__(self, url: Url, options: RabbitOptions | None = None) -> None:
        self._options = options or RabbitOptions()
        self._endpoint = _endpoint(url, self._options)
        self._names = Names(self._options.prefix)
        self._version = ""
        self._opened = False
        self._closing: asyncio.Task[None] | None = None

    @classmethod
    def from_url(cls, url: Url) -> RabbitTransport:
        return cls(url, url.options(RabbitOptions))

    @property
    def capabilities(self) -> frozenset[Capability]:
        return frozenset()

    @property
    def limits(self) -> Limits:
        return Limits(message_bytes=self._options.message_bytes)

    @property
    def description(self) -> str:
        return f"{self._version or 'RabbitMQ'}, {self._endpoint.place}"

    @property
    def warnings(self) -> Sequence[str]:
        return []

    async def open(self) -> None:
        if self._opened:
            return
        if self._closing is not None:
            await asyncio.wait([self._closing])
        self._connection = Connection(self._endpoint, "main")
        self._registry = Registry(self._connection, self._names)
        try:
            link = await self._connection.link()
            properties = getattr(link, "server_properties", {})
            self._version = f"{properties.get('product', 'RabbitMQ')} {properties.get('version', '')}".strip()
            await self._registry.read()
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
        await self._registry.close()
        await self._connection.close()

    async def declare(self, topics: Sequence[TopicSpec]) -> Sequence[TopicInfo]:
        self._use()
        for spec in topics:  # before anything is made
            self._check(spec, self._registry.topics.get(spec.name))
        found: list[TopicInfo] = []
        for spec in topics:
            partitions = 1 if spec.queue else spec.partitions or spec.default_partitions
            kind = self._options.queues if spec.queue else "stream"
            wanted = Topic(spec.name, partitions, spec.queue, kind, spec.retention, dict(spec.options))
            topic = await self._registry.declare(wanted)
            self._check(spec, topic)
            if not topic.queue:
                await create_log(self._connection, self._names, topic)
            found.append(TopicInfo(topic.name, topic.partitions, topic.queue))
        return found

    def _check(self, spec: TopicSpec, topic: Topic | None) -> None:
        self._names.topic(spec.name, "a group, or the number of a partition")
        if topic is None:
            return
        kind, wanted = ("queue" if topic.queue else "log"), ("queue" if spec.queue else "log")
        if kind != wanted:
            raise TopicMismatch(f"{spec.name!r} is a {kind} on {self._endpoint.place}, but is declared as a {wanted}")
        if not spec.queue and spec.partitions is not None and spec.partitions != topic.partitions:
            raise TopicMismatch(
                f"topic {spec.name!r} has {topic.partitions} partitions on {self._endpoint.place}, but is declared "
                f"with {spec.partitions}"
            )

    async def topics(self) -> Sequence[TopicInfo]:
        self._use()
        await self._registry.sync()
        found = sorted(self._registry.topics.values(), key=lambda topic: topic.name)
        return [TopicInfo(topic.name, topic.partitions, topic.queue) for topic in found]

    async def channel(self, topic: str, group: str) -> Channel:
        await self._topic(topic)
        raise NotImplementedError

    async def _topic(self, name: str) -> Topic:
        self._use()
        topic = await self._registry.find(name)
        if topic is None:
            raise BrokerError(f"RabbitMQ at {self._endpoint.place} has no topic or queue {name!r}; declare it first")
        return topic

    async def _log_topic(self, name: str) -> Topic:
        topic = await self._topic(name)
        if topic.queue:
            raise BrokerError(f"{name!r} is a queue: it is no log, and is written by its channels' put")
        return topic

    def _use(self) -> Connection:
        if not self._opened:
            raise BrokerError(f"RabbitMQ at {self._endpoint.place}: the transport is not open; call open() first")
        return self._connection


def _endpoint(url: Url, options: RabbitOptions) -> Endpoint:
    context: ssl.SSLContext | None = None
    if url.scheme == "amqps":
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
        raise ConfigurationError(f"{url}: TLS options need the scheme amqps://")
    vhost = url.path.removeprefix("/") or "/"
    addresses = url.addresses(5671 if context else 5672)
    return Endpoint(url, addresses, vhost, context, options.timeout, options.heartbeat)
