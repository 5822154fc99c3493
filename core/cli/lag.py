"""`thalweg lag`: how far each agent is behind what it reads, by the positions that it has committed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer
from thalweg.agent import Agent
from thalweg.app import App
from thalweg.channel import TopicInfo
from thalweg.journal.replay import committed_rows
from thalweg.journal.rows import Reached, below, decode, reached_key
from thalweg.plan import TopicPlan
from thalweg.starting import looking

from .counting import records_after
from .session import session_of

__all__ = ["lag"]

COLUMNS = ("agent", "topic", "behind", "retrying", "partitions")

Rows = Mapping[bytes, bytes]


def lag(context: typer.Context) -> None:
    """List how many records each agent has still to handle.

    As of the workers' last commit, without disturbing them; counted up to 10,000 a partition, beyond that estimated
    from these. Queues are not counted. Those that wait for a retry have been read, and are shown apart (`retrying`).
    """
    session = session_of(context)
    app = session.app()
    session.warn_if_nothing_lasts(app)
    rows = session.run(_rows(app))
    session.output.rows(COLUMNS, rows, none="no agent reads a topic that exists")


async def _rows(app: App) -> list[dict[str, Any]]:
    async with looking(app) as existing:
        if not app.running.has_log:
            return []
        state = _State(app, existing)
        return [
            await _row(app, agent, source.topic, state)
            for agent in app.agents.values()
            for source in agent.plan.sources
            if source.topic.name in existing and not source.topic.spec.queue
        ]


class _State:
    """The rows of positions and retries, each journal read once."""

    def __init__(self, app: App, existing: Mapping[str, TopicInfo]) -> None:
        self._app, self._existing = app, existing
        self._read: dict[str, list[Rows]] = {}

    async def of(self, topic: TopicPlan) -> list[Rows]:
        """By partition."""
        journal = f"{self._app.id}-journal-{topic.group}"
        if journal not in self._existing:
            return [{}] * topic.partitions
        if journal not in self._read:
            log = await self._app.running.open_log(journal)
            try:
                self._read[journal] = [
                    await committed_rows(log, partition, b"p", b"s") for partition in range(topic.partitions)
                ]
            finally:
                await log.close()
        return self._read[journal]


async def _row(app: App, agent: Agent[Any, Any], topic: TopicPlan, state: _State) -> dict[str, Any]:
    name = f"{agent.name}/{topic.name}"
    by_partition = await state.of(topic)
    log = await app.running.open_log(topic.name)
    try:
        rows_of = {partition: rows.get(reached_key(name)) for partition, rows in enumerate(by_partition)}
        reached = {i: None if raw is None else decode(raw, type=Reached).position for i, raw in rows_of.items()}
        behind = list((await records_after(log, reached)).values())
    finally:
        await log.close()
    start = b"r" + name.encode() + b"\0"
    waiting = sum(start <= key < below(start) for rows in by_partition for key in rows)
    return {
        "agent": agent.name,
        "topic": topic.name,
        "behind": sum(behind),
        "retrying": waiting,
        "partitions": topic.partitions,
        "by_partition": behind,
    }
