"""Which prefix of an input is finished, whatever the order in which its events finish."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from thalweg.message import Position, Record

__all__ = ["Segment", "Watermark"]


class Segment:
    """Consecutive records handed out together. `done` of them, from the first on, are finished."""

    __slots__ = ("_late", "done", "positions", "records")

    def __init__(self, records: Sequence[Record], positions: Sequence[Position]) -> None:
        self.records = records
        self.positions = positions
        self.done = 0
        self._late: set[int] = set()

    def finish(self, index: int) -> None:
        """Record `index` is finished; harmless if it was before."""
        if index != self.done:
            if index > self.done:
                self._late.add(index)
            return
        self.done += 1
        while self._late and self.done in self._late:
            self._late.remove(self.done)
            self.done += 1


class Watermark:
    """The contiguous prefix of finished records over all segments handed out, in log order."""

    def __init__(self) -> None:
        self._open: deque[Segment] = deque()
        self.position: Position | None = None
        self.value: bytes | None = None  # of the record at `position`
        self._passed = 0

    def hand_out(self, records: Sequence[Record], positions: Sequence[Position]) -> Segment:
        segment = Segment(records, positions)
        self._open.append(segment)
        return segment

    @property
    def unfinished(self) -> bool:
        return any(segment.done < len(segment.positions) for segment in self._open)

    @property
    def finished(self) -> int:
        """How many records were finished, those behind an unfinished one left out."""
        return self._passed + sum(segment.done for segment in self._open)

    def advance(self) -> bool:
        """Move `position` to the last finished record before the first unfinished one; whether it moved."""
        before = self.position
        while self._open:
            segment = self._open[0]
            if segment.done:
                self.position = segment.positions[segment.done - 1]
                self.value = segment.records[segment.done - 1].value
            if segment.done < len(segment.positions):
                break
            self._passed += segment.done
            self._open.popleft()
        return self.position != before
