"""A run of the bank: so many transfers, and all the time a worker that dies or hangs. `make chaos PROGRAM=bank`."""

from __future__ import annotations

import asyncio
import itertools
import random
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path
from unittest.mock import patch

import msgspec
from thalweg import starting

from chaos.bank import ACCOUNTS, OPENING, PARTITIONS, Bank, Transfer
from chaos.bank_watching import BankWatcher, check_bank
from chaos.checking import everything
from chaos.history import History
from chaos.ledger import NOTHING, Followed, Ledger
from chaos.plan import Fault, Plan
from chaos.program import Options
from chaos.run import LEASE, PATIENCE, Run, faults_for
from chaos.servers import own_broker

__all__ = ["Trial", "in_memory", "trial"]

RATE = 2000
"""Transfers a second, at most."""
PACE = 1.0
"""Seconds from when all is well again to the next fault, about."""
SNAPSHOT = 100_000
"""Bytes: a task of the bank writes so much in a few seconds, and is compacting for half of the time."""


class Trial(Run):
    """count: how many transfers, at least."""

    most_open = 5000
    count: int
    faults: Collection[Fault]
    struck = 0

    def watcher_of(self, options: Options) -> BankWatcher:
        return BankWatcher(options, self.history, self.journal)

    async def suffer(self) -> None:
        """Rounds of the plan until all is sent; the broker dies in the first one only, if it is slow to come back."""
        faults = self.faults
        for round_ in itertools.count():
            plan = Plan.of(self.plan.name, self.plan.seed + 1000 * round_, faults)
            for step in plan.steps:
                goal = self.watcher.seen + round(step.wait / 40 * PACE * 2 * self.rate)
                await self.watcher.until(lambda goal=goal: self.watcher.seen >= goal, f"{goal} lines", PATIENCE)
                if round_ and self.sent >= self.count:
                    return
                await self.carry_out(Plan(plan.name, plan.seed, [msgspec.structs.replace(step, wait=0)]))
                if self.history.violations:
                    return
                self.struck += 1
            if self.plan.name.startswith("rabbitmq"):
                faults = [fault for fault in faults if fault is not Fault.RESTART]
            if self.sent >= self.count:
                return

    async def send_last(self) -> None:
        """Nothing more; but now it can be known what of the uncertain was sent."""
        self.transfers = [transfer for _, transfer in await everything(self.options, "transfers", Transfer)]
        self.watcher.open = {t.number for t in self.transfers if not self._watcher.ledger.done(t.number)}

    @property
    def _watcher(self) -> BankWatcher:
        assert isinstance(self.watcher, BankWatcher)
        return self.watcher

    async def check(self) -> None:
        await check_bank(self.broker, self.options, self._watcher, self.history, self.transfers)


async def trial(kind: str, seed: int, count: int, faults: Collection[Fault] = tuple(Fault), rate: int = RATE) -> Trial:
    """On a broker of its own, with those of the faults that can befall it; all is right if it returns."""
    async with own_broker(kind) as broker:
        folder = Path(tempfile.mkdtemp(prefix="thalweg-bank-"))
        options = Options(broker.url, PARTITIONS, LEASE, program="bank", snapshot_bytes=SNAPSHOT)
        try:
            run = Trial(broker, Plan(kind, seed, []), folder, History(), options, rate)
            run.count, run.faults = count, [fault for fault in faults_for(kind) if fault in faults]
            await run.execute(run.suffer)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return run


async def in_memory(seed: int, count: int, broker: str = "memory://") -> int:
    """One process, so its worker is killed where it stands, again and again; how often. AssertionError if not right."""
    dice, wrong, deaths = random.Random(seed), list[str](), 0
    bank, ledger, followed = Bank(Options(broker)), Ledger(wrong.append), dict[str, Followed]()
    with patch.object(starting, "SNAPSHOT_BYTES", SNAPSHOT):
        async with bank.app.test(broker=broker) as t:
            sent = 0
            while sent < count:
                numbers = range(sent, min(count, sent + dice.randint(1, 2000)))
                await bank.send(numbers)
                sent = numbers.stop
                for _ in range(dice.randint(0, 200)):
                    await asyncio.sleep(0)
                await t.crash()
                deaths += 1
            await t.settle()
            for event in t.sent(bank.lines):
                followed[event.key] = ledger.follow(event.value, followed.get(event.key, NOTHING))
            ledger.check([event.value for event in t.sent(bank.transfers)], followed)
            balances = dict(bank.balances.items())
    assert not wrong, "\n".join(wrong[:5])
    assert balances == {name: row.balance for name, row in followed.items()}
    assert sum(balances.values()) == ACCOUNTS * OPENING
    return deaths
