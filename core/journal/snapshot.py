"""Compaction without a pause: a snapshot is written a part at a time, between ordinary commits (design rule 5).

Parts hold rows as of their own append and come *before* the commit they travel with; later commits override. So
begin + parts + the commits in between are the whole state, and what lies before the beginning can be truncated.
"""

from __future__ import annotations

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

    A new snapshot begins when the journal holds `min_bytes` (small ones replay fast as they are) and one and a half
    times what the last snapshot does. Each part is at least three times the commit before it, so what is committed amid
    a snapshot adds a third to it. So the journal, which keeps the old one until the new one is complete, stays within
    three times the live state.
    """

    def __init__(self, min_bytes: int, growth: Growth | None = None) -> None:
        self._min_bytes = min_bytes
        self.growth = growth or Growth()
        self._part = 0  # bytes of the part that the commit under way carries
        self._commit = 0  # bytes of the last one, without
        self._begin: Position | None = None
        self._cursor: bytes | None = None  # None: no snapshot is being written
        self._complete = False

    def entries(self, store: Store, marker: Marker) -> list[Entry]:
        """What goes ahead of the next commit. Call once a commit, then `committed` or (on failure) drop this object."""
        found: list[Entry] = []
        if self._cursor is None:
            if self.growth.grown < max(self._min_bytes, 3 * self.growth.held // 2):
                return found
            self._cursor, self._begin = b"", None
            self.growth.begun, self.growth.parts = self.growth.grown, 0
            found.append(Begin(b"", 0, marker))
        found.append(Part(b"", 0, self._next_rows(store, self._cursor)))
        if self._complete:
            found.append(End(b"", 0, self._begin))
        return found

    def _next_rows(self, store: Store, cursor: bytes) -> dict[bytes, bytes | None]:
        most = max(PART_BYTES, min(3 * self._commit, LARGEST_PART))
        rows: dict[bytes, bytes | None] = {}
        size = 0
        for key, value in store.scan(cursor, None):
            if size >= most:
                self._cursor = key
                break
            if key != LOCAL_MARKER:
                rows[key] = value
                size += len(key) + len(value)
        else:
            self._complete = True
        self._part = size
        return rows

    def committed(self, first: Position, size: int) -> Position | None:
        """The commit happened, its first record at `first`, its records of `size` bytes; returns where to truncate
        before, if the snapshot ended.
        """
        self.growth.grown += size
        self.growth.parts += self._part
        self._commit, self._part = size - self._part, 0
        if self._cursor is None:
            return None
        if self._begin is None:
            self._begin = first
        if not self._complete:
            return None
        before, self._begin = self._begin, None
        self._cursor, self._complete = None, False
        self.growth.completed()
        return before


LOCAL_MARKER = b"m"
"""The store's own row for the marker and number its checkpoint belongs to; never in the journal."""
