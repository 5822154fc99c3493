"""`app.lock` between processes, on every broker, while they are killed and stopped where it hurts: holding the lock."""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from brokers.counting import read
from brokers.program_runs import eventually, hang

LEASE = 1.0


class Counting:
    """A process that counts."""

    def __init__(self, process: Process) -> None:
        self.process = process

    @classmethod
    async def start(cls, broker: str, file: Path) -> Counting:
        program = Path(__file__).with_name("counting.py")
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(program), broker, str(file), str(LEASE), stdout=PIPE
        )
        return cls(process)

    async def says(self, word: str) -> int:
        assert self.process.stdout is not None
        async with asyncio.timeout(60):
            while line := await self.process.stdout.readline():
                said, number = line.decode().split()
                if said == word:
                    return int(number)
        raise AssertionError(f"the process ended before it said {word!r}")


@asynccontextmanager
async def counting(broker: str, file: Path, processes: int) -> AsyncIterator[list[Counting]]:
    started = [await Counting.start(broker, file) for _ in range(processes)]
    try:
        yield started
    finally:
        for one in started:
            if one.process.returncode is None:
                one.process.kill()
            await one.process.wait()


def check(file: Path) -> None:
    """No count was written twice, none left out, and never by an older holder after a newer one."""
    lines = read(file)
    assert [count for _, count, _ in lines] == list(range(1, len(lines) + 1))
    numbers = [number for number, *_ in lines]
    assert numbers == sorted(set(numbers))


@pytest.fixture(params=["sqlite"])
def on_disk(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'broker.db'}"


async def holders_die(broker: str, file: Path) -> None:
    async with counting(broker, file, 3) as processes:
        for round_ in range(3):
            victim = processes[round_]
            held = await victim.says("inside")
            victim.process.kill()
            await victim.process.wait()
            before = len(read(file))
            await eventually(lambda before=before: len(read(file)) >= before + 5)  # type: ignore[misc]
            assert read(file)[-1][0] > held
            processes.append(await Counting.start(broker, file))
    check(file)


async def stopped_inside(victim: Counting, file: Path) -> int:
    while True:
        held = await victim.says("inside")
        hang(victim.process)
        if held not in {number for number, *_ in read(file)}:
            return held
        victim.process.send_signal(signal.SIGCONT)  # it was faster


async def a_holder_stands_still(broker: str, file: Path) -> None:
    async with counting(broker, file, 2) as (victim, _):
        held = await stopped_inside(victim, file)
        await eventually(lambda: bool(read(file)) and read(file)[-1][0] > held)
        before = len(read(file))
        await eventually(lambda: len(read(file)) >= before + 5)
        assert victim.process.pid not in {process for number, _, process in read(file) if number >= held}
        victim.process.send_signal(signal.SIGCONT)
        assert await victim.says("lost") == held
        await eventually(lambda: victim.process.pid in {process for number, _, process in read(file) if number > held})
    check(file)


@pytest.mark.parametrize("broker", ["redis", "kafka", "nats", "rabbitmq"], indirect=True)
async def test_a_holder_that_is_killed_is_followed_by_another_and_nothing_is_counted_twice(
    broker: str, tmp_path: Path
) -> None:
    await holders_die(broker, tmp_path / "count")


@pytest.mark.parametrize("broker", ["redis", "kafka", "nats", "rabbitmq"], indirect=True)
async def test_a_holder_that_stood_still_is_told_before_it_does_anything_else(broker: str, tmp_path: Path) -> None:
    await a_holder_stands_still(broker, tmp_path / "count")


async def test_both_on_sqlite(on_disk: str, tmp_path: Path) -> None:
    await holders_die(on_disk, tmp_path / "deaths")
    await a_holder_stands_still(on_disk, tmp_path / "still")
