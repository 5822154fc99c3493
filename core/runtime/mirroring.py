"""Tables on their way to their mirrors: after each commit, by themselves; nobody waits for them.

A `Feed` keeps what was committed since the mirror's last word, a row's last value only. Where that becomes too much
(the mirror is away) it is dropped, and the feed catches up from the journal, which has it all from the mirror's place
on; or from the rows of the store, if the journal does not reach back that far or the mirror is new.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec
from thalweg.capabilities import Log
from thalweg.clock import Clock
from thalweg.errors import BrokerError, Fenced, Gap, MirrorError, StoreError
from thalweg.journal.records import Fold, Marker, Rows, checksum
from thalweg.journal.rows import below, prefix
from thalweg.message import Position
from thalweg.mirror import Mirror, Place
from thalweg.store import Store

from .complaints import Complaints

__all__ = ["Feed", "Kept", "Standing"]

MOST_ROWS = 50_000
"""What a feed keeps for a mirror that is slow; beyond, the journal keeps it."""
MOST_BYTES = 64 * 1024 * 1024
"""What all feeds of a worker keep."""
PART = 2000
"""Rows that go to a mirror in one call."""
FIRST_BACKOFF, LONGEST_BACKOFF = 0.1, 10.0
SETTLE = 5.0
"""Seconds that a task which is given up in good order waits for its mirrors."""

Changes = dict[bytes, bytes | None]


class Standing(msgspec.Struct, array_like=True, frozen=True):
    """Where in the journal: the last record, its checksum, and the owner's marker and numbering there."""

    position: Position
    checksum: int
    marker: Marker
    number: int

    def place(self) -> Place:
        return Place(self.position, msgspec.msgpack.encode(self))

    @classmethod
    def of(cls, place: Place | None) -> Standing | None:
        """None too if another version of Thalweg has written it: then the mirror is filled anew."""
        try:
            return None if place is None else msgspec.msgpack.decode(place.note, type=cls)
        except msgspec.DecodeError:
            return None


class Kept:
    """How many bytes the feeds of a worker keep."""

    def __init__(self) -> None:
        self.size = 0


class Feed:
    """One table's partition, while this worker owns it."""

    def __init__(
        self,
        table: str,
        partition: int,
        mirror: Mirror,
        epoch: int,
        store: Store,
        open_journal: Callable[[], Awaitable[Log]],
        clock: Clock,
        complaints: Complaints,
        kept: Kept,
    ) -> None:
        self._kept = kept
        self.table, self._partition, self._mirror, self._epoch = table, partition, mirror, epoch
        self._store, self._open_journal, self._clock, self._complaints = store, open_journal, clock, complaints
        self._prefix = prefix(table)
        self._pending: Changes = {}
        self._size = 0
        self._now: Standing | None = None  # the last commit
        self._there: Place | None = None  # what the mirror has, as far as we know
        self._lost = True  # `_pending` is not all that the mirror lacks
        self._changed = asyncio.Event()
        self._rests = asyncio.Event()  # it has all, or cannot be had
        self._trouble = False
        self._task: asyncio.Task[None] | None = None

    # --- from the task -----------------------------------------------------------------------------------------

    def start(self, now: Standing | None) -> None:
        """`now`: where the store stands."""
        self._now = now
        self._changed.set()
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"thalweg mirror {self.table}")

    def committed(self, rows: Mapping[bytes, bytes | None], now: Standing) -> None:
        """A commit: all rows of the task that it changed. HOT PATH where a table has a mirror."""
        cut = len(self._prefix)
        if not self._lost:
            mine = {key[cut:]: value for key, value in rows.items() if key.startswith(self._prefix)}
            self._pending.update(mine)
            self._keep(sum(len(key) + len(value or b"") for key, value in mine.items()))
            if len(self._pending) > MOST_ROWS or self._kept.size > MOST_BYTES:
                self._lose()
        self._now = now
        if not self._trouble:
            self._rests.clear()
        self._changed.set()

    async def settle(self) -> None:
        """Return when the mirror has all or cannot be had, or after `SETTLE` seconds, real ones."""
        if self._task is None:
            return
        waiting = asyncio.ensure_future(self._rests.wait())
        await asyncio.wait([waiting, self._task], timeout=SETTLE, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._lose()

    # --- to the mirror -----------------------------------------------------------------------------------------

    async def _run(self) -> None:
        backoff = FIRST_BACKOFF
        while True:
            try:
                await self._begin()
                while True:
                    await self._changed.wait()
                    await self._catch_up()
                    backoff, self._trouble = FIRST_BACKOFF, False
            except Fenced:
                self._complaints.warn(
                    "mirror fenced", "table %s/%d: its mirror is fed by a newer owner", self.table, self._partition
                )
                return
            except Exception as error:
                known = isinstance(error, MirrorError | BrokerError | StoreError)
                self._complaints.warn(
                    f"mirror: {type(error).__name__}",
                    "table %s/%d: its mirror is behind, and will catch up; again in %.1f s: %s",
                    *(self.table, self._partition, backoff, error),
                    exc_info=None if known else error,
                )
            self._trouble = True
            self._rests.set()
            await self._clock.sleep(backoff)
            backoff = min(2 * backoff, LONGEST_BACKOFF)

    async def _begin(self) -> None:
        """Learn what the mirror has. It may have less than it once took, or more than it could tell us."""
        there = await self._mirror.claim(self._partition, self._epoch)
        known = self._there
        if there is None or known is None or there.position < known.position:
            self._lose()
        self._there = there
        self._changed.set()

    def _lose(self) -> None:
        self._lost = True
        self._forget()

    def _forget(self) -> None:
        self._pending = {}
        self._keep(-self._size)

    def _keep(self, size: int) -> None:
        self._size += size
        self._kept.size += size

    async def _catch_up(self) -> None:
        while self._now is not None and (
            self._lost or self._there is None or self._there.position < self._now.position
        ):
            self._changed.clear()
            if self._lost:
                self._lost = False  # from here on `_pending` gathers what follows `_now`
                try:
                    if not await self._replay(self._now):
                        await self._fill()
                except BaseException:
                    self._lose()
                    raise
            if self._there is None or self._there.position < self._now.position:
                await self._give()
        self._forget()  # it may have taken what it did not confirm
        self._changed.clear()
        self._rests.set()

    async def _give(self) -> None:
        """What is pending. A row that comes meanwhile is newer than one that has to go again."""
        pending, size, now = self._pending, self._size, self._now
        assert now is not None
        self._pending = {}
        try:
            await self._write(list(pending.items()), now.place())
        except BaseException:
            if not self._lost:
                self._pending = {**pending, **self._pending}
            raise
        if not self._lost:
            self._keep(-size)

    async def _write(self, rows: Sequence[tuple[bytes, bytes | None]], place: Place | None) -> None:
        """Its place changes with the last part only: it may be read from the old one again, until it has all."""
        for start in range(0, len(rows) - PART, PART):
            await self._apply(rows[start : start + PART], self._there)
        last = rows[(len(rows) - 1) // PART * PART :] if rows else []
        await self._apply(last, place)
        self._there = place

    async def _apply(self, rows: Sequence[tuple[bytes, bytes | None]], place: Place | None) -> None:
        await self._mirror.apply(self._partition, dict(rows), self._there, place, self._epoch)

    async def _replay(self, until: Standing) -> bool:
        """Bring it from its place to `until` by the journal; False if the journal cannot."""
        standing = Standing.of(self._there)
        if standing is None or standing.position > until.position:
            return False
        if standing == until:
            return True
        journal = await self._open_journal()
        try:
            return await self._is_there(journal, standing) and await self._read(journal, standing, until)
        except Gap:
            return False
        finally:
            await journal.close()

    async def _read(self, journal: Log, standing: Standing, until: Standing) -> bool:
        fold = Fold(standing.marker, standing.number)
        changes: Changes = {}
        after = standing.position
        cut = len(self._prefix)
        while after < until.position:
            batch = (await journal.read({self._partition: after}, 1000, 1 << 24, 10.0)).get(self._partition)
            if batch is None:
                return False
            for position, record in zip(batch.positions, batch.records, strict=True):
                entry = fold.feed(record.value)
                after = position
                if fold.fresh:  # the state was reset, or a backup restored
                    return False
                if isinstance(entry, Rows):
                    changes.update((k[cut:], value) for k, value in entry.rows.items() if k.startswith(self._prefix))
                if position >= until.position:
                    break
            if len(changes) > MOST_ROWS:
                await self._write(list(changes.items()), self._there)
                changes = {}
        await self._write(list(changes.items()), until.place())
        return True

    async def _is_there(self, journal: Log, standing: Standing) -> bool:
        """Whether the journal still holds the record at that place, and it is the same."""
        batch = (await journal.read({self._partition: standing.position - 1}, 1, 1, 0)).get(self._partition)
        return (
            batch is not None
            and batch.positions[0] == standing.position
            and checksum(batch.records[0].value) == standing.checksum
        )

    async def _fill(self) -> None:
        """All rows of the store; then take away what the mirror has beyond. What is committed meanwhile is pending."""
        await self._write([], None)
        cursor, stop, cut = self._prefix, below(self._prefix), len(self._prefix)
        while True:
            page: list[tuple[bytes, bytes | None]] = []
            for key, value in self._store.scan(cursor, stop):
                page.append((key[cut:], value))
                if len(page) == PART:
                    break
            if page:
                await self._write(page, None)
            if len(page) < PART:
                break
            cursor = self._prefix + page[-1][0] + b"\0"
        async for keys in self._mirror.keys(self._partition):
            gone: list[tuple[bytes, bytes | None]]
            gone = [(key, None) for key in keys if self._store.get(self._prefix + key) is None]
            if gone:
                await self._write(gone, None)
