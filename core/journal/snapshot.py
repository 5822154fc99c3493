"""Compaction without a pause: a snapshot is written a part at a time, between ordinary commits (design rule 5).

Parts hold rows as of their own append and come *before* the commit they travel with; later commits override. So
begin + parts + the commits in between are the whole state, and what lies before the beginning can be truncated.
"""

from __future__ import annotations

from thalweg.message import Position
from thalweg.store import Store

from .records import Begin, End, Entry, Marker, Part

__all__ = ["Snapshotter"]

PART_BYTES = 256 * 1024
"""How much of a snapshot one commit carries at most (at least one row)."""


class Snapshotter:
    """Decides when one task's journal gets a snapshot, and makes its parts.

    A new snapshot begins when the journal has grown by `min_bytes` (small journals replay fast as they are) and by as
    much as the last snapshot held, so the journal stays within about three times the live state.
    """

    def __init__(self, min_bytes: int, part_bytes: int = PART_BYTES) -> None:
        self._min_bytes, self._part_bytes = min_bytes, part_bytes
        self._grown = 0
        self._last_size = 0
        self._size = 0
        self._begin: Position | None = None
        self._cursor: bytes | None = None  # None: no snapshot is being written
        self._complete = False

    def grew(self, size: int) -> None:
        """The journal grew by `size` bytes."""
        self._grown += size

    def entries(self, store: Store, marker: Marker) -> list[Entry]:
        """What goes ahead of the next commit. Call once a commit, then `committed` or (on failure) drop this object."""
        if self._cursor is None:
            if self._grown < max(self._min_bytes, self._last_size):
                return []
            self._cursor, self._size, self._grown, self._begin = b"", 0, 0, None
            return [Begin(b"", 0, marker)]
        if self._begin is None:  # its position is not known before it is committed
            return []
        rows: dict[bytes, bytes | None] = {}
        size = 0
        for key, value in store.scan(self._cursor, None):
            if size >= self._part_bytes:
                self._cursor = key
                break
            if key != LOCAL_MARKER:
                rows[key] = value
                size += len(key) + len(value)
        else:
            self._complete = True
        self._size += size
        return [Part(b"", 0, rows), *([End(b"", 0, self._begin)] if self._complete else [])]

    def committed(self, first: Position) -> Position | None:
        """The commit happened, its first record at `first`; returns where to truncate before, if the snapshot ended."""
        if self._cursor is None:
            return None
        if self._begin is None:
            self._begin = first
        if not self._complete:
            return None
        before, self._begin = self._begin, None
        self._cursor, self._complete, self._last_size = None, False, self._size
        return before


LOCAL_MARKER = b"m"
"""The store's own row for the marker and number its checkpoint belongs to; never in the journal."""
