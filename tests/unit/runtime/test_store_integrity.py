"""A store on disk that is damaged, deleted or full: the journal fills it anew, and no event suffers."""

from __future__ import annotations

import asyncio
import logging
import random
import resource
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from thalweg import App, Stream
from thalweg.agent import Agent
from thalweg.table import Table

KINDS = ["sqlite", "rocksdb"]
ROWS = {f"key{n:04}": random.Random(n).randbytes(300) for n in range(3000)}
BAD = "key1500"


class Program:
    """An agent that adds an x to a row, and makes the worst of an exception."""

    def __init__(self, kind: str, folder: Path) -> None:
        if kind == "rocksdb":
            pytest.importorskip("rocksdict")
        self.folder = folder / "state"
        option = "verify_mb=0" if kind == "sqlite" else "cache_mb=2"
        self.app = App(
            "ledger",
            broker=f"memory://integrity-{folder.name}",
            store=f"{kind}:///{self.folder}?{option}",
            partitions=1,
        )
        source = self.app.topic("source", key=str, value=bytes)
        rows = self.app.table("rows", key=str, value=bytes)
        self.source, self.rows = source, rows

        @self.app.agent(source)
        async def add(stream: Stream[bytes]) -> AsyncIterator[int]:
            async for event in stream.events():
                try:
                    before = rows.get(event.key, b"")
                except Exception:
                    before = b"lost"
                rows[event.key] = before + event.value
                yield len(rows[event.key])

        self.add: Agent[bytes, int] = add
        self.table: Table[str, bytes] = rows

    async def fill(self) -> None:
        async with self.app:
            await self.source.send_many(ROWS.items())
            assert await self.add.ask(b"", key=next(reversed(ROWS))) == 300
        async with self.app:  # RocksDB moves its log into a table on this occasion
            pass

    def files(self) -> list[Path]:
        return [file for file in self.folder.rglob("*") if file.is_file() and not file.name.endswith(".lock")]

    def flip(self) -> None:
        (found,) = (file for file in self.files() if ROWS[BAD] in file.read_bytes())
        with found.open("r+b") as file:
            place = found.read_bytes().index(ROWS[BAD]) + 150
            file.seek(place)
            byte = file.read(1)
            file.seek(place)
            file.write(bytes([byte[0] ^ 1]))

    def tear(self) -> None:
        largest = max(self.files(), key=lambda file: file.stat().st_size)
        with largest.open("r+b") as file:
            file.truncate(largest.stat().st_size // 2)

    def delete(self) -> None:
        for place in self.folder.iterdir():
            if not place.name.endswith(".lock"):
                shutil.rmtree(place) if place.is_dir() else place.unlink()


@pytest.fixture(params=KINDS)
async def program(request: pytest.FixtureRequest, tmp_path: Path) -> Program:
    program = Program(request.param, tmp_path)
    await program.fill()
    return program


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING
        and "forgets" not in record.getMessage()
        and "memory" not in record.getMessage()
    ]


async def touched(program: Program) -> None:
    """The bad row is written, and all are as they must be."""
    assert await program.add.ask(b"x", key=BAD, timeout=60) == 301
    assert dict(program.table.items()) == {**ROWS, BAD: ROWS[BAD] + b"x"}
    assert [letter async for letter in program.app.dead_letters(program.source)] == []


@pytest.mark.parametrize(("damage", "warnings"), [(Program.flip, 1), (Program.tear, 1), (Program.delete, 0)])
async def test_damage_while_no_worker_runs(
    program: Program, damage: Callable[[Program], None], warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    damage(program)
    caplog.clear()
    async with program.app:
        await touched(program)
    assert len(warnings_in(caplog)) == warnings, warnings_in(caplog)


@pytest.mark.parametrize("damage", [Program.flip, Program.delete])
async def test_damage_while_a_worker_runs(
    program: Program, damage: Callable[[Program], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    async with program.app:
        damage(program)
        await touched_in_the_end(program)
    assert len(warnings_in(caplog)) == 1, warnings_in(caplog)


async def touched_in_the_end(program: Program) -> None:
    """An answer may get lost where the task starts over after the commit; the row does not."""
    await program.source.send(b"x", key=BAD)
    async with asyncio.timeout(60):
        while await program.table.ask(BAD, timeout=60) != ROWS[BAD] + b"x":  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        while not (found := await program.add.ask(b"", key=BAD, timeout=60)):
            pass
    assert found == 301
    assert dict(program.table.items()) == {**ROWS, BAD: ROWS[BAD] + b"x"}


@pytest.fixture
def full() -> Iterator[Callable[[int | None], None]]:
    """Sets how large files may become: what a full disk is to whoever writes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int | None) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft if size is None else size, hard))

    yield limit
    limit(None)


async def test_a_full_disk_is_said_and_when_there_is_room_it_goes_on(
    program: Program, full: Callable[[int | None], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    large = random.Random(1).randbytes(100_000)
    async with program.app:
        full(max(file.stat().st_size for file in program.files()) + 50_000)
        await program.source.send_many((f"large{n}", large) for n in range(20))
        async with asyncio.timeout(60):
            while not warnings_in(caplog):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        full(None)
        async with asyncio.timeout(60):
            while await program.table.ask("large19", timeout=60) != large:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert dict(program.table.items()) == {**ROWS, **{f"large{n}": large for n in range(20)}}
    said = warnings_in(caplog)
    assert "cannot be written" in said[0]
    assert "is damaged" not in str(said)
    assert not list(program.folder.rglob("*.damaged"))
