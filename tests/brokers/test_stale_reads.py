"""A worker that stood still while another took over reads no row of its past (design rule 9)."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import pytest
from thalweg.clock import boot_clock

from brokers.program_runs import eventually, hang
from brokers.reading import Reading


async def next_read(worker: asyncio.subprocess.Process, after: float) -> str:
    """What the worker read at its first look after this moment of the boot clock: a number, or None for nothing."""
    assert worker.stdout is not None
    async with asyncio.timeout(60):
        while True:
            at, _, value = (await worker.stdout.readline()).decode().strip().partition(" ")
            if at.replace(".", "").isdigit() and float(at) > after:
                return value


@pytest.mark.parametrize("broker", ["redis", "kafka", "nats", "rabbitmq"], indirect=True)
async def test_a_worker_that_stood_still_reads_nothing_of_its_past(broker: str) -> None:
    program, heir = Reading(broker), Reading(broker)
    worker = await asyncio.create_subprocess_exec(
        sys.executable, str(Path(__file__).with_name("reading.py")), broker, stdout=asyncio.subprocess.PIPE
    )
    try:
        async with program.app.client():
            await program.numbers.send(1, key="k")
        async with asyncio.timeout(60):
            while await next_read(worker, 0) != "1":
                pass
        hang(worker)
        async with heir.app:
            await heir.numbers.send(1, key="k")
            await eventually(lambda: heir.sum() == 2, 60)
            woken = boot_clock()
            worker.send_signal(signal.SIGCONT)
            for _ in range(100):
                assert await next_read(worker, woken) in ("None", "2")
    finally:
        worker.kill()
        await worker.wait()
