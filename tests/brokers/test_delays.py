"""Delayed messages and ids, while workers are killed: each reminder leaves once, what was taken back never."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest
from thalweg.capabilities import Logs
from thalweg.journal.inbox import Inbox
from thalweg.journal.replay import committed_rows

from brokers.program_runs import LONG, becomes, opened, start_worker
from brokers.reminding import PARTITIONS, Reminding

ORDERS = 240
KILLS = 4
STEPS = {0: ["soon"], 1: ["later", "hurry"], 2: ["later", "paid"]}
"""What is done to an order, by its number modulo three."""


async def lying(broker: str, topic: str) -> Counter[tuple[str, str]]:
    """Key and value of what lies in a topic, as another program of Thalweg's reads it."""
    found: Counter[tuple[str, str]] = Counter()
    async with opened(broker) as transport:
        assert isinstance(transport, Logs)
        log = await transport.log(topic)
        for partition in range(PARTITIONS):
            inbox, after, last = Inbox(topic, partition), None, (await log.bounds(partition)).last
            while last is not None and (after is None or after < last):
                batch = (await log.read({partition: after}, LONG, 100 * LONG, 10)).get(partition)
                if batch is None:  # the last position is no record's
                    break
                for position, record in zip(batch.positions, batch.records, strict=True):
                    for seen in inbox.receive(position, record):
                        found[(seen.record.key or b"").decode(), (seen.record.value or b"").decode()] += 1
                after = batch.positions[-1]
    return found


async def waiting(broker: str) -> int:
    """How many messages wait to leave."""
    async with opened(broker) as transport:
        assert isinstance(transport, Logs)
        journal = await transport.log(f"reminding-journal-{PARTITIONS}")
        return sum([len(await committed_rows(journal, index, b"y", b"z")) for index in range(PARTITIONS)])


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"], indirect=True)
async def test_workers_are_killed_and_each_message_leaves_once_and_each_id_is_handled_once(broker: str) -> None:
    program, chance, kills = Reminding(broker), random.Random(1), 0
    keys = [f"order-{number}" for number in range(ORDERS)]
    expected = Counter((key, step) for number, key in enumerate(keys) for step in STEPS[number % 3])
    leaving = Counter(pair for pair in expected.elements() if pair[1] in ("soon", "hurry"))
    async with program.app.client():
        workers = [start_worker(broker, "reminding.py") for _ in range(2)]
        try:
            for turn in range(2):
                for number, key in enumerate(keys):
                    for step in STEPS[number % 3][turn : turn + 1]:
                        for _ in range(2):  # as who was not told that it arrived
                            await program.orders.send(step, key=key, id=f"{key}/{step}")
            while kills < KILLS:
                before = await lying(broker, "reminders")
                victim = workers.pop(chance.randrange(len(workers)))
                victim.kill()
                await asyncio.to_thread(victim.wait)
                kills += 1
                workers.append(start_worker(broker, "reminding.py"))
                await becomes(
                    lambda: lying(broker, "reminders"),
                    lambda found: found != before or len(found) == len(leaving),  # noqa: B023
                    60,
                )
            await becomes(lambda: lying(broker, "reminders"), lambda found: len(found) >= len(leaving), 60)
            await becomes(lambda: lying(broker, "handled"), lambda found: len(found) >= len(expected), 60)
            await becomes(lambda: waiting(broker), lambda count: count == 0, 60)
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
    assert await lying(broker, "reminders") == leaving
    assert await lying(broker, "handled") == expected
