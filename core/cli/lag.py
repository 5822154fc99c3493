"""`thalweg lag`: how far each agent is behind what it reads, by the positions that it has committed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer
from thalweg.agent import Agent
from thalweg.app import App
from thalweg.channel import TopicInfo
from thalweg.journal.outbox import OutboxRow
from thalweg.journal.replay import committed_rows
from thalweg.journal.rows import Reached, below, decode, reached_key
from thalweg.plan import TopicPlan
from thalweg.runtime.roster import Roster
from thalweg.starting import looking

from .counting import records_after
from .session import session_of
from .workers import read_roster

__all__ = ["held_back", "lag"]

COLUMNS = ("agent", "topic", "behind", "retrying", "partitions")
BY_PARTITION = ("agent", "topic", "partition", "behind", "retrying", "owner")

Rows = Mapping[bytes, bytes]


def lag(
    context: typer.Context,
    by_partition: Annotated[
        bool, typer.Option("--by-partition", "-p", help="A line for each partition, with the worker that has it")
    ] = False,
) -> None:
    """List how many records each agent has still to handle.

    As of the workers' last commit, without disturbing them; counted up to 10,000 a partition, beyond that estimated
    from these. Queues are not counted. Those that wait for a retry have been read, and are shown apart (`retrying`).
    Messages that agents have sent, and whose topic or queue refuses them, are told of.
    """
    session = session_of(context)
    app = session.app()
    session.warn_if_nothing_lasts(app)
    rows = session.run(_rows(app))
    none = "no agent reads a topic that exists"
    if by_partition:
        session.output.rows(BY_PARTITION, [line for row in rows for line in _lines(row)], none=none)
    else:
        session.output.rows(COLUMNS, rows, none=none)
    for held in {
        (one["task"], one["topic"], one["partition"]): one for row in rows for one in row["held_back"]
    }.values():
        where = held["topic"] if held["partition"] < 0 else f"{held['topic']}/{held['partition']}"
        session.output.warning(
            f"task {held['task']} holds back {held['messages']:,} messages to {where}: {held['reason']}"
        )


async def _rows(app: App) -> list[dict[str, Any]]:
    async with looking(app) as existing:
        if not app.running.has_log:
            return []
        state = _State(app, existing)
        roster = await read_roster(app, existing)
        return [
            await _row(app, agent, source.topic, state, roster)
            for agent in app.agents.values()
            for source in agent.plan.sources
            if source.topic.name in existing and not source.topic.spec.queue
        ]


class _State:
    """The rows of positions, retries and outboxes, each journal read once."""

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
                    await committed_rows(log, partition, b"p", b"w", b"pruv") for partition in range(topic.partitions)
                ]
            finally:
                await log.close()
        return self._read[journal]


async def _row(
    app: App, agent: Agent[Any, Any], topic: TopicPlan, state: _State, roster: Roster | None
) -> dict[str, Any]:
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
    waiting = [sum(start <= key < below(start) for key in rows) for rows in by_partition]
    owners = [None if roster is None else roster.owner(topic.group, number) for number in range(topic.partitions)]
    return {
        "agent": agent.name,
        "topic": topic.name,
        "behind": sum(behind),
        "retrying": sum(waiting),
        "partitions": topic.partitions,
        "by_partition": behind,
        "retrying_by_partition": waiting,
        "held_back": [one for index, rows in enumerate(by_partition) for one in held_back(topic.group, index, rows)],
        "owners": [None if owner is None else owner.name for owner in owners],
    }


def held_back(group: str, index: int, rows: Rows) -> Iterator[dict[str, Any]]:
    """Of a task: destinations that refuse what it sends them."""
    for key, raw in rows.items():
        if key[:1] != b"v" or not (reason := decode(raw, type=OutboxRow).parked):
            continue
        topic, partition = key[1:].split(b"\0", 1)
        start = b"u" + key[1:] + b"\0"
        yield {
            "task": f"{group}/{index}",
            "topic": topic.decode(),
            "partition": int(partition),
            "messages": sum(one.startswith(start) for one in rows),
            "reason": reason,
        }


def _lines(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One for each partition."""
    each = zip(row["by_partition"], row["retrying_by_partition"], row["owners"], strict=True)
    for partition, (behind, retrying, owner) in enumerate(each):
        yield {
            "agent": row["agent"],
            "topic": row["topic"],
            "partition": partition,
            "behind": behind,
            "retrying": retrying,
            "owner": owner,
        }
