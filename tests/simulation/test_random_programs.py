"""Random programs under random faults, against a sequential model; time is virtual and every choice comes from a seed.

SEEDS=1000 pytest tests/simulation            # more of them
SEEDS=1 FIRST_SEED=4711 pytest tests/simulation   # one again: a failing test's name says which
"""

from __future__ import annotations

import asyncio
import os
import random

import pytest
from thalweg.errors import AmbiguousCommit, BrokerError, Fenced
from thalweg.testing import AppTest
from thalweg.transports.memory.faults import Call

from simulation.program import Program

FIRST = int(os.environ.get("FIRST_SEED", "0"))
SEEDS = int(os.environ.get("SEEDS", "100"))
FOR_EVER = 10_000.0
BROKERS = (
    "memory://",
    "memory://?fencing=false",
    "memory://?commit_messages=1",
    "memory://?commit_messages=3",
    "memory://?message_bytes=500&commit_messages=2",
    "memory://?message_bytes=500&fencing=false",
)
WRITES = frozenset({"append", "commit", "claim"})


class Chaos:
    """Lets calls to the broker fail: before or after their effect, each with the same small probability."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.rate = chance.choice([0.0, 0.02, 0.1, 0.3])
        self.armed = False

    async def __call__(self, call: Call) -> None:
        if not self.armed or call.operation == "try_lock" or self.chance.random() >= self.rate:
            return
        if self.chance.random() < 0.3:
            await asyncio.sleep(0)
        if call.operation in WRITES and call.done:
            raise AmbiguousCommit("chaos")
        if call.operation == "commit" and self.chance.random() < 0.3:
            raise Fenced("chaos")
        raise BrokerError("chaos")


async def check(program: Program, t: AppTest) -> None:
    outcome = await program.outcome([program], t.sent)
    assert not outcome.differs(program.expected())


async def simulate(seed: int) -> None:
    chance = random.Random(seed)
    program = Program(chance)
    chaos = Chaos(chance)
    broker = chance.choice(BROKERS)
    async with program.app.test(errors="policy", broker=broker) as t:
        t._broker.broker.faults.intercept(chaos)
        for number in range(chance.randrange(5, 40)):
            chaos.armed = False
            topic = chance.choice(program.sources)
            key = chance.choice("abcd")
            await topic.send(number, key=key)
            program.sent.append((topic.name, key, number))
            chaos.armed = True
            match chance.choice(["send", "send", "turns", "settle", "advance", "crash"]):
                case "turns":
                    for _ in range(chance.randrange(30)):
                        await asyncio.sleep(0)
                case "settle":
                    await t.settle()
                case "advance":
                    await t.advance(chance.choice([0.01, 0.1, 1.0, 20.0]))
                case "crash" if chance.random() < 0.5:
                    chaos.armed = False
                    await t.crash()
                    chaos.armed = True
        chaos.armed = False
        await t.settle()
        await t.advance(FOR_EVER)
        await check(program, t)
        if chance.random() < 0.5:
            await t.crash()
            await t.advance(FOR_EVER)
            await check(program, t)


@pytest.mark.parametrize("seed", range(FIRST, FIRST + SEEDS))
async def test_a_random_program_does_what_the_model_says(seed: int) -> None:
    async with asyncio.timeout(60):
        await simulate(seed)
