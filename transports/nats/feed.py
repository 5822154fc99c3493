"""Reading: an ephemeral consumer of the server that hands out the records of some partitions in the stream's order.

It acknowledges nothing and numbers what it delivers, so that a loss on the way (a restart, a new leader) is seen as a
hole; the feed then counts as dead, and its reader makes another one from the positions it has.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping

import msgspec
from thalweg.message import Message, Position

from .connection import Connection
from .records import decode
from .wire import Wire, WireLost, pub

__all__ = ["Feed", "Part"]

_INACTIVE = 60.0  # seconds without a request after which the server forgets a consumer
_OVERHEAD = 250  # bytes of a message beside its payload, about, as the server counts them


class _Created(msgspec.Struct):
    name: str


class Part:
    """What has come of one partition, and was not confirmed as read by asking for what follows.

    since: everything after this position is here or still to come.
    """

    __slots__ = ("positions", "records", "since", "size")

    def __init__(self, since: Position) -> None:
        self.since = since
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


class _Pull:
    """One request for messages, with a subscription of its own. waits: it lasts until then (monotonic clock)."""

    def __init__(self, feed: Feed, batch: int, until: float) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.until = until
        self.left = batch
        self._feed = feed
        self.inbox = b"%b.%b" % (feed.wire.inbox[:-1].replace(b".", b"-f."), secrets.token_hex(6).encode())
        self.number = feed.wire.subscribe(self.inbox, self._arrived)

    def _arrived(self, subject: bytes, reply: bytes, header: bytes, payload: bytes) -> None:
        if not reply:
            self._said(header)
            return
        self._feed.take(subject, reply, header, payload)
        self.left -= 1
        if not self.left:
            self.end()

    def _said(self, header: bytes) -> None:
        status = header[9:12]
        if status == b"100":
            return  # a sign of life
        if status == b"409" and b"MaxBytes" in header:
            self._feed.too_large = True
        elif status not in (b"404", b"408"):
            self._feed.dead = True  # the consumer is gone, or has a new leader
        self.end()

    def end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)
            try:
                self._feed.wire.unsubscribe(self.number)
            except WireLost:
                pass
            self._feed.changed()


class Feed:
    """Use only while `alive`. `changed` is called whenever something has come, or will not come any more."""

    def __init__(
        self, connection: Connection, wire: Wire, stream: str, parts: Mapping[bytes, Part], changed: Callable[[], None]
    ) -> None:
        self.wire = wire
        self.changed = changed
        self.parts = dict(parts)
        self.dead = False
        self.too_large = False
        self._connection = connection
        self._stream = stream
        self._name = f"thalweg-{secrets.token_hex(8)}"
        self._next = 1
        self._waiting: _Pull | None = None

    @property
    def alive(self) -> bool:
        pull = self._waiting
        overdue = pull is not None and not pull.ended.done() and time.monotonic() > pull.until + 5
        return self.wire.usable and not self.dead and not overdue

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
        self.too_large = False
        await self._finish(self._pull({"batch": batch, "max_bytes": size, "no_wait": True}, time.monotonic() + 1))
        if self.too_large:
            self.too_large = False
            await self._finish(self._pull({"batch": 1, "no_wait": True}, time.monotonic() + 1))

    def wait(self, batch: int, size: int, seconds: float) -> None:
        """Have the server send what comes, for so long."""
        now = time.monotonic()
        if self._waiting is not None and not self._waiting.ended.done() and self._waiting.until > now + 0.01:
            return
        request = {"batch": batch, "max_bytes": size, "expires": round(seconds * 1e9)}
        self._waiting = self._pull(request, now + seconds)

    def take(self, subject: bytes, reply: bytes, header: bytes, payload: bytes) -> None:
        """A message has come. Hot: 2 us."""
        words = reply.split(b".")
        if len(words) == 9:  # $JS.ACK.stream.consumer.delivered.position.number.nanoseconds.pending
            position, number, moment = int(words[5]), int(words[6]), int(words[7])
        else:  # …ACK.domain.account.stream…, since some version
            position, number, moment = int(words[7]), int(words[8]), int(words[9])
        if number != self._next:
            self.dead = True  # something was lost on the way
        self._next = number + 1
        part = self.parts.get(subject)
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

    def _pull(self, request: Mapping[str, object], until: float) -> _Pull:
        batch = request["batch"]
        assert isinstance(batch, int)
        pull = _Pull(self, batch, until)
        subject = f"{self._connection.endpoint.api}CONSUMER.MSG.NEXT.{self._stream}.{self._name}"
        self.wire.send(pub(subject.encode(), pull.inbox, msgspec.json.encode(request)))
        return pull

    async def _finish(self, pull: _Pull) -> None:
        done = self.wire.closed
        await asyncio.wait(
            [pull.ended, done], timeout=self._connection.endpoint.timeout, return_when=asyncio.FIRST_COMPLETED
        )
        if not pull.ended.done():
            self.dead = True
            pull.end()
