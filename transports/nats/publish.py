"""Writing: one message with its answer, or an atomic batch of which all are stored, one after the other, or none."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from thalweg.errors import AmbiguousCommit, BrokerError, MessageTooLarge
from thalweg.message import Message, Position

from .connection import Connection
from .records import check_size, encode_header
from .wire import hpub, pub

__all__ = ["BATCH", "Entry", "check", "publish", "publish_all", "raw"]

BATCH = 1000
"""Messages that an atomic batch may hold, by the server's rule."""


class Entry:
    """A message on its way. lines: header lines for the server, each with its line end."""

    __slots__ = ("lines", "message", "subject")

    def __init__(self, subject: bytes, message: Message, lines: bytes = b"") -> None:
        self.subject = subject
        self.message = message
        self.lines = lines


def check(connection: Connection, entries: Sequence[Entry], limit: int, topic: str) -> None:
    """Raises `MessageTooLarge`."""
    largest = connection.info.max_payload
    for entry in entries:
        message = entry.message
        check_size(message, limit, topic)
        if message.headers or (message.key is not None and len(message.key) > 256):
            size = len(message.value or b"") + len(encode_header(message)) + _BATCH_LINES
            if size > largest:
                raise MessageTooLarge(
                    f"a message for {topic!r} takes {size} bytes on the wire, escaped headers included; the server's "
                    f"max_payload is {largest}"
                )


_BATCH_LINES = 300


async def publish(connection: Connection, entries: Sequence[Entry]) -> range:
    """Write up to `BATCH` messages, all or none; returns their positions. Sizes have been checked.

    Raises as `Connection.write`.
    """
    if len(entries) == 1:
        seq = await publish_one(connection, entries[0])
        return range(seq, seq + 1)
    name = secrets.token_urlsafe(6).encode()
    last = len(entries)

    def frames(reply: bytes) -> list[bytes]:
        parts: list[bytes] = []
        for number, entry in enumerate(entries, 1):
            lines = b"%bNats-Batch-Id: %b\r\nNats-Batch-Sequence: %d\r\n" % (entry.lines, name, number)
            if number == last:
                lines += b"Nats-Batch-Commit: 1\r\n"
            header = encode_header(entry.message, lines)
            parts.append(hpub(entry.subject, reply if number == last else b"", header, entry.message.value or b""))
        return parts

    written = await connection.write(entries[-1].subject, frames)
    return range(written.seq - last + 1, written.seq + 1)


async def publish_all(connection: Connection, entries: Sequence[Entry], atomic: bool) -> list[Position]:
    """Write any number, so that there can be no hole: an atomic batch for each 1,000, the next once the last is stored.

    Where there are no atomic batches: one message, the next once it is stored. Raises as `Connection.write`, and
    `AmbiguousCommit` if only a part was written.
    """
    written: list[Position] = []
    step = BATCH if atomic else 1
    for start in range(0, len(entries), step):
        try:
            written += await publish(connection, entries[start : start + step])
        except BrokerError as error:
            if not start:
                raise
            raise AmbiguousCommit(f"only the first {start} of {len(entries)} messages were written: {error}") from None
    return written


async def publish_one(connection: Connection, entry: Entry) -> Position:
    header, payload = encode_header(entry.message, entry.lines), entry.message.value or b""

    def frames(reply: bytes) -> list[bytes]:
        return [hpub(entry.subject, reply, header, payload) if header else pub(entry.subject, reply, payload)]

    return (await connection.write(entry.subject, frames)).seq


async def raw(connection: Connection, subject: bytes, payload: bytes, lines: bytes = b"") -> Position:
    """A message of the driver's own."""
    return await publish_one(connection, Entry(subject, Message(payload), lines))
