"""Compaction without a pause: a snapshot is written a part at a time, between ordinary commits (design rule 5).

Parts hold rows as of their own append and come *before* the commit they travel with; later commits override. So
begin + parts + the commits in between are the whole state, and what lies before the beginning can be truncated.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from thalweg.message import Position
from thalweg.store import Store

from .records import Begin, End, Entry, Marker, Part

__all__ = ["Growth", "Snapshotter"]

PART_BYTES = 256 * 1024
"""How much of a snapshot one commit carries (at least one row), unless the commit before it was large."""

LARGEST_PART = 16 * PART_BYTES


class Growth(msgspec.Struct, array_like=True, gc=False):
    """How large a journal is, in bytes: it outlives owners, for those that die often would never compact.

    grown: from where its newest complete snapshot begins. held: what that holds. begun: where another one began, from
    the same beginning, and parts: what that holds already.
    """

    grown: int = 0
    held: int = 0
    begun: int | None = None
    parts: int = 0

    def add(self, entry: Entry | None, size: int) -> None:
        """The next record, and the entry if it counts."""
        if isinstance(entry, Begin):
            self.begun, self.parts = self.grown, 0
        self.grown += size
        if isinstance(entry, Part):
            self.parts += size
        elif isinstance(entry, End):
            self.completed()

    def completed(self) -> None:
        if self.begun is not None:
            self.grown, self.held, self.begun = self.grown - self.begun, self.parts, None


class Snapshotter:
    """Decides when one task's journal gets a snapshot, and makes its parts.

    A new snapshot begins before the journal holds more than `min_bytes` (small ones replay fast as they are) and than
    one and a half times what the last snapshot does. A part is at least twice the commit before it, so what is
    committed amid a snapshot is at most half of it; and rows that were committed since it began are left out, for they
    lie behind its beginning anyway. So the journal, which keeps the old one until the new one is complete, stays within
    three times the live state.
    """

    def __init__(self, min_bytes: int, growth: Growth | None = None) -> None:
        self._min_bytes = min_bytes
        self.growth = growth or Growth()
        self._part = 0  # bytes of the part that the commit under way carries,
        self._seen = 0  # and of all rows that it took the snapshot past
        self._commit = 0  # bytes of the last one, without
        self._begin: Position | None = None
        self._cursor: bytes | None = None  # None: no snapshot is being written
        self._written: set[bytes] = set()  # by commits since it began
        self._complete = False

    def entries(self, store: Store, marker: Marker, rows: Mapping[bytes, bytes | None]) -> list[Entry]:
        """What goes ahead of the next commit, which is of these rows.

        Call once a commit, then `committed` or (on failure) drop this object.
        """
        found: list[Entry] = []
        if self._cursor is None:
            if self.growth.grown + self._commit < max(self._min_bytes, 3 * self.growth.held // 2):
                return found
            self._cursor, self._begin = b"", None
            self.growth.begun, self.growth.parts = self.growth.grown, 0
            found.append(Begin(b"", 0, marker))
        self._written.update(rows)
        found.append(Part(b"", 0, self._next(store, self._cursor)))
        if self._complete:
            found.append(End(b"", 0, self._begin))
        return found

    def _next(self, store: Store, cursor: bytes) -> dict[bytes, bytes | None]:
        most = max(PART_BYTES, min(2 * self._commit, LARGEST_PART))
        written = self._written
        rows: dict[bytes, bytes | None] = {}
        part = seen = 0
        for key, value in store.scan(cursor, None):
            if seen >= most:
                self._cursor = key
                break
            size = len(key) + len(value)
            seen += size
            if key not in written and key != LOCAL_MARKER:
                rows[key] = value
                part += size
        else:
            self._complete = True
        self._part, self._seen = part, seen
        return rows

    def committed(self, first: Position, size: int) -> Position | None:
        """The commit happened, its first record at `first`, its records of `size` bytes in all.

        Returns where to truncate before, if the snapshot ended.
        """
        self.growth.grown += size
        self.growth.parts += self._seen
        self._commit = size - self._part
        self._part = self._seen = 0
        if self._cursor is None:
            return None
        if self._begin is None:
            self._begin = first
        if not self._complete:
            return None
        before, self._begin = self._begin, None
        self._cursor, self._complete = None, False
        self._written.clear()
        self.growth.completed()
        return before


LOCAL_MARKER = b"m"
"""The store's own row for the marker and number its checkpoint belongs to; never in the journal."""
