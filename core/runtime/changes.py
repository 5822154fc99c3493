"""What a commit did to the rows of a table, for those who follow it: one message a changed row, part of that commit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

import msgspec
from thalweg.codec import TypeCodec
from thalweg.errors import EncodeError
from thalweg.message import Message

from .tables import TablePlan, TableState

__all__ = ["Change", "Changes", "change_codec", "changes_topic"]

K = TypeVar("K")
V = TypeVar("V")


class Change(msgspec.Struct, Generic[K, V], frozen=True):
    """A row as one commit left it. old: None for a row that was not there; new: None for one that was deleted."""

    key: K
    old: V | None
    new: V | None


class _Raw(msgspec.Struct, array_like=True, frozen=True):
    key: bytes
    old: bytes | None
    new: bytes | None


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Raw).decode


def changes_topic(app_id: str, table: str) -> str:
    return f"{app_id}-{table}-changes"


def change_codec(plan: TablePlan) -> TypeCodec[Change[object, object]]:
    """Of the changes topic's values: key, old and new as they lie in the table, in a msgpack array."""

    def decode(data: bytes) -> Change[object, object]:
        raw = _decode(data)
        old = None if raw.old is None else plan.decode(raw.old)
        return Change(plan.decode_key(raw.key), old, None if raw.new is None else plan.decode(raw.new))

    def encode(change: Change[object, object]) -> bytes:
        old = None if change.old is None else plan.encode(change.old)
        return _encode(_Raw(plan.encode_key(change.key), old, None if change.new is None else plan.encode(change.new)))

    return TypeCodec(encode, decode, f"Change of {plan.name}", "msgpack")


class Changes:
    """Of one table in one task. room: the largest message, in bytes, that its topic takes."""

    def __init__(self, table: TableState, room: int | None) -> None:
        self._table, self._room = table, room

    def of(self, rows: Mapping[bytes, bytes | None], timestamp: int) -> list[Message]:
        """Messages for what these rows of the table (as in the store, None deletes) change since the last commit.

        timestamp: milliseconds. Raises EncodeError naming a row whose change is larger than its topic takes.
        """
        found: list[Message] = []
        for row, new in rows.items():
            old, key = self._table.committed(row), self._table.key_of(row)
            if old != new:
                message = Message(_encode(_Raw(key, old, new)), key, (), timestamp)
                if self._room is not None and message.size > self._room:
                    raise EncodeError(
                        f"table {self._table.plan.name!r}, key {self._table.plan.decode_key(key)!r}: its change, the "
                        f"value before and after, has {message.size} bytes, and its topic of changes takes {self._room}"
                    )
                found.append(message)
        return found
