"""A worker whose event loop is blocked keeps its tasks beyond the lease, and loses them once it counts as stuck."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import pytest
from thalweg import StaleRead

from brokers.program_runs import ACCOUNTS, start_worker
from brokers.sitting import LEASE, Done, Order, make_sitting

STUCK = 4 * LEASE


async def test_a_blocked_worker_keeps_its_tasks_and_a_stuck_one_loses_them(broker: str) -> None:
    broker = f"{broker}&stuck={STUCK}"
    sitting = make_sitting(broker)
    processes = [start_worker(broker, "sitting.py") for _ in range(2)]
    try:
        async with sitting.app.client(), asyncio.timeout(90):

            async def carry_out(key: str, order: Order) -> Done:
                done: Done = await sitting.work.ask(order, key=key, timeout=60)
                return done

            settled, owners = 0, dict[int, int]()
            while settled < 10:  # for a lease, both have had a half of the four partitions
                done = await asyncio.gather(*(carry_out(key, Order()) for key in ACCOUNTS))
                before, owners = owners, {one.partition: one.by[-1] for one in done}
                halves = sorted(Counter(owners.values()).values()) == [2, 2]
                settled = settled + 1 if halves and owners == before else 0
                await asyncio.sleep(LEASE / 10)
            key, who, count = ACCOUNTS[0], done[0].by[-1], len(done[0].by)

            answer = (await carry_out(key, Order(who, 2.5 * LEASE))).by
            assert answer[-1] == who, "a blocked worker lost its task"
            assert (await carry_out(key, Order())).by[-1] == who

            answer = (await carry_out(key, Order(who, STUCK + 3 * LEASE))).by
            assert answer[-1] != who, "a stuck worker kept its task"
            answer = (await carry_out(key, Order())).by
            assert len(answer) == count + 4, "an order was carried out twice, or not at all"
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.parametrize("broker", ["redis", "kafka"], indirect=True)  # by a lock, and by a group
async def test_tables_are_served_at_once_after_a_block_and_not_after_being_stuck(broker: str) -> None:
    sitting = make_sitting(f"{broker}&stuck={6 * LEASE}")
    async with sitting.app:
        assert len((await sitting.work.ask(Order(), key="ada")).by) == 1
        time.sleep(1.5 * LEASE)  # noqa: ASYNC251
        assert len(sitting.workers["ada"]) == 1
        time.sleep(7.5 * LEASE)  # noqa: ASYNC251
        with pytest.raises(StaleRead):
            sitting.workers["ada"]
        assert len((await sitting.work.ask(Order(), key="ada", timeout=30)).by) == 2
