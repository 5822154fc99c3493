"""A small value that outlives its owner: the last entry of a stream counts, if it is of the last owner.

Whoever opens the cell marks it, and reads back what was there; what an earlier owner writes after that is ignored.
"""

from __future__ import annotations

import secrets

import msgspec
from thalweg.errors import BrokerError

from .connection import Connection
from .tail import Tail

__all__ = ["Cell"]

_ARGUMENTS = {"x-max-length-bytes": 2_000_000, "x-stream-max-segment-size-bytes": 500_000}


class _Entry(msgspec.Struct, array_like=True):
    """value: None marks the beginning of an ownership."""

    owner: str
    value: bytes | None


class Cell:
    def __init__(self, connection: Connection, name: str, what: str) -> None:
        self.value: bytes | None = None
        self._me = secrets.token_hex(8)
        self._owner: str | None = None
        self._what = what
        self._connection, self._name = connection, name
        self._tail = self._follow("last")

    async def open(self) -> bytes | None:
        """What the owners before have written last; from now on they cannot write any more."""
        mark = msgspec.msgpack.encode(_Entry(self._me, None))
        await self._tail.append(mark)
        if self.value is None:  # of several owners in a row, none may have written anything
            await self._tail.close()
            self._tail = self._follow("first")
            await self._tail.append(mark)
        return self.value

    async def write(self, value: bytes) -> None:
        """Raises `BrokerError` if another has opened the cell meanwhile."""
        await self._tail.append(msgspec.msgpack.encode(_Entry(self._me, value)))
        if self._owner != self._me:
            raise BrokerError(f"{self._what} belong to another member of the group by now")

    async def close(self) -> None:
        await self._tail.close()

    def _follow(self, start: str) -> Tail:
        return Tail(self._connection, self._name, self._what, self._take, start, _ARGUMENTS)

    def _take(self, _: int, body: bytes) -> None:
        try:
            entry = msgspec.msgpack.decode(body, type=_Entry)
        except msgspec.DecodeError:
            return
        if entry.value is None:
            self._owner = entry.owner
        elif self._owner is None or self._owner == entry.owner:
            self.value = entry.value
