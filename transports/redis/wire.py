"""How a record lies in a stream entry, and how the entry's id becomes a position. See the package's docstring."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from thalweg.errors import BrokerError, MessageTooLarge
from thalweg.message import Message, Position

__all__ = ["HIGH", "before", "decode", "encode", "entry_id", "pack", "positions"]

SEQUENCE_BITS = 20
"""A position is `milliseconds << 20 | sequence`: below 2**63 until the year 2248, a million records a millisecond."""

_MASK = (1 << SEQUENCE_BITS) - 1
HIGH = ~_MASK
_HEADERS = 1000  # more would exceed what Lua can hand to one command


def pack(entry: bytes) -> Position:
    milliseconds, _, sequence = entry.partition(b"-")
    high, low = int(milliseconds), int(sequence)
    if low > _MASK or high >= 1 << 43:
        raise BrokerError(
            f"the stream entry {entry.decode()} was written with an id of its own that is no position: let Redis "
            f"choose ids (XADD key *), or keep the first part below 2**43 and the second below 2**{SEQUENCE_BITS}"
        )
    return high << SEQUENCE_BITS | low


def entry_id(position: Position) -> bytes:
    return b"%d-%d" % (position >> SEQUENCE_BITS, position & _MASK)


def before(position: Position) -> bytes:
    """The largest id below that of this position: what is read after it begins with the position itself."""
    if position <= 0:
        return b"0-0"
    if position & _MASK:
        return entry_id(position - 1)
    return b"%d-18446744073709551615" % ((position >> SEQUENCE_BITS) - 1)


def positions(first: bytes, second: bytes, count: int) -> Sequence[Position]:
    """Where `count` records lie that one append wrote: all but perhaps the first have consecutive ids."""
    start = pack(first)
    if count < 2 or pack(second) == start + 1:
        return range(start, start + count)
    rest = pack(second)
    return [start, *range(rest, rest + count - 1)]


def encode(messages: Iterable[Message], limit: int, topic: str) -> list[bytes | int]:
    """For the scripts: of each message the number of its fields and values, then those.

    Raises `MessageTooLarge`.
    """
    arguments: list[bytes | int] = []
    for message in messages:
        fields: list[bytes | int] = [0]
        if message.key is not None:
            fields += (b"key", message.key)
        if message.value is not None:
            fields += (b"value", message.value)
        size = len(message.value or b"") + len(message.key or b"")
        if message.timestamp or len(fields) == 1:
            fields += (b"timestamp", b"%d" % message.timestamp)
        if message.headers:
            size = message.size
            if len(message.headers) > _HEADERS:
                raise MessageTooLarge(
                    f"a message for {topic!r} has {len(message.headers)} headers; at most {_HEADERS} fit"
                )
            for name, value in message.headers:
                fields += (b"header:" + name.encode(), value)
        if size > limit:
            raise MessageTooLarge(
                f"a message for {topic!r} has {size} bytes of key, value and headers; the limit is {limit} "
                "(?message_bytes= of the broker's URL)"
            )
        fields[0] = len(fields) - 1
        arguments += fields
    return arguments


def decode(milliseconds: bytes, fields: Sequence[bytes]) -> Message:
    """The record of an entry, whose id begins with `milliseconds`. Hot."""
    if len(fields) == 6:
        name, key, other, value, third, time = fields
        if name == b"key" and other == b"value" and third == b"timestamp" and time.isdigit():
            return Message(value, key, (), int(time) or int(milliseconds))
    return _decode(milliseconds, fields)


def _decode(milliseconds: bytes, fields: Sequence[bytes]) -> Message:
    value = key = None
    headers: list[tuple[str, bytes]] = []
    timestamp = 0
    for name, content in zip(fields[::2], fields[1::2], strict=True):
        if name == b"value":
            value = content
        elif name == b"key":
            key = content
        elif name == b"timestamp":
            timestamp = int(content) if content.isdigit() else 0
        elif name.startswith(b"header:"):
            headers.append((name[7:].decode(errors="replace"), content))
    return Message(value, key, tuple(headers), timestamp or int(milliseconds))
