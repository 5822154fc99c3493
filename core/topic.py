"""Topics: logs with keyed order, partitions and replay. Sending inside an event is part of that event's commit."""

from __future__ import annotations

import asyncio
import secrets
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from itertools import islice
from time import perf_counter
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import msgspec

from . import headers as names
from .codec import TypeCodec, checker_for, codec_for, explain_encode
from .duration import seconds
from .errors import ConfigurationError, EncodeError, MessageTooLarge, MissingCapability, WrongType
from .journal.rows import Waiting
from .message import Headers, Message
from .plan import TopicPlan
from .runtime.context import current_lane

if TYPE_CHECKING:
    from .app import App
    from .runtime.delays import Delays
    from .runtime.lane import Lane
    from .runtime.running import Running
    from .runtime.scheduled_run import ScheduledRun
    from .stream import Stream
    from .table import Table

__all__ = ["Start", "Topic", "UserHeaders"]

K = TypeVar("K")
V = TypeVar("V")

UserHeaders = Mapping[str, str | bytes] | Headers
Start = Literal["earliest", "latest"] | datetime


class Topic(Generic[K, V]):
    """Made by `app.topic(…)`: a log of partitions. Messages of one key lie in one of them, in order."""

    def __init__(self, app: App, plan: TopicPlan, check: tuple[type | None, Callable[[object], None]]) -> None:
        self.name = plan.name
        self._app, self._plan = app, plan
        self._title, self._key_title = f"topic {plan.name!r}", f"topic {plan.name!r}, key"
        self._exact, self._check = check[0], named(check[1], self._title)
        self._next_partition = 0
        self._places: _Places | None = None

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
        delay: float | timedelta = 0.0,
        id: str | None = None,
    ) -> None:
        """Send one message.

        value: None is a tombstone; for a checker to let it pass, declare the topic with `value=SomeType | None`.
        Outside an event it is durable when this returns. Inside one it is part of the event's commit: sent with it or
        not at all, and this never waits. timestamp: seconds since the epoch; default: the event's, or now.
        delay: seconds (or timedelta) after which it leaves, once, by a worker of this app; its timestamp is, by
        default, when it is due. id: with a delay, the name of what waits: sent again under the same, it takes the place
        of the one before, as long as that waits, and `cancel(id)` takes it back. Without a delay, of all messages with
        this id and key each agent handles the first that came in the last day (`App(remember_ids=)`).
        Raises WrongType, MessageTooLarge (nothing was sent), MissingCapability (delay and id need a log), BrokerError.
        """
        lane = self._event()
        if not delay and id is None:
            partition, message = self._message(value, key, headers, timestamp, partition, lane)
        elif wait := seconds(delay, "send(delay)"):
            await self._send_later(value, key, headers, timestamp, partition, lane, wait, id)
            return
        else:
            partition, message = self._marked(value, key, headers, timestamp, partition, lane, id)
        if lane is not None:
            lane.send((self.name, partition), message)
        else:
            await self._app.running.send(self.name, {partition: [message]})

    def _marked(
        self,
        value: V,
        key: K | None,
        headers: UserHeaders | None,
        timestamp: float | datetime | None,
        partition: int | None,
        lane: Lane | ScheduledRun | None,
        id: str | None,
    ) -> tuple[int, Message]:
        """Where a message with an id goes, and its bytes."""
        delays_of(self._app.running, f"{self._title}: send(id=)")
        assert id is not None
        raw_id = checked_id(id, self._title)
        place, message = self._message(value, key, headers, timestamp, partition, lane)
        if message.key is None and partition is None:
            place = self._plan.partition_of(raw_id, self._count())  # where its copies go, too
        message = msgspec.structs.replace(message, headers=(*message.headers, (names.ONCE, raw_id)))
        if (limit := self._app.running.message_bytes) is not None:
            self._check_size(message, limit)
        return place, message

    async def _send_later(
        self,
        value: V,
        key: K | None,
        headers: UserHeaders | None,
        timestamp: float | datetime | None,
        partition: int | None,
        lane: Lane | ScheduledRun | None,
        delay: float,
        id: str | None,
    ) -> None:
        delays = delays_of(self._app.running, f"{self._title}: send(delay=)")
        raw_id = None if id is None else checked_id(id, self._title)
        due = self._app.now() + delay
        if timestamp is None and (self._plan.timestamp_of is None or value is None):
            timestamp = due
        place, message = self._message(value, key, headers, timestamp, partition, lane)
        name = _nameless(self.name, lane) if raw_id is None else self._name(raw_id)
        await delays.put(self._title, name, Waiting(round(due * 1000), self.name, place, message), lane)

    async def cancel(self, id: str) -> None:
        """Take back what waits under this id: it never leaves, if this was done (an event: committed) before it is due.

        Nothing happens if it has left, or if there is none. Outside an event it is durable when this returns; inside
        one it is part of the event's commit. Raises MissingCapability, BrokerError.
        """
        delays = delays_of(self._app.running, f"{self._title}: cancel()")
        await delays.put(self._title, self._name(checked_id(id, self._title)), None, self._event())

    def _name(self, id: bytes) -> bytes:
        return self.name.encode() + b"\0" + id

    async def send_many(self, pairs: Iterable[tuple[K | None, V]]) -> None:
        """Send (key, value) pairs in order, in batches; durable when this returns (in an event: with its commit).

        Messages of a batch bear the time at which it was begun.
        """
        lane = self._event()
        rest = iter(pairs)
        suspended = perf_counter()
        while batch := self._batch(islice(rest, SEND_BATCH), lane):
            if lane is None:
                await self._app.running.send(self.name, batch)
                if perf_counter() - suspended > SUSPEND_EVERY:
                    await asyncio.sleep(0)
                    suspended = perf_counter()
                continue
            for partition, messages in batch.items():
                for message in messages:
                    lane.send((self.name, partition), message)

    def question(self, value: V, key: K | None, headers: Headers) -> tuple[TopicPlan, int, Message]:
        """Where a question to an agent goes, and its bytes, with headers of ours."""
        partition, message = self._message(value, key, None, None, None, self._event())
        if names.find(headers, names.ID) is None:
            headers = (*message.headers, *headers)
        return self._plan, partition, msgspec.structs.replace(message, headers=headers)

    def _event(self) -> Lane | ScheduledRun | None:
        """The lane whose event is open (or the leader's run), if it is one of this app's."""
        lane = current_lane.get()
        return lane if lane is not None and lane.app is self._app and lane.open else None

    def _message(
        self,
        value: V,
        key: K | None,
        headers: UserHeaders | None,
        timestamp: float | datetime | None,
        partition: int | None,
        lane: Lane | ScheduledRun | None,
    ) -> tuple[int, Message]:
        """Where a message goes, and its bytes. HOT PATH: half a microsecond for what is ordinary."""
        plan, running = self._plan, self._app.running
        if value.__class__ is not self._exact and value is not None:
            self._check(value)
        if key is None and plan.key_of is not None:
            key = plan.key_of(value)
        if timestamp is not None:
            at = _milliseconds(timestamp)
        elif plan.timestamp_of is not None and value is not None:
            at = round(plan.timestamp_of(value) * 1000)
        else:
            at = lane.timestamp if lane is not None else self._now(lane)
        places = self._places
        if key.__class__ is str and places is not None and places.count == plan.partitions:
            raw_key, home = places[key]
        else:
            raw_key, home = self._place(key)
        try:
            raw = None if value is None else plan.value.encode(value)
        except Exception:
            raw = encoded(plan.value, value, self._title)  # raises again, and says where
        pairs = names.stripped(headers) if headers else ()
        if not running.has_log or plan.spec.queue:  # it gets no position that would tell it from another
            pairs = names.identified(pairs)
        if partition is not None:
            if raw_key is not None and self._checked(partition) != home:
                pairs = (*pairs, (names.PLACED, b""))
            home = self._checked(partition)
        message = Message(raw, raw_key, pairs, at)
        limit = running.message_bytes
        if limit is not None and (pairs or len(raw or b"") + len(raw_key or b"") > limit):
            self._check_size(message, limit)
        return home, message

    def _batch(self, pairs: Iterable[tuple[K | None, V]], lane: Lane | ScheduledRun | None) -> dict[int, list[Message]]:
        """Messages by partition: as `_message`, without what single sends may give.

        HOT PATH: 0.4 µs a message, half of it for encoding. What can be done to a whole list at once is left to C; and
        as each partition's messages are made in one go they lie side by side in memory, which makes reading a large
        backlog on memory:// 0.2 µs a message faster.
        """
        exact, key_of = self._exact, self._plan.key_of
        places = self._known_places()
        keys: defaultdict[int, list[bytes | None]] = defaultdict(list)
        values: defaultdict[int, list[V]] = defaultdict(list)
        for key, value in pairs:
            if value.__class__ is not exact and value is not None:
                self._check(value)
            if key is None and key_of is not None:
                key = key_of(value)
            raw_key, partition = places[key] if key.__class__ is str else self._place(key)
            keys[partition].append(raw_key)
            values[partition].append(value)
        now = self._now(lane)
        return {partition: self._messages(keys[partition], values[partition], now) for partition in keys}

    def _messages(self, keys: list[bytes | None], values: list[V], now: int) -> list[Message]:
        """Messages of one partition. Raises EncodeError, MessageTooLarge."""
        encode, timestamp_of = self._plan.value.encode, self._plan.timestamp_of
        try:
            raws = [None if value is None else encode(value) for value in values]
        except Exception:
            for value in values:
                if value is not None:
                    encoded(self._plan.value, value, self._title)  # raises again where it did, and says for which value
            raise
        if timestamp_of is None:
            messages = [Message(raw, key, (), now) for raw, key in zip(raws, keys, strict=True)]
        else:
            times = [now if value is None else round(timestamp_of(value) * 1000) for value in values]
            messages = [Message(raw, key, (), at) for raw, key, at in zip(raws, keys, times, strict=True)]
        running = self._app.running
        limit = running.message_bytes
        if limit is not None and _longest(raws) + _longest(keys) > limit:
            for message in messages:
                self._check_size(message, limit)
        if not running.has_log or self._plan.spec.queue:
            return [msgspec.structs.replace(message, headers=names.identified(())) for message in messages]
        return messages

    def _checked(self, partition: int) -> int:
        count = self._count()
        if not 0 <= partition < count:
            raise ConfigurationError(f"partition={partition} of topic {self.name!r}; it has 0 to {count - 1}")
        return partition

    def _place(self, key: K | None) -> tuple[bytes | None, int]:
        """A key's bytes and partition; without a key, the partitions in turn."""
        if key.__class__ is str:
            return self._known_places()[key]
        if key is not None:
            raw = encoded(self._plan.key, key, self._key_title)
            return raw, self._plan.partition_of(raw, self._count())
        self._next_partition += 1
        return None, self._next_partition % self._count()

    def _known_places(self) -> _Places:
        count = self._count()
        if self._places is None or self._places.count != count:
            self._places = _Places(self._plan, count)
        return self._places

    def _count(self) -> int:
        return self._plan.partitions or self._app.running.partitions_of(self._plan)

    def _now(self, lane: Lane | ScheduledRun | None) -> int:
        """The timestamp of the open event (another app's will do too), or the clock's; in milliseconds."""
        lane = lane or current_lane.get()
        return lane.timestamp if lane is not None and lane.open else round(self._app.now() * 1000)

    def _check_size(self, message: Message, limit: int) -> None:
        size = message.size
        if size > limit:
            raise MessageTooLarge(
                f"topic {self.name!r}: a message of {size} bytes is above the broker's limit of {limit}; nothing of it "
                "was sent"
            )

    @property
    def raw(self) -> Topic[bytes, bytes]:
        """The same topic in bytes: `topic.raw.send(b"…", key=b"…")`, `topic.raw.stream()`."""
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


LONGEST_ID = 512
SEND_BATCH = 2000
SUSPEND_EVERY = 0.005
"""Seconds. Others must run, and a broker in memory does not suspend by itself."""


class _Places(dict[Any, tuple[bytes, int]]):
    """Bytes and partition of recent keys, those of class str only (equal ones have equal bytes). Full, it starts over.

    A hit takes 40 ns, where encoding and hashing take 170; and messages share the bytes of their keys.
    """

    LARGEST_KEY = 128  # bytes: so the whole takes less than 10 MB
    KEYS = 16_384

    def __init__(self, plan: TopicPlan, count: int) -> None:
        self._plan, self.count = plan, count

    def __missing__(self, key: str) -> tuple[bytes, int]:
        title = f"topic {self._plan.name!r}, key"
        raw = encoded(self._plan.key, key, title)
        try:
            same = self._plan.key.decode(raw) == key
        except Exception:
            same = False
        if not same:
            raise WrongType(f"{title}: expected {self._plan.key.type_name}, got str")
        place = raw, self._plan.partition_of(raw, self.count)
        if len(raw) <= self.LARGEST_KEY:
            if len(self) >= self.KEYS:
                self.clear()
            self[key] = place
        return place


def _longest(pieces: Iterable[bytes | None]) -> int:
    return max(map(len, filter(None, pieces)), default=0)


def delays_of(running: Running, what: str) -> Delays:
    """Raises MissingCapability."""
    if running.delays is None:
        raise MissingCapability(
            f"{what} needs a log, which {running.transport.description} does not offer; brokers that do: memory://, "
            "sqlite:///file, redis://host, nats://host, kafka://host, amqp://host"
        )
    return running.delays


def checked_id(id: str, title: str) -> bytes:
    """Raises WrongType."""
    raw = id.encode() if isinstance(id, str) else b""
    if not 0 < len(raw) <= LONGEST_ID:
        raise WrongType(f"{title}: id={id!r}; expected a str of 1 to {LONGEST_ID} bytes")
    return raw


def _nameless(topic: str, lane: Lane | ScheduledRun | None) -> bytes:
    """The name of what waits and was given none: nobody else's, and the same at each attempt of an event."""
    own = secrets.token_bytes(12) if lane is None else lane.ask_id().encode()
    return topic.encode() + b"\0\0" + own


def _milliseconds(timestamp: float | datetime) -> int:
    return round((timestamp.timestamp() if isinstance(timestamp, datetime) else timestamp) * 1000)


def encoded(codec: TypeCodec[Any], value: Any, what: str) -> bytes:
    """Raises EncodeError, which begins with `what`: "topic 'a'", "queue 'b', key"."""
    try:
        return codec.encode(value)
    except Exception as error:
        raise EncodeError(f"{what}: {explain_encode(codec, error, value)}") from error


def named(check: Callable[[object], None], what: str) -> Callable[[object], None]:
    """`check`, whose WrongType begins with `what`."""

    def checked(value: object) -> None:
        try:
            check(value)
        except WrongType as error:
            raise WrongType(f"{what}: {error}") from None

    return checked
