"""Who runs which task on real brokers: workers that stop, die and come back under their name."""

from __future__ import annotations

from contextlib import AsyncExitStack

from thalweg.runtime.worker import Worker
from thalweg.starting import worker_running

from brokers.bank import make_bank
from brokers.program_runs import eventually, start_worker

LONG = 60.0
"""Seconds: a lease that does not end in a test."""


def owned(worker: Worker) -> set[tuple[str, int]]:
    return {key for key in worker.tasks if worker.serving(*key) is not None}


def share(*workers: Worker) -> bool:
    """Whether all four tasks are run, each by one, and each worker runs as many as the others."""
    found = [owned(worker) for worker in workers]
    return sum(len(one) for one in found) == 4 and {len(one) for one in found} == {4 // len(workers)}


async def test_a_worker_that_stops_hands_over_long_before_its_lease_ends_and_what_stays_goes_on(broker: str) -> None:
    async with worker_running(make_bank(broker, LONG).app) as first:
        async with worker_running(make_bank(broker, LONG).app) as second:
            await eventually(lambda: share(first, second))
            stayed = {key: first.tasks[key] for key in owned(first)}
        await eventually(lambda: share(first))
        assert all(first.tasks[key] is task for key, task in stayed.items())


async def test_what_a_killed_worker_ran_is_taken_over_and_what_others_run_goes_on(broker: str) -> None:
    async with worker_running(make_bank(broker).app) as first:
        dying = start_worker(broker)
        try:
            await eventually(lambda: len(owned(first)) == 2)
            stayed = {key: first.tasks[key] for key in owned(first)}
        finally:
            dying.kill()
            dying.wait()
        await eventually(lambda: share(first))
        assert all(first.tasks[key] is task for key, task in stayed.items())


async def test_a_worker_that_comes_back_under_its_name_finds_its_tasks_and_moves_none(broker: str) -> None:
    async with AsyncExitStack() as stack:
        apps = [make_bank(broker, LONG).app for _ in range(3)]
        for app, name in zip(apps, ("a", "b", "b"), strict=True):
            app.worker_id = name
        first = await stack.enter_async_context(worker_running(apps[0]))
        async with worker_running(apps[1]) as second:
            await eventually(lambda: share(first, second))
            before, tasks = owned(second), {key: first.tasks[key] for key in owned(first)}
        again = await stack.enter_async_context(worker_running(apps[2]))
        await eventually(lambda: share(first, again))
        assert owned(again) == before
        assert {key: first.tasks[key] for key in owned(first)} == tasks
