"""Topics: logs with keyed order, partitions and replay. Sending inside an event is part of that event's commit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import msgspec

from . import headers as names
from .codec import Codec, TypeCodec, checker_for, codec_for, explain_encode, key_codec_for
from .errors import ConfigurationError, MessageTooLarge
from .message import Headers, Message
from .plan import TopicPlan
from .runtime.context import current_lane

if TYPE_CHECKING:
    from .app import App
    from .stream import Stream
    from .table import Table

__all__ = ["Topic", "UserHeaders"]

K = TypeVar("K")
V = TypeVar("V")

UserHeaders = Mapping[str, str | bytes] | Headers
Start = Literal["earliest", "latest"] | datetime


class Topic(Generic[K, V]):
    """Made by `app.topic(…)`. Keys of one partition keep their order."""

    def __init__(self, app: App, plan: TopicPlan, check: tuple[type | None, Callable[[object], None]]) -> None:
        self._app, self._plan = app, plan
        self._exact, self._check = check
        self._next_partition = 0

    @property
    def name(self) -> str:
        return self._plan.name

    @property
    def partitions(self) -> int:
        """How many, once the app has met the broker; 0 before."""
        return self._plan.partitions

    async def send(
        self,
        value: V,
        *,
        key: K | None = None,
        headers: UserHeaders | None = None,
        timestamp: float | datetime | None = None,
        partition: int | None = None,
    ) -> None:
        """Send one message.

        Outside an event it is durable when this returns. Inside one it is part of the event's commit: sent with it or
        not at all, and this never waits. timestamp: seconds since the epoch; default: the event's, or now.
        Raises WrongType, MessageTooLarge (nothing was sent), BrokerError.
        """
        partition, message = self._message(value, key, headers, timestamp, partition)
        lane = current_lane.get()
        if lane is not None and lane.app is self._app and lane.open:
            lane.send((self._plan.name, partition), message)
        else:
            await self._app.running.send(self._plan.name, {partition: [message]})

    async def send_many(self, pairs: Iterable[tuple[K | None, V]]) -> None:
        """Send (key, value) pairs in order, in batches; durable when this returns (in an event: with its commit)."""
        lane = current_lane.get()
        if lane is not None and lane.app is self._app and lane.open:
            for key, value in pairs:
                partition, message = self._message(value, key, None, None, None)
                lane.send((self._plan.name, partition), message)
            return
        batch: dict[int, list[Message]] = {}
        count = 0
        for key, value in pairs:
            partition, message = self._message(value, key, None, None, None)
            batch.setdefault(partition, []).append(message)
            count += 1
            if count == SEND_BATCH:
                await self._app.running.send(self._plan.name, batch)
                batch, count = {}, 0
        if batch:
            await self._app.running.send(self._plan.name, batch)

    def question(self, value: V, key: K | None, headers: Headers) -> tuple[TopicPlan, int, Message]:
        """Where a question to an agent goes, and its bytes, with headers of ours."""
        partition, message = self._message(value, key, None, None, None)
        if names.find(headers, names.ID) is None:
            headers = (*message.headers, *headers)
        return self._plan, partition, msgspec.structs.replace(message, headers=headers)

    def _message(
        self,
        value: V,
        key: K | None,
        headers: UserHeaders | None,
        timestamp: float | datetime | None,
        partition: int | None,
    ) -> tuple[int, Message]:
        """Where a message goes, and its bytes."""
        plan = self._plan
        if value.__class__ is not self._exact and value is not None:
            self._check(value)
        if key is None and plan.key_of is not None:
            key = plan.key_of(value)
        raw_key = None if key is None else encoded(plan.key, key)
        running = self._app.running
        pairs = names.stripped(headers)
        if plan.spec.queue or not running.has_log:
            pairs = names.identified(pairs)
        message = Message(
            None if value is None else encoded(plan.value, value), raw_key, pairs, self._timestamp(value, timestamp)
        )
        limit = running.message_bytes
        if limit is not None and message.size > limit:
            raise MessageTooLarge(
                f"topic {plan.name!r}: a message of {message.size} bytes is above the broker's limit of {limit}; "
                "nothing was sent"
            )
        return self._partition(raw_key, partition), message

    def _partition(self, key: bytes | None, partition: int | None) -> int:
        count = self._plan.partitions or self._app.running.partitions_of(self._plan)
        if partition is not None:
            if not 0 <= partition < count:
                raise ConfigurationError(f"partition={partition} of topic {self.name!r}; it has 0 to {count - 1}")
            return partition
        if key is not None:
            return self._plan.partition_of(key, count)
        self._next_partition += 1
        return self._next_partition % count

    def _timestamp(self, value: V, given: float | datetime | None) -> int:
        """Milliseconds since the epoch."""
        if given is not None:
            return round((given.timestamp() if isinstance(given, datetime) else given) * 1000)
        if self._plan.timestamp_of is not None and value is not None:
            return round(self._plan.timestamp_of(value) * 1000)
        lane = current_lane.get()
        if lane is not None and lane.open:
            return lane.timestamp
        return round(self._app.now() * 1000)

    @property
    def raw(self) -> Topic[bytes, bytes]:
        """The same topic in bytes."""
        raw = codec_for(bytes)
        plan = self._plan
        bytes_plan = TopicPlan(
            plan.spec, raw, raw, plan.partition_of, plan.partitioner, plan.start, None, None, plan.partitions
        )
        return Topic(self._app, self._app.share_partitions(bytes_plan, plan), checker_for(bytes))

    def stream(self) -> Stream[V]:
        """The topic's values, to be filtered, mapped, repartitioned… and given to an agent or another topic."""
        from .stream import Stream

        return Stream.of(self._app, self._plan)

    def table(self, name: str, *, replicated: bool = False) -> Table[K, V]:
        """The topic as a read-only table: the last value of each key; a tombstone (None) deletes.

        replicated: every worker holds all partitions, instead of its own.
        """
        return self._app.topic_table(self, name, replicated)

    def __repr__(self) -> str:
        return f"Topic({self.name!r})"


SEND_BATCH = 2000


def encoded(codec: TypeCodec[Any], value: Any) -> bytes:
    try:
        return codec.encode(value)
    except Exception as error:
        raise explain_encode(codec, error, value) from error


def codecs(key: Any, value: Any, codec: str | Codec[Any] | None) -> tuple[TypeCodec[Any], TypeCodec[Any]]:
    return key_codec_for(key), codec_for(value, codec)
