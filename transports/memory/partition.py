"""A partition: a list of messages whose positions are computed, not stored."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import msgspec
from thalweg.capabilities import Bounds
from thalweg.clock import Clock
from thalweg.errors import BrokerError, Gap, MessageTooLarge
from thalweg.message import Batch, Message, Position

from .session import Waiters, wake

__all__ = ["MemoryClaim", "Partition", "Prepared", "prepare"]


PLENTY = 256
"""So many records that even if all were as large as the largest ever seen would fit are enough for a batch: then their
sizes need not be added up, which costs 300 ns a record."""


class MemoryClaim:
    """See `thalweg.capabilities.Claim`. The newest one of its partition is the owner's, for ever."""

    __slots__ = ("__weakref__", "home", "position")

    def __init__(self, home: Partition, position: Position) -> None:
        self.home, self.position = home, position

    @property
    def topic(self) -> str:
        return self.home.topic

    @property
    def partition(self) -> int:
        return self.home.number

    def __repr__(self) -> str:
        return f"MemoryClaim({self.topic!r}, {self.partition}, position={self.position})"


class Prepared:
    """Messages that passed the limit and have their timestamps. `largest`: bytes of the largest."""

    __slots__ = ("largest", "messages")

    def __init__(self, messages: Sequence[Message], largest: int) -> None:
        self.messages, self.largest = messages, largest


def prepare(messages: Sequence[Message], limit: int | None, topic: str, clock: Clock) -> Prepared:
    """Hot path: one plain loop (45 ns a message) beats `Message.size` (200 ns) and chains of C-level maps (85 ns)."""
    largest, stamped = 0, True
    for message in messages:
        size = len(message.value or b"") + len(message.key or b"")
        if message.headers:
            for name, value in message.headers:
                size += len(name) + len(value)
        if size > largest:
            largest = size
        if not message.timestamp:
            stamped = False
    if limit is not None and largest > limit:
        raise MessageTooLarge(
            f"a message of {largest} bytes for {topic!r} is above message_bytes={limit}; nothing was written. "
            "Send less, or open memory:// with a larger message_bytes"
        )
    if not stamped:
        now = int(clock.now() * 1000)
        messages = [m if m.timestamp else _stamped(m, now) for m in messages]
    return Prepared(messages, largest)


def _stamped(message: Message, now: int) -> Message:
    if type(message) is Message:
        return Message(message.value, message.key, message.headers, now)
    return msgspec.structs.replace(message, timestamp=now)


class Partition:
    """Record `i` lies at `first + i * step`. A step above 1 shows which reader takes positions to be dense."""

    def __init__(self, topic: str, number: int, step: int, retention: float | None, clock: Clock) -> None:
        self.topic, self.number, self.step = topic, number, step
        self.records: list[Message] = []
        self.first: Position = 0  # of the first record kept; where the next one goes if there is none
        self.owner: MemoryClaim | None = None
        self.waiters: Waiters = {}
        self._largest = 0
        self._retention, self._clock = retention, clock
        self._arrivals: deque[tuple[float, Position]] = deque()  # (when, end of that append); kept with retention only
        self._expire_at = 0.0

    @property
    def end(self) -> Position:
        """Where the next record goes."""
        return self.first + len(self.records) * self.step

    def append(self, prepared: Prepared) -> range:
        start = self.end
        end = start + len(prepared.messages) * self.step
        self.records += prepared.messages
        if prepared.largest > self._largest:
            self._largest = prepared.largest
        if self._retention is not None:
            self._arrivals.append((self._clock.now(), end))
            self.expire()
        if self.waiters:
            wake(self.waiters)
        return range(start, end, self.step)

    def index_after(self, position: Position | None) -> int | None:
        """Index of the first record after `position`; None if there is none yet. Raises `Gap`."""
        if self._retention is not None:
            self.expire()
        count = len(self.records)
        index = 0 if position is None else (position - self.first) // self.step + 1
        if index > count or (index < 0 and self.first > 0):
            raise Gap(self.topic, self.number, position, self.bounds().first)
        index = max(index, 0)
        return index if index < count else None

    def batch(self, start: int, limit: int, budget: int) -> tuple[Batch, int]:
        """At most `limit` records of about `budget` bytes, at least one, and how many bytes they are (about)."""
        records = self.records[start : start + limit]
        size = len(records) * self._largest  # an upper bound that costs nothing, and most often settles it
        if size > budget and (fitting := budget // max(self._largest, 1)) >= PLENTY:
            records, size = records[:fitting], fitting * self._largest
        elif size > budget:
            taken, size = 1, records[0].size
            while taken < len(records) and size + records[taken].size <= budget:
                size += records[taken].size
                taken += 1
            records = records[:taken]
        at = self.first + start * self.step
        return Batch(records, range(at, at + len(records) * self.step, self.step)), size

    def bounds(self) -> Bounds:
        self.expire()
        return Bounds(self.first, self.end - self.step) if self.records else Bounds(None, None)

    def find(self, timestamp: int) -> Position | None:
        self.expire()
        for index, record in enumerate(self.records):
            if record.timestamp >= timestamp:
                return self.first + (index - 1) * self.step if index else None
        return self.bounds().last

    def truncate(self, before: Position) -> None:
        """A `del` of the prefix moves 8 bytes for each record that stays: 0.1 ms a million."""
        gone = min(max(-((self.first - before) // self.step), 0), len(self.records))
        del self.records[:gone]
        self.first += gone * self.step

    def expire(self) -> None:
        """Drop what is older than the retention. At most 64 times per retention, so that it costs nothing a record."""
        if self._retention is None or (now := self._clock.now()) < self._expire_at:
            return
        self._expire_at = now + self._retention / 64
        end = self.first
        while self._arrivals and self._arrivals[0][0] < now - self._retention:
            end = self._arrivals.popleft()[1]
        self.truncate(end)

    def lose(self, count: int) -> None:
        """The fault of a broker that lost its last `count` records: their positions are used again."""
        if not 0 <= count <= len(self.records):
            raise BrokerError(f"cannot lose {count} of {len(self.records)} records of {self.topic!r}/{self.number}")
        del self.records[len(self.records) - count :]
        self._arrivals = deque((when, min(end, self.end)) for when, end in self._arrivals)
