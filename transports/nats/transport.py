"""The transport: a server or cluster, its connection, and what programs ask of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Annotated, Any

import msgspec
from thalweg.capabilities import Claim, Commit, Held, Log
from thalweg.channel import Capability, Channel, Limits, TopicInfo, TopicSpec
from thalweg.errors import BrokerError, ConfigurationError, Fenced, MissingCapability, TopicMismatch
from thalweg.message import Message, Position
from thalweg.tls import tls_context
from thalweg.url import Url

from . import leases
from .connection import ApiError, Connection, Endpoint
from .done import DoneNotes, done_config
from .floors import WRONG_SEQUENCE, Floors, StoredMessage, StreamState, last_message
from .group import NatsChannel
from .leases import Leases
from .log import NatsLog, Topic
from .publish import BATCH, Entry, check, publish, raw
from .queue import UNCLAIMED, NatsQueue, consumer_config, queue_config
from .records import name_of, token

__all__ = ["NatsOptions", "NatsTransport"]


class NatsOptions(msgspec.Struct, frozen=True):
    """Query options of the URL.

    prefix: begins every subject and stream, so that several programs can share an account.
    timeout: seconds to connect, and to wait for an answer.
    message_bytes: largest message (key, value and headers); what the server's max_payload has room for if not given.
    lease: seconds after which a consumer that hangs loses its deliveries (of a queue: each delivery, unless extended).
    replicas: how many servers of a cluster keep each stream that is created.
    domain: the JetStream domain. inbox: begins the subjects of answers, for users who may not subscribe to _INBOX.>.
    credentials: a file as `nsc` writes it. nkey: a file with the seed of a user's key.
    tls_ca, tls_cert, tls_key: files, for tls://. tls_verify=false accepts any certificate. tls_hostname: the name that
    the certificate must have. tls_first: the server expects TLS at once (handshake_first).
    fencing: false does without atomic batches, as servers before 2.12 do.
    """

    prefix: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")] = "thalweg"
    timeout: Annotated[float, msgspec.Meta(ge=0.1, le=3600)] = 10.0
    message_bytes: Annotated[int, msgspec.Meta(ge=1, le=64 << 20)] | None = None
    lease: Annotated[float, msgspec.Meta(ge=0.01, le=86400)] = 30.0
    replicas: Annotated[int, msgspec.Meta(ge=1, le=5)] = 1
    domain: Annotated[str, msgspec.Meta(pattern=r"^[^\s.*>]+$")] | None = None
    inbox: Annotated[str, msgspec.Meta(pattern=r"^[^\s*>]+$")] = "_INBOX"
    credentials: str | None = None
    nkey: str | None = None
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_verify: bool = True
    tls_hostname: str | None = None
    tls_first: bool = False
    fencing: bool = True


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

_STREAM_EXISTS = (10058, 10065)
_NO_STREAM = 10059


class _Config(msgspec.Struct):
    """A stream's, as far as it matters."""

    name: str = ""
    subjects: list[str] = []
    storage: str = "file"
    num_replicas: int = 1
    max_age: int = 0
    max_msgs: int = -1
    max_bytes: int = -1
    max_msgs_per_subject: int = -1
    discard: str = "old"
    allow_atomic: bool = False
    persist_mode: str = ""


class _Stream(msgspec.Struct):
    config: _Config


class _Declared(msgspec.Struct):
    """How a topic lies under its subject, as JSON."""

    partitions: int
    queue: bool = False
    retention: float | None = None
    options: dict[str, str] = {}


class NatsClaim:
    """Ownership of a journal partition: good as long as `sequence` is that of the newest message of its token."""

    def __init__(self, topic: Topic, partition: int, position: Position, subject: str, sequence: int) -> None:
        self.topic = topic.name
        self.partition = partition
        self.position = position
        self.subject = subject
        self.sequence = sequence
        self.log = topic


class NatsTransport:
    """Satisfies Transport, Logs, Locks, Peers and Fencing; channels of queues are `WorkQueue`s.

    Topic options: `stream` and `subject` name a stream that belongs to others, with declare=False. A queue's
    `dead_letter` names the queue to which its rejected messages go.
    """

    def __init__(self, url: Url, options: NatsOptions | None = None) -> None:
        self._options = options or NatsOptions()
        self._endpoint = _endpoint(url, self._options)
        self._prefix = self._options.prefix
        self._topics: dict[str, Topic] = {}
        self._open_channels: list[NatsQueue | NatsChannel] = []
        self._version = ""
        self._warnings: list[str] = []
        self._fencing = False
        self._opened = False
        self._closing: asyncio.Task[None] | None = None

    @classmethod
    def from_url(cls, url: Url) -> NatsTransport:
        return cls(url, url.options(NatsOptions))

    @property
    def capabilities(self) -> frozenset[Capability]:
        return _CAPABILITIES | {Capability.FENCING} if self._fencing else _CAPABILITIES

    @property
    def limits(self) -> Limits:
        return Limits(message_bytes=self._message_bytes, commit_messages=BATCH if self._fencing else None)

    @property
    def _message_bytes(self) -> int:
        room = max(1, self._connection.info.max_payload - _HEADER_ROOM) if self._opened else 1 << 20
        return min(self._options.message_bytes or room, room)

    @property
    def description(self) -> str:
        return f"NATS {self._version}, {self._endpoint.place}".replace(" ,", ",")

    @property
    def warnings(self) -> Sequence[str]:
        return self._warnings

    # --- opening and closing ---------------------------------------------------------------------------------

    async def open(self) -> None:
        if self._opened:
            return
        if self._closing is not None:
            await asyncio.wait([self._closing])
        self._topics.clear()
        self._connection = Connection(self._endpoint)
        self._floors = Floors(self._connection, self._prefix, self._prefix)
        self._leases = Leases(self._connection, self._prefix, self._make_leases)
        try:
            await self._meet()
        except BaseException:
            await self._connection.close()
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
        await self._leases.close()
        await self._connection.close()

    async def _meet(self) -> None:
        """Learn what the server is and how safely it keeps things."""
        connection = self._connection
        await connection.wire()
        self._version = connection.info.version
        version = tuple(int(part) for part in self._version.split("-")[0].split(".")[:2])
        if version < (2, 11):
            raise BrokerError(f"{self.description}: NATS 2.11 or newer is needed (2.12 for exactly-once outputs)")
        await connection.api("INFO", msgspec.Raw)
        able = version >= (2, 12) and self._options.fencing
        config = await self._stream(self._prefix)
        if config is not None and able and not config.allow_atomic:
            config = await self._allow_batches()
        self._fencing = able and (config is None or config.allow_atomic)
        self._warnings = _warnings(config, self._options, version, self._fencing)

    async def _stream(self, name: str) -> _Config | None:
        try:
            return (await self._connection.api(f"STREAM.INFO.{name}", _Stream)).config
        except ApiError as error:
            if error.code == _NO_STREAM:
                return None
            raise

    async def _allow_batches(self) -> _Config | None:
        """The stream was made by an older server."""
        name = f"STREAM.INFO.{self._prefix}"
        config = (await self._connection.api(name, dict[str, Any]))["config"]
        try:
            found = await self._connection.api(
                f"STREAM.UPDATE.{self._prefix}", _Stream, {**config, "allow_atomic": True}
            )
        except BrokerError:  # no rights
            return await self._stream(self._prefix)
        return found.config

    async def _make(self, config: Mapping[str, object]) -> None:
        """Create a stream, unless it exists."""
        name = config["name"]
        assert isinstance(name, str)
        if await self._stream(name) is not None:
            return
        try:
            await self._connection.api(f"STREAM.CREATE.{name}", msgspec.Raw, config)
        except ApiError as error:
            if error.code not in _STREAM_EXISTS or await self._stream(name) is None:
                raise

    async def _make_leases(self) -> None:
        await self._make(leases.stream_config(self._prefix, self._options.replicas))

    async def _make_notes(self) -> None:
        await self._make(done_config(self._prefix, self._options.replicas))

    async def _make_main(self) -> None:
        kinds = ("topic", "log", "own", "floor", "group")
        config: dict[str, object] = {
            "name": self._prefix,
            "subjects": [f"{self._prefix}.{kind}.>" for kind in kinds],
            "allow_direct": True,
            "allow_rollup_hdrs": True,
            "num_replicas": self._options.replicas,
            "discard": "new",
        }
        if self._fencing:
            config["allow_atomic"] = True
        await self._make(config)

    # --- topics ----------------------------------------------------------------------------------------------

    async def declare(self, topics: Sequence[TopicSpec]) -> Sequence[TopicInfo]:
        self._use()
        foreign = [spec for spec in topics if "stream" in spec.options]
        ours = [spec for spec in topics if "stream" not in spec.options]
        known = await self._declared(ours)
        for spec in ours:
            if known[spec.name] is None and not spec.declare:
                raise spec.absent(f"NATS at {self._endpoint.place}")
        for spec in foreign:
            self._topics[spec.name] = await self._foreign(spec)
        missing = [spec for spec in ours if known[spec.name] is None]
        if missing:
            await self._make_main()
            for spec in missing:
                await self._create(spec)
            known = await self._declared(ours)
        infos: list[TopicInfo] = []
        for spec in topics:
            topic = known.get(spec.name) or self._topics[spec.name]
            self._topics[spec.name] = topic
            infos.append(TopicInfo(topic.name, topic.partitions, topic.queue))
        return infos

    async def _create(self, spec: TopicSpec) -> None:
        unknown = spec.options.keys() - ({"dead_letter"} if spec.queue else set())
        if unknown:
            raise ConfigurationError(
                f"{spec.name!r}: nats:// has no option {min(unknown)!r} for it; a queue has dead_letter, and with "
                "declare=False there are stream and subject"
            )
        partitions = 1 if spec.queue else spec.partitions or spec.default_partitions
        declared = _Declared(partitions, spec.queue, spec.retention, dict(spec.options))
        text, line = msgspec.json.encode(declared), b"Nats-Expected-Last-Subject-Sequence: 0\r\n"
        if spec.queue:  # first, so that who finds the card finds the queue
            topic = msgspec.structs.replace(self._read_topic(spec.name, text), retention=spec.retention)
            await self._make(queue_config(topic, self._options.replicas, self._fencing))
            request = {"stream_name": topic.stream, "config": consumer_config(UNCLAIMED, self._options.lease)}
            await self._connection.api(f"CONSUMER.DURABLE.CREATE.{topic.stream}.{UNCLAIMED}", msgspec.Raw, request)
        try:
            await raw(self._connection, self._card(spec.name).encode(), text, line)
        except ApiError as error:
            if error.code not in WRONG_SEQUENCE:  # somebody else was faster
                raise

    async def _foreign(self, spec: TopicSpec) -> Topic:
        """A stream that belongs to others: its sequences are the positions of its one partition."""
        if spec.declare:
            raise ConfigurationError(f"{spec.name!r}: the option stream= is for topics and queues with declare=False")
        stream, subject = spec.options["stream"], spec.options.get("subject", ">")
        partitions = spec.partitions or 1 if "{partition}" in subject else 1
        if spec.partitions not in (None, partitions):
            raise TopicMismatch(
                f"topic {spec.name!r} lies in the stream {stream!r}, which is one partition, but is declared with "
                f"{spec.partitions}; a subject like 'orders.{{partition}}' would tell them apart"
            )
        if "{partition}" in subject and any(wild in subject for wild in "*>"):
            raise ConfigurationError(f"{spec.name!r}: subject={subject!r} has wildcards beside {{partition}}")
        if await self._stream(stream) is None:
            raise spec.absent(f"NATS at {self._endpoint.place} (stream {stream!r})")
        return Topic(spec.name, partitions, spec.queue, stream, subject, foreign=True)

    async def _declared(self, specs: Sequence[TopicSpec]) -> dict[str, Topic | None]:
        """What exists of these. Raises `TopicMismatch`."""
        topics: dict[str, Topic | None] = dict.fromkeys((spec.name for spec in specs), None)
        requests = [(f"STREAM.MSG.GET.{self._prefix}", {"last_by_subj": self._card(name)}) for name in topics]
        for name, answer in zip(topics, await self._connection.apis(requests, StoredMessage), strict=True):
            if isinstance(answer, StoredMessage):
                topics[name] = self._read_topic(name, answer.message.data)
            elif answer.code not in (10037, _NO_STREAM):
                raise answer
        for spec in specs:
            topic = topics[spec.name]
            if topic is None:
                continue
            kind, wanted = ("queue" if topic.queue else "log"), ("queue" if spec.queue else "log")
            if kind != wanted:
                raise TopicMismatch(
                    f"{spec.name!r} is a {kind} on {self._endpoint.place}, but is declared as a {wanted}"
                )
            if not spec.queue and spec.partitions is not None and spec.partitions != topic.partitions:
                raise TopicMismatch(
                    f"topic {spec.name!r} has {topic.partitions} partitions on {self._endpoint.place}, but is declared "
                    f"with {spec.partitions}"
                )
        return topics

    async def topics(self) -> Sequence[TopicInfo]:
        self._use()
        cards = f"{self._prefix}.topic."
        names: list[str] = []
        offset, total = 0, 1
        while offset < total:
            request = {"subjects_filter": f"{cards}*", "offset": offset}
            try:
                found = await self._connection.api(f"STREAM.INFO.{self._prefix}", StreamState, request)
            except ApiError as error:
                if error.code == _NO_STREAM:
                    return []
                raise
            page = found.state.subjects or {}
            names += [name_of(subject.removeprefix(cards)) for subject in page]
            offset, total = offset + len(page), found.total if page else 0
        topics: list[TopicInfo] = []
        for start in range(0, len(names), 500):
            part = names[start : start + 500]
            requests = [(f"STREAM.MSG.GET.{self._prefix}", {"last_by_subj": self._card(name)}) for name in part]
            for name, answer in zip(part, await self._connection.apis(requests, StoredMessage), strict=True):
                if isinstance(answer, StoredMessage):
                    topic = self._read_topic(name, answer.message.data)
                    topics.append(TopicInfo(topic.name, topic.partitions, topic.queue))
        return sorted(topics, key=lambda topic: topic.name)

    def _card(self, name: str) -> str:
        return f"{self._prefix}.topic.{token(name)}"

    def _read_topic(self, name: str, text: bytes) -> Topic:
        declared = msgspec.json.decode(text, type=_Declared)
        if declared.queue:
            stream = f"{self._prefix}+queue+{token(name)}"
            subjects = f"{self._prefix}.queue.{token(name)}"
            return Topic(name, 1, True, stream, subjects, dead_letter=declared.options.get("dead_letter", ""))
        subjects = f"{self._prefix}.log.{token(name)}.{{partition}}"
        return Topic(name, declared.partitions, False, self._prefix, subjects, declared.retention)

    async def _topic(self, name: str) -> Topic:
        topic = self._topics.get(name)
        if topic is None:
            self._use()
            try:
                found = await last_message(self._connection, self._prefix, self._card(name))
            except ApiError as error:
                if error.code != _NO_STREAM:
                    raise
                found = None
            if found is None:
                raise BrokerError(f"NATS at {self._endpoint.place} has no topic or queue {name!r}; declare it first")
            self._topics[name] = topic = self._read_topic(name, found.data)
        return topic

    async def _log_topic(self, name: str) -> Topic:
        topic = await self._topic(name)
        if topic.queue:
            raise BrokerError(f"{name!r} is a queue: it is no log, and is written by its channels' put")
        return topic

    async def channel(self, topic: str, group: str) -> Channel:
        found, options = await self._topic(topic), self._options
        connection = self._use()
        channel: NatsQueue | NatsChannel
        if found.queue:
            channel = NatsQueue(
                connection,
                found,
                group,
                options.lease,
                self._message_bytes,
                self._fencing,
                self._queue_topic,
                DoneNotes(connection, self._prefix, topic, group),
                self._make_notes,
            )
            await channel.join()
        else:
            await self._make_main()  # what a group has done is noted in our stream, also of a topic of others
            log = NatsLog(connection, found, self._floors, self._message_bytes, self._fencing)
            channel = NatsChannel(
                connection, self._leases, self._floors, log, found, group, options.lease, self._prefix
            )
        self._open_channels = [known for known in self._open_channels if not known.closed] + [channel]
        return channel

    async def _queue_topic(self, name: str) -> Topic:
        topic = await self._topic(name)
        if not topic.queue:
            raise BrokerError(f"{name!r} is no queue: rejected messages cannot go there (option dead_letter)")
        return topic

    async def log(self, topic: str) -> Log:
        found = await self._log_topic(topic)
        return NatsLog(self._use(), found, self._floors, self._message_bytes, self._fencing)

    # --- locks and peers -------------------------------------------------------------------------------------

    async def try_lock(self, name: str, lease: float) -> Held | None:
        self._use()
        return await self._leases.try_lock(name, lease)

    def peers(self, group: str, me: str, lease: float) -> AsyncGenerator[frozenset[str], None]:
        self._use()
        return self._leases.peers(group, me, lease)

    # --- fencing ---------------------------------------------------------------------------------------------

    async def claim(self, topic: str, partition: int, marker: Message) -> Claim:
        connection = self._use()
        self._require_fencing()
        found = await self._log_topic(topic)
        subject = f"{self._prefix}.own.{found.token}.{found.check(partition)}"
        entry = Entry(found.subject(partition), marker)
        check(connection, [entry], self._message_bytes, topic)
        owner, position = await publish(connection, [Entry(subject.encode(), Message(b"")), entry])
        return NatsClaim(found, partition, position, subject, owner)

    async def commit(self, commits: Mapping[Claim, Commit]) -> Mapping[Claim, Sequence[Position]]:
        connection = self._use()
        self._require_fencing()
        entries: list[Entry] = []
        claims: list[tuple[NatsClaim, int, int]] = []
        empty: list[NatsClaim] = []
        for claim, commit in commits.items():
            if not isinstance(claim, NatsClaim):
                raise BrokerError(f"a claim of another transport cannot commit here: {claim!r}")
            subject, start = claim.log.subject(claim.partition), len(entries)
            entries += [Entry(subject, record) for record in commit.records]
            check(connection, entries[start:], self._message_bytes, claim.topic)
            claims.append((claim, start, len(commit.records)))
            for (name, partition), messages in commit.outputs.items():
                target = await self._log_topic(name)
                if target.foreign:
                    raise BrokerError(f"{name!r} lies in the stream of others: no commit can write there")
                subject, first = target.subject(target.check(partition)), len(entries)
                entries += [Entry(subject, message) for message in messages]
                check(connection, entries[first:], self._message_bytes, name)
            if len(entries) > start:
                entries[start].lines = (
                    b"Nats-Expected-Last-Subject-Sequence: %d\r\nNats-Expected-Last-Subject-Sequence-Subject: %b\r\n"
                    % (claim.sequence, claim.subject.encode())
                )
            else:
                empty.append(claim)
        if len(entries) > BATCH:
            raise BrokerError(
                f"a commit of {len(entries)} messages: NATS takes at most {BATCH} in one atomic batch "
                "(Limits.commit_messages); nothing was written"
            )
        await self._check_owned(empty)
        try:
            written = await publish(connection, entries) if entries else range(0)
        except ApiError as error:
            if error.code in WRONG_SEQUENCE:
                await self._check_owned([claim for claim, _, _ in claims])
            raise
        return {claim: written[start : start + count] for claim, start, count in claims}

    async def _check_owned(self, claims: Sequence[NatsClaim]) -> None:
        """Raises `Fenced` if one of them is another's by now. Nothing must have been written."""
        requests = [(f"STREAM.MSG.GET.{self._prefix}", {"last_by_subj": claim.subject}) for claim in claims]
        answers = await self._connection.apis(requests, StoredMessage)
        lost = frozenset(
            (claim.topic, claim.partition)
            for claim, answer in zip(claims, answers, strict=True)
            if isinstance(answer, ApiError) or answer.message.seq != claim.sequence
        )
        if lost:
            names = ", ".join(f"{topic}[{partition}]" for topic, partition in sorted(lost))
            raise Fenced(f"a newer owner has claimed {names}; nothing was written", lost) from None

    def _require_fencing(self) -> None:
        if not self._fencing:
            raise MissingCapability(
                f"{self.description} has no atomic batches (NATS 2.12 or newer, and not ?fencing=false): nothing can "
                "be fenced"
            )

    def _use(self) -> Connection:
        if not self._opened:
            raise BrokerError(f"NATS at {self._endpoint.place}: the transport is not open; call open() first")
        return self._connection


def _endpoint(url: Url, options: NatsOptions) -> Endpoint:
    if url.path.strip("/"):
        raise ConfigurationError(f"{url}: a {url.scheme}:// URL has no path; ?prefix= names a part of the account")
    context = tls_context(url, "tls", options)
    if context is None and options.tls_first:
        raise ConfigurationError(f"{url}: TLS options need the scheme tls://")
    return Endpoint(
        url,
        url.addresses(4222),
        context,
        options.tls_first,
        options.tls_hostname,
        options.timeout,
        options.inbox,
        f"$JS.{options.domain}.API." if options.domain else "$JS.API.",
        options.credentials,
        options.nkey,
    )


def _warnings(config: _Config | None, options: NatsOptions, version: tuple[int, ...], fencing: bool) -> list[str]:
    found: list[str] = []
    if not fencing and options.fencing:
        reason = "the server is older than 2.12" if version < (2, 12) else "its stream does not allow them"
        found.append(
            f"no atomic batches ({reason}): outputs follow their commit instead of being part of it, and appends go "
            "one message at a time"
        )
    if config is not None and config.storage != "file":
        found.append(
            f"storage={config.storage}: a restart of the server loses everything; recreate the stream on files"
        )
    replicas = config.num_replicas if config is not None else options.replicas
    if replicas == 1:
        found.append(
            "replicas=1: one server keeps everything. By default it syncs its files every two minutes (sync_interval), "
            "so a crash of its machine takes back what it acknowledged since; clients cannot see that setting. Set "
            "jetstream { sync_interval: always }, or use a cluster and ?replicas=3"
        )
    if config is not None:
        limits = [
            name
            for name, value in (("max_age", config.max_age), ("max_msgs_per_subject", config.max_msgs_per_subject))
            if value > 0
        ]
        if config.discard == "old":
            limits += [n for n, v in (("max_bytes", config.max_bytes), ("max_msgs", config.max_msgs)) if v > 0]
        if limits:
            found.append(
                f"the stream {config.name} has {', '.join(limits)}: the server will drop journals and tokens; "
                "take the limits away (discard=new with max_bytes is safe)"
            )
    return found
