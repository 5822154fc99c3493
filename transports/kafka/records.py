"""How records become the bytes of a batch, and what was fetched becomes records again."""

from __future__ import annotations

import struct
import time
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c
from thalweg.errors import BrokerError, MessageTooLarge
from thalweg.message import Headers, Message, Position

from .topics import Topic

__all__ = ["AGAIN", "OWNER", "Chunk", "Outgoing", "check_size", "fill", "unpack"]

OWNER = "thalweg-owner"
"""The header of a marker, and of the last record of a commit: the transactional id of the journal's owner."""

AGAIN = "thalweg-again"
"""A second header, beside OWNER, of a record which only names another id of the same owner; no reader sees it."""

CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}

_NO_HEADERS: list[tuple[str, bytes]] = []
_CRC, _AFTER_CRC, _PRODUCER = 17, 21, 43
_ABORT = b"\0\0\0\0"
_HEADER_BYTES = 16
"""More than a header takes beside its name and value."""


class Outgoing:
    """A batch for one partition, while it is filled and until the broker has it."""

    def __init__(self, limit: int, codec: str, transactional: bool = False) -> None:
        self._builder: Any = DefaultRecordBatchBuilder(2, CODECS[codec], int(transactional), -1, -1, -1, limit)
        self._data: bytearray | None = None
        self.count = 0

    def add(self, messages: Sequence[Message], start: int, now: int) -> int:
        """Add `messages[start:]` as far as they fit, at least one to an empty batch; returns where it stopped. Hot."""
        append, count = self._builder.append, self.count
        for index in range(start, len(messages)):
            message = messages[index]
            headers = list(message.headers) if message.headers else _NO_HEADERS
            if append(count, message.timestamp or now, message.key, message.value, headers) is None:
                self.count = count
                return index
            count += 1
        self.count = count
        return len(messages)

    @property
    def size(self) -> int:
        return len(self._data) if self._data is not None else int(self._builder.size())

    def stamped(self, producer: int, epoch: int, sequence: int) -> bytes:
        """The bytes, with what lets the broker drop a repetition. May be called again with another stamp."""
        if self._data is None:
            self._builder.set_producer_state(producer, epoch, sequence)
            self._data = self._builder.build()
        else:
            struct.pack_into(">qhi", self._data, _PRODUCER, producer, epoch, sequence)
            struct.pack_into(">I", self._data, _CRC, calc_crc32c(bytes(memoryview(self._data)[_AFTER_CRC:])))
        return bytes(self._data)


def fill(messages: Sequence[Message], limit: int, codec: str, transactional: bool) -> list[Outgoing]:
    """As few batches as hold them, in order."""
    batches: list[Outgoing] = []
    now, done = round(time.time() * 1000), 0
    while done < len(messages):
        batch = Outgoing(limit, codec, transactional)
        done = batch.add(messages, done, now)
        batches.append(batch)
    return batches


def check_size(messages: Iterable[Message], topic: Topic) -> None:
    """Raises MessageTooLarge."""
    for message in messages:
        size = len(message.value or b"") + len(message.key or b"")
        room = topic.message_bytes
        if message.headers:
            size = message.size
            room = min(room, topic.batch_bytes - 512 - _HEADER_BYTES * len(message.headers))
        if size > room:
            raise MessageTooLarge(
                f"a message for {topic.name!r} has {size} bytes of key, value and headers; the limit is {room} "
                "(max.message.bytes of the topic, message.max.bytes of the broker, ?message_bytes= of the URL)"
            )


class Chunk(msgspec.Struct, eq=False):
    """What was fetched of one partition: all records that lie from offset `start` on and before `next`."""

    start: Position
    next: Position
    records: Sequence[Message]
    positions: Sequence[Position]
    size: int


def unpack(data: bytes, start: Position, aborted: Iterable[tuple[int, int]] | None, hide: bool = True) -> Chunk:
    """The records of fetched bytes, from offset `start` on.

    aborted: producer and first offset of the transactions among them that were aborted; what those wrote is left out.
    hide: leave out, too, the records that no reader sees.
    """
    records: list[Message] = []
    positions: Sequence[Position] = range(0)
    following = start
    ahead = sorted(aborted or (), key=lambda entry: entry[1])
    aborting: set[int] = set()
    fetched = MemoryRecords(data)
    while fetched.has_next():
        batch: Any = fetched.next_batch()
        if batch.next_offset <= start:
            continue
        following = batch.next_offset
        if not batch.validate_crc():
            raise BrokerError(f"the record batch that ends before offset {following} is damaged: its checksum is wrong")
        while ahead and ahead[0][1] < following:
            aborting.add(ahead.pop(0)[0])
        if batch.is_control_batch:
            if aborting and next(iter(batch)).key == _ABORT:
                aborting.discard(batch.producer_id)
            continue
        if aborting and batch.is_transactional and batch.producer_id in aborting:
            continue
        found, places = _records(batch)
        if places and places[0] < start:
            skipped = bisect_left(places, start)
            found, places = found[skipped:], places[skipped:]
        if hide and len(found) == 1 and len(found[0].headers) == 2 and found[0].headers[1][0] == AGAIN:
            continue
        positions = _joined(positions, places)
        records += found
    return Chunk(start, following, records, positions, len(data))


def _records(batch: Any) -> tuple[list[Message], Sequence[Position]]:
    """Hot: 0.4 us a record. Copied: the garbage collector tracks two objects for each of aiokafka's, none for ours."""
    records: list[Message] = []
    offsets: list[Position] = []
    add, note = records.append, offsets.append
    for record in batch:
        headers = record.headers
        add(Message(record.value, record.key, _headers(headers) if headers else (), record.timestamp or 0))
        note(record.offset)
    if offsets and offsets[-1] - offsets[0] == len(offsets) - 1:
        return records, range(offsets[0], offsets[-1] + 1)
    return records, offsets


def _headers(headers: Iterable[tuple[str, bytes | None]]) -> Headers:
    """Kafka's may have no value; Thalweg's then have an empty one."""
    return tuple([(name, value or b"") for name, value in headers])


def _joined(left: Sequence[Position], right: Sequence[Position]) -> Sequence[Position]:
    if not left:
        return right
    if isinstance(left, range) and isinstance(right, range) and left.stop == right.start:
        return range(left.start, right.stop)
    if isinstance(left, list):
        left.extend(right)
        return left
    return [*left, *right]
