"""How a task's whole state lies in rows of bytes, so that a commit, a snapshot and a store are all "a set of rows".

| row | key | value |
|---|---|---|
| a table's entry | `t` name `\\0` key | the encoded value |
| when an entry with a time to live is due | `l` name `\\0` key | milliseconds since the epoch (8 bytes, big-endian) |
| the same, in the order of time | `e` name `\\0` due (8 bytes, big-endian) key | nothing |
| how far an input was read | `p` input | position, CRC-32 of the record there |
| what finished beyond that | `f` input | ranges of positions, first and last, in order |
| a parked retry | `r` input `\\0` position (8 bytes, big-endian) | the message, attempts, due time, reason |
| events under suspicion | `s` agent | the one about to run, those in which a process died: input, position, deaths |
| crashes of owners in a row | `k` | their number |
| the state is being reset or restored, and not whole | `b` | what is done to it |
| the last tick of a crontab on the leader | `c` name | seconds since the epoch |
| the last tick of a timer on the leader | `i` name | seconds since the epoch |
| a consumer's watermark (outbox ids) | `w` input `\\0` producing journal | epoch, seq |
| an outbox | `v` topic `\\0` partition | the newest id given, the newest confirmed |
| an id that was sent once | `d` input `\\0` id | position of the record that had it, until when it is remembered (ms) |
| the same, in the order of time | `q` input `\\0` until (8 bytes, big-endian) id | nothing |
| a message that waits for its time | `y` topic `\\0` id | the message, where it goes, when (ms) |
| the same, in the order of time | `x` when (8 bytes, big-endian) topic `\\0` id | nothing |
| an unconfirmed output | `u` topic `\\0` partition `\\0` epoch, seq | the message, its id and the one before |
"""

from __future__ import annotations

import struct
from functools import lru_cache

import msgspec
from thalweg.message import Headers, Message, Position, QueueMessage, Record

CRASHES = b"k"
UNFINISHED = b"b"

__all__ = [
    "CRASHES",
    "UNFINISHED",
    "Parked",
    "Reached",
    "Remembered",
    "Suspect",
    "Suspects",
    "Waiting",
    "ahead_key",
    "below",
    "decode",
    "due_key",
    "encode",
    "id_key",
    "id_until_key",
    "life_key",
    "outbox_key",
    "output_key",
    "parked_key",
    "prefix",
    "reached_key",
    "suspect_key",
    "waiting_key",
    "waiting_until_key",
    "watermark_key",
]

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.decode


class Reached(msgspec.Struct, array_like=True, frozen=True):
    """The last finished position of an input; `checksum` is of the record there (0: no record was read yet).

    passed: up to where no record follows it, if that is known to be farther on.
    """

    position: Position | None
    checksum: int
    passed: Position | None = None


class Parked(msgspec.Struct, array_like=True):
    """An event that waits for its next attempt, or behind one of the same key that does."""

    value: bytes | None
    key: bytes | None
    headers: Headers
    timestamp: int
    attempts: int
    due: int  # milliseconds since the epoch
    reason: str = ""
    deaths: int = 0
    shared: int = 0

    @classmethod
    def of(cls, record: Record, attempts: int, due: int, reason: str, deaths: int, shared: int) -> Parked:
        headers = tuple(record.headers)
        return cls(record.value, record.key, headers, record.timestamp, attempts, due, reason, deaths, shared)


class Suspect(msgspec.Struct, array_like=True, frozen=True):
    """An event, and how often a process has died in it, or will have if it dies now.

    deaths: while no other event that was noted ran in that process. shared: beside others, of which any may be to
    blame.
    """

    input: str
    position: Position
    deaths: int
    shared: int = 0


class Remembered(msgspec.Struct, array_like=True, frozen=True):
    """The record that had an id first, and until when (ms) others that have it are copies."""

    position: Position
    until: int


class Waiting(msgspec.Struct, array_like=True, frozen=True):
    """A message that leaves for a partition of a topic (-1: a queue) when it is due: milliseconds since the epoch."""

    due: int
    topic: str
    partition: int
    message: Message | QueueMessage


class Suspects(msgspec.Struct, array_like=True, frozen=True):
    """Of an agent. noted: it is about to run. before: processes died in these, and they have not come up since."""

    noted: Suspect | None
    before: list[Suspect]


def prefix(table: str) -> bytes:
    return b"t" + table.encode() + b"\0"


def life_key(table: str, key: bytes) -> bytes:
    return b"l" + table.encode() + b"\0" + key


def due_key(table: str, due: int, key: bytes) -> bytes:
    return b"e" + table.encode() + b"\0" + due.to_bytes(8, "big") + key


def below(start: bytes) -> bytes:
    """The first key after all those that begin with `start` (which ends in a byte below 0xFF)."""
    return start[:-1] + bytes([start[-1] + 1])


def reached_key(input_name: str) -> bytes:
    return b"p" + input_name.encode()


def ahead_key(input_name: str) -> bytes:
    return b"f" + input_name.encode()


def suspect_key(agent: str) -> bytes:
    return b"s" + agent.encode()


def outbox_key(topic: str, partition: int) -> bytes:
    return b"v" + topic.encode() + b"\0" + str(partition).encode()


def output_key(topic: str, partition: int, id: tuple[int, int]) -> bytes:
    """HOT PATH: twice an output."""
    return _outputs_to(topic, partition) + _OUTPUT_ID.pack(*id)


_OUTPUT_ID = struct.Struct(">QQ")


@lru_cache(4096)
def _outputs_to(topic: str, partition: int) -> bytes:
    return b"u" + topic.encode() + b"\0" + str(partition).encode() + b"\0"


def watermark_key(input_name: str, journal: bytes) -> bytes:
    return b"w" + input_name.encode() + b"\0" + journal


def parked_key(input_name: str, position: Position) -> bytes:
    return b"r" + input_name.encode() + b"\0" + position.to_bytes(8, "big")


def id_key(input_name: str, id: bytes) -> bytes:
    return b"d" + input_name.encode() + b"\0" + id


def id_until_key(input_name: str, until: int, id: bytes) -> bytes:
    return b"q" + input_name.encode() + b"\0" + until.to_bytes(8, "big") + id


def waiting_key(name: bytes) -> bytes:
    return b"y" + name


def waiting_until_key(due: int, name: bytes) -> bytes:
    return b"x" + due.to_bytes(8, "big") + name
