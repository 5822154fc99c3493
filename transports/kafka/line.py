"""One partition in the hands of one member of a group: what of it is on loan, waits, or is finished."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Mapping

import msgspec
from thalweg.message import Batch, Headers, Message, Position, Record

from .progress import Progress, Run

__all__ = [
    "DUE",
    "EXPIRES",
    "FINISHED",
    "FINISHING",
    "LENT",
    "MOST_OPEN",
    "OVER",
    "READ_RECORDS",
    "WAITING",
    "Entry",
    "Line",
    "settle",
]

DUE, EXPIRES = "thalweg-due", "thalweg-expires"
"""Headers of queues' messages: milliseconds since the epoch, as decimal digits."""

MOST_OPEN, READ_RECORDS = 1000, 500
"""With so many unfinished messages a partition is not read further, for the stored text must hold all gaps; until then,
so many at a time."""

MOST_LATER_BYTES = 4 << 20
"""And so much of those that are not due yet, for they wait in memory."""


WAITING, LENT, FINISHING, FINISHED, OVER = range(5)
"""States of an entry. FINISHING: it is as good as finished, and `Line.progress` says so. OVER: another entry or another
member has taken its place."""


class Entry(msgspec.Struct, eq=False, gc=False):
    """A message in this member's hands, and the handle of its delivery.

    attempts: how often it was delivered. due, expires: milliseconds since the epoch, 0: now, never. until: boot clock,
    end of the loan. retried: it is due at a time that its own headers do not tell.
    """

    line: Line
    position: Position
    record: Record
    attempts: int
    due: int = 0
    expires: int = 0
    until: float = 0.0
    retried: bool = False
    state: int = WAITING


class Line:
    """Begins where the group left off. Positions need not be dense: what was read over does not exist.

    on_loan: how many entries are lent or being finished. leaving: it is to be given up, and lends no more.
    """

    def __init__(self, channel: object, number: int, stored: Progress | None, is_queue: bool) -> None:
        self.channel, self.number, self.is_queue = channel, number, is_queue
        self.on_loan = 0
        self.leaving = False
        self._base = None if stored is None else stored.first
        self._next = self._base
        self._stored = stored
        self._entries: dict[Position, Entry] = {}
        self._ready: deque[Entry] = deque()
        self._later: list[tuple[int, Position, int]] = []  # when, where, bytes
        self._later_bytes = 0

    # --- reading -----------------------------------------------------------------------------------------------

    @property
    def after(self) -> Position | None:
        """What to read after."""
        return self._next - 1 if self._next else None

    @property
    def has_room(self) -> bool:
        """Whether it takes another `READ_RECORDS`."""
        return not self.leaving and len(self._entries) < MOST_OPEN and self._later_bytes <= MOST_LATER_BYTES

    def add(self, batch: Batch) -> None:
        """What was read after `after`."""
        if not batch.positions or (self._next is not None and batch.positions[-1] < self._next):
            return
        if self._base is None:
            self._base = batch.positions[0]
        if self._stored is None and not self.is_queue:
            new = [Entry(self, *both, 0) for both in zip(batch.positions, batch.records, strict=True)]
            self._entries.update(zip(batch.positions, new, strict=True))
            self._ready.extend(new)
        else:
            self._add_each(batch, self._stored or Progress(self._base))
        self._next = batch.positions[-1] + 1
        if self._stored is not None and self._stored.end <= self._next:
            self._stored = None

    def _add_each(self, batch: Batch, stored: Progress) -> None:
        end, known = stored.end, iter(stored.runs)
        run: Run = (0, 0, True, 0)
        for position, record in zip(batch.positions, batch.records, strict=True):
            attempts = 0
            if position < end:
                while run[1] <= position:
                    run = next(known)
                if run[2]:
                    continue
                attempts = run[3]
            entry = (
                self._queued(position, record, attempts) if record.headers else Entry(self, position, record, attempts)
            )
            if position in stored.due:
                entry.due, entry.retried = stored.due[position], True
            self._entries[position] = entry
            if entry.due:
                self._wait_for(entry)
            else:
                self._ready.append(entry)

    def skip_to(self, first: Position | None) -> None:
        """What lay before `first` and was not read is gone (None: all is)."""
        self._next = first
        if self._base is None or not self._entries:
            self._base = first
        if self._stored is not None and (first is None or first >= self._stored.end):
            self._stored = None

    def _queued(self, position: Position, record: Record, attempts: int) -> Entry:
        headers = {name: value for name, value in record.headers if name in (DUE, EXPIRES)} if self.is_queue else {}
        if headers:
            rest: Headers = tuple(header for header in record.headers if header[0] not in headers)
            record = Message(record.value, record.key, rest, record.timestamp)
        return Entry(self, position, record, attempts, _number(headers, DUE), _number(headers, EXPIRES))

    # --- lending -----------------------------------------------------------------------------------------------

    def lend(self, limit: int, now: int, until: float) -> list[Entry]:
        """At most `limit` entries that are due at `now` (milliseconds since the epoch), until `until` (boot clock)."""
        lent: list[Entry] = []
        if self.leaving:
            return lent
        self._take_due(now)
        ready = self._ready
        while ready and len(lent) < limit:
            entry = ready.popleft()
            if entry.state != WAITING:
                continue
            if entry.expires and entry.expires <= now:
                del self._entries[entry.position]
                entry.state = FINISHED
                continue
            entry.state = LENT
            entry.until = until
            entry.attempts += 1
            lent.append(entry)
        self.on_loan += len(lent)
        return lent

    def _take_due(self, now: int) -> None:
        due: list[Entry] = []
        while self._later and self._later[0][0] <= now:
            _, position, size = heapq.heappop(self._later)
            self._later_bytes -= size
            entry = self._entries.get(position)
            if entry is not None and entry.state == WAITING and 0 < entry.due <= now:
                entry.due = 0
                due.append(entry)
        self._ready.extendleft(sorted(due, key=_position, reverse=True))

    def _wait_for(self, entry: Entry) -> None:
        size = len(entry.record.value or b"") + len(entry.record.key or b"")
        self._later_bytes += size
        heapq.heappush(self._later, (entry.due, entry.position, size))

    @property
    def next_due(self) -> int | None:
        """Milliseconds since the epoch."""
        return self._later[0][0] if self._later and not self.leaving else None

    def lent(self) -> list[Entry]:
        return [entry for entry in self._entries.values() if entry.state == LENT]

    def take_back(self, entry: Entry, due: int = 0, *, unseen: bool = False) -> Entry:
        """Its loan is over, and its handle with it. unseen: nobody got it."""
        again = Entry(self, entry.position, entry.record, entry.attempts - unseen, due, entry.expires, retried=due > 0)
        self._entries[entry.position] = again
        self.on_loan -= 1
        entry.state = OVER
        if due:
            self._wait_for(again)
        else:
            self._ready.appendleft(again)
        return again

    def lend_again(self, entry: Entry, again: Entry) -> None:
        """Undo `take_back`, unless more has happened since."""
        if again.state == WAITING:
            again.state = OVER
            entry.state = LENT
            self._entries[entry.position] = entry
            self.on_loan += 1

    def finished(self, entry: Entry) -> None:
        del self._entries[entry.position]
        self.on_loan -= 1
        entry.state = FINISHED

    def drop(self) -> None:
        """It may be another's: no handle is valid any more."""
        for entry in self._entries.values():
            entry.state = OVER
        self._entries.clear()
        self._ready.clear()  # the collector does not see that entries refer to the line
        self._later.clear()

    # --- storing -----------------------------------------------------------------------------------------------

    def progress(self) -> Progress | None:
        """None: nothing is known yet that would have to be stored."""
        if self._base is None or self._next is None:
            return None
        runs: list[Run] = []
        due: dict[Position, int] = {}
        at = self._base
        for position, entry in self._entries.items():
            if entry.state == FINISHING:
                continue
            if position > at:
                runs.append((at, position, True, 0))
            if runs and not runs[-1][2] and runs[-1][3] == entry.attempts:
                runs[-1] = (runs[-1][0], position + 1, False, entry.attempts)
            else:
                runs.append((position, position + 1, False, entry.attempts))
            at = position + 1
            if entry.due and entry.retried:
                due[position] = entry.due
        if self._next > at:
            runs.append((at, self._next, True, 0))
        if self._stored is not None:
            runs.extend(
                (max(start, self._next), stop, finished, attempts)
                for start, stop, finished, attempts in self._stored.runs
                if stop > self._next
            )
            due.update((place, when) for place, when in self._stored.due.items() if place >= self._next)
        end = runs[-1][1] if runs else self._next
        if runs and runs[-1][2:] == (False, 0):
            end = runs.pop()[0]
        if runs and runs[0][2]:
            self._base = runs.pop(0)[1]
        return Progress(runs[0][0] if runs else end, runs, due)


def settle(entries: Iterable[Entry], *, finished: bool) -> None:
    """What was FINISHING is finished, or it is not. Hot."""
    for entry in entries:
        if entry.state == FINISHING:
            if finished:
                entry.line.finished(entry)
            else:
                entry.state = LENT


def _position(entry: Entry) -> Position:
    return entry.position


def _number(headers: Mapping[str, bytes], name: str) -> int:
    value = headers.get(name, b"")
    return int(value) if value.isdigit() else 0
