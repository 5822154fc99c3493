"""Topics as they lie on the broker: what exists, what their settings are, and how missing ones are created."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from aiokafka.protocol.admin import CreateTopicsRequest, DescribeConfigsRequest
from thalweg.channel import TopicInfo, TopicSpec
from thalweg.errors import BrokerError, ConfigurationError

from .connection import RETRIABLE, Cluster
from .names import kafka_names, plain_name

__all__ = ["OVERHEAD", "QUEUE_PARTITIONS", "Topic", "Topics", "broker_settings"]

OVERHEAD = 1024
"""Bytes of a batch of one record beside the record's key, value and headers, at most, with a header of our own."""

QUEUE_PARTITIONS = 8
"""How many partitions a queue has at least, unless told: as many members can work at once."""

_TOPIC, _BROKER = 2, 4
_INVALID_NAME, _EXISTS = 17, 36
_OUR_FAULT = frozenset({37, 38, 40})  # partitions, replication factor, settings
_DEFAULT_BYTES = 1048588
_TRUNCATED_SEGMENT = 16 << 20
"""Bytes of a file of a partition that will be truncated: what is dropped frees its space when it fills whole files."""

_PAUSE = 0.05


OF_QUEUES = ("dead_letter", "partitions")
"""Options of queues that are ours, and not settings of the Kafka topic."""


def queue_partitions(spec: TopicSpec) -> int | None:
    """Raises ConfigurationError."""
    text = spec.options.get("partitions")
    if text is None:
        return None
    if not text.isdecimal() or not 0 < int(text) < 10_000:
        raise ConfigurationError(
            f"queue {spec.name!r}: options={{'partitions': {text!r}}}; expected a number like '16'"
        )
    return int(text)


class Topic(msgspec.Struct, frozen=True):
    """A topic or queue. `kafka` is its name on the broker; message_bytes: the largest `Message.size` that it takes;
    batch_bytes: the largest batch of records."""

    name: str
    kafka: str
    partitions: int
    queue: bool = False
    message_bytes: int = _DEFAULT_BYTES - OVERHEAD
    batch_bytes: int = _DEFAULT_BYTES

    @property
    def info(self) -> TopicInfo:
        return TopicInfo(self.name, self.partitions, self.queue)

    def check(self, partition: int) -> int:
        if not 0 <= partition < self.partitions:
            raise BrokerError(f"topic {self.name!r} has partitions 0 to {self.partitions - 1}, none has {partition}")
        return partition


async def settings(cluster: Cluster, kind: int, names: Iterable[str]) -> Mapping[str, Mapping[str, str]]:
    """Of topics or one broker, by name; what may not be read is empty."""
    request = DescribeConfigsRequest([(kind, name, None) for name in names])
    answer = await (cluster.ask(int(next(iter(names))), request) if kind == _BROKER else cluster.ask_any(request))
    return {
        name: {} if code else {entry[0]: entry[1] for entry in entries}
        for code, _, _, name, entries in answer.resources
    }


async def broker_settings(cluster: Cluster) -> Mapping[str, str]:
    """Of the broker that leads the cluster."""
    node = cluster.controller if cluster.controller in cluster.brokers else min(cluster.brokers)
    return (await settings(cluster, _BROKER, [str(node)])).get(str(node), {})


class Topics:
    """What was declared or looked up, by name and kind.

    replication: copies of each new topic, as the URL says; None: three where there are as many brokers.
    message_bytes: the limit that the URL sets. `warnings` is added to.
    """

    def __init__(
        self, cluster: Cluster, prefix: str, replication: int | None, message_bytes: int | None, warnings: list[str]
    ) -> None:
        self._cluster, self._prefix = cluster, prefix
        self._replication, self._message_bytes = replication, message_bytes
        self._warnings = warnings
        self._known: dict[str, Topic] = {}
        self.default_replication = 1
        """What the broker says."""

    async def declare(self, specs: Sequence[TopicSpec]) -> Sequence[Topic]:
        found = await self._look([spec.name for spec in specs])
        missing: dict[str, TopicSpec] = {}
        for spec in specs:
            topic = found.get(spec.name)
            if topic is not None:
                self._check(spec, topic)
            elif not spec.declare:
                raise spec.absent(f"Kafka at {self._cluster.endpoint.place}")
            else:
                missing.setdefault(spec.name, spec)
        if missing:
            await self._create(list(missing.values()))
            found.update(await self._await(missing))
        self._known.update(found)
        for spec in specs:
            self._check(spec, found[spec.name])
        return [found[spec.name] for spec in specs]

    async def all(self) -> Sequence[TopicInfo]:
        infos: list[TopicInfo] = []
        for name, (_, _, internal, partitions) in (await self._cluster.metadata(None)).items():
            plain = plain_name(self._prefix, name)
            if plain is not None and not internal and partitions:
                infos.append(TopicInfo(plain[0], len(partitions), plain[1]))
        return sorted(infos, key=lambda info: info.name)

    async def get(self, name: str) -> Topic:
        """Raises BrokerError if it does not exist."""
        topic = self._known.get(name)
        if topic is None:
            topic = (await self._look([name])).get(name)
            if topic is None:
                place = self._cluster.endpoint.place
                raise BrokerError(f"Kafka at {place} has no topic or queue {name!r}; declare it first")
            self._known[name] = topic
        return topic

    async def log(self, name: str) -> Topic:
        """Raises BrokerError if it does not exist, or is a queue."""
        topic = await self.get(name)
        if topic.queue:
            raise BrokerError(f"{name!r} is a queue: it is no log, and is written by its channels' put")
        return topic

    async def _look(self, names: Sequence[str]) -> dict[str, Topic]:
        """Those that exist, with their settings."""
        places = {
            place: (name, queue)
            for queue in (False, True)
            for name in names
            for place in kafka_names(self._prefix, name, queue)
        }
        if not places:
            return {}
        metadata = await self._cluster.metadata(list(places))
        configs = await settings(self._cluster, _TOPIC, metadata) if metadata else {}
        found: dict[str, Topic] = {}
        for place, (name, queue) in places.items():
            _, _, _, partitions = metadata.get(place, (0, "", False, ()))
            if not partitions or name in found:
                continue
            config = configs.get(place, {})
            batch_bytes = int(config.get("max.message.bytes", _DEFAULT_BYTES))
            message_bytes = min(self._message_bytes or batch_bytes, batch_bytes - OVERHEAD)
            found[name] = Topic(name, place, len(partitions), queue, message_bytes, batch_bytes)
            self._warn(name, partitions, config)
        return found

    def _check(self, spec: TopicSpec, topic: Topic) -> None:
        """Raises TopicMismatch."""
        spec.check(topic.queue, topic.partitions, f"Kafka at {self._cluster.endpoint.place}")

    async def _create(self, specs: Sequence[TopicSpec]) -> None:
        brokers = len(self._cluster.brokers)
        replication = self._replication or min(brokers, max(self.default_replication, 3))
        timeout = round(self._cluster.endpoint.timeout * 900)
        left = [(spec, deque(kafka_names(self._prefix, spec.name, spec.queue))) for spec in specs]
        while left:
            trying = {names.popleft(): (spec, names) for spec, names in left}
            wanted = [self._request(place, spec, replication) for place, (spec, _) in trying.items()]
            answer = await self._ask_controller(CreateTopicsRequest(wanted, timeout, False))
            left = []
            for place, code, said in answer.topic_errors:
                spec, names = trying[place]
                if code == _INVALID_NAME and names:  # too much like another name
                    left.append((spec, names))
                elif code not in (0, _EXISTS):  # if it exists, another program was faster
                    error = self._cluster.explain(code, f"creating topic {spec.name!r}: {f'{said}: ' if said else ''}")
                    raise ConfigurationError(str(error)) if code in _OUR_FAULT else error

    def _request(self, place: str, spec: TopicSpec, replication: int) -> tuple[Any, ...]:
        config = {"retention.ms": "-1", "retention.bytes": "-1", "cleanup.policy": "delete"}
        if spec.retention is not None:
            config["retention.ms"] = str(round(spec.retention * 1000))
        if spec.compact:
            config["cleanup.policy"] = "compact" if spec.retention is None else "compact,delete"
        if spec.truncated:
            config["segment.bytes"] = str(_TRUNCATED_SEGMENT)
        if replication >= 3:
            config["min.insync.replicas"] = "2"
        config.update((name, value) for name, value in spec.options.items() if not (spec.queue and name in OF_QUEUES))
        if spec.queue:
            partitions = queue_partitions(spec) or max(spec.default_partitions, QUEUE_PARTITIONS)
        else:
            partitions = spec.partitions or spec.default_partitions
        return place, partitions, replication, [], list(config.items())

    async def _ask_controller(self, request: object) -> Any:
        cluster = self._cluster
        if cluster.controller in cluster.brokers:
            return await cluster.ask(cluster.controller, request)
        return await cluster.ask_any(request)

    async def _await(self, missing: Iterable[str]) -> Mapping[str, Topic]:
        """Once every new partition has a leader: brokers learn of topics a moment after they were created."""
        names = list(missing)
        deadline = time.monotonic() + self._cluster.endpoint.timeout
        while True:
            found = await self._look(names)
            places = {topic.kafka for topic in found.values()}
            metadata = await self._cluster.metadata(list(places))
            ready = [
                all(code not in RETRIABLE and leader in self._cluster.brokers for code, _, leader, *_ in partitions)
                for _, _, _, partitions in metadata.values()
            ]
            if len(found) == len(set(names)) and len(ready) == len(found) and all(ready):
                return found
            if time.monotonic() > deadline:
                lacking = ", ".join(name for name in names if name not in found) or "some of their partitions"
                raise self._cluster.explain(
                    f"new topics are not ready after {self._cluster.endpoint.timeout:g} s: {lacking}"
                )
            await asyncio.sleep(_PAUSE)

    def _warn(self, name: str, partitions: Sequence[Any], config: Mapping[str, str]) -> None:
        copies = min((len(partition[3]) for partition in partitions), default=1)
        said: str | None = None
        if len(self._cluster.brokers) > 1 and copies == 1:
            said = (
                f"topic {name!r} has replication factor 1: with its broker its messages are lost; reassign it, "
                "and create topics with more (?replication=3)"
            )
        elif copies > 2 and config.get("min.insync.replicas") == "1":
            said = (
                f"topic {name!r} has min.insync.replicas=1: a write counts as done when one copy has it, and is lost "
                "with that; set min.insync.replicas=2"
            )
        elif config.get("message.timestamp.type") == "LogAppendTime":
            said = f"topic {name!r} has message.timestamp.type=LogAppendTime: the broker replaces the times of events"
        if said is not None and said not in self._warnings:
            self._warnings.append(said)
