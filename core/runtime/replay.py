"""A journal fed to a store: by an owner before it begins, and by a standby for as long as it is one."""

from __future__ import annotations

import logging

import msgspec
from thalweg.capabilities import Log
from thalweg.errors import BrokerError, Gap
from thalweg.journal import rows as journal_rows
from thalweg.journal.records import Fold, Marker, checksum, rows_of
from thalweg.journal.rows import encode
from thalweg.journal.snapshot import LOCAL_MARKER, Growth
from thalweg.message import Batch, Position
from thalweg.store import Checkpoint, Store

from .mirroring import Standing
from .recovery import Progress

__all__ = ["READ_BYTES", "READ_RECORDS", "Numbered", "Replay", "numbered", "standing_of"]

log = logging.getLogger("thalweg")

REPLAY_ROWS, REPLAY_BYTES = 10_000, 8 << 20
"""What goes to the store in one step, or as much as one read gave."""
READ_RECORDS, READ_BYTES = 2000, 2 << 20
"""Of one read, which goes to the store at once: as much as a store on disk takes in some tenths of a second."""
WAIT = 10.0
"""Seconds that a log may take to give a record that it has."""
TRIES = 10
"""How often a journal may be truncated while it is being read."""


class Numbered(msgspec.Struct, array_like=True):
    """The store's own note of where in the numbering its checkpoint stands, and how large the journal was there."""

    marker: Marker
    number: int
    growth: Growth = msgspec.field(default_factory=Growth)


def numbered(store: Store) -> Numbered | None:
    raw = store.get(LOCAL_MARKER)
    return None if raw is None else journal_rows.decode(raw, type=Numbered)


def standing_of(store: Store) -> Standing | None:
    """Where in the journal the store stands; None for an empty one."""
    checkpoint, local = store.checkpoint(), numbered(store)
    if checkpoint is None or local is None:
        return None
    return Standing(checkpoint.position, checkpoint.checksum, local.marker, local.number)


class Replay:
    """Feeds a journal to a store, from the store's checkpoint on.

    after: how far it was read; None: from the first record kept. keys, records: how many of both were read.
    """

    def __init__(self, journal: Log, partition: int, store: Store) -> None:
        self.store = store
        self.after: Position | None = None
        self.fold = Fold()
        self.keys = self.records = 0
        self._size = 0  # bytes in `_pending`, about
        self._growth = Growth()
        self._journal, self._partition = journal, partition
        self._pending: dict[bytes, bytes | None] = {}
        self._seen: Checkpoint | None = None  # of the last record in `_pending`,
        self._there: Numbered | None = None  # and where in the numbering it stands
        checkpoint, local = store.checkpoint(), numbered(store)
        if checkpoint is not None and local is not None:
            self.fold, self._growth = Fold(local.marker, local.number), local.growth
            self.after = checkpoint.position

    async def to_end(self, progress: Progress | None = None) -> None:
        """Read what lies there now, whatever is truncated meanwhile."""
        if not await self.fits():
            self.start_over()
        for _ in range(TRIES):
            try:
                await self._to_end(progress)
                return
            except Gap:
                self.start_over()
        await self._to_end(progress)

    async def _to_end(self, progress: Progress | None) -> None:
        began = self.after
        while await self._step(0):
            if progress is not None and self.after is not None:
                await progress.read(self._journal, self._partition, began, self.after, self.keys)
        self.flush()

    async def to(self, last: Position | None) -> None:
        """Read on to this position, and no less. Raises Gap if it is truncated meanwhile: then `start_over`."""
        while last is not None and (self.after is None or self.after < last):
            if not await self._step(WAIT):
                raise BrokerError(
                    f"partition {self._partition}: the log gave no record within {WAIT:g} s, though it has some"
                )
        self.flush()

    async def to_marker(self, token: bytes) -> None:
        """On to the claim just made. What lies before it and was not seen yet counts."""
        gaps = 0
        while self.fold.marker is None or self.fold.marker.token != token:
            try:
                await self._step(10.0, token)
            except Gap:  # the owner before has truncated once more
                gaps += 1
                if gaps > TRIES:
                    raise
                self.start_over()
        self.flush()

    async def fits(self) -> bool:
        """Whether the store is of this journal's past: else it fell behind the truncation, or was built on a journal
        that lost its end, and has to start over.
        """
        checkpoint = self.store.checkpoint()
        if checkpoint is None or self.after is None:
            return False
        try:
            batches = await self._journal.read({self._partition: checkpoint.position - 1}, 1, 1, 0)
        except Gap:
            batches = {}
        batch = batches.get(self._partition)
        if (
            batch is not None
            and batch.positions[0] == checkpoint.position
            and checksum(batch.records[0].value) == checkpoint.checksum
        ):
            return True
        log.warning("partition %d: the store is not of this journal's past any more; it is rebuilt", self._partition)
        return False

    def start_over(self) -> None:
        self._pending.clear()
        self._size = 0
        self._seen = None
        self.store.clear()
        self.after = None
        self.fold, self._growth = Fold(), Growth()

    async def _step(self, timeout: float, until: bytes | None = None) -> bool:
        batches = await self._journal.read({self._partition: self.after}, READ_RECORDS, READ_BYTES, timeout)
        batch = batches.get(self._partition)
        if batch is None:
            return False
        self.feed(batch, until)
        return True

    def feed(self, batch: Batch, until: bytes | None = None) -> None:
        """Take what follows; no farther than the marker with the token `until`: a newer owner's may follow it."""
        self.records += len(batch.records)
        for position, record in zip(batch.positions, batch.records, strict=True):
            entry = self.fold.feed(record.value)
            self.after = position
            if self.fold.fresh:
                self._forget_rows()
                self._growth = Growth()
            self._growth.add(entry, len(record.value or b""))
            if entry is None:
                continue
            if isinstance(entry, Marker) and entry.token == until:
                break
            rows = rows_of(entry)
            if rows is not None:
                self.keys += len(rows)
                self._size += len(record.value or b"")
                self._pending.update(rows)
                self._seen = Checkpoint(position, checksum(record.value))
                assert self.fold.marker is not None
                self._there = Numbered(self.fold.marker, self.fold.number, self._growth)
        if len(self._pending) > REPLAY_ROWS or self._size > REPLAY_BYTES:
            self.flush()

    def _forget_rows(self) -> None:
        self._pending.clear()
        self._size = 0
        self._seen = None
        if self.store.checkpoint() is not None:
            self.store.clear()

    def flush(self) -> None:
        """Bring the store to where the last commit that was taken left it."""
        if self._seen is None:
            return
        self.store.apply({**self._pending, LOCAL_MARKER: encode(self._there)}, self._seen)
        self._pending.clear()
        self._size = 0
        self._seen = None
