"""What an app has on the broker, as an operator's commands need to know it."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING

from thalweg.capabilities import Log
from thalweg.channel import TopicInfo
from thalweg.errors import ConfigurationError
from thalweg.grouping import LEADER_GROUP
from thalweg.journal.readback import writer_for
from thalweg.journal.rewriting import Rewriting
from thalweg.journal.writer import JournalWriter
from thalweg.plan import TopicPlan
from thalweg.runtime.roster import Here

if TYPE_CHECKING:
    from thalweg.app import App

__all__ = [
    "PARTITIONER",
    "Journals",
    "inputs_of",
    "journals_of",
    "live_workers",
    "own_topics",
    "reads",
    "refuse_beside_workers",
]

PARTITIONER = "murmur2"


def journals_of(app: App, existing: Mapping[str, TopicInfo]) -> dict[str, int]:
    """The number of tasks by group, of all that this app ever had."""
    start = f"{app.id}-journal-"
    found = {name.removeprefix(start): info.partitions for name, info in existing.items() if name.startswith(start)}
    return {group: n for group, n in sorted(found.items()) if group.isdigit() or group == LEADER_GROUP}


def own_topics(app: App, existing: Mapping[str, TopicInfo]) -> list[TopicPlan]:
    """Those through which its agents send to one another: of group_by and repartition, of changes, of delays."""
    changes = {table.changes for table in app.tables.values()}
    own = [
        plan
        for name, plan in app.topics.items()
        if name in changes or (name.startswith(f"{app.id}-") and name.endswith("-repartition"))
    ]
    own += [] if app.delays is None else [app.delays]
    return [plan for plan in own if plan.name in existing]


def inputs_of(app: App) -> dict[str, TopicPlan]:
    """By name, what is read of all topics."""
    found = {
        f"{agent.name}/{source.topic.name}": source.topic
        for agent in app.agents.values()
        for source in agent.plan.sources
    }
    if app.delays is not None:
        found[f"{app.delays.name}/{app.delays.name}"] = app.delays
    return found


def reads(app: App, topic: str) -> list[str]:
    """The names of the inputs by which a topic is read."""
    return [name for name, plan in inputs_of(app).items() if plan.name == topic]


async def live_workers(app: App, existing: Mapping[str, TopicInfo]) -> list[Here]:
    """Those that have said within the last minute that they are there, and not that they are gone."""
    roster = app.running.roster
    if roster.topic not in existing:
        return []
    await roster.start()
    return sorted((here for here in roster.workers.values() if _may_live(here)), key=lambda here: (here.since, here.me))


def _may_live(here: Here) -> bool:
    """A process of this machine that was killed need not be waited for."""
    if here.host != socket.gethostname() or here.pid == os.getpid():
        return True
    try:
        os.kill(here.pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


async def refuse_beside_workers(app: App, existing: Mapping[str, TopicInfo], what: str) -> None:
    """Raises ConfigurationError that names a worker which is there."""
    workers = await live_workers(app, existing)
    if workers:
        first, more = workers[0], f" and {len(workers) - 1} more" if len(workers) > 1 else ""
        silent = app.now() - app.running.roster.heard[first.me]
        raise ConfigurationError(
            f"app {app.id!r} cannot be {what} while workers run: {first.name} (host {first.host}, pid {first.pid}, "
            f"last heard {silent:.0f} s ago){more}. Stop them; one that was killed counts as gone after a minute"
        )


class Journals:
    """Opens, and in the end closes, what rewriting journals takes. For an app that is being looked at."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._logs: dict[str, Log] = {}
        self._writer: JournalWriter | None = None

    async def log(self, topic: str) -> Log:
        if topic not in self._logs:
            self._logs[topic] = await self._app.running.open_log(topic)
        return self._logs[topic]

    async def rewriting(self, group: str, index: int) -> Rewriting:
        """Of this task's journal, which has been looked at."""
        running = self._app.running
        if self._writer is None:
            self._writer = writer_for(running.transport, running.open_log, self._app.clock)
        topic = f"{self._app.id}-journal-{group}"
        limit = running.transport.limits.message_bytes
        found = Rewriting(self._writer, await self.log(topic), (topic, index), self._app.clock, limit)
        await found.look()
        return found

    async def __aenter__(self) -> Journals:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._writer is not None:
            await self._writer.close()
        for log in self._logs.values():
            await log.close()
