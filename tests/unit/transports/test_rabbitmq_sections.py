"""The bytes of messages in RabbitMQ's streams."""

from __future__ import annotations

import random
import struct

import pytest
from thalweg.message import Message
from thalweg.transports.rabbitmq.sections import _APPLICATION, _table, decode, encode, message_id
from thalweg.transports.rabbitmq.wire import to_headers

ODD = {
    "plain": Message(b"v", b"k", (), 1_700_000_000_123),
    "empty value": Message(b"", b"k", (), 5),
    "tombstone": Message(None, b"k", (), 5),
    "nothing": Message(None, None, (), 5),
    "empty key": Message(b"v", b"", (), 5),
    "a key that is no text": Message(b"v", b"\xff\x00", (), 5),
    "a key of two-byte letters": Message(b"v", "ü".encode() * 90, (), 5),
    "a long key": Message(b"v", b"k" * 300, (), 5),
    "long": Message(b"v" * 70_000, b"k" * 127, (), 5),
    "headers": Message(b"v", b"k", (("a", b"1"), ("b", b"\xff"), ("long", b"x" * 300)), 5),
    "headers of one name": Message(b"v", b"k", (("a", b"1"), ("a", b""), ("", b"x"), ("x-y", b"1")), 5),
}


@pytest.mark.parametrize("id", [None, "abc123"])
@pytest.mark.parametrize("message", ODD.values(), ids=ODD)
def test_a_message_comes_back_as_it_was_written(message: Message, id: str | None) -> None:
    data = encode(message, id)
    assert decode(data, 1) == message
    assert message_id(data) == id


@pytest.mark.parametrize("name", ["thalweg-out", "a", "ü" * 64, "ü" * 65, "", "x-y", "thalweg-key"])
@pytest.mark.parametrize("value", [b"", b"text", b"\xff", b"x" * 255, b"x" * 256])
@pytest.mark.parametrize("key", [b"", b"k", b"k" * 127, b"k" * 128, b"\xff"])
def test_the_short_way_for_one_header_writes_what_the_long_one_does(name: str, value: bytes, key: bytes) -> None:
    message = Message(b"v", key, ((name, value),), 5)
    assert decode(encode(message), 1) == message
    assert encode(message) == _APPLICATION + _table(to_headers(message)) + b"\0\x53\x75\xa0\x01v"


def test_the_size_of_each_section_is_right() -> None:
    """RabbitMQ trusts it, and so does whoever skips one."""
    data = encode(Message(b"v", b"key", (), 5), "id")
    assert data[:4] == b"\0\x53\x73\xc0"
    application = 4 + 1 + data[4]
    assert data[application : application + 4] == b"\0\x53\x74\xc1"
    body = application + 4 + 1 + data[application + 4]
    assert data[body:] == b"\0\x53\x75\xa0\x01v"


def section(number: int, value: bytes) -> bytes:
    return bytes((0, 0x53, number)) + value


def text(value: bytes) -> bytes:
    return bytes((0xA1, len(value))) + value


def table(*parts: bytes) -> bytes:
    body = b"".join(parts)
    return b"\xc1" + bytes((len(body) + 1, len(parts))) + body


def test_types_of_other_writers_are_read_as_their_text() -> None:
    headers = table(
        *(text(b"n"), b"\x54\xff", text(b"yes"), b"\x41", text(b"none"), b"\x40"),
        *(text(b"big"), b"\x80" + b"\0" * 7 + b"\7"),
        *(text(b"half"), b"\x82" + struct.pack(">d", 0.5), b"\xa3\x01s", text(b"\xff"), text(b"list"), b"\x45"),
    )  # fmt: skip
    data = b"".join(
        (
            section(0x70, b"\xc0\x02\x01\x41"),  # a header: durable
            section(0x72, table(b"\xa3\x01a", text(b"annotation"))),
            section(
                0x73, b"\xd0" + struct.pack(">II", 4 + 9 + 9, 10) + b"\x40" * 9 + b"\x83" + struct.pack(">q", 1234)
            ),
            section(0x74, headers),
            section(0x75, b"\xb0\0\0\0\2ab"),
            section(0x75, b"\xa0\1c"),
        )
    )
    found = decode(data, 1)
    assert (found.value, found.key, found.timestamp) == (b"abc", None, 1234)
    assert dict(found.headers) == {
        "n": b"-1",
        "yes": b"true",
        "none": b"null",
        "big": b"7",
        "half": b"0.5",
        "s": b"\xff",
        "list": b"[]",
    }
    assert decode(section(0x77, text(b"a value")), 7) == Message(b"a value", None, (), 7)


def test_what_is_no_such_message_is_a_bare_value() -> None:
    dice = random.Random(1)
    whole = encode(Message(b"v", b"k", (("a", b"1"),), 5), "id")
    for _ in range(2000):
        data = bytearray(whole[: dice.randint(0, len(whole))])
        for _ in range(dice.randint(0, 3)):
            if data:
                data[dice.randrange(len(data))] = dice.randrange(256)
        found = decode(bytes(data), 5)  # never raises
        assert isinstance(found, Message)
        message_id(bytes(data))
    assert decode(b"bare", 5) == Message(b"bare", None, (), 5)
    assert decode(b"", 5).value == b""
