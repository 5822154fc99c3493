"""A journal read beside its owner tells what the owner's tables hold, whatever is truncated meanwhile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from thalweg import App, starting
from thalweg.capabilities import Bounds, Log
from thalweg.errors import Gap
from thalweg.journal.leftovers import names_in
from thalweg.journal.replay import committed_rows, records_until_now
from thalweg.journal.rows import below, prefix
from thalweg.message import Batch, Message, Position

KEYS = [f"k{number}" for number in range(40)]


class Slow:
    """A log that gives a few records at a time, and calls back in between."""

    def __init__(self, log: Log, limit: int) -> None:
        self._log, self._limit = log, limit
        self.gaps = 0
        self.reads = 0

    async def between(self) -> None:
        """Overridden by tests: what happens while the journal is read."""

    async def read(
        self, after: Mapping[int, Position | None], limit: int, max_bytes: int, timeout: float
    ) -> Mapping[int, Batch]:
        if self.reads:
            await self.between()
        self.reads += 1
        try:
            return await self._log.read(after, self._limit, max_bytes, timeout)
        except Gap:
            self.gaps += 1
            raise

    async def bounds(self, partition: int) -> Bounds:
        return await self._log.bounds(partition)

    async def append(
        self, records: Mapping[int, Sequence[Message]], positions: bool = True
    ) -> Mapping[int, Sequence[Position]]:
        raise AssertionError("only read")

    async def find(self, partition: int, timestamp: int) -> Position | None:
        raise AssertionError("only read")

    async def truncate(self, partition: int, before: Position) -> None:
        raise AssertionError("only read")

    async def close(self) -> None:
        await self._log.close()


def program() -> tuple[App, dict[str, Any]]:
    app = App("bank", partitions=1)
    amounts = app.topic("amounts", key=str, value=int)
    totals = app.table("totals", key=str, value=int, default=int)
    other = app.table("total", key=str, value=int)  # whose name begins like the other's

    @app.agent(amounts)
    async def total(stream):
        async for event in stream.events():
            if event.value < 0:
                if event.key in totals:
                    del totals[event.key]
            else:
                totals[event.key] += event.value
            other[event.key] = -1

    return app, {"amounts": amounts, "totals": totals}


async def rows(log: Log) -> dict[str, int]:
    start = prefix("totals")
    found = await committed_rows(log, 0, start, below(start))
    return {key[len(start) :].decode(): int(value) for key, value in found.items()}


@pytest.fixture
def small_snapshots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "SNAPSHOT_BYTES", 2000)


async def test_rows_read_from_the_journal_are_those_of_the_table() -> None:
    app, parts = program()
    amounts, totals = parts["amounts"], parts["totals"]
    async with app.test() as t:
        for number in range(120):
            await amounts.send(-1 if number % 7 == 0 else number, key=KEYS[number % 40])
            await t.settle()
            if number == 60:
                await t.crash()
        log = await app.running.open_log("bank-journal-1")
        assert await rows(Slow(log, 3)) == dict(totals.items())
        start = prefix("totals")
        one = await committed_rows(log, 0, start + b"k3", start + b"k3\0")
        assert one == {start + b"k3": str(totals["k3"]).encode()}


@pytest.mark.usefixtures("small_snapshots")
async def test_truncation_while_the_journal_is_read_loses_no_row() -> None:
    app, parts = program()
    amounts, totals = parts["amounts"], parts["totals"]
    async with app.test() as t:
        log = Slow(await app.running.open_log("bank-journal-1"), 5)
        number = 0

        async def write() -> None:
            nonlocal number
            if not log.gaps:
                for _ in range(30):
                    await amounts.send(-1 if number % 7 == 0 else number, key=KEYS[number % 40])
                    number += 1
                    await t.settle()

        await write()
        log.between = write
        first = (await log.bounds(0)).first
        found = await rows(log)
        assert log.gaps == 1
        assert (await log.bounds(0)).first != first
        assert found == dict(totals.items())


async def test_records_until_now_end_where_the_log_ended_at_the_start() -> None:
    app, parts = program()
    amounts = parts["amounts"]
    async with app.test() as t:
        for number in range(10):
            await amounts.send(number, key="k")
        log = Slow(await app.running.open_log("amounts"), 3)

        async def write() -> None:
            await amounts.send(99, key="k")

        log.between = write
        seen = [record.value async for _, record in records_until_now(log, 0)]
        assert seen == [str(number).encode() for number in range(10)]
        await t.settle()


async def test_an_empty_log_has_no_records() -> None:
    app, _ = program()
    async with app.test():
        log = await app.running.open_log("amounts")
        assert [record async for record in records_until_now(log, 0)] == []


async def test_a_leftover_is_known_by_its_rows_however_large() -> None:
    app, parts = program()
    async with app.test(broker="memory://?message_bytes=200") as t:
        await parts["amounts"].send(5, key="k" * 150)  # so that the commit goes in chunks
        await t.settle()
        log = await app.running.open_log("bank-journal-1")
        assert await names_in(log, [0]) == {("table", "totals"), ("table", "total"), ("input", "total/amounts")}
