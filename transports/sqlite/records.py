"""Writing and reading records, as jobs of the database's threads. Positions are dense, so that a hole is noticed."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping, Sequence

import msgspec
from thalweg.capabilities import Bounds
from thalweg.channel import TopicInfo, TopicSpec
from thalweg.errors import BrokerError, ConfigurationError, Gap, MessageTooLarge
from thalweg.message import Batch, Headers, Message, Position, QueueMessage

from .database import Transaction

__all__ = [
    "Topic",
    "append",
    "bounds",
    "declare",
    "decode_headers",
    "find",
    "find_topic",
    "list_topics",
    "prepare",
    "read",
    "retire",
    "truncate",
    "wall_clock",
]

_STEP, _STEP_BYTES = 10_000, 4 << 20
"""How much is deleted in one transaction, at most: SQLite reads all of a large record to free it, and meanwhile nobody
else can write, not even that a lease goes on."""


class Topic(msgspec.Struct, frozen=True):
    """A row of `topics`. retention: ms. dead_letter: name of a queue."""

    id: int
    name: str
    partitions: int
    queue: bool
    retention: int | None
    dead_letter: str | None

    @property
    def info(self) -> TopicInfo:
        return TopicInfo(self.name, self.partitions, self.queue)


def wall_clock() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


# --- topics --------------------------------------------------------------------------------------------------


def declare(transaction: Transaction, specs: Sequence[TopicSpec]) -> list[Topic]:
    return [_declare(transaction, spec) for spec in specs]


def _declare(transaction: Transaction, spec: TopicSpec) -> Topic:
    topic = find_topic(transaction, spec.name)
    if topic is None:
        if not spec.declare:
            raise spec.absent("the file")
        return _create(transaction, spec)
    spec.check(topic.queue, topic.partitions, "this file")
    return topic


def _create(transaction: Transaction, spec: TopicSpec) -> Topic:
    partitions = spec.default_partitions if spec.partitions is None else spec.partitions
    if partitions < 1:
        raise ConfigurationError(f"topic {spec.name!r}: partitions={partitions}; expected 1 or more")
    if spec.queue:
        partitions = 1
    retention = None if spec.retention is None else round(spec.retention * 1000)
    dead_letter = spec.options.get("dead_letter") if spec.queue else None
    if dead_letter is not None:
        _declare(transaction, TopicSpec(dead_letter, queue=True))
    number = transaction.execute(
        "INSERT INTO topics (name, partitions, queue, retention, dead_letter) VALUES (?, ?, ?, ?, ?)",
        (spec.name, partitions, spec.queue, retention, dead_letter),
    ).lastrowid
    assert number is not None
    transaction.executemany(
        "INSERT INTO partitions (topic, partition) VALUES (?, ?)", [(number, index) for index in range(partitions)]
    )
    return Topic(number, spec.name, partitions, spec.queue, retention, dead_letter)


def find_topic(connection: Transaction | sqlite3.Connection, name: str) -> Topic | None:
    row = connection.execute(
        "SELECT id, partitions, queue, retention, dead_letter FROM topics WHERE name = ?", (name,)
    ).fetchone()
    if row is None:
        return None
    number, partitions, queue, retention, dead_letter = row
    return Topic(number, name, partitions, bool(queue), retention, dead_letter.decode() if dead_letter else None)


def list_topics(connection: sqlite3.Connection) -> list[TopicInfo]:
    rows = connection.execute("SELECT name, partitions, queue FROM topics")
    return sorted((TopicInfo(name.decode(), count, bool(queue)) for name, count, queue in rows), key=lambda t: t.name)


# --- writing -------------------------------------------------------------------------------------------------


def prepare(messages: Sequence[Message], limit: int, topic: str) -> Sequence[Message]:
    """Checked against the limit, and with a timestamp each. Raises `MessageTooLarge`."""
    largest, stamped = 0, True
    for message in messages:
        # `Message.size` takes four times as long as this, and all that is written passes here.
        size = len(message.value or b"") + len(message.key or b"")
        if message.headers:
            size = message.size
        if size > largest:
            largest = size
        if not message.timestamp:
            stamped = False
    if largest > limit:
        raise MessageTooLarge(
            f"a message of {largest} bytes for {topic!r} is above message_bytes={limit}; nothing was written. "
            "Send less, or set a larger message_bytes in the URL (sqlite:///file?message_bytes=…)"
        )
    if stamped:
        return messages
    now = wall_clock()
    return [m if m.timestamp else msgspec.structs.replace(m, timestamp=now) for m in messages]


def append(transaction: Transaction, topic: Topic, partition: int, messages: Sequence[Message]) -> range:
    """Append in order; returns the positions."""
    row = transaction.execute(
        "SELECT next FROM partitions WHERE topic = ? AND partition = ?", (topic.id, partition)
    ).fetchone()
    if row is None:
        raise BrokerError(f"topic {topic.name!r} has partitions 0 to {topic.partitions - 1}, but no {partition}")
    positions = range(row[0], row[0] + len(messages))
    if not messages:
        return positions
    if topic.queue:
        _insert_queued(transaction, topic, partition, messages, positions)
    else:
        number = topic.id
        transaction.executemany(
            "INSERT INTO records (topic, partition, position, timestamp, key, value, headers) VALUES (?,?,?,?,?,?,?)",
            [
                (number, partition, p, m.timestamp, m.key, m.value, encode_headers(m.headers) if m.headers else None)
                for p, m in zip(positions, messages, strict=True)
            ],
        )
    transaction.execute(
        "UPDATE partitions SET next = ? WHERE topic = ? AND partition = ?", (positions.stop, topic.id, partition)
    )
    transaction.touched.add(topic.id)
    if topic.retention is not None:
        _note_age(transaction, topic, topic.retention, partition, positions.stop)
        size = sum(len(message.value or b"") for message in messages)
        retire(transaction, topic, partition, 1000 + 2 * len(messages), _STEP_BYTES + 2 * size)
    return positions


def _insert_queued(
    transaction: Transaction, topic: Topic, partition: int, messages: Sequence[Message], positions: range
) -> None:
    now = wall_clock()
    rows: list[tuple[object, ...]] = []
    for position, message in zip(positions, messages, strict=True):
        headers = encode_headers(message.headers) if message.headers else None
        row = (topic.id, partition, position, message.timestamp, message.key, message.value, headers)
        if isinstance(message, QueueMessage):
            ready = now + round(message.delay * 1000) if message.delay > 0 else None
            expires = None if message.expires is None else now + round(message.expires * 1000)
            if not 0 <= message.priority <= 9:
                raise BrokerError(f"priority={message.priority}; expected 0 (lowest) to 9")
            rows.append((*row, message.priority, ready, expires))
        else:
            rows.append((*row, None, None, None))
    transaction.executemany("INSERT INTO records VALUES (?,?,?,?,?,?,?,?,?,?)", rows)


def retire(
    transaction: Transaction, topic: Topic, partition: int, limit: int = _STEP, most_bytes: int = _STEP_BYTES
) -> bool:
    """Drop records that were written longer ago than the retention (their own timestamps do not count); True: go on."""
    if topic.retention is None:
        return False
    oldest, place = wall_clock() - topic.retention, (topic.id, partition)
    old = "FROM ages WHERE topic = ? AND partition = ? AND time < ?"
    (before,) = transaction.execute(f"SELECT max(next) {old}", (*place, oldest)).fetchone()
    if before is None:
        return False
    if delete(transaction, topic, partition, before, limit, most_bytes):
        return True
    transaction.execute(f"DELETE {old}", (*place, oldest))
    return False


def _note_age(transaction: Transaction, topic: Topic, retention: int, partition: int, end: Position) -> None:
    """Remember that all below `end` will have been written before the current 64th of the retention ends."""
    width = max(1, retention // 64)
    until = (wall_clock() // width + 1) * width
    place = (topic.id, partition)
    transaction.execute("DELETE FROM ages WHERE topic = ? AND partition = ? AND time > ?", (*place, until))
    transaction.execute("INSERT OR REPLACE INTO ages VALUES (?, ?, ?, ?)", (*place, until, end))


def truncate(transaction: Transaction, topic: Topic, partition: int, before: Position) -> bool:
    """Delete a bounded number of records below `before`; whether there may be more."""
    return delete(transaction, topic, partition, before, _STEP, _STEP_BYTES)


def delete(
    transaction: Transaction, topic: Topic, partition: int, before: Position, limit: int, most_bytes: int
) -> bool:
    place = "topic = ? AND partition = ?"
    (first,) = transaction.execute(f"SELECT min(position) FROM records WHERE {place}", (topic.id, partition)).fetchone()
    if first is None or first >= before:
        return False
    size, end = 0, first
    sizes = f"SELECT position, length(value) FROM records WHERE {place} AND position < ? ORDER BY position LIMIT ?"
    for position, length in transaction.execute(sizes, (topic.id, partition, before, limit)):
        size, end = size + (length or 0), position + 1
        if size >= most_bytes:
            break
    transaction.execute(f"DELETE FROM records WHERE {place} AND position < ?", (topic.id, partition, end))
    return bool(end < before)


# --- reading -------------------------------------------------------------------------------------------------


def read(
    connection: sqlite3.Connection,
    topic: Topic,
    after: Sequence[tuple[int, Position | None]],
    limit: int,
    max_bytes: int,
) -> Mapping[int, Batch]:
    """A batch for each partition that has news, in the order given, until `max_bytes` is reached."""
    ends = dict(connection.execute("SELECT partition, next FROM partitions WHERE topic = ?", (topic.id,)))
    batches: dict[int, Batch] = {}
    for partition, position in after:
        if partition not in ends:
            raise BrokerError(f"topic {topic.name!r} has partitions 0 to {topic.partitions - 1}, but no {partition}")
        end = ends[partition]
        if position is not None and position >= end:
            raise Gap(topic.name, partition, position, bounds(connection, topic, partition).first)
        if (batches and max_bytes <= 0) or position == end - 1 or end == 0:
            continue
        batch, size = _read_partition(connection, topic, partition, position, limit, max_bytes)
        if batch is not None:
            batches[partition] = batch
            max_bytes -= size
    return batches


def _read_partition(
    connection: sqlite3.Connection, topic: Topic, partition: int, after: Position | None, limit: int, max_bytes: int
) -> tuple[Batch | None, int]:
    rows = connection.execute(
        "SELECT position, timestamp, key, value, headers FROM records WHERE topic = ? AND partition = ? "
        "AND position > ? ORDER BY position LIMIT ?",
        (topic.id, partition, -1 if after is None else after, limit),
    )
    records: list[Message] = []
    first = expected = -1 if after is None else after + 1
    size = 0
    for position, timestamp, key, value, headers in rows:
        if position != expected:
            if records:
                break  # a hole further on: the next read says so
            if after is not None:
                raise Gap(topic.name, partition, after, position)
            first = expected = position
        records.append(Message(value, key, decode_headers(headers) if headers else (), timestamp))
        expected += 1
        size += (len(value) if value else 0) + (len(key) if key else 0) + (len(headers) if headers else 0)
        if size >= max_bytes:
            break
    if records:
        return Batch(records, range(first, expected)), size
    if after is not None:
        raise Gap(topic.name, partition, after, None)
    return None, 0


def bounds(connection: sqlite3.Connection, topic: Topic, partition: int) -> Bounds:
    first, last = connection.execute(
        "SELECT (SELECT min(position) FROM records WHERE topic = ?1 AND partition = ?2), "
        "(SELECT max(position) FROM records WHERE topic = ?1 AND partition = ?2)",
        (topic.id, partition),
    ).fetchone()
    return Bounds(first, last)


def find(connection: sqlite3.Connection, topic: Topic, partition: int, timestamp: int) -> Position | None:
    """Scans from the first record: there is no index by time."""
    row = connection.execute(
        "SELECT position FROM records WHERE topic = ? AND partition = ? AND timestamp >= ? ORDER BY position LIMIT 1",
        (topic.id, partition, timestamp),
    ).fetchone()
    ends = bounds(connection, topic, partition)
    if row is None:
        return ends.last
    return None if row[0] == ends.first else row[0] - 1


# --- headers -------------------------------------------------------------------------------------------------


class _Binary(msgspec.Struct):
    base64: bytes


_decoder = msgspec.json.Decoder(list[tuple[str, str | _Binary]])
_encoder = msgspec.json.Encoder()


def encode_headers(headers: Headers) -> str:
    """A JSON list that people can read."""
    return _encoder.encode([(name, _readable(value)) for name, value in headers]).decode()


def decode_headers(text: bytes) -> Headers:
    return tuple(
        (name, value.encode() if isinstance(value, str) else value.base64) for name, value in _decoder.decode(text)
    )


def _readable(value: bytes) -> str | _Binary:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return _Binary(value)
