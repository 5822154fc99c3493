"""Feeding mirrors: whatever becomes of one, the worker goes on, and it has the committed state at last."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping, Sequence

import pytest
from thalweg import App, Stream, starting
from thalweg.errors import Fenced, MirrorError
from thalweg.journal.replay import committed_rows
from thalweg.journal.rewriting import Rewriting
from thalweg.mirror import MirrorTable, Place
from thalweg.runtime import mirroring
from thalweg.transports.memory.log import MemoryLog

KEYS = [f"k{number}" for number in range(30)]


class Database:
    """Mirrors in memory, which fail as they are told."""

    description = "a database of the test"

    def __init__(self) -> None:
        self.tables: dict[str, Table] = {}
        self.down = False
        self.hang: asyncio.Event | None = None
        self.chance: random.Random | None = None  # every fourth call fails, before or after it has happened
        self.fills = 0
        self.calls = 0

    def table(self, table: MirrorTable) -> Table:
        made = self.tables.setdefault(table.name, Table(self, table))
        made.table = table
        return made

    async def check(self) -> str:
        return "test"

    async def close(self) -> None:
        pass

    async def meet(self) -> bool:
        """Before a call; whether it shall fail once it has happened."""
        self.calls += 1
        await asyncio.sleep(0)
        if self.hang is not None:
            await self.hang.wait()
        if self.down:
            raise MirrorError("down")
        fate = 1.0 if self.chance is None else self.chance.random()
        if fate < 0.15:
            raise MirrorError("refused")
        return fate < 0.3

    def wipe(self) -> None:
        for table in self.tables.values():
            table.rows, table.epochs, table.places = {}, {}, {}

    def backup(self) -> Mapping[str, tuple[dict[bytes, bytes], dict[int, int], dict[int, Place | None]]]:
        return {name: (dict(t.rows), dict(t.epochs), dict(t.places)) for name, t in self.tables.items()}

    def restore(self, backup: Mapping[str, tuple[dict[bytes, bytes], dict[int, int], dict[int, Place | None]]]) -> None:
        for name, (rows, epochs, places) in backup.items():
            table = self.tables[name]
            table.rows, table.epochs, table.places = dict(rows), dict(epochs), dict(places)

    def read(self, table: str) -> dict[str, int]:
        return {key.decode(): int(value) for key, value in self.tables[table].rows.items()}


class Table:
    def __init__(self, database: Database, table: MirrorTable) -> None:
        self.database, self.table = database, table
        self.rows: dict[bytes, bytes] = {}
        self.epochs: dict[int, int] = {}
        self.places: dict[int, Place | None] = {}

    async def claim(self, partition: int, epoch: int) -> Place | None:
        lost = await self.database.meet()
        if self.epochs.get(partition, 0) > epoch:
            raise Fenced("stale")
        self.epochs[partition] = epoch
        if lost:
            raise MirrorError("answer lost")
        return self.places.get(partition)

    async def apply(
        self,
        partition: int,
        changes: Mapping[bytes, bytes | None],
        since: Place | None,
        place: Place | None,
        epoch: int,
    ) -> None:
        lost = await self.database.meet()
        if self.epochs.get(partition, 0) > epoch:
            raise Fenced("stale")
        if self.epochs.get(partition) != epoch or self.places.get(partition) != since:
            raise MirrorError("lost a part")
        self.places[partition] = place
        for key, value in changes.items():
            if value is None:
                self.rows.pop(key, None)
            else:
                self.rows[key] = value
        if lost:
            raise MirrorError("answer lost")

    async def keys(self, partition: int) -> AsyncIterator[Sequence[bytes]]:
        await self.database.meet()
        self.database.fills += 1
        for key in list(self.rows):
            if self.table.partition_of(key, self.table.partitions) == partition:
                yield [key]


def make_app(database: Database | None, partitions: int = 2) -> tuple[App, object, object]:
    app = App("mirrored", partitions=partitions, mirror=database)
    source = app.topic("source", key=str, value=int)
    sums = app.table("sums", key=str, value=int, default=int)
    private = app.table("private", key=str, value=int, mirror=False)

    @app.agent(source)
    async def add(stream: Stream[int]) -> None:
        async for event in stream.events():
            if event.value < 0 and event.key in sums:
                del sums[event.key]
            else:
                sums[event.key] += event.value
            private[event.key] = event.value

    return app, source, sums


async def test_rows_and_deletions_arrive_and_what_was_there_before_is_gone() -> None:
    database = Database()
    app, source, sums = make_app(database)
    database.table(MirrorTable("mirrored", "sums", 2, "text", "json", lambda key, count: 1)).rows[b"stale"] = b"1"
    async with app.test() as t:
        for key in KEYS:
            await source.send(1, key=key)
        await source.send(-1, key=KEYS[0])
        await t.settle()
        assert database.read("sums") == dict(sums.items()) == dict.fromkeys(KEYS[1:], 1)
        assert database.tables.keys() == {"sums"}


async def test_a_mirror_that_was_emptied_is_filled_from_the_present_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirroring, "PART", 4)
    database = Database()
    app, source, sums = make_app(database, partitions=1)
    async with app.test() as t:
        for key in KEYS:
            await source.send(1, key=key)
        await t.settle()
        database.wipe()
        await source.send(1, key=KEYS[0])
        await t.advance(20)
        assert len(list(sums.keys())) == len(KEYS)
        assert database.read("sums") == dict(sums.items())


async def test_a_mirror_that_is_away_or_hangs_holds_up_nothing_and_catches_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    database = Database()
    app, source, sums = make_app(database)
    async with app.test() as t:
        await source.send(1, key="a")
        await t.settle()
        for trouble in ("down", "hang"):
            if trouble == "down":
                database.down = True
            else:
                database.hang = asyncio.Event()
            before = database.read("sums")
            for key in KEYS:
                await source.send(1, key=key)
            await t.settle()
            await t.advance(300)
            assert database.read("sums") == before != dict(sums.items())
            if database.hang is not None:
                database.hang.set()
            database.down, database.hang = False, None
            await t.advance(20)
            assert database.read("sums") == dict(sums.items())
    assert 0 < caplog.text.count("its mirror is behind") <= 11  # in 300 s, however many tables and partitions there are


@pytest.mark.parametrize("limit", [("MOST_ROWS", 5), ("MOST_BYTES", 20)])
async def test_what_is_too_much_to_keep_comes_from_the_journal(
    limit: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirroring, *limit)
    database = Database()
    app, source, sums = make_app(database)
    async with app.test() as t:
        await source.send(1, key="a")
        await t.settle()
        filled = database.fills
        database.down = True
        for number in range(40):
            await source.send(-1 if number % 9 == 0 else number, key=KEYS[number % 30])
            await t.settle()
        kept = [len(feed._pending) for task in t._worker.tasks.values() for feed in task.feeds]
        assert max(kept) <= 5
        assert t._worker.kept_for_mirrors.size <= 40
        database.down = False
        await t.advance(20)
        assert database.read("sums") == dict(sums.items())
        assert database.fills == filled
        assert t._worker.kept_for_mirrors.size == 0


async def test_where_the_journal_does_not_reach_back_the_rows_come_from_the_store(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mirroring, "MOST_ROWS", 5)
    monkeypatch.setattr(starting, "SNAPSHOT_BYTES", 500)
    database = Database()
    app, source, sums = make_app(database, partitions=1)
    async with app.test() as t:
        await source.send(1, key="gone")
        await t.settle()
        filled = database.fills
        database.down = True
        await source.send(-1, key="gone")
        for number in range(200):
            await source.send(number, key=KEYS[number % 30])
            await t.settle()
        database.down = False
        await t.advance(20)
        assert database.fills == filled + 1
        assert database.read("sums") == dict(sums.items())
        assert "gone" not in database.read("sums")


async def test_a_restart_goes_on_from_the_mirrors_place_and_fills_nothing() -> None:
    database = Database()
    app, source, sums = make_app(database)
    async with app.test() as t:
        for key in KEYS:
            await source.send(1, key=key)
        await t.settle()
        filled, epochs = database.fills, dict(database.tables["sums"].epochs)
        database.down = True  # what follows it has not seen when the worker dies
        await source.send(-1, key=KEYS[0])
        await source.send(5, key=KEYS[1])
        await t.settle()
        await t.crash()
        database.down = False
        await t.advance(20)
        assert database.read("sums") == dict(sums.items())
        assert database.fills == filled
        assert all(epoch > epochs[partition] for partition, epoch in database.tables["sums"].epochs.items())


@pytest.mark.parametrize("truncates", [False, True])
async def test_a_mirror_of_a_state_that_was_reset_is_filled_anew(
    truncates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def keeps_all(log: MemoryLog, partition: int, before: int) -> None:
        pass

    if not truncates:
        monkeypatch.setattr(MemoryLog, "truncate", keeps_all)
    database = Database()
    app, source, sums = make_app(database, partitions=1)
    async with app.test() as t:
        for key in KEYS:
            await source.send(1, key=key)
        await t.settle()
        worker = app.running.worker
        assert worker is not None
        journal = ("mirrored-journal-1", 0)
        position = await committed_rows(await worker.log(journal[0]), 0, b"p", b"q")
        await worker.stop_by_kill()
        rewriting = Rewriting(worker.writer, await worker.new_log(journal[0]), journal, app.clock, None)
        await rewriting.look()
        await rewriting.claim(1, "murmur2")
        await rewriting.begin("a test")
        await rewriting.add(position)
        await rewriting.end()
        await t.crash()
        await t.settle()
        assert dict(sums.items()) == {}
        assert database.read("sums") == {}
        await source.send(3, key=KEYS[2])
        await t.settle()
        assert database.read("sums") == dict(sums.items()) == {KEYS[2]: 3}


async def test_a_mirror_that_lost_its_newest_rows_gets_them_again() -> None:
    database = Database()
    app, source, sums = make_app(database)
    async with app.test() as t:
        for key in KEYS:
            await source.send(1, key=key)
        await t.settle()
        backup, filled = database.backup(), database.fills
        for key in KEYS:
            await source.send(2, key=key)
        await t.settle()
        database.restore(backup)
        for key in KEYS:  # some in each partition, so that both are fed
            if key != KEYS[5]:
                await source.send(3, key=key)
        await t.advance(20)
        assert database.read("sums") == dict(sums.items())
        assert database.fills == filled


async def test_a_stale_owner_writes_nothing_and_leaves_it_to_the_newer_one(caplog: pytest.LogCaptureFixture) -> None:
    database = Database()
    app, source, _ = make_app(database)
    async with app.test() as t:
        await source.send(1, key="a")
        await t.settle()
        before = database.read("sums")
        for partition in range(2):
            await database.tables["sums"].claim(partition, 1 << 60)
        calls = database.calls
        for _ in range(5):
            for key in KEYS:
                await source.send(1, key=key)
            await t.advance(30)
        assert database.read("sums") == before
        assert database.calls - calls == 2
    assert "its mirror is fed by a newer owner" in caplog.text


async def test_urls_are_not_connected_to_in_tests() -> None:
    app, source, sums = make_app(None)
    app.mirror = "redis://nowhere.invalid"
    table = app.table("more", key=str, value=int, mirror="postgresql://nowhere.invalid")
    assert table.name in app.tables
    async with app.test() as t:
        await source.send(1, key="a")
        await t.settle()
        assert sums["a"] == 1
        assert t._worker.mirrors == {}


class Answerless(random.Random):
    def random(self) -> float:
        return 0.2


async def test_what_it_took_without_an_answer_is_kept_no_longer() -> None:
    database = Database()
    app, source, sums = make_app(database)
    async with app.test() as t:
        await source.send(1, key="a")
        await t.advance(1)
        database.chance = Answerless()
        await source.send(1, key="a")
        await t.settle()
        assert t._worker.kept_for_mirrors.size > 0
        database.chance = None
        await t.advance(60)
        assert t._worker.kept_for_mirrors.size == 0
        assert database.read("sums") == dict(sums.items()) == {"a": 2}


@pytest.mark.parametrize("seed", range(40))
async def test_after_any_faults_it_holds_the_committed_state(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(seed)
    monkeypatch.setattr(mirroring, "MOST_ROWS", chance.choice([3, 50_000]))
    monkeypatch.setattr(mirroring, "PART", chance.choice([1, 3, 2000]))
    monkeypatch.setattr(starting, "SNAPSHOT_BYTES", chance.choice([600, 1 << 22]))
    database = Database()
    app, source, sums = make_app(database, partitions=chance.choice([1, 3]))
    fencing = chance.choice(["true", "false"])
    async with app.test(broker=f"memory://?fencing={fencing}") as t:
        backup = database.backup()
        for _ in range(chance.randrange(20, 80)):
            for _ in range(chance.randrange(6)):
                await source.send(chance.choice([-1, 1, 2, 3]), key=chance.choice(KEYS))
            match chance.choice(
                ["settle", "settle", "turns", "crash", "flaky", "calm", "down", "advance", "backup", "restore"]
            ):
                case "settle":
                    await t.settle()
                case "turns":
                    for _ in range(chance.randrange(20)):
                        await asyncio.sleep(0)
                case "crash":
                    await t.crash()
                case "flaky":
                    database.chance = chance
                case "calm":
                    database.chance, database.down = None, False
                case "down":
                    database.down = True
                case "advance":
                    await t.advance(chance.choice([0.1, 1.0, 30.0]))
                case "backup":
                    backup = database.backup()
                case "restore" if chance.random() < 0.3:
                    database.restore(backup)
        database.chance, database.down = None, False
        await t.advance(60)
        assert t._worker.kept_for_mirrors.size == 0
        for key in KEYS:  # a loss is noticed at the next write
            await source.send(1, key=key)
        await t.advance(60)
        assert database.read("sums") == dict(sums.items())
