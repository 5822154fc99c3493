"""Compaction without a pause: a snapshot is written a part at a time, between ordinary commits (design rule 5).

Parts hold rows as of their own append and come *before* the commit they travel with; later commits override. So
begin + parts + the commits in between are the whole state, and what lies before the beginning can be truncated.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from thalweg.clock import Clock
from thalweg.message import Position
from thalweg.store import Store

from .records import Begin, End, Entry, Marker, Part

__all__ = ["Growth", "Room", "Snapshotter"]

PART_BYTES = 256 * 1024
"""How much of snapshots a worker's commit carries, unless the one before it was large; and at most in one record."""

MOST_BYTES = 6 * PART_BYTES
"""How much it carries at most: what any broker takes in some hundredths of a second."""

MOST_SECONDS = 0.05
"""And how long it may take to make that, which is long only with small rows in a slow store."""

ROWS = 256
"""Rows between two looks at the clock."""

DUE = 1.7
"""How large a journal may become beside a snapshot that is to be added to it, as a multiple of the last one."""

LOOK = 4
"""A row that is left out takes the room of one byte in so many: that is what looking at it costs."""

MOST_WRITTEN = 200_000
"""Keys that are remembered, at least, because they need not go into a snapshot: beyond that some will."""


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


class Room:
    """What there is in one commit of a worker for parts of snapshots, of all its tasks together.

    Twice as much as the commit before it held, so that journals are compacted faster than they grow, within the bounds
    above.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._committed = 0  # bytes, by this commit so far
        self.most = self.bytes = PART_BYTES  # in all, and left
        self.seconds = MOST_SECONDS  # left

    def next(self) -> None:
        """Another commit begins."""
        if self._committed:
            self.most, self._committed = max(PART_BYTES, min(2 * self._committed, MOST_BYTES)), 0
        self.bytes, self.seconds = self.most, MOST_SECONDS

    def committed(self, size: int) -> None:
        """By one of the tasks: bytes, without its parts."""
        self._committed += size

    @property
    def is_left(self) -> bool:
        return self.bytes > 0 and self.seconds > 0

    def now(self) -> float:
        return self._clock.now()


class Snapshotter:
    """Decides when one task's journal gets a snapshot, and makes its parts.

    A new snapshot is due when the journal, by the time that one can be complete, will hold more than `min_bytes` (small
    ones replay fast as they are) and than `DUE` times what the last snapshot does. Whichever of a worker's tasks is
    farthest beyond that gets the room there is: so they take turns, and little is committed amid a snapshot. Rows that
    were committed since it began are left out, for they lie behind its beginning anyway. So the journal, which keeps
    the old one until the new one is complete, stays within three times the live state.
    """

    def __init__(self, min_bytes: int, room: Room, growth: Growth | None = None) -> None:
        self._min_bytes, self._room = min_bytes, room
        self.growth = growth or Growth()
        self._part = 0  # bytes of the parts that the commit under way carries,
        self._seen = 0  # and of all rows that it took the snapshot past
        self._commit = 0  # bytes of the last one, without
        self._begin: Position | None = None
        self._cursor: bytes | None = None  # None: no snapshot is being written
        self._written: set[bytes] = set()  # by commits since it began
        self._complete = False

    @property
    def urgency(self) -> float:
        """How large the journal will be, as a share of the largest; 0 unless a snapshot is due or being written."""
        commits = 2 + self.growth.held // self._room.most
        share = (self.growth.grown + commits * self._commit) / max(self._min_bytes, DUE * self.growth.held)
        return share if share >= 1 or self._cursor is not None else 0.0

    def entries(
        self, store: Store, marker: Marker, rows: Mapping[bytes, bytes | None], may_begin: bool = True
    ) -> list[Entry]:
        """What goes ahead of the next commit, which is of these rows. may_begin: a snapshot may.

        Call once a commit, then `committed` or (on failure) drop this object.
        """
        found: list[Entry] = []
        if self._cursor is None:
            if not (may_begin and self.urgency and self._room.is_left):
                return found
            self._cursor, self._begin = b"", None
            self.growth.begun, self.growth.parts = self.growth.grown, 0
            found.append(Begin(b"", 0, marker))
        if len(self._written) < MOST_WRITTEN:
            self._written.update(rows)
        if self._room.is_left:
            found += self._parts(store, self._cursor)
        if self._complete:
            found.append(End(b"", 0, self._begin))
        return found

    def _parts(self, store: Store, cursor: bytes) -> list[Entry]:
        """At least one row, and as many as there is room for."""
        room, written = self._room, self._written
        began = room.now()
        rows: dict[bytes, bytes | None] = {}
        parts: list[Entry] = [Part(b"", 0, rows)]
        size = part = seen = 0
        for count, (key, value) in enumerate(store.scan(cursor, None), 1):
            if part + (seen - part) // LOOK >= room.bytes or (not count % ROWS and room.now() - began >= room.seconds):
                self._cursor = key
                break
            row = len(key) + len(value)
            seen += row
            if key in written or key == LOCAL_MARKER:
                continue
            if size >= PART_BYTES:
                rows, size = {}, 0
                parts.append(Part(b"", 0, rows))
            rows[key] = value
            size += row
            part += row
        else:
            self._complete = True
        self._part, self._seen = part, seen
        room.bytes -= part + (seen - part) // LOOK
        room.seconds -= room.now() - began
        return parts

    def committed(self, first: Position, size: int) -> Position | None:
        """The commit happened, its first record at `first`, its records of `size` bytes in all.

        Returns where to truncate before, if the snapshot ended.
        """
        self.growth.grown += size
        self.growth.parts += self._seen
        self._commit = size - self._part
        self._room.committed(self._commit)
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
