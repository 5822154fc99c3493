"""Which topics and queues there are: each has a card, the newest message of a subject of its own."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from thalweg.channel import TopicInfo, TopicSpec
from thalweg.errors import BrokerError, ConfigurationError, TopicMismatch

from .connection import ApiError, Connection
from .floors import NOT_FOUND, WRONG_SEQUENCE, StoredMessage, StreamState, last_message
from .log import Topic
from .publish import raw
from .queue import UNCLAIMED, consumer_config, queue_config
from .records import name_of, token
from .streams import NO_STREAM, Streams

__all__ = ["Topics"]


class _Declared(msgspec.Struct):
    """How a topic lies under its subject, as JSON."""

    partitions: int
    queue: bool = False
    retention: float | None = None
    options: dict[str, str] = {}


class Topics:
    """lease: of what a queue's consumers are lent, seconds."""

    def __init__(self, connection: Connection, streams: Streams, lease: float) -> None:
        self._connection = connection
        self._streams = streams
        self._lease = lease
        self._known: dict[str, Topic] = {}

    async def declare(self, topics: Sequence[TopicSpec]) -> Sequence[TopicInfo]:
        foreign = [spec for spec in topics if "stream" in spec.options]
        ours = [spec for spec in topics if "stream" not in spec.options]
        known = await self._declared(ours)
        for spec in ours:
            if known[spec.name] is None and not spec.declare:
                raise spec.absent(f"NATS at {self._connection.endpoint.place}")
        for spec in foreign:
            self._known[spec.name] = await self._foreign(spec)
        missing = [spec for spec in ours if known[spec.name] is None]
        if missing:
            await self._streams.make_main()
            for spec in missing:
                await self._create(spec)
            known = await self._declared(ours)
        infos: list[TopicInfo] = []
        for spec in topics:
            topic = known.get(spec.name) or self._known[spec.name]
            self._known[spec.name] = topic
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
            await self._streams.make(queue_config(topic, self._streams.replicas, self._streams.atomic))
            request = {"stream_name": topic.stream, "config": consumer_config(UNCLAIMED, self._lease)}
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
        if await self._streams.config(stream) is None:
            raise spec.absent(f"NATS at {self._connection.endpoint.place} (stream {stream!r})")
        return Topic(spec.name, partitions, spec.queue, stream, subject, foreign=True)

    async def _declared(self, specs: Sequence[TopicSpec]) -> dict[str, Topic | None]:
        """What exists of these. Raises `TopicMismatch`."""
        topics: dict[str, Topic | None] = dict.fromkeys((spec.name for spec in specs), None)
        requests = [(f"STREAM.MSG.GET.{self._streams.main}", {"last_by_subj": self._card(name)}) for name in topics]
        for name, answer in zip(topics, await self._connection.apis(requests, StoredMessage), strict=True):
            if isinstance(answer, StoredMessage):
                topics[name] = self._read_topic(name, answer.message.data)
            elif answer.code not in (NOT_FOUND, NO_STREAM):
                raise answer
        for spec in specs:
            topic = topics[spec.name]
            if topic is not None:
                spec.check(topic.queue, topic.partitions, f"NATS at {self._connection.endpoint.place}")
        return topics

    async def all(self) -> Sequence[TopicInfo]:
        cards = f"{self._streams.main}.topic."
        names: list[str] = []
        offset, total = 0, 1
        while offset < total:
            request = {"subjects_filter": f"{cards}*", "offset": offset}
            try:
                found = await self._connection.api(f"STREAM.INFO.{self._streams.main}", StreamState, request)
            except ApiError as error:
                if error.code == NO_STREAM:
                    return []
                raise
            page = found.state.subjects or {}
            names += [name_of(subject.removeprefix(cards)) for subject in page]
            offset, total = offset + len(page), found.total if page else 0
        topics: list[TopicInfo] = []
        for start in range(0, len(names), 500):
            part = names[start : start + 500]
            requests = [(f"STREAM.MSG.GET.{self._streams.main}", {"last_by_subj": self._card(name)}) for name in part]
            for name, answer in zip(part, await self._connection.apis(requests, StoredMessage), strict=True):
                if isinstance(answer, StoredMessage):
                    topic = self._read_topic(name, answer.message.data)
                    topics.append(TopicInfo(topic.name, topic.partitions, topic.queue))
        return sorted(topics, key=lambda topic: topic.name)

    def _card(self, name: str) -> str:
        return f"{self._streams.main}.topic.{token(name)}"

    def _read_topic(self, name: str, text: bytes) -> Topic:
        declared = msgspec.json.decode(text, type=_Declared)
        if declared.queue:
            stream = f"{self._streams.main}+queue+{token(name)}"
            subjects = f"{self._streams.main}.queue.{token(name)}"
            return Topic(name, 1, True, stream, subjects, dead_letter=declared.options.get("dead_letter", ""))
        subjects = f"{self._streams.main}.log.{token(name)}.{{partition}}"
        return Topic(name, declared.partitions, False, self._streams.main, subjects, declared.retention)

    async def get(self, name: str) -> Topic:
        topic = self._known.get(name)
        if topic is None:
            try:
                found = await last_message(self._connection, self._streams.main, self._card(name))
            except ApiError as error:
                if error.code != NO_STREAM:
                    raise
                found = None
            if found is None:
                place = self._connection.endpoint.place
                raise BrokerError(f"NATS at {place} has no topic or queue {name!r}; declare it first")
            self._known[name] = topic = self._read_topic(name, found.data)
        return topic

    async def log(self, name: str) -> Topic:
        topic = await self.get(name)
        if topic.queue:
            raise BrokerError(f"{name!r} is a queue: it is no log, and is written by its channels' put")
        return topic

    async def queue(self, name: str) -> Topic:
        topic = await self.get(name)
        if not topic.queue:
            raise BrokerError(f"{name!r} is no queue: rejected messages cannot go there (option dead_letter)")
        return topic
