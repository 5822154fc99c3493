"""How a message lies on RabbitMQ, in queues and streams alike, over AMQP as over the stream protocol.

The body is the value. In the headers: `thalweg-key` is the key, `thalweg-tombstone` says that there is no value,
`timestamp_in_ms` is the time (the property `timestamp` has whole seconds only). All other headers are the message's:
text where the bytes are UTF-8, else binary. AMQP has no order of headers, and keeps `x-` names for itself, so where
that would lose something, `thalweg-headers` holds them all, as msgpack `[[name, value], …]`. On queues,
`thalweg-attempts` counts the deliveries before a delayed retry, and `thalweg-expires` is when it ends, in milliseconds.

A foreign message needs none of this: no header, no key; numbers and the like are read as their text.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TypeAlias

import msgspec
from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic
from thalweg.errors import MessageTooLarge
from thalweg.message import Headers, Message

__all__ = [
    "ATTEMPTS",
    "EXPIRES",
    "HEADER_BYTES",
    "Properties",
    "Value",
    "check",
    "from_amqp",
    "from_headers",
    "is_plain",
    "to_amqp",
    "to_headers",
]

Properties: TypeAlias = Basic.Properties
Value: TypeAlias = str | bytes | int | bool
"""What a header of ours holds; bytes only where they are no UTF-8."""

KEY, TOMBSTONE, HEADERS, TIME = "thalweg-key", "thalweg-tombstone", "thalweg-headers", "timestamp_in_ms"
ATTEMPTS, EXPIRES = "thalweg-attempts", "thalweg-expires"
OURS = frozenset({KEY, TOMBSTONE, HEADERS, TIME, ATTEMPTS, EXPIRES})
HEADER_BYTES = 120_000
"""All properties of a message must fit into one frame, by default of 131,072 bytes."""

_LONGEST_NAME = 128  # bytes: aiormq cuts longer ones


def check(messages: Sequence[Message], limit: int, topic: str) -> None:
    """Raises `MessageTooLarge`."""
    for message in messages:
        size = message.size
        if size > limit:
            raise MessageTooLarge(
                f"a message for {topic!r} has {size} bytes of key, value and headers; the limit is {limit} "
                "(?message_bytes= of the broker's URL)"
            )
        if size - len(message.value or b"") > HEADER_BYTES // 2 and _weight(message) > HEADER_BYTES:
            raise MessageTooLarge(
                f"a message for {topic!r} has {size - len(message.value or b'')} bytes of key and headers; on RabbitMQ "
                f"they must fit into one frame, which leaves them about {HEADER_BYTES}; put large things into the value"
            )


def to_headers(message: Message) -> dict[str, Value]:
    headers: dict[str, Value] = {}
    if message.headers:
        headers = _plain(message.headers)
        if tuple(sorted(headers.items())) != tuple((name, _text(value)) for name, value in message.headers):
            headers[HEADERS] = msgspec.msgpack.encode(message.headers)
    if message.key is not None:
        headers[KEY] = _text(message.key)
    if message.value is None:
        headers[TOMBSTONE] = True
    headers[TIME] = message.timestamp or time.time_ns() // 1_000_000
    return headers


def to_amqp(message: Message) -> tuple[bytes, Properties]:
    """Body and properties, persistent."""
    headers = to_headers(message)
    table = {name: bytearray(value) if isinstance(value, bytes) else value for name, value in headers.items()}
    return message.value or b"", Basic.Properties(headers=table, delivery_mode=2)  # type: ignore[arg-type]


def from_headers(body: bytes, headers: Mapping[str, object], timestamp: int) -> Message:
    """timestamp: milliseconds, for a message that tells none."""
    key = headers.get(KEY)
    told = headers.get(TIME)
    found = _unpacked(headers[HEADERS]) if HEADERS in headers else None
    if found is not None:
        pass
    elif len(headers) - (key is not None) - (told is not None):
        found = tuple(
            (name, _bytes(value)) for name, value in headers.items() if name not in OURS and not name.startswith("x-")
        )
    else:
        found = ()
    return Message(
        None if headers.get(TOMBSTONE) else body,
        None if key is None else _bytes(key),
        found,
        told if isinstance(told, int) and told > 0 else timestamp,
    )


def from_amqp(message: DeliveredMessage, timestamp: int) -> Message:
    """timestamp: milliseconds, for a message that tells none."""
    properties = message.header.properties
    if properties.timestamp is not None:
        timestamp = round(properties.timestamp.timestamp() * 1000)
    return from_headers(message.body, properties.headers or {}, timestamp)


def _unpacked(packed: object) -> Headers | None:
    if isinstance(packed, (bytes, bytearray, str)):
        try:
            return msgspec.msgpack.decode(_bytes(packed), type=Headers)
        except msgspec.DecodeError:  # a foreign program's
            return None
    return None


def _plain(headers: Headers) -> dict[str, Value]:
    """Those that any AMQP program can read; of several of a name the first."""
    plain: dict[str, Value] = {}
    for name, value in headers:
        if is_plain(name):
            plain.setdefault(name, _text(value))
    return plain


@lru_cache(1000)
def is_plain(name: str) -> bool:
    """Whether a header of this name can stand as it is."""
    return bool(name) and name not in OURS and not name.startswith("x-") and len(name.encode()) <= _LONGEST_NAME


def _text(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _bytes(value: object) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    if isinstance(value, datetime.datetime):
        return b"%d" % round(value.timestamp() * 1000)
    if isinstance(value, (bool, dict, list, type(None))):
        return msgspec.json.encode(value, enc_hook=str)
    return str(value).encode()


def _weight(message: Message) -> int:
    """About the bytes of its properties on the wire."""
    total = 100
    for name, value in to_headers(message).items():
        total += len(name.encode()) + 8
        total += len(value.encode() if isinstance(value, str) else value) if isinstance(value, (str, bytes)) else 0
    return total
