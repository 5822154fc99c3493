"""What travels: a message on its way in, a record read back, a batch of records, a delivery of a queue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import msgspec

__all__ = ["Batch", "Delivery", "Headers", "Message", "Position", "QueueMessage", "Record"]

Headers: TypeAlias = tuple[tuple[str, bytes], ...]
"""Ordered, duplicates allowed, values are bytes (possibly empty)."""

Position: TypeAlias = int
"""Where a record lies in its partition: opaque, ordered, below 2**63; not dense (numbers may be missing)."""


class Record(Protocol):
    """What a reader may ask of a record. A driver may hand out its client's own objects if they have these four."""

    @property
    def value(self) -> bytes | None: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def headers(self) -> Headers: ...
    @property
    def timestamp(self) -> int: ...


class Message(msgspec.Struct, frozen=True, gc=False, tag="message"):
    """One message to be written. `None` as value is a tombstone and differs from `b""`.

    timestamp: integer milliseconds since the epoch.
    """

    value: bytes | None
    key: bytes | None = None
    headers: Headers = ()
    timestamp: int = 0

    @property
    def size(self) -> int:
        """Bytes of key, value and headers, as limits count them."""
        return len(self.value or b"") + self.head

    @property
    def head(self) -> int:
        """Bytes of key and headers."""
        total = len(self.key or b"")
        for name, value in self.headers:
            total += len(name) + len(value)
        return total


class QueueMessage(Message, frozen=True, gc=False, tag="queue"):
    """A message for a work queue. Each field beyond Message's needs the capability of its name.

    priority: 0 (lowest) to 9. delay: seconds until it may be delivered.
    expires: seconds until it is dropped undelivered.
    """

    priority: int = 0
    delay: float = 0.0
    expires: float | None = None


class Batch(msgspec.Struct, gc=False):
    """Records of one partition, in log order. `positions[i]` is where `records[i]` lies (a `range` where dense)."""

    records: Sequence[Record]
    positions: Sequence[Position]


class Delivery(msgspec.Struct, gc=False):
    """A message lent to one consumer of a group until it is committed, or comes back. A driver gets it back as it was.

    attempts: how often it was delivered, this time included (1 the first time; a driver that cannot know says 1).
    handle: the driver's own means to find it again; opaque to all others.
    """

    record: Record
    attempts: int
    handle: object
