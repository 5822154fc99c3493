"""One program on every real broker that runs it exactly once: the file differs by nothing, only the URL does."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from thalweg.channel import Capability

from brokers.bank import Withdrawal, make_bank
from brokers.program_runs import (
    ACCOUNTS,
    alerts,
    alerts_reach,
    eventually,
    handled,
    opened,
    send_all,
    start_worker,
)


async def told_once(broker: str) -> list[int]:
    """What the program sent, sorted; where the broker cannot fence, a copy that Thalweg's readers drop counts once."""
    async with opened(broker) as transport:
        fenced = Capability.FENCING in transport.capabilities
    found = await alerts(broker)
    return sorted(found) if fenced else sorted(set(found))


async def test_a_program_runs_exactly_once_with_tables_outputs_queues_and_answers(broker: str) -> None:
    bank = make_bank(broker)
    async with bank.app:
        assert bank.app.guarantee == "exactly_once"
        assert await bank.total.ask(Withdrawal(0, "ada", 5), key="ada") == 5
        assert await bank.total.ask(Withdrawal(1, "ada", 500), key="ada") == 505
        assert await bank.mail.ask("bob") == "BOB"
        await eventually(lambda: sorted(bank.mailed) == ["ada", "bob"])
    again = make_bank(broker)
    async with again.app:
        assert await again.total.ask(Withdrawal(2, "ada", 1), key="ada") == 506
        assert handled(again) == [0, 1, 2]
    assert await told_once(broker) == [0, 1, 2]


async def test_a_worker_that_is_killed_loses_and_repeats_nothing(broker: str) -> None:
    count = 4000
    bank = make_bank(broker)
    worker = start_worker(broker)
    try:
        async with bank.app.client():
            await send_all(bank, range(count))
        await alerts_reach(broker, 1)
    finally:
        worker.kill()
        worker.wait()
    heir = make_bank(broker)
    async with heir.app:
        await eventually(lambda: len(handled(heir)) >= count)
        assert handled(heir) == list(range(count))
        for account in ACCOUNTS:
            assert heir.seen[account] == sorted(heir.seen[account])
            assert heir.totals[account] == sum(heir.seen[account])
    assert await told_once(broker) == list(range(count))


async def test_a_worker_that_was_stopped_is_fenced_when_it_goes_on(broker: str) -> None:
    bank, worker = make_bank(broker), start_worker(broker)
    try:
        async with bank.app.client():
            await send_all(bank, range(200))
            await alerts_reach(broker, 200)
            worker.send_signal(signal.SIGSTOP)
            await send_all(bank, range(200, 400))
        heir = make_bank(broker)
        async with heir.app:
            await eventually(lambda: len(handled(heir)) >= 400)
            worker.send_signal(signal.SIGCONT)
            await send_all(heir, range(400, 900))
            await alerts_reach(broker, 900)
    finally:
        worker.kill()
        worker.wait()
    last = make_bank(broker)
    async with last.app:
        await eventually(lambda: len(handled(last)) >= 900)
        assert handled(last) == list(range(900))
    assert await told_once(broker) == list(range(900))


DEMO = Path(__file__).parents[2] / "examples" / "flights.py"


def shown(url: str) -> list[str]:
    run = subprocess.run(
        [sys.executable, str(DEMO), "--flights", "6000"],
        env={**os.environ, "THALWEG_BROKER": url, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    *results, last = run.stdout.strip().splitlines()
    assert "6,000 flights counted" in last
    assert "exactly once" in last
    return [line for line in results if "memory://" not in line and "flights counted" not in line]  # progress


@cache
def shown_on_memory() -> list[str]:
    return shown("memory://")


@pytest.mark.parametrize("broker", ["redis", "kafka", "nats", "rabbitmq"], indirect=True)
async def test_the_demo_shows_the_same_as_on_memory(broker: str) -> None:
    """The file differs by nothing: only THALWEG_BROKER. Of SQLite, tests/examples/test_flights.py says the same."""
    assert await asyncio.to_thread(shown, broker) == await asyncio.to_thread(shown_on_memory)
