"""What the log asks of either way to a stream: the plug-in's own protocol (`native.py`) or AMQP (`amqp_streams.py`).

Both hold to the same: an offset counts the records of a stream, from 0, without gaps; what retention drops, it drops at
the front, and whole segments of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, TypeAlias

import msgspec
from thalweg.errors import BrokerError
from thalweg.message import Message

__all__ = ["Attachment", "Block", "NoStream", "Receiver", "Since", "Start", "Streams"]


class NoStream(BrokerError):
    """There is no such stream (any more, or at the moment); nothing was done."""


class Since(msgspec.Struct, frozen=True):
    """From what was written at this time (ms since the epoch) or later; some earlier records may come as well."""

    timestamp: int


Start: TypeAlias = int | Literal["first", "last", "next"] | Since
"""An offset; the first kept; the last that was written at once; only what is written from now on."""


class Block(Protocol):
    """Records that came together, with offsets `first`, `first + 1`… size: bytes, about."""

    first: int
    count: int
    size: int

    @property
    def records(self) -> Sequence[Message]: ...

    @property
    def ids(self) -> Sequence[str | None]:
        """By which a writer knows its own messages again."""
        ...


class Receiver(Protocol):
    """Who reads a stream. Both calls come from the loop, at any time, and must not wait."""

    def feed(self, block: Block) -> None:
        """May begin before the offset that was asked for."""
        ...

    def lost(self, error: BrokerError) -> None:
        """Nothing more will come. At most once."""
        ...


class Attachment(Protocol):
    """A receiver at a stream."""

    def taken(self, block: Block) -> None:
        """There is room again for as much as this block was."""
        ...

    async def barrier(self) -> bool:
        """Returns once all that the stream held at the call, and there was room for, has been fed.

        Whether it may have held more than there was room for: give room by `taken`, and call again.
        """
        ...

    async def close(self) -> None: ...


class Streams(Protocol):
    """Cancelling a call leaves nothing broken behind. All but `close` raise `BrokerError`, for one `NoStream`."""

    @property
    def name(self) -> str:
        """How it reads and writes, for the banner."""
        ...

    async def publish(self, stream: str, messages: Sequence[Message], ids: Sequence[str] | None = None) -> None:
        """Returns once all are confirmed. Raises `NoStream` (nothing was written), `AmbiguousCommit`, `BrokerError`.

        Cancelled, it goes on to the end.
        """
        ...

    async def attach(self, stream: str, start: Start, receiver: Receiver) -> Attachment:
        """Returns when nothing that is written from then on can be missed. At most a few blocks come at first."""
        ...

    async def close(self) -> None: ...
