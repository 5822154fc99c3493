"""Standbys hold what the journal says is committed, whatever the owner goes through, and hand it over."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from thalweg import App, Stream, starting
from thalweg.errors import StoreError
from thalweg.journal.replay import committed_rows
from thalweg.journal.snapshot import LOCAL_MARKER
from thalweg.registry import load_stores
from thalweg.runtime.complaints import Complaints
from thalweg.runtime.replay import Replay
from thalweg.runtime.settings import Settings
from thalweg.runtime.standby import Standbys
from thalweg.store import Store
from thalweg.testing import AppTest

PARTITIONS = 2
EVERYTHING = (b"a", b"z")


def make() -> tuple[App, Any, Any]:
    app = App("ledger", partitions=PARTITIONS)
    numbers = app.topic("numbers", key=str, value=int)
    sums = app.table("sums", key=str, value=int, default=int, standbys=1)

    @app.agent(numbers)
    async def add(stream: Stream[int]) -> None:
        async for event in stream.events():
            sums[event.key] += event.value
            if sums[event.key] % 7 == 0:
                del sums[event.key]

    return app, numbers, sums


@asynccontextmanager
async def standing_by(app: App, t: AppTest, stores: Any) -> AsyncIterator[Standbys]:
    transport = t._broker.again()
    await transport.open()
    standbys = Standbys(
        lambda group: f"ledger-journal-{group}",
        transport.log,
        lambda group, index: stores.open(f"{group}-{index}"),
        Settings(app.clock),
        Complaints(app.clock),
    )
    try:
        yield standbys
    finally:
        await standbys.close()
        await transport.close()


async def assert_same(app: App, standbys: Standbys) -> None:
    """All followed stores hold what is committed."""
    journal = await app.running.open_log("ledger-journal-2")
    for key in standbys.keys:
        store = standbys._followers["2"].replays[key[1]].store
        rows = {row: value for row, value in store.scan(*EVERYTHING) if row != LOCAL_MARKER}
        assert rows == await committed_rows(journal, key[1], *EVERYTHING)
    await journal.close()


KEYS = frozenset(("2", index) for index in range(PARTITIONS))


@pytest.mark.parametrize("options", ["", "?fencing=false", "?message_bytes=300&fencing=false"])
@pytest.mark.parametrize("seed", range(3))
async def test_it_follows_through_crashes_truncation_and_absence(
    options: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starting, "SNAPSHOT_BYTES", 2000)
    monkeypatch.setattr("thalweg.journal.snapshot.PART_BYTES", 400)
    chance = random.Random(seed)
    app, numbers, _ = make()
    async with app.test(broker=f"memory://{options}") as t, standing_by(app, t, load_stores("memory://")) as standbys:
        for _ in range(80):
            standbys.follow(chance.choice([KEYS, KEYS, {("2", 0)}, frozenset()]))
            for _ in range(chance.randrange(12)):
                await numbers.send(chance.randrange(100), key=f"k{chance.randrange(40)}")
            if chance.random() < 0.15:
                await t.crash()
            await t.settle()
            await assert_same(app, standbys)
        standbys.follow(KEYS)
        await t.settle()
        assert standbys.keys == KEYS
        await assert_same(app, standbys)


async def test_one_that_fell_behind_the_truncation_takes_the_snapshot(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starting, "SNAPSHOT_BYTES", 500)
    app, numbers, _ = make()
    stores = load_stores(f"sqlite:///{tmp_path}/stores")
    async with app.test() as t, standing_by(app, t, stores) as standbys:
        for _ in range(3):
            standbys.follow(KEYS)
            await numbers.send_many([(f"k{n}", n) for n in range(50)])
            await t.settle()
            await assert_same(app, standbys)
            standbys.follow(())
            for n in range(200):
                await numbers.send(1, key=f"k{n % 50}")
                await t.settle()
        standbys.follow(KEYS)
        await t.settle()
        await assert_same(app, standbys)
    stores.close()


async def test_one_whose_reads_are_slow_falls_behind_and_takes_the_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "SNAPSHOT_BYTES", 500)
    app, numbers, _ = make()
    started_over = 0
    start_over = Replay.start_over

    def counted(replay: Replay) -> None:
        nonlocal started_over
        started_over += replay.after is not None
        start_over(replay)

    monkeypatch.setattr(Replay, "start_over", counted)
    async with app.test() as t, standing_by(app, t, load_stores("memory://")) as standbys:
        standbys.follow(KEYS)
        await numbers.send_many([(f"k{n}", n) for n in range(50)])
        await t.settle()
        hold = t._broker.broker.faults.hold("read", topic="ledger-journal-2")
        await numbers.send_many([(f"k{n}", n) for n in range(50)])  # read; the next read stands still
        await t.settle()
        await hold.reached.wait()
        for n in range(200):
            await numbers.send(1, key=f"k{n % 50}")
            await t.settle()
        assert not started_over
        hold.release()
        await t.settle()
        assert started_over
        await assert_same(app, standbys)


async def test_what_is_taken_is_open_and_followed_no_more() -> None:
    app, numbers, _ = make()
    async with app.test() as t, standing_by(app, t, load_stores("memory://")) as standbys:
        standbys.follow(KEYS)
        await numbers.send_many([(f"k{n}", 1) for n in range(50)])
        await t.settle()
        store = standbys.take(("2", 0))
        assert store is not None
        before = dict(store.scan(*EVERYTHING))
        assert any(key.startswith(b"tsums") for key in before)
        assert standbys.take(("2", 0)) is None
        assert standbys.take(("9", 0)) is None
        await numbers.send_many([(f"k{n}", 1) for n in range(50)])
        await t.settle()
        assert dict(store.scan(*EVERYTHING)) == before
        assert standbys.keys == {("2", 1)}
        await assert_same(app, standbys)
        store.close()
        standbys.follow(KEYS)  # its owner has gone: it begins anew
        await t.settle()
        await assert_same(app, standbys)


async def test_a_store_that_breaks_is_made_anew_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    app, numbers, _ = make()
    stores = load_stores("memory://")
    async with app.test(errors="policy") as t, standing_by(app, t, stores) as standbys:
        standbys.follow(KEYS)
        await numbers.send_many([(f"k{n}", 1) for n in range(50)])
        await t.settle()
        broken: Store = standbys._followers["2"].replays[0].store

        def apply(*_: Any) -> None:
            raise StoreError("the disk is full")

        monkeypatch.setattr(broken, "apply", apply)
        await numbers.send_many([(f"k{n}", 1) for n in range(50)])
        await t.advance(5)
        assert standbys._followers["2"].replays[0].store is not broken
        await assert_same(app, standbys)


async def test_a_broker_that_is_away_is_waited_for() -> None:
    app, numbers, _ = make()
    async with app.test() as t, standing_by(app, t, load_stores("memory://")) as standbys:
        standbys.follow(KEYS)
        await t.settle()
        t._broker.broker.faults.fail("read", topic="ledger-journal-2", times=5)
        await numbers.send_many([(f"k{n}", 1) for n in range(50)])
        await t.settle()
        await t.advance(30)
        await assert_same(app, standbys)
