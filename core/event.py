"""An event: one record as an agent sees it."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Generic, Protocol

from typing_extensions import TypeVar

from . import headers as names
from .errors import WrongType
from .message import Headers, Position, Record
from .plan import TopicPlan

__all__ = ["Answering", "Event", "event_time", "milliseconds", "order_time"]

FIRST_SECOND, LAST_SECOND = -62_135_596_800, 253_402_300_799
"""Of the years that `datetime` has. What lies beyond is a mistake, and more than some brokers have room for."""

V = TypeVar("V", default=Any, covariant=True)
K = TypeVar("K", default=Any, covariant=True)


class Answering(Protocol):
    """Who passes an answer on."""

    def answer(self, record: Record, value: Any) -> None: ...


class Event(Generic[V, K]):
    """A value with everything that came with it; what `stream.events()` yields.

    timestamp: seconds since the epoch (the topic's `timestamp_of`, else the record's own). partition, position: where
    it lies in the topic.
    """

    __slots__ = ("_answering", "_plan", "_record", "partition", "position", "value")

    def __init__(
        self, plan: TopicPlan, record: Record, partition: int, position: Position, value: V, answering: Answering | None
    ) -> None:
        self._plan, self._record, self._answering = plan, record, answering
        self.partition, self.position = partition, position
        self.value = value

    @property
    def key(self) -> K:
        """None if the message has none (and typed as if it had: most programs give every message a key)."""
        raw = self._record.key
        return self._plan.key.decode(raw) if raw is not None else None  # type: ignore[return-value]

    @property
    def headers(self) -> Headers:
        """Pairs of name and bytes, in order; Thalweg's own are hidden."""
        return names.hidden(self._record.headers)

    @property
    def timestamp(self) -> float:
        return event_time(self._plan, self._record) / 1000

    @property
    def record(self) -> Record:
        """The record itself: key, value and headers in bytes, timestamp in milliseconds."""
        return self._record

    @property
    def topic(self) -> str:
        return self._plan.name

    @property
    def id(self) -> str:
        """The same at every attempt and after every crash: the idempotency key for calls to the outside world.

        It is the one that `send(id=…)` gave. (Only a message that a program without Thalweg put into a queue gets
        another one with each delivery.)
        """
        headers = self._record.headers
        given = (names.find(headers, names.ID) or names.find(headers, names.ONCE)) if headers else None
        return given.decode("utf-8", "replace") if given else f"{self.topic}/{self.partition}/{self.position}"

    def answer(self, value: object) -> None:
        """Answer whoever asked with this event, when the event commits. Needed where one item covers many events."""
        if self._answering is None:
            raise RuntimeError("this event was read outside an agent: nobody waits for an answer")
        self._answering.answer(self._record, value)

    def __repr__(self) -> str:
        return (
            f"Event(topic={self.topic!r}, partition={self.partition}, position={self.position}, value={self.value!r})"
        )


def milliseconds(timestamp: float | datetime, title: str, what: str) -> int:
    """Of seconds since the epoch, or a datetime. Raises WrongType, naming the topic (`title`) and the argument."""
    at = timestamp.timestamp() if isinstance(timestamp, datetime) else timestamp
    if not isinstance(at, int | float) or not FIRST_SECOND <= at <= LAST_SECOND:
        raise WrongType(
            f"{title}: {what} {timestamp!r}; expected seconds since the epoch, of the years 1 to 9999, or a datetime"
        )
    return round(at * 1000)


def event_time(plan: TopicPlan, record: Record) -> int:
    """Milliseconds since the epoch. Raises WrongType, and what the program's `timestamp_of` does."""
    if plan.timestamp_of is None or record.value is None:
        return record.timestamp
    return milliseconds(plan.timestamp_of(plan.decode(record.value)), f"topic {plan.name!r}", "timestamp_of")


def order_time(plan: TopicPlan, record: Record) -> int:
    """As `event_time`, to put events in order by: where `timestamp_of` fails, the record's own timestamp serves."""
    if plan.timestamp_of is None:
        return record.timestamp
    try:
        return event_time(plan, record)
    except Exception:  # of the program's own code; the event itself meets it, or is undecodable, in its turn
        return record.timestamp
