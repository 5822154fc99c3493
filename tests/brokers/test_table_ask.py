"""`table.ask` while workers are killed: every question is answered, or times out and says so; no answer is wrong."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest

from brokers.bank import Withdrawal, make_bank
from brokers.program_runs import ACCOUNTS, becomes, hang, start_worker

WORKERS = 3
TASKS = 4


@contextmanager
def workers(broker: str) -> Iterator[list[Popen[bytes]]]:
    started = [start_worker(broker) for _ in range(WORKERS)]
    try:
        yield started
    finally:
        for worker in started:
            worker.kill()
            worker.wait()


class Asking:
    """Adds to accounts and asks for them, at once; a sum never goes back, and is never ahead of what was sent."""

    def __init__(self, bank: Any) -> None:
        self.bank = bank
        self.answered = 0
        self.timed_out: list[str] = []
        self.wrong: list[str] = []
        self._sent = dict.fromkeys(ACCOUNTS, 0)
        self._known = dict.fromkeys(ACCOUNTS, 0)  # what an answer has told, of whoever

    async def add(self) -> None:
        number = 0
        while True:
            account = ACCOUNTS[number % len(ACCOUNTS)]
            number += 1
            self._sent[account] += 1
            try:
                total = await self.bank.total.ask(Withdrawal(number, account, 1), key=account, timeout=5)
            except TimeoutError:
                continue
            self._known[account] = max(self._known[account], total)

    async def ask(self, account: str) -> None:
        while True:
            known = self._known[account]
            try:
                total = await self.bank.totals.ask(account, timeout=3)
            except TimeoutError as error:
                self.timed_out.append(str(error))
                continue
            self.answered += 1
            if not known <= total <= self._sent[account]:
                self.wrong.append(f"{account}: {total}, but {known} was known and {self._sent[account]} sent")
            self._known[account] = max(self._known[account], total)
            await asyncio.sleep(0.005)


def owners(bank: Any) -> dict[int, int]:
    """Process by task."""
    roster = bank.app.running.roster
    found = {index: roster.owner("4", index) for index in range(TASKS)}
    return {index: here.pid for index, here in found.items() if here is not None}


async def answers_flow_while_owners_die(broker: str, hangs: bool = True) -> None:
    bank = make_bank(broker)
    with workers(broker) as processes:
        async with bank.app.client():
            assert await becomes(lambda: settled(bank), lambda found: found == WORKERS)
            asking = Asking(bank)
            loops = [asyncio.create_task(asking.ask(account)) for account in ACCOUNTS]
            loops.append(asyncio.create_task(asking.add()))
            try:
                for kill in (True, False) if hangs else (True,):
                    await goes_on(asking, 100)
                    victim = next(one for one in processes if one.pid in owners(bank).values())
                    if kill:
                        victim.kill()
                    else:
                        hang(victim)
                    before = asking.answered
                    await becomes(lambda: taken_over(bank, victim.pid), bool)  # noqa: B023
                    await goes_on(asking, 200)
                    if not kill:
                        victim.send_signal(signal.SIGCONT)
                        await goes_on(asking, 200)
                    assert asking.answered >= before + 200
            finally:
                for loop in loops:
                    loop.cancel()
                failures = await asyncio.gather(*loops, return_exceptions=True)
    assert not asking.wrong
    assert all("last known to run task 4/" in told for told in asking.timed_out), asking.timed_out
    assert [failure for failure in failures if not isinstance(failure, asyncio.CancelledError)] == []


async def settled(bank: Any) -> int:
    await bank.app.running.roster.start()
    found = owners(bank)
    return len(set(found.values())) if len(found) == TASKS else 0


async def taken_over(bank: Any, pid: int) -> bool:
    found = owners(bank)
    return len(found) == TASKS and pid not in found.values()


async def goes_on(asking: Asking, answers: int) -> None:
    until = asking.answered + answers
    await becomes(lambda: answered(asking), lambda count: count >= until, 60)


async def answered(asking: Asking) -> int:
    return asking.answered


@pytest.mark.parametrize("broker", ["redis", "kafka", "nats"], indirect=True)
async def test_answers_flow_while_owners_are_killed_and_stand_still(broker: str) -> None:
    await answers_flow_while_owners_die(broker)


@pytest.fixture
def on_disk(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'broker.db'}"


async def test_and_on_sqlite(on_disk: str) -> None:
    # One that is stopped within a write keeps the file's lock until it goes on: nobody could write, or be told.
    await answers_flow_while_owners_die(on_disk, hangs=False)
