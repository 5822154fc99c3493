"""What is to befall a run, drawn from a seed: the same seed, the same plan."""

from __future__ import annotations

import enum
import random
from collections.abc import Collection, Sequence

import msgspec

__all__ = ["Fault", "Plan", "Step"]


class Fault(enum.StrEnum):
    KILL = "kill -9 of a worker; another is started once its tasks have been taken over"
    AGAIN = "kill -9 of a worker, and of the one that claims the first of its tasks, as soon as it has"
    HANDOVER = "a worker is told to end (SIGTERM), and killed as soon as the first of its tasks is another's"
    HANG = "SIGSTOP of a worker until its tasks have been taken over, then SIGCONT"
    BLINK = "SIGSTOP of a worker for less than its lease, then SIGCONT"
    CUT = "all connections of a worker are cut, and can be made anew at once"
    PART = "a worker is cut off from the broker until its tasks have been taken over"
    RESTART = "the broker dies and is started again"
    LOCK = "another program locks the broker's file for a while"
    ROLL = "all workers are told to end, one after another, and each is replaced"
    GROW = "one more worker"
    SHRINK = "a worker is told to end (SIGTERM)"


class Step(msgspec.Struct, frozen=True):
    """wait: how many receipts are to come first. who: which worker, modulo their number. chance: from 0 to 1.

    hurry: the next step does not wait until every partition has recovered from this one.
    """

    fault: Fault
    wait: int
    who: int
    chance: float
    hurry: bool

    def __str__(self) -> str:
        then = "and at once the next" if self.hurry else "and recovery is waited for"
        return (
            f"after {self.wait:3} receipts: {self.fault.name.lower():8} worker {self.who} ({self.chance:.2f}), {then}"
        )


class Plan(msgspec.Struct, frozen=True):
    name: str
    seed: int
    steps: Sequence[Step]

    @classmethod
    def of(cls, name: str, seed: int, faults: Collection[Fault], rounds: int = 1) -> Plan:
        """Each of these faults so many times, in an order of its own each round."""
        dice = random.Random(f"{name} {seed}")
        steps: list[Step] = []
        for _ in range(rounds):
            for fault in dice.sample(sorted(faults), len(faults)):
                wait, who, chance = dice.randint(5, 80), dice.randrange(3), dice.random()
                steps.append(Step(fault, wait, who, chance, dice.random() < 0.25))
        return cls(name, seed, steps)

    def __str__(self) -> str:
        lines = "\n".join(f"  {number}. {step}" for number, step in enumerate(self.steps, 1))
        return f"chaos on {self.name}, seed {self.seed}:\n{lines}"
