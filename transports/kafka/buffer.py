"""What was fetched of one partition and not handed on yet."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence

from thalweg.message import Batch, Position, Record

from .records import Chunk

__all__ = ["Buffer"]

_CHUNKS = 2
"""One that is being handed on, and one that was fetched ahead."""

_RECORD = 60
"""Bytes of a record beside key and value, about."""


class Buffer:
    """start, end: of the partition, as the last answer said."""

    def __init__(self) -> None:
        self.start: Position = 0
        self.end: Position = 0
        self._chunks: deque[Chunk] = deque(maxlen=_CHUNKS)
        self._skipped: tuple[Position, Position] = (0, 0)

    def keep(self, chunk: Chunk) -> None:
        """May be called again with one that others have pushed out meanwhile."""
        if chunk.records:
            if chunk not in self._chunks:
                self._chunks.append(chunk)
        elif chunk.next > chunk.start:
            start, end = self._skipped
            self._skipped = (start if start <= chunk.start <= end < chunk.next else chunk.start, chunk.next)

    def across(self, offset: Position) -> Position:
        """The offset from which to read on: where a transaction ended there is something that is no record."""
        start, end = self._skipped
        return end if start <= offset < end else offset

    def following(self, offset: Position) -> Position | None:
        """From where to fetch ahead, if more is known to lie there and is not here yet."""
        offset = self.across(offset)
        known = offset >= self.end or any(chunk.start <= offset < chunk.next for chunk in self._chunks)
        return None if known else offset

    def take(self, offset: Position, limit: int, room: int) -> tuple[Batch, int] | None:
        """Records from `offset` on, of at most about `room` bytes but at least one, and their size."""
        chunk = next((chunk for chunk in self._chunks if chunk.start <= offset < chunk.next), None)
        if chunk is None:
            return None
        records, positions = chunk.records, chunk.positions
        first = bisect_left(positions, offset)
        last = min(len(records), first + limit)
        size = chunk.size * (last - first) // len(records)
        if size > room:
            last, size = _that_fit(records, first, last, room)
        if last == len(records):
            self._chunks.remove(chunk)
            self._skipped = (positions[-1] + 1, chunk.next)
        if first == last:
            return None
        if last - first < len(records):
            records, positions = records[first:last], positions[first:last]
        return Batch(records, positions), size

    def clear(self) -> None:
        self._chunks.clear()


def _that_fit(records: Sequence[Record], first: int, last: int, room: int) -> tuple[int, int]:
    size = 0
    for index in range(first, last):
        record = records[index]
        size += _RECORD + len(record.value or b"") + len(record.key or b"")
        if size > room:
            return max(index, first + 1), size
    return last, size
