"""The bank of `examples/bank.py` on every broker, with a worker killed amid its transfers: not a cent is amiss."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NoReturn

import pytest

from chaos.plan import Fault
from chaos.servers import KINDS
from chaos.trial import in_memory, trial

SEED = 1
RATE = 100
COUNT = 500
"""Transfers; a hundred thousand, and all faults: make chaos PROGRAM=bank."""
OTHERWISE = "rabbitmq-amqp"
"""RabbitMQ's other way to streams, which test_chaos.py goes."""


async def test_a_bank_whose_workers_are_killed_loses_and_makes_no_cent(
    broker_missing: Callable[[str, str], NoReturn],
) -> None:
    kinds = [kind for kind in KINDS if kind != OTHERWISE]
    lacking = {kind: reason for kind in kinds if (reason := KINDS[kind].lacking())}
    outcomes = await asyncio.gather(
        *(trial(kind, SEED, COUNT, [Fault.KILL], RATE) for kind in kinds if kind not in lacking), return_exceptions=True
    )
    failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    if failures:
        raise AssertionError("\n\n".join(map(str, failures))) from failures[0]
    for kind, reason in lacking.items():
        broker_missing(kind, reason)


@pytest.mark.parametrize("options", ["", "?fencing=false", "?grouped=true"])
async def test_a_bank_in_memory_that_crashes_all_the_time_loses_and_makes_no_cent(options: str) -> None:
    assert await in_memory(SEED, 10 * COUNT, f"memory://{options}") > 5
