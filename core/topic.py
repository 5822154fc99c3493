"""Topics: logs with keyed order, partitions and replay. Sending inside an event is part of that event's commit."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from itertools import islice
from time import perf_counter
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

import msgspec

from . import headers as names
from .codec import checker_for, codec_for
from .composing import Composer
from .duration import seconds
from .errors import MissingCapability, WrongType
from .headers import UserHeaders
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

__all__ = ["Start", "Topic"]

K = TypeVar("K")
V = TypeVar("V")

Start = Literal["earliest", "latest"] | datetime


class Topic(Generic[K, V]):
    """Made by `app.topic(…)`: a log of partitions. Messages of one key lie in one of them, in order."""

    def __init__(self, app: App, plan: TopicPlan, check: tuple[type | None, Callable[[object], None]]) -> None:
        self.name = plan.name
        self._app, self._plan = app, plan
        self._title = f"topic {plan.name!r}"
        self._composer: Composer[K, V] = Composer(app, plan, check)
        self._compose = self._composer.message

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
        lane, running = self._event(), self._app.running
        wait = seconds(delay, "send(delay)") if delay else 0.0
        if not wait and id is None:
            place, message = self._compose(value, key, headers, timestamp, partition, lane)
        else:
            delays = delays_of(running, f"{self._title}: send({'delay' if wait else 'id'}=)")
            raw_id = None if id is None else checked_id(id, self._title)
            due = self._app.now() + wait
            if wait and timestamp is None and (self._plan.timestamp_of is None or value is None):
                timestamp = due
            place, message = self._compose(value, key, headers, timestamp, partition, lane)
            if wait:
                name = _nameless(self.name, lane) if raw_id is None else self._name(raw_id)
                await delays.put(self._title, name, Waiting(round(due * 1000), self.name, place, message), lane)
                return
            assert raw_id is not None
            if message.key is None and partition is None:
                place = self._plan.partition_of(raw_id, self._composer.count())  # where its copies go, too
            message = msgspec.structs.replace(message, headers=(*message.headers, (names.ONCE, raw_id)))
            self._composer.check_size(message)
        if lane is not None:
            lane.send((self.name, place), message)
        else:
            await running.send(self.name, {place: [message]})

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
        while batch := self._composer.batch(islice(rest, SEND_BATCH), lane):
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
        partition, message = self._compose(value, key, None, None, None, self._event())
        if names.find(headers, names.ID) is None:
            headers = (*message.headers, *headers)
        return self._plan, partition, msgspec.structs.replace(message, headers=headers)

    def _event(self) -> Lane | ScheduledRun | None:
        """The lane whose event is open (or the leader's run), if it is one of this app's."""
        lane = current_lane.get()
        return lane if lane is not None and lane.app is self._app and lane.open else None

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
