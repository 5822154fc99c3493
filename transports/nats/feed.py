"""Reading: an ephemeral consumer of the server that hands out the records of some partitions in the stream's order.

It acknowledges nothing and numbers what it delivers, so that a loss on the way (a restart, a new leader) is seen as a
hole; the feed then counts as dead, and its reader makes another one from the positions it has.
"""

from __future__ import annotations

import secrets
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping

import msgspec
from thalweg.message import Message, Position

from .connection import Connection
from .pull import Pull
from .records import decode, place_of
from .wire import Wire, pub

__all__ = ["Feed", "Part"]

_INACTIVE = 60.0  # seconds without a request after which the server forgets a consumer


class _Created(msgspec.Struct):
    name: str


class Part:
    """What has come of one partition, and was not confirmed as read by asking for what follows.

    since: everything after this position is here or still to come. shown: the last that a reader has seen.
    """

    __slots__ = ("positions", "records", "shown", "since", "size")

    def __init__(self, since: Position) -> None:
        self.since = self.shown = since
        self.records: list[Message] = []
        self.positions: list[Position] = []
        self.size = 0

    def forget(self, through: Position) -> None:
        """What lies at `through` or before was read. Hot: once a read."""
        count = bisect_right(self.positions, through)
        if count == len(self.positions):
            self.records, self.positions, self.size = [], [], 0
        elif count:
            self.size -= self.size * count // len(self.positions)
            del self.records[:count], self.positions[:count]
        self.since = max(self.since, through)


class Feed:
    """Use only while `alive`. `changed` is called whenever something has come, or will not come any more."""

    def __init__(
        self, connection: Connection, wire: Wire, stream: str, parts: Mapping[bytes, Part], changed: Callable[[], None]
    ) -> None:
        self.wire = wire
        self.changed = changed
        self.parts = dict(parts)
        self._wild = next((part for subject, part in parts.items() if b"*" in subject or b">" in subject), None)
        self.dead = False
        self._connection = connection
        self._stream = stream
        self._name = f"thalweg-{secrets.token_hex(8)}"
        self._next = self._asked_at = 1
        self._waiting: Pull | None = None
        self._empty = False

    @property
    def alive(self) -> bool:
        return self.wire.usable and not self.dead and not (self._waiting is not None and self._waiting.failed)

    @property
    def at_end(self) -> bool:
        """All that there was has come: what comes is sent by itself (`wait`), there is nothing to fetch."""
        if self._waiting is None:
            return self._empty
        return not self._waiting.ended.done() or self._waiting.status[9:12] in (b"404", b"408")

    async def start(self) -> None:
        """Raises `BrokerError`."""
        start = min(part.since for part in self.parts.values()) + 1
        config: dict[str, object] = {
            "name": self._name,
            "deliver_policy": "by_start_sequence" if start > 1 else "all",
            "ack_policy": "none",
            "filter_subjects": [subject.decode() for subject in self.parts],
            "inactive_threshold": round(_INACTIVE * 1e9),
            "mem_storage": True,
            "num_replicas": 1,
        }
        if start > 1:
            config["opt_start_seq"] = start
        request = {"stream_name": self._stream, "action": "create", "config": config}
        await self._connection.api(f"CONSUMER.CREATE.{self._stream}.{self._name}", _Created, request)

    async def fetch(self, batch: int, size: int) -> None:
        """Take up what the server has now: at most `batch` messages, about `size` bytes, at least one message."""
        pull = self._pull(batch, size)
        await pull.finish(self._connection.endpoint.timeout)
        if pull.full and self._next == self._asked_at:
            pull = self._pull(1, 0)
            await pull.finish(self._connection.endpoint.timeout)
        self.dead = self.dead or pull.failed
        self._empty = pull.status[9:12] == b"404"
        if self._waiting is not None and self._waiting.ended.done():
            self._waiting = None

    def wait(self, batch: int, size: int, seconds: float) -> None:
        """Have the server send what comes, for so long."""
        waiting = self._waiting
        if waiting is None or waiting.ended.done() or waiting.until < time.monotonic() + 0.01:
            self._waiting = self._pull(batch, size, seconds)

    def take(self, subject: bytes, reply: bytes, header: bytes, payload: bytes) -> None:
        """A message has come. Hot: 2 us."""
        _, position, number, moment = place_of(reply)
        if number != self._next:
            self.dead = True  # something was lost on the way
            self.changed()
        self._next = number + 1
        part = self._wild or self.parts.get(subject)
        if part is not None and position > part.since and not self.dead:
            part.records.append(decode(header, payload, moment // 1_000_000))
            part.positions.append(position)
            part.size += len(payload) + len(header)
            self.changed()

    def close(self) -> None:
        """Say that the consumer may go; without that it goes by itself, later."""
        self.dead = True
        if self._waiting is not None:
            self._waiting.end()
        if self.wire.usable:
            subject = f"{self._connection.endpoint.api}CONSUMER.DELETE.{self._stream}.{self._name}"
            self.wire.send(pub(subject.encode(), b"", b""))

    def _pull(self, batch: int, size: int, seconds: float = 0.0) -> Pull:
        self._asked_at = self._next
        subject = f"{self._connection.endpoint.api}CONSUMER.MSG.NEXT.{self._stream}.{self._name}"
        return Pull(self.wire, subject, size, self.take, self.changed, batch, seconds)
