"""`thalweg lag`: how far each agent is behind what it reads, by the positions that it has committed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, Any

import typer
from thalweg.app import App
from thalweg.channel import TopicInfo
from thalweg.journal.outbox import OutboxRow
from thalweg.journal.replay import committed_rows
from thalweg.journal.rows import Reached, below, decode, reached_key, waiting_until_key
from thalweg.plan import TopicPlan
from thalweg.runtime.roster import Roster
from thalweg.starting import looking

from .counting import records_after
from .session import session_of
from .workers import read_roster

__all__ = ["held_back", "lag"]

COLUMNS = ("agent", "topic", "behind", "retrying", "waiting", "partitions")
BY_PARTITION = ("agent", "topic", "partition", "behind", "retrying", "waiting", "owner")

DELAYED = "(delayed messages)"
"""What stands in the place of the agent's name where messages wait that were sent with `delay=`."""

DUE = waiting_until_key(0, b"")[:1], below(waiting_until_key(0, b"")[:1])
"""Where the rows of messages lie that wait, in the order of time."""

OUTBOXES = b"u", b"w"

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

    Messages sent with `delay=` have a line of their own, once there were any: `waiting` are those that are not due yet,
    `behind` those that are and have not left, and those that no worker has looked at.

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
            await _row(app, name, topic, state, roster)
            for name, topic in _read(app)
            if topic.name in existing and not topic.spec.queue
        ]


def _read(app: App) -> Iterator[tuple[str, TopicPlan]]:
    """Which agent reads which topic."""
    for agent in app.agents.values():
        for source in agent.plan.sources:
            yield agent.name, source.topic
    if app.delays is not None:
        yield app.delays.name, app.delays


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
                    await committed_rows(log, partition, b"p", b"s", OUTBOXES, DUE)
                    for partition in range(topic.partitions)
                ]
            finally:
                await log.close()
        return self._read[journal]


async def _row(app: App, agent: str, topic: TopicPlan, state: _State, roster: Roster | None) -> dict[str, Any]:
    name = f"{agent}/{topic.name}"
    by_partition = await state.of(topic)
    log = await app.running.open_log(topic.name)
    try:
        rows_of = {partition: rows.get(reached_key(name)) for partition, rows in enumerate(by_partition)}
        reached = {i: None if raw is None else decode(raw, type=Reached).position for i, raw in rows_of.items()}
        behind = list((await records_after(log, reached)).values())
    finally:
        await log.close()
    start = b"r" + name.encode() + b"\0"
    retrying = [sum(start <= key < below(start) for key in rows) for rows in by_partition]
    due = [_due(rows) if topic is app.delays else [] for rows in by_partition]
    overdue = [sum(one <= app.now() * 1000 for one in each) for each in due]
    behind = [unread + late for unread, late in zip(behind, overdue, strict=True)]
    to_come = [len(each) - late for each, late in zip(due, overdue, strict=True)]
    owners = [None if roster is None else roster.owner(topic.group, number) for number in range(topic.partitions)]
    return {
        "agent": DELAYED if topic is app.delays else agent,
        "topic": topic.name,
        "behind": sum(behind),
        "retrying": sum(retrying),
        "waiting": sum(to_come),
        "partitions": topic.partitions,
        "by_partition": behind,
        "retrying_by_partition": retrying,
        "waiting_by_partition": to_come,
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


def _due(rows: Collection[bytes]) -> list[int]:
    """When each message that waits is to leave: milliseconds since the epoch."""
    return [int.from_bytes(key[1:9], "big") for key in rows if DUE[0] <= key < DUE[1]]


def _lines(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One for each partition."""
    each = zip(
        *(row[of] for of in ("by_partition", "retrying_by_partition", "waiting_by_partition", "owners")), strict=True
    )
    for partition, (behind, retrying, waiting, owner) in enumerate(each):
        yield {
            "agent": row["agent"],
            "topic": row["topic"],
            "partition": partition,
            "behind": behind,
            "retrying": retrying,
            "waiting": waiting,
            "owner": owner,
        }
