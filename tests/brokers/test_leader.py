"""A timer on the leader, while leaders are killed and stand still in the midst of runs: no tick counts twice."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from subprocess import Popen

import pytest
from thalweg.capabilities import Logs
from thalweg.errors import BrokerError
from thalweg.journal.inbox import Inbox

from brokers.program_runs import LONG, becomes, hang, opened, start_worker
from brokers.ticking import TICKS


async def sent(broker: str, topic: str) -> list[int]:
    """As another program of Thalweg's reads it."""
    async with opened(broker) as transport:
        assert isinstance(transport, Logs)
        inbox, found, after = Inbox(topic, 0), list[int](), None
        try:
            log = await transport.log(topic)
            last = (await log.bounds(0)).last
            while last is not None and (after is None or after < last):
                batch = (await log.read({0: after}, LONG, 100 * LONG, 10))[0]
                for position, record in zip(batch.positions, batch.records, strict=True):
                    found += [int(seen.record.value or b"") for seen in inbox.receive(position, record)]
                after = batch.positions[-1]
        except BrokerError:  # not declared yet
            return []
        return found


async def leader_after(broker: str, ticks: int, processes: list[Popen[bytes]]) -> Popen[bytes]:
    told = await becomes(lambda: sent(broker, "leaders"), lambda found: len(found) >= ticks, 60)
    return next(process for process in processes if process.pid == told[-1])


async def leaders_die(broker: str) -> None:
    processes = [start_worker(broker, "ticking.py") for _ in range(3)]
    try:
        ticks = 3
        for kill in (True, False):
            leader = await leader_after(broker, ticks, processes)
            if kill:
                leader.kill()
                await asyncio.to_thread(leader.wait)
                processes.remove(leader)
            else:
                hang(leader)
            before = len(await sent(broker, "leaders"))
            await becomes(lambda: sent(broker, "leaders"), lambda found: len(found) > before, 60)  # noqa: B023
            if not kill:
                leader.send_signal(signal.SIGCONT)
            ticks = before + 8
        await leader_after(broker, ticks, processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    due = await sent(broker, TICKS)
    assert due == sorted(set(due))
    assert len(due) == len(await sent(broker, "leaders"))  # both of a run, or none


@pytest.mark.parametrize("broker", ["redis", "kafka", "nats", "rabbitmq"], indirect=True)
async def test_ticks_are_sent_once_though_leaders_die_in_them(broker: str) -> None:
    await leaders_die(broker)


async def test_and_on_sqlite(tmp_path: Path) -> None:
    await leaders_die(f"sqlite:///{tmp_path / 'broker.db'}")
