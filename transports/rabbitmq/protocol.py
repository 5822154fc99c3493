"""The frames of RabbitMQ's stream protocol that the driver needs: their bytes out and in. No I/O.

After https://github.com/rabbitmq/rabbitmq-server/blob/main/deps/rabbitmq_stream/docs/PROTOCOL.adoc. Integers are
big-endian; a string has two bytes of length before it, an array or a byte string four.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterator, Mapping, Sequence

import msgspec
from thalweg.errors import BrokerError

__all__ = [
    "FIRST",
    "LAST",
    "NEXT",
    "OK",
    "Chunk",
    "Command",
    "Metadata",
    "Reader",
    "at",
    "frame",
    "pairs",
    "publish_frames",
    "since",
    "string",
]

OK = 1


class Command:
    """Keys of frames; a response has the highest bit set."""

    DECLARE_PUBLISHER, PUBLISH, PUBLISH_CONFIRM, PUBLISH_ERROR, DELETE_PUBLISHER = 1, 2, 3, 4, 6
    SUBSCRIBE, DELIVER, CREDIT, UNSUBSCRIBE, CREATE, DELETE, METADATA, METADATA_UPDATE = 7, 8, 9, 12, 13, 14, 15, 16
    PEER_PROPERTIES, SASL_HANDSHAKE, SASL_AUTHENTICATE, TUNE, OPEN, CLOSE, HEARTBEAT = 17, 18, 19, 20, 21, 22, 23


# --- out ---------------------------------------------------------------------------------------------------

_HEAD = struct.Struct(">IHH")
_PUBLISHED = struct.Struct(">QI")

FIRST, LAST, NEXT = (struct.pack(">H", kind) for kind in (1, 2, 3))


def at(offset: int) -> bytes:
    return struct.pack(">HQ", 4, offset)


def since(timestamp: int) -> bytes:
    """The first chunk that was written at this time (ms) or later."""
    return struct.pack(">Hq", 5, timestamp)


def frame(key: int, *parts: bytes) -> bytes:
    return _HEAD.pack(4 + sum(map(len, parts)), key, 1) + b"".join(parts)


def string(text: str) -> bytes:
    data = text.encode()
    return struct.pack(">H", len(data)) + data


def pairs(values: Mapping[str, str]) -> bytes:
    return struct.pack(">I", len(values)) + b"".join(string(name) + string(value) for name, value in values.items())


def publish_frames(publisher: int, first: int, bodies: Sequence[bytes], frame_max: int) -> Iterator[bytes]:
    """Frames of at most `frame_max` bytes for `bodies`, whose publishing ids count from `first`."""
    pack, parts, size, count = _PUBLISHED.pack, list[bytes](), 13, 0
    for number, body in enumerate(bodies, first):
        if parts and size + 12 + len(body) > frame_max:
            yield frame(Command.PUBLISH, struct.pack(">BI", publisher, count), *parts)
            parts, size, count = [], 13, 0
        parts += (pack(number, len(body)), body)
        size += 12 + len(body)
        count += 1
    if parts:
        yield frame(Command.PUBLISH, struct.pack(">BI", publisher, count), *parts)


# --- in ----------------------------------------------------------------------------------------------------


class Reader:
    """Takes one value after the other out of a frame."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data, self.at = data, at

    def number(self, size: int) -> int:
        self.at += size
        return int.from_bytes(self.data[self.at - size : self.at], "big")

    def string(self) -> str:
        size = self.number(2)
        if size == 0xFFFF:
            return ""
        self.at += size
        return self.data[self.at - size : self.at].decode("utf-8", "replace")

    def pairs(self) -> dict[str, str]:
        return {self.string(): self.string() for _ in range(self.number(4))}


class Metadata(msgspec.Struct):
    """Of one stream. leader: host and port as the server advertises them, None while there is none."""

    code: int
    leader: tuple[str, int] | None

    @classmethod
    def parse(cls, data: bytes) -> Metadata:
        reader = Reader(data, 4)
        brokers = {reader.number(2): (reader.string(), reader.number(4)) for _ in range(reader.number(4))}
        reader.number(4)
        reader.string()
        code, leader = reader.number(2), reader.number(2)
        return cls(code, brokers.get(leader))


_CHUNK = struct.Struct(">BBHIqQQIIII")
_LENGTH = struct.Struct(">I")


class Chunk:
    """What the server wrote at once, and delivers at once. timestamp: when it was written, in ms."""

    __slots__ = ("_data", "_entries", "_start", "count", "first", "size", "timestamp")

    def __init__(self, data: bytes, start: int) -> None:
        _, _, self._entries, self.count, self.timestamp, _, self.first, _, _, _, _ = _CHUNK.unpack_from(data, start)
        self._data, self._start, self.size = data, start + _CHUNK.size, len(data)

    def bodies(self) -> list[bytes]:
        """Raises `BrokerError` for a compression that Python does not bring along."""
        data, at, found = self._data, self._start, list[bytes]()
        unpack = _LENGTH.unpack_from
        for _ in range(self._entries):
            (size,) = unpack(data, at)
            if size < 0x80000000:
                at += 4
                found.append(data[at : at + size])
                at += size
            else:
                at = self._batch(at, found)
        return found

    def _batch(self, at: int, found: list[bytes]) -> int:
        """A batch that its publisher packed, and perhaps compressed."""
        kind, count, _, size = struct.unpack_from(">BHII", self._data, at)
        at += 11
        inner = self._data[at : at + size]
        compression = kind >> 4 & 7
        if compression == 1:
            inner = gzip.decompress(inner)
        elif compression:
            name = {2: "snappy", 3: "lz4", 4: "zstd"}.get(compression, "an unknown way")
            raise BrokerError(
                f"a publisher has compressed its messages by {name}: only gzip can be read here; let it publish without"
            )
        place = 0
        for _ in range(count):
            length = int.from_bytes(inner[place : place + 4], "big")
            found.append(inner[place + 4 : place + 4 + length])
            place += 4 + length
        return at + int(size)
