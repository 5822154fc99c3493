"""Rows that end by themselves (`ttl=`): when each is due lies in rows beside it, and a commit deletes what is due.

Two rows for each: `e` table `\\0` due key, in the order of time, and `l` table `\\0` key, the due time in force. Due
times are rounded up to a sixteenth of the time to live, so that a row which is written all the time moves them seldom.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import islice
from typing import Any

from thalweg.clock import Clock, Timer
from thalweg.journal.rows import below, due_key, life_key
from thalweg.store import Store

from .tables import MISSING, TableState

__all__ = ["Expiries", "Expiry"]

STEPS = 16
MOST = 1000
"""How many rows end in one commit: what is left goes with the next."""

OPEN_EVENT = 0.01
"""Seconds, at least, until a row is looked at again that was due and could not end: an open event had it in hand."""

Rows = dict[bytes, "bytes | None"]


class Expiry:
    """Of one table in one task. Times are milliseconds since the epoch.

    next: no row is due before; None if none will be.
    """

    def __init__(self, table: TableState, store: Store, ttl: float) -> None:
        self._table, self._store = table, store
        self._ttl = max(1, round(ttl * 1000))
        self._step = max(1, self._ttl // STEPS)
        self._start = due_key(table.plan.name, 0, b"")[:-8]
        self.next: int | None = None
        self._ended = True
        self.look()

    def look(self) -> None:
        """Find out what is next after rows have ended. Only while no commit is in flight."""
        if not self._ended:
            return
        self._ended = False
        first = next(iter(self._store.scan(self._start, below(self._start))), None)
        self.next = None if first is None else int.from_bytes(self._due(first[0]), "big")

    def _due(self, index: bytes) -> bytes:
        return index[len(self._start) : len(self._start) + 8]

    def collect(self, written: Rows, rows: Rows, now: int, in_hand: Collection[Any]) -> None:
        """Delete what is due, by adding to `written`, the table's rows in this commit; note in `rows` when what is
        written will be due. Rows that open events have in hand wait for a later commit.

        Called while no commit is in flight, so the store is what the last one left.
        """
        if self.next is not None and now >= self.next:
            self._end(written, rows, now, in_hand)
        self._live(written, rows, now)

    def _end(self, written: Rows, rows: Rows, now: int, in_hand: Collection[Any]) -> None:
        self._ended = True
        table, name = self._table, self._table.plan.name
        for index, _ in islice(self._store.scan(self._start, due_key(name, now + 1, b"")), MOST):
            raw_key = index[len(self._start) + 8 :]
            key = table.plan.decode_key(raw_key)
            if key in in_hand:
                continue
            rows[index] = None
            row = table.row_of(raw_key)
            if row not in written and self._store.get(life_key(name, raw_key)) == self._due(index):
                table.hot[key] = MISSING
                table.dirty.pop(key, None)
                written[row] = None

    def _live(self, written: Rows, rows: Rows, now: int) -> None:
        table, name = self._table, self._table.plan.name
        due = -(-(now + self._ttl) // self._step) * self._step
        packed = due.to_bytes(8, "big")
        for row, value in written.items():
            raw_key = table.key_of(row)
            life = life_key(name, raw_key)
            before = self._store.get(life)
            if before == packed and value is not None:
                continue
            if before is not None:
                rows[due_key(name, int.from_bytes(before, "big"), raw_key)] = None
                rows[life] = None
            if value is not None:
                rows[life] = packed
                rows[due_key(name, due, raw_key)] = b""
                self.next = due if self.next is None else min(self.next, due)


class Expiries(dict[str, Expiry]):
    """Those of a task, by table. commit: asks for one; called when the next row is due."""

    def __init__(self, clock: Clock, commit: Callable[[], None]) -> None:
        super().__init__()
        self._clock, self._commit = clock, commit
        self._alarm: Timer | None = None
        self._stopped = False

    def wait(self) -> None:
        """For the next row that is due. Only while no commit is in flight."""
        for expiry in self.values():
            expiry.look()
        due = min((expiry.next for expiry in self.values() if expiry.next is not None), default=None)
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if due is not None and not self._stopped:
            self._alarm = self._clock.call_later(max(OPEN_EVENT, due / 1000 - self._clock.now()), self._commit)

    def stop(self) -> None:
        self._stopped = True
        if self._alarm is not None:
            self._alarm.cancel()
