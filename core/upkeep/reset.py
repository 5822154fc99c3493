"""An app's state taken away: rows, positions, parked retries, unsent outputs, the leader's ticks; topics stay."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from thalweg.errors import ConfigurationError
from thalweg.journal.rows import Reached, encode, reached_key
from thalweg.registry import load_stores
from thalweg.starting import looking

from .found import PARTITIONER, Journals, journals_of, own_topics, reads, refuse_beside_workers

if TYPE_CHECKING:
    from thalweg.app import App

__all__ = ["ResetPlan", "plan_reset", "remove_stores", "reset"]

WHAT = "a reset"


class ResetPlan(msgspec.Struct, frozen=True):
    """groups: tasks by group. own: topics of the app's own, whose messages so far will not be read again."""

    broker: str
    store: str
    groups: dict[str, int]
    own: list[str]


async def plan_reset(app: App) -> ResetPlan:
    """What `reset` would do. Raises ConfigurationError while workers run, or where there is no state."""
    async with looking(app) as existing:
        await refuse_beside_workers(app, existing, "reset")
        groups = journals_of(app, existing)
        if not groups:
            raise ConfigurationError(f"app {app.id!r} has no state on {app.running.transport.description}")
        own = [plan.name for plan in own_topics(app, existing)]
        store = load_stores(app.store).description
        return ResetPlan(app.running.transport.description, store, groups, own)


async def reset(app: App) -> int:
    """Do it; how many local stores were removed. If it is interrupted, no worker starts before it is done again."""
    async with looking(app) as existing, Journals(app) as journals:
        await refuse_beside_workers(app, existing, "reset")
        groups = journals_of(app, existing)
        ends: dict[tuple[str, int], dict[bytes, bytes]] = {}
        for plan in own_topics(app, existing):
            log = await journals.log(plan.name)
            for partition in range(plan.partitions):
                row = encode(Reached((await log.bounds(partition)).last, 0))
                for name in reads(app, plan.name):
                    ends.setdefault((plan.group, partition), {})[reached_key(name)] = row
        tasks = {(g, i): await journals.rewriting(g, i) for g, n in groups.items() for i in range(n)}
        for (group, _), task in tasks.items():
            await task.claim(groups[group], PARTITIONER)
            await task.begin(WHAT)
        for key, task in tasks.items():
            if key in ends:
                await task.add(ends[key])
        for task in tasks.values():
            await task.end()
    return remove_stores(app, groups)


def remove_stores(app: App, groups: dict[str, int]) -> int:
    """Those that lie here. Elsewhere they are found to be of another past, and emptied, when they are next opened."""
    stores = load_stores(app.store)
    try:
        return sum(stores.remove(f"{app.id}-{group}-{index}") for group, n in groups.items() for index in range(n))
    finally:
        stores.close()
