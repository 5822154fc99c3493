"""A message as the stream plug-in stores it: sections of AMQP 1.0, which RabbitMQ turns into AMQP 0.9.1 and back.

What is written here is what RabbitMQ makes of the same message published by AMQP 0.9.1 (`wire.py`): headers are the
application properties, the body one data section. It has no other form of body for AMQP 0.9.1, and takes no symbols
there. The paths for messages without headers are hot: 1 us to write one, 1.3 us to read it.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping

import msgspec
from thalweg.message import Headers, Message

from .wire import KEY, TIME, Value, from_headers, is_plain, to_headers

__all__ = ["decode", "encode", "message_id"]

_DATA = b"\x00\x53\x75"
_APPLICATION = b"\x00\x53\x74"
_PROPERTIES = b"\x00\x53\x73"
_KEY_NAME = b"\xa1" + bytes([len(KEY)]) + KEY.encode()
_TIME_NAME = b"\xa1" + bytes([len(TIME)]) + TIME.encode() + b"\x81"
_PLAIN = _APPLICATION + b"\xc1"
_KEY_AT = len(_PLAIN) + 2
_WIDE = _APPLICATION + b"\xd1"
_HEADER_AT = len(_WIDE) + 8
_LONG = struct.Struct(">q")
_TABLE = struct.Struct(">BII")
_KEY_AND_TIME = 4 + 2 + len(_KEY_NAME) + 2 + len(_TIME_NAME) + 8  # bytes in a table of one header, besides that
_SIZE = struct.Struct(">I")


# --- out ---------------------------------------------------------------------------------------------------


def encode(message: Message, id: str | None = None) -> bytes:
    """id: ASCII, by which the writer will know the message again."""
    value, key = message.value, message.key
    if not message.headers and value is not None and key is not None and len(key) < 128 and key.isascii():
        stamp = _LONG.pack(message.timestamp or time.time_ns() // 1_000_000)
        size = bytes((len(key) + 42, 4, *_KEY_NAME, 0xA1, len(key)))
        plain = b"".join((_PLAIN, size, key, _TIME_NAME, stamp))  # half as long as by %
    else:
        plain = _encode_one_header(message) or _APPLICATION + _table(to_headers(message))
    body = b"" if value is None else value
    size = b"\xa0%c" % len(body) if len(body) < 256 else b"\xb0" + _SIZE.pack(len(body))
    if id is None:
        return b"".join((plain, _DATA, size, body))
    named = b"%b\xc0%c\x01\xa1%c%b" % (_PROPERTIES, len(id) + 3, len(id), id.encode())
    return b"".join((named, plain, _DATA, size, body))


def _encode_one_header(message: Message) -> bytes | None:
    """As `_table` would. HOT PATH: what agents send has one header of ours. None if it is not so simple."""
    headers, key = message.headers, message.key
    if len(headers) != 1 or message.value is None or key is None or len(key) > 127 or not key.isascii():
        return None
    name, value = headers[0]
    if len(value) > 255 or not is_plain(name):
        return None
    named = _variable(0xA1, name.encode())
    try:
        value.decode()
        kind = 0xA1
    except UnicodeDecodeError:
        kind = 0xA0
    stamp = _LONG.pack(message.timestamp or time.time_ns() // 1_000_000)
    size = _TABLE.pack(0xD1, len(named) + len(value) + len(key) + _KEY_AND_TIME, 6)
    return b"".join(
        (
            *(_APPLICATION, size, named, bytes((kind, len(value))), value),
            *(_KEY_NAME, bytes((0xA1, len(key))), key, _TIME_NAME, stamp),
        )
    )


def _table(values: Mapping[str, Value]) -> bytes:
    parts: list[bytes] = []
    for name, value in values.items():
        parts.append(_variable(0xA1, name.encode()))
        if isinstance(value, bool):
            parts.append(b"\x41" if value else b"\x42")
        elif isinstance(value, int):
            parts.append(b"\x81" + _LONG.pack(value))
        elif isinstance(value, str):
            parts.append(_variable(0xA1, value.encode()))
        else:
            parts.append(_variable(0xA0, value))
    return b"\xd1" + struct.pack(">II", sum(map(len, parts)) + 4, len(parts)) + b"".join(parts)


def _variable(kind: int, data: bytes) -> bytes:
    if len(data) < 256:
        return bytes((kind, len(data))) + data
    return bytes((kind | 0x10,)) + _SIZE.pack(len(data)) + data


# --- in ----------------------------------------------------------------------------------------------------


def decode(data: bytes, written: int) -> Message:
    """written: when, in ms, for a message that tells no time. What is no AMQP 1.0 is taken for a bare value."""
    plain = data if data[:4] != b"\x00\x53\x73\xc0" else data[5 + int.from_bytes(data[4:5], "big") :]
    start = plain[:4]
    if start == _PLAIN and plain[5:6] == b"\x04":
        found = _decode_simple(plain, _KEY_AT, ())
    elif start == _WIDE and plain[8:12] == b"\0\0\0\x06":
        found = _decode_one_header(plain)
    else:
        found = None
    if found is not None:
        return found
    try:
        return _decode_any(data, written)
    except (IndexError, ValueError, struct.error, msgspec.MsgspecError, RecursionError):
        return Message(data, timestamp=written)


def _decode_one_header(data: bytes) -> Message | None:
    """As `encode` makes it of a message with one; None if it is not that."""
    try:
        value_at = _HEADER_AT + 2 + data[_HEADER_AT + 1]
        end = value_at + 2 + data[value_at + 1]
        if data[_HEADER_AT] != 0xA1 or data[value_at] not in (0xA0, 0xA1):
            return None
        name = data[_HEADER_AT + 2 : value_at].decode()
        return _decode_simple(data, end, ((name, data[value_at + 2 : end]),)) if is_plain(name) else None
    except (IndexError, UnicodeDecodeError):
        return None


def _decode_simple(data: bytes, at: int, headers: Headers) -> Message | None:
    """Key, time and value, as `encode` makes them; None if they are not that."""
    try:
        text = at + len(_KEY_NAME)
        if data[at:text] != _KEY_NAME or data[text] != 0xA1:
            return None
        end = text + 2 + data[text + 1]
        stamp = end + len(_TIME_NAME)
        if data[end:stamp] != _TIME_NAME or data[stamp + 8 : stamp + 11] != _DATA:
            return None
        if data[stamp + 11] == 0xA0:
            value = data[stamp + 13 :]
            whole = len(value) == data[stamp + 12]
        else:
            value = data[stamp + 16 :]
            whole = data[stamp + 11] == 0xB0 and len(value) == _SIZE.unpack_from(data, stamp + 12)[0]
        return Message(value, data[text + 2 : end], headers, _LONG.unpack_from(data, stamp)[0]) if whole else None
    except (IndexError, struct.error):
        return None


def message_id(data: bytes) -> str | None:
    """Of a message as RabbitMQ keeps it, whoever wrote it."""
    try:
        at = 0
        while data[at] == 0 and data[at + 2] < 0x74:
            section = data[at + 2]
            value, at = _value(data, at + 3)
            if section == 0x73:
                first = value[0] if isinstance(value, list) and value else None
                return first if isinstance(first, str) else None
    except (IndexError, ValueError, struct.error, RecursionError):
        pass
    return None


def _decode_any(data: bytes, written: int) -> Message:
    body, headers, at = b"", dict[str, object](), 0
    while at < len(data):
        if data[at] != 0 or data[at + 1] != 0x53:
            raise ValueError("no section of AMQP 1.0")
        section = data[at + 2]
        if section == 0x74:
            headers, at = _headers(data, at + 3)
            continue
        value, at = _value(data, at + 3)
        if section == 0x75 and isinstance(value, (bytes, str)):
            body += value.encode() if isinstance(value, str) else value
        elif section == 0x77:
            body = value.encode() if isinstance(value, str) else value if isinstance(value, bytes) else b""
        elif section == 0x73 and isinstance(value, list) and len(value) > 9 and isinstance(value[9], int):
            written = value[9]
        elif not 0x70 <= section <= 0x78:
            raise ValueError("no section of AMQP 1.0")
    return from_headers(body, headers, written)


def _headers(data: bytes, at: int) -> tuple[dict[str, object], int]:
    """A map; text, bytes and longs go the short way. 1 us a header."""
    kind = data[at]
    if kind == 0xC1:
        end, count, at = at + 2 + data[at + 1], data[at + 2], at + 3
    elif kind == 0xD1:
        size, count = struct.unpack_from(">II", data, at + 1)
        end, at = at + 5 + size, at + 9
    else:
        return {}, _value(data, at)[1]
    found: dict[str, object] = {}
    for _ in range(count // 2):
        if data[at] == 0xA1:
            name: object = data[at + 2 : at + 2 + data[at + 1]].decode()
            at += 2 + data[at + 1]
        else:
            name, at = _value(data, at)
        kind = data[at]
        if kind == 0xA1 or kind == 0xA0:
            start, at = at + 2, at + 2 + data[at + 1]
            found[str(name)] = _text(data[start:at]) if kind == 0xA1 else data[start:at]
        elif kind == 0x81:
            found[str(name)] = _LONG.unpack_from(data, at + 1)[0]
            at += 9
        else:
            found[str(name)], at = _value(data, at)
    if at != end or end > len(data):
        raise IndexError("cut off")
    return found, end


def _text(content: bytes) -> str | bytes:
    try:
        return content.decode()
    except UnicodeDecodeError:  # AMQP 0.9.1 has byte strings there
        return content


_FIXED = {
    0x50: ">B", 0x51: ">b", 0x52: ">B", 0x53: ">B", 0x54: ">b", 0x55: ">b", 0x60: ">H", 0x61: ">h", 0x70: ">I",
    0x71: ">i", 0x72: ">f", 0x80: ">Q", 0x81: ">q", 0x82: ">d", 0x83: ">q", 0x56: ">?",
}  # fmt: skip
_CONSTANT: dict[int, object] = {0x40: None, 0x41: True, 0x42: False, 0x43: 0, 0x44: 0, 0x45: []}


def _value(data: bytes, at: int) -> tuple[object, int]:
    """The value at this place, and where the next begins."""
    kind = data[at]
    at += 1
    if kind in _CONSTANT:
        return _CONSTANT[kind], at
    form = _FIXED.get(kind)
    if form is not None:
        return struct.unpack_from(form, data, at)[0], at + struct.calcsize(form)
    if kind == 0:  # described: the descriptor, then the value
        _, at = _value(data, at)
        return _value(data, at)
    if kind in (0x98, 0x74, 0x84, 0x94):  # UUID, decimals
        size = {0x74: 4, 0x84: 8}.get(kind, 16)
        return data[at : at + size], at + size
    if kind & 0xF0 in (0xA0, 0xC0, 0xE0):
        size, at = data[at], at + 1
    elif kind & 0xF0 in (0xB0, 0xD0, 0xF0):
        size, at = _SIZE.unpack_from(data, at)[0], at + 4
    else:
        raise IndexError(f"no type of AMQP 1.0: {kind}")
    end = at + size
    if end > len(data):
        raise IndexError("cut off")
    content = data[at:end]
    if kind in (0xA1, 0xB1, 0xA3, 0xB3):
        return _text(content), end
    if kind in (0xA0, 0xB0):
        return content, end
    return _compound(kind, content), end


def _compound(kind: int, content: bytes) -> object:
    """A list or a map; of an array just its bytes."""
    if kind & 0xF0 in (0xE0, 0xF0):
        return content
    count, at = (content[0], 1) if kind < 0xD0 else (_SIZE.unpack_from(content)[0], 4)
    values: list[object] = []
    for _ in range(count):
        value, at = _value(content, at)
        values.append(value)
    if kind & 0x0F == 1:
        return {str(name): value for name, value in zip(values[::2], values[1::2], strict=True)}
    return values
