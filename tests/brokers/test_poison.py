"""An event that kills the process, on real brokers: counted by its heirs, it ends in the dead letter (rule 12)."""

from __future__ import annotations

import asyncio
import sys

import pytest
from chaos import test_poison as poison


@pytest.mark.parametrize("broker", ["redis", "kafka"], indirect=True)
async def test_an_event_that_kills_the_process_is_dead_lettered_and_the_others_are_handled_once(broker: str) -> None:
    numbers, program, deaths = range(120, 180), poison.Program(broker), 0
    assert poison.POISON in numbers
    async with program.app.client():
        await program.numbers.send_many([(poison.key_of(number), number) for number in numbers])
    expected = sum(numbers) - poison.POISON
    while True:
        worker = await asyncio.create_subprocess_exec(sys.executable, poison.__file__, broker, str(expected))
        try:
            async with asyncio.timeout(60):
                code = await worker.wait()
        finally:
            if worker.returncode is None:
                worker.kill()
        if code == 0:
            break
        assert code == 7
        deaths += 1
        assert deaths < 20, "the process dies again and again"
    assert deaths >= poison.ATTEMPTS
    heir = poison.Program(broker)
    async with heir.app as app:
        truth: dict[str, int] = {}
        for number in numbers:
            if number != poison.POISON:
                truth[poison.key_of(number)] = truth.get(poison.key_of(number), 0) + number
        assert dict(heir.sums.items()) == truth
        (letter,) = [letter async for letter in app.dead_letters(heir.numbers)]
        assert (letter.value, letter.attempts) == (str(poison.POISON).encode(), poison.ATTEMPTS)
