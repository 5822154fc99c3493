"""Which prefix of an input is finished, whatever the order in which its events finish."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

from thalweg.journal.records import checksum
from thalweg.message import Position, Record

__all__ = ["Reorders", "Segment", "Watermark"]


class Reorders(Protocol):
    """An inbox: records came out of it in another order than they lie in the log, so it knows the position."""

    def finished(self, count: int, /) -> None: ...
    @property
    def resume(self) -> Position | None: ...


Range = tuple[Position, Position]
"""First and last."""


class Segment:
    """Consecutive records handed out together. `done` of them, from the first on, are finished."""

    __slots__ = ("done", "inbox", "late", "positions", "records", "reported")

    def __init__(self, records: Sequence[Record], positions: Sequence[Position], inbox: Reorders | None = None) -> None:
        self.records = records
        self.positions = positions
        self.inbox = inbox
        self.done = 0
        self.reported = 0  # of `done`, how many the watermark knows of
        self.late: set[int] = set()

    def finish(self, index: int) -> None:
        """Record `index` is finished; harmless if it was before."""
        if index != self.done:
            if index > self.done:
                self.late.add(index)
            return
        self.done += 1
        while self.late and self.done in self.late:
            self.late.remove(self.done)
            self.done += 1

    def ahead(self, start: int) -> list[Range]:
        """Those finished from record `start` on, as ranges of positions; where an inbox reorders, one by one."""
        found = [*range(start, self.done), *sorted(self.late)]
        ranges: list[Range] = []
        for number, index in enumerate(found):
            position = self.positions[index]
            if number and self.inbox is None and found[number - 1] == index - 1:
                ranges[-1] = (ranges[-1][0], position)
            else:
                ranges.append((position, position))
        return ranges


class Watermark:
    """The contiguous prefix of finished records over all segments handed out, in the order handed out."""

    def __init__(self) -> None:
        self._open: deque[Segment] = deque()
        self._last: Record | None = None  # the record at `position`, where known
        self._passed = 0
        self.position: Position | None = None

    def hand_out(
        self, records: Sequence[Record], positions: Sequence[Position], inbox: Reorders | None = None
    ) -> Segment:
        segment = Segment(records, positions, inbox)
        self._open.append(segment)
        return segment

    @property
    def finished(self) -> int:
        """How many records were finished, those behind an unfinished one left out."""
        return self._passed + sum(segment.done for segment in self._open)

    @property
    def span(self) -> int:
        """How many records were handed out from the first unfinished one on."""
        count = 0
        for segment in self._open:
            count += len(segment.positions) - (0 if count else segment.done)
        return count

    def ahead(self) -> list[Range]:
        """What is finished behind the first unfinished record: `position` does not tell. Call after `advance`."""
        if len(self._open) == 1 and not self._open[0].late:
            return []
        return [one for n, segment in enumerate(self._open) for one in segment.ahead(0 if n else segment.done)]

    @property
    def checksum(self) -> int:
        """Of the record at `position`; 0 if that is not known."""
        return 0 if self._last is None else checksum(self._last.value)

    def advance(self) -> bool:
        """Move `position` to the last finished record before the first unfinished one; whether any was finished."""
        moved = False
        while self._open:
            segment = self._open[0]
            count = segment.done - segment.reported
            if count:
                moved = True
                segment.reported = segment.done
                if segment.inbox is None:
                    self.position = segment.positions[segment.done - 1]
                    self._last = segment.records[segment.done - 1]
                else:
                    segment.inbox.finished(count)
                    self.position, self._last = segment.inbox.resume, None
            if segment.done < len(segment.positions):
                break
            self._passed += segment.done
            self._open.popleft()
        return moved
