"""Journals stay small: snapshots are written between commits, and what lies before them is truncated."""

import asyncio
import random

import pytest
from thalweg import App, Stream, starting


def make() -> tuple[App, object, object]:
    app = App("ledger", partitions=1)
    numbers = app.topic("numbers", key=str, value=int)
    sums = app.table("sums", key=str, value=int, default=int)

    @app.agent(numbers)
    async def add(stream: Stream[int]) -> None:
        async for event in stream.events():
            sums[event.key] += event.value
            if sums[event.key] % 7 == 0:
                del sums[event.key]

    return app, numbers, sums


@pytest.mark.parametrize("options", ["", "?fencing=false", "?message_bytes=300", "?fencing=false&message_bytes=300"])
@pytest.mark.parametrize("seed", range(3))
async def test_a_compacted_journal_gives_the_whole_state_whenever_the_worker_dies(
    options: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starting, "SNAPSHOT_BYTES", 2000)
    monkeypatch.setattr("thalweg.journal.snapshot.PART_BYTES", 400)
    random_ = random.Random(seed)
    app, numbers, sums = make()
    truth: dict[str, int] = {}
    truncated = 0
    async with app.test(broker=f"memory://{options}") as t:
        for _ in range(150):
            for _ in range(random_.randrange(8)):
                key, number = f"k{random_.randrange(40)}", random_.randrange(100)
                truth[key] = truth.get(key, 0) + number
                if truth[key] % 7 == 0:
                    del truth[key]
                await numbers.send(number, key=key)
            if random_.random() < 0.15:
                await t.crash()  # with whatever is under way
            await t.settle()
            positions = [position for _, position, _ in t._broker.records("ledger-journal-1")]
            truncated = max(truncated, positions[0])
            assert dict(sums.items()) == truth
        size = sum(record.size for _, _, record in t._broker.records("ledger-journal-1"))
    assert truncated > 100, "nothing was ever truncated: the test shows nothing"
    assert size < 12_000


async def test_a_journal_whose_owners_die_young_is_compacted_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "SNAPSHOT_BYTES", 5000)
    app, numbers, sums = make()
    async with app.test() as t:
        for number in range(400):
            await numbers.send(7 * number + 1, key=f"k{number % 10}")
            await t.settle()
            if number % 5 == 4:  # long before it has written so much itself
                await t.crash()
        size = sum(record.size for _, _, record in t._broker.records("ledger-journal-1"))
        assert len(dict(sums.items())) == 10
    assert size < 12_000


async def test_a_store_that_fell_behind_the_truncation_is_rebuilt(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starting, "SNAPSHOT_BYTES", 500)
    app, numbers, sums = make()
    app.broker, app.store = "memory://behind", f"sqlite:///{tmp_path}/store"
    transport_kept_alive = app.client()
    async with transport_kept_alive:
        await numbers.send(1, key="old")
    async with app:
        await add_up(sums, {"old": 1})
    app.store = "memory://"
    async with app:
        for number in range(1, 60):
            await numbers.send(7 * number + 1, key=f"k{number % 5}")
        await numbers.send(6, key="old")  # deletes it
        await add_up(sums, None, missing="old")
    app.store = f"sqlite:///{tmp_path}/store"
    async with app:
        assert "old" not in sums
        assert len(dict(sums.items())) == 5


async def add_up(sums: object, expected: dict[str, int] | None, missing: str = "") -> None:
    async with asyncio.timeout(10):
        while dict(sums.items()) != expected if expected is not None else missing in sums:  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # the real clock rules here, and tables tell nobody when they change
