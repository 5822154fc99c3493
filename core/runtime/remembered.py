"""Ids given by senders (`send(id=…)`): of the records of one input that have the same one, the first is handled.

An id is remembered with the position of the record that had it, so that this record may run again after a crash, and
any other is a copy. It is forgotten once a record comes that is younger, by its timestamp, than the end of the window,
which begins when the first is handled: so what lies unread for days does not turn into news. No timestamp of a record
counts for more than now.
"""

from __future__ import annotations

from itertools import islice

from thalweg import headers as names
from thalweg.journal.rows import Remembered, decode, encode, id_key, id_until_key
from thalweg.message import Position, Record
from thalweg.store import Store

__all__ = ["RememberedIds"]

FORGET = 2
"""How many old ids a commit forgets, at most, for each new one."""

Rows = dict[bytes, "bytes | None"]


class RememberedIds:
    """Of one input in one task. window: seconds."""

    def __init__(self, input_name: str, window: float, store: Store) -> None:
        self._input, self._window, self._store = input_name, round(window * 1000), store
        self._new: dict[bytes, Remembered] = {}
        self._flying: dict[bytes, Remembered] = {}  # in the commit under way
        self._time = 0

    def is_copy(self, record: Record, position: Position, now: int) -> bool:
        """Whether another record had its id; if none had, it is remembered from now (ms) on."""
        id_ = names.find(record.headers, names.ONCE)
        if id_ is None or not self._window:
            return False
        self._time = max(self._time, min(record.timestamp, now))
        seen = self._new.get(id_) or self._flying.get(id_) or self._stored(id_)
        if seen is not None and (seen.position == position or seen.until > self._time):
            return seen.position != position
        self._new[id_] = Remembered(position, now + self._window)
        return False

    def _stored(self, id_: bytes) -> Remembered | None:
        raw = self._store.get(id_key(self._input, id_))
        return None if raw is None else decode(raw, type=Remembered)

    def collect(self, rows: Rows) -> None:
        """Add to a commit's rows. Called while no commit is in flight, so the store is what the last one left."""
        self._flying, self._new = self._new, {}
        for id_, news in self._flying.items():
            before = self._stored(id_)
            if before is not None:
                rows[id_until_key(self._input, before.until, id_)] = None
            rows[id_key(self._input, id_)] = encode(news)
            rows[id_until_key(self._input, news.until, id_)] = b""
        if self._flying:
            self._forget(rows)

    def _forget(self, rows: Rows) -> None:
        start = id_until_key(self._input, 0, b"")
        past = self._store.scan(start, id_until_key(self._input, self._time + 1, b""))
        for index, _ in islice(past, FORGET * len(self._flying)):
            id_ = index[len(start) :]
            if id_ not in self._flying:
                rows[index] = rows[id_key(self._input, id_)] = None
