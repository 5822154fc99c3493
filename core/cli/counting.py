"""How many records lie in a log: thousands are counted, more are estimated, for positions may have holes, wide ones."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from thalweg.capabilities import Log
from thalweg.errors import Gap
from thalweg.message import Position

__all__ = ["records_after"]

COUNTED = 10_000
BYTES = 4 << 20
READS = 50
PATIENCE = 2.0
"""Seconds to wait for more records: there may be none, where the last positions are those of no records."""


class _Count(msgspec.Struct):
    """Records behind `start`, of which those up to `reached` have been counted. `after`: where to read on."""

    start: Position
    last: Position
    after: Position | None
    reached: Position
    counted: int = 0

    @property
    def estimate(self) -> int:
        if self.reached >= self.last or self.reached == self.start:
            return self.counted
        return round(self.counted * (self.last - self.start) / (self.reached - self.start))


async def records_after(log: Log, after: Mapping[int, Position | None]) -> dict[int, int]:
    """The number of records behind each position (None: of all), by partition."""
    found: dict[int, _Count] = {}
    for partition, position in after.items():
        bounds = await log.bounds(partition)
        if bounds.first is None or bounds.last is None or (position is not None and position >= bounds.last):
            continue
        if position is None or position < bounds.first:
            found[partition] = _Count(bounds.first - 1, bounds.last, None, bounds.first - 1)
        else:
            found[partition] = _Count(position, bounds.last, position, position)
    try:
        await _read(log, found)
    except Gap:  # truncated meanwhile
        return await records_after(log, after)
    return {partition: found[partition].estimate if partition in found else 0 for partition in after}


async def _read(log: Log, found: Mapping[int, _Count]) -> None:
    for _ in range(READS):
        unfinished = {i: one.after for i, one in found.items() if one.reached < one.last and one.counted < COUNTED}
        batches = await log.read(unfinished, COUNTED, BYTES, PATIENCE) if unfinished else {}
        if not batches:
            return
        for partition, batch in batches.items():
            one = found[partition]
            one.counted += len(batch.positions)
            one.after = one.reached = batch.positions[-1]
