"""`lag` and `topics` count records, where positions may be anything that grows."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from thalweg.capabilities import Bounds
from thalweg.channel import TopicSpec
from thalweg.cli import counting
from thalweg.cli.counting import records_after
from thalweg.message import Batch, Message, Position
from thalweg.transports.memory import MemoryTransport

STEP = 1 << 20


class Wide:
    """A log whose positions are as far apart as Redis's are: those of one on `memory://`, times a million."""

    def __init__(self, log) -> None:  # type: ignore[no-untyped-def]
        self.log = log
        self.read_records = 0

    async def bounds(self, partition: int) -> Bounds:
        found = await self.log.bounds(partition)
        return Bounds(None if found.first is None else found.first * STEP, found.last and found.last * STEP)

    async def read(
        self, after: Mapping[int, Position | None], limit: int, max_bytes: int, timeout: float
    ) -> Mapping[int, Batch]:
        narrow = {i: None if position is None else position // STEP for i, position in after.items()}
        batches = await self.log.read(narrow, limit, 100, timeout)  # bytes: some twenty records at a time
        self.read_records += sum(len(batch.records) for batch in batches.values())
        return {i: Batch(batch.records, [p * STEP for p in batch.positions]) for i, batch in batches.items()}


async def wide_log(transport: MemoryTransport, records: Mapping[int, int]) -> Wide:
    await transport.declare([TopicSpec("t", 3)])
    log = await transport.log("t")
    await log.append({i: [Message(b"value")] * count for i, count in records.items() if count})
    return Wide(log)


async def test_records_are_counted_whatever_lies_between_their_positions() -> None:
    transport = MemoryTransport()
    await transport.open()
    log = await wide_log(transport, {0: 150, 1: 1, 2: 0})
    assert await records_after(log, dict.fromkeys(range(3))) == {0: 150, 1: 1, 2: 0}  # type: ignore[arg-type]
    assert await records_after(log, {0: 99 * STEP, 1: 0, 2: None}) == {0: 50, 1: 0, 2: 0}  # type: ignore[arg-type]
    await log.log.truncate(0, 100)
    assert await records_after(log, {0: 20 * STEP}) == {0: 50}  # type: ignore[arg-type]
    await transport.close()


async def test_many_are_estimated_from_the_first_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "COUNTED", 100)
    transport = MemoryTransport()
    await transport.open()
    log = await wide_log(transport, {0: 5000, 1: 30})
    assert await records_after(log, {0: None, 1: None}) == {0: pytest.approx(5000, rel=0.02), 1: 30}  # type: ignore[arg-type]
    assert log.read_records < 300
    await transport.close()
