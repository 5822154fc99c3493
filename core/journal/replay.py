"""Reading a journal beside its owner: claims nothing, writes nothing, fences nobody."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from thalweg.capabilities import Log
from thalweg.errors import BrokerError, Gap
from thalweg.message import Position, Record

from .records import Fold, rows_of

__all__ = ["committed_rows", "records_until_now"]

WAIT = 10.0
"""Seconds that a log may take to give a record that it has."""

TRIES = 10
"""How often a journal may be truncated while it is being read."""


async def records_until_now(
    log: Log, partition: int, after: Position | None = None
) -> AsyncIterator[tuple[Position, Record]]:
    """What lies in a partition now, behind `after` or from the first kept. Raises Gap if what is ahead is dropped."""
    last = (await log.bounds(partition)).last
    while last is not None and (after is None or after < last):
        batch = (await log.read({partition: after}, 2000, 16 << 20, WAIT)).get(partition)
        if batch is None:
            bounds = await log.bounds(partition)
            if bounds.last is None or (after is not None and bounds.last <= after):
                return
            raise BrokerError(f"partition {partition}: the log gave no record within {WAIT:g} s, though it holds some")
        for position, record in zip(batch.positions, batch.records, strict=True):
            if position > last:
                return
            after = position
            yield position, record


async def committed_rows(
    journal: Log, partition: int, start: bytes, stop: bytes, *others: tuple[bytes, bytes]
) -> dict[bytes, bytes]:
    """The rows with start <= key < stop, and those within `others`, as the last commit left them."""
    ranges = [(start, stop), *others]
    for _ in range(TRIES):
        try:
            return await _fold(journal, partition, ranges)
        except Gap:
            pass  # a snapshot was completed, and what lay before it truncated: the snapshot is there to be read
    return await _fold(journal, partition, ranges)


async def _fold(journal: Log, partition: int, ranges: Sequence[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    rows: dict[bytes, bytes] = {}
    fold = Fold()
    async for _, record in records_until_now(journal, partition):
        entry = fold.feed(record.value)
        if fold.fresh:
            rows.clear()
        written = rows_of(entry)
        if written is not None:
            for key, value in written.items():
                if not any(start <= key < stop for start, stop in ranges):
                    continue
                if value is None:
                    rows.pop(key, None)
                else:
                    rows[key] = value
    return rows
