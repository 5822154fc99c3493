"""An event that kills the process: it is found, counted, and dead-lettered; everything else is handled once."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from thalweg import App, Retry, StaleRead, Stream, Table, Topic

EVENTS = 400
POISON = 137
ATTEMPTS = 3


class Program:
    def __init__(self, broker: str) -> None:
        self.app = app = App("poison", broker=broker, partitions=3, lease=1.0)
        self.numbers: Topic[str, int] = app.topic("numbers", key=str, value=int)
        self.sums: Table[str, int] = app.table("sums", key=str, value=int, default=int)

        @app.agent(self.numbers, on_error=Retry(ATTEMPTS, backoff=0.01))
        async def add(stream: Stream[int]) -> None:
            async for event in stream.events():
                if event.value == POISON:
                    os._exit(7)
                self.sums[event.key] += event.value


def key_of(number: int) -> str:
    return f"k{number % 20}"


async def work(broker: str, expected: int) -> None:
    """What the process does that is killed by the event."""
    program = Program(broker)
    async with program.app:
        done = False
        while not done:
            with suppress(StaleRead):  # while it starts over
                done = sum(program.sums.values()) >= expected
            await asyncio.sleep(0.02)


@pytest.mark.alone
def test_an_event_that_kills_the_process_is_dead_lettered_and_the_others_are_handled_once(tmp_path: Path) -> None:
    broker = f"sqlite:///{tmp_path}/broker.db"
    numbers = list(range(EVENTS))
    expected = sum(numbers) - POISON

    async def fill() -> None:
        program = Program(broker)
        async with program.app.client():
            await program.numbers.send_many([(key_of(number), number) for number in numbers])

    async def look() -> None:
        program = Program(broker)
        async with program.app as app:
            truth: dict[str, int] = {}
            for number in numbers:
                if number != POISON:
                    truth[key_of(number)] = truth.get(key_of(number), 0) + number
            assert dict(program.sums.items()) == truth
            (letter,) = [letter async for letter in app.dead_letters(program.numbers)]
            assert letter.value == str(POISON).encode()
            assert letter.attempts == ATTEMPTS
            assert "process died" in letter.reason

    asyncio.run(fill())
    deaths = 0
    while True:
        code = subprocess.run([sys.executable, __file__, broker, str(expected)], timeout=60, check=False).returncode
        if code == 0:
            break
        assert code == 7
        deaths += 1
        assert deaths < 20, "the process dies again and again"
    assert deaths >= ATTEMPTS
    asyncio.run(look())


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1], int(sys.argv[2])))
