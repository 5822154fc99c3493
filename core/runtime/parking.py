"""Events of one agent that wait for their next attempt: rows of the journal, so that any owner goes on with them.

Behind a parked event wait the later ones of its key; events without a key wait for nobody.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
from thalweg.clock import Clock, Timer
from thalweg.journal.rows import Parked, encode, parked_key
from thalweg.message import Position, Record

from .tickets import Part, Ticket
from .watermark import Segment

if TYPE_CHECKING:
    from .topic_input import TopicInput

__all__ = ["ParkedSegment", "Parking"]


class _Waiting(msgspec.Struct):
    input: TopicInput
    position: Position
    event: Parked


class ParkedSegment(Segment):
    """The record of a parked event: finishing it takes it out of the parking."""

    __slots__ = ("_line", "_parking", "deaths", "shared")

    def __init__(self, parking: Parking, line: object, waiting: _Waiting) -> None:
        super().__init__([waiting.event], [waiting.position])
        self.deaths, self.shared = waiting.event.deaths, waiting.event.shared
        self._parking, self._line = parking, line

    def finish(self, index: int) -> None:
        if not self.done:
            self.done = 1
            self._parking.leave(self._line)


class Parking:
    """write: a row into the next commit. wake: a lane may go on with an event from here."""

    def __init__(self, clock: Clock, write: Callable[[bytes, bytes | None], None], wake: Callable[[], None]) -> None:
        self._clock, self._write, self._wake = clock, write, wake
        self._lines: dict[object, deque[_Waiting]] = {}  # by key; each event without one is a line of its own
        self._due: list[tuple[int, int, object]] = []  # when the first of a line is (ms)
        self._pushes = 0
        self._alarm: Timer | None = None
        self._stopped = False
        self.count = 0

    def __bool__(self) -> bool:
        return bool(self._lines)

    def holds(self, key: bytes | None) -> bool:
        """Whether an event of this key must wait behind others."""
        return key is not None and key in self._lines

    def park(
        self,
        ticket: Ticket,
        input_: TopicInput,
        attempts: int,
        due: float,
        reason: str,
        deaths: int = 0,
        shared: int = 0,
    ) -> None:
        """due: seconds since the epoch."""
        parked = Parked.of(ticket.record, attempts, round(due * 1000), reason, deaths, shared)
        self._write(parked_key(input_.name, ticket.position), encode(parked))
        if isinstance(ticket.segment, ParkedSegment):  # it is there already, as the first of its line
            line = _line(input_, parked, ticket.position)
            self._lines[line][0].event = parked
            self._push(line, parked.due)
        else:
            self.restore(input_, ticket.position, parked)

    def restore(self, input_: TopicInput, position: Position, parked: Parked) -> None:
        """Put an event into the parking (on recovery too: in order of position)."""
        key = _line(input_, parked, position)
        line = self._lines.setdefault(key, deque())
        line.append(_Waiting(input_, position, parked))
        self.count += 1
        if len(line) == 1:
            self._push(key, parked.due)

    def take(self) -> Part | None:
        """An event that is due."""
        if not self._is_due():
            return None
        key = heapq.heappop(self._due)[2]
        self._set_alarm()
        waiting = self._lines[key][0]
        segment = ParkedSegment(self, key, waiting)
        ticket = Ticket(waiting.input, waiting.event, waiting.position, segment, 0)
        ticket.attempts = waiting.event.attempts
        return Part(waiting.input, segment, False, [ticket])

    def leave(self, key: object) -> None:
        """The first event of the line is finished; the next one may run."""
        line = self._lines[key]
        waiting = line.popleft()
        self.count -= 1
        self._write(parked_key(waiting.input.name, waiting.position), None)
        if line:
            self._push(key, line[0].event.due)
        else:
            del self._lines[key]
        self._wake()

    def first(self, input_: str, position: Position) -> Parked | None:
        """This event, if it is parked and the first of its line."""
        firsts = (line[0] for line in self._lines.values())
        return next((first.event for first in firsts if (first.input.name, first.position) == (input_, position)), None)

    def stop(self) -> None:
        """Wake nobody any more."""
        self._stopped = True
        self._set_alarm()

    def _push(self, key: object, due: int) -> None:
        self._pushes += 1
        entry = (due, self._pushes, key)
        heapq.heappush(self._due, entry)
        if self._due[0] is entry:
            self._set_alarm()

    def _set_alarm(self) -> None:
        """For the first event that is due."""
        if self._alarm is not None:
            self._alarm.cancel()
        wait = self._due[0][0] / 1000 - self._clock.now() if self._due and not self._stopped else None
        self._alarm = None if wait is None else self._clock.call_later(wait, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        if self._is_due():
            self._wake()
        else:  # the time of day was set back meanwhile
            self._set_alarm()

    def _is_due(self) -> bool:
        return bool(self._due) and self._due[0][0] <= self._clock.now() * 1000 + 0.5


def _line(input_: TopicInput, record: Record, position: Position) -> object:
    return (input_.name, position) if record.key is None else record.key
