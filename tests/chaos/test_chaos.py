"""Three workers on every broker at once, with all that can befall them: what comes out is as if nothing had."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NoReturn

from chaos.plan import Fault
from chaos.run import run
from chaos.servers import KINDS

SEED = 1
FAULTS = (Fault.KILL, Fault.HANG, Fault.CUT, Fault.RESTART, Fault.LOCK, Fault.ROLL)
FEWER = {"rabbitmq": FAULTS[:3], "rabbitmq-amqp": FAULTS[:2]}
"""RabbitMQ takes half a minute to restart. All faults, and other seeds: make chaos."""


async def test_whatever_befalls_workers_and_brokers_nothing_is_lost_repeated_or_out_of_order(
    broker_missing: Callable[[str, str], NoReturn],
) -> None:
    lacking = {kind: reason for kind, broker in KINDS.items() if (reason := broker.lacking())}
    # Side by side: most of the time each waits for a lease to end.
    outcomes = await asyncio.gather(
        *(run(kind, SEED, faults=FEWER.get(kind, FAULTS)) for kind in KINDS if kind not in lacking),
        return_exceptions=True,
    )
    failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    if failures:
        raise AssertionError("\n\n".join(map(str, failures))) from failures[0]
    for kind, reason in lacking.items():
        broker_missing(kind.partition("-")[0], reason)
