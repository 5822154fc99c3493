"""`thalweg topics`: what lies on the broker, and what the program declares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from thalweg.app import App
from thalweg.channel import TopicInfo
from thalweg.dead_letters import dead_letter_topic
from thalweg.runtime import delays, replies, roster
from thalweg.starting import looking

from .counting import records_after
from .session import session_of

__all__ = ["records_in", "topics"]

OWN = {delays.SUFFIX, replies.SUFFIX, roster.SUFFIX}
COLUMNS = ("topic", "kind", "partitions", "records", "dead_letters", "state")


def topics(
    context: typer.Context,
    all_: Annotated[
        bool, typer.Option("--all", help="Also what the app made for itself: journals, replies, dead letters…")
    ] = False,
) -> None:
    """List the topics and queues on the broker, with the program's own that are still to be created.

    `records` are counted up to 10,000 a partition; beyond that estimated from these.
    """
    session = session_of(context)
    app = session.app()
    session.warn_if_nothing_lasts(app)
    rows = session.run(_rows(app, all_))
    session.output.rows(COLUMNS, rows, none="there are no topics on this broker")


async def _rows(app: App, all_: bool) -> list[dict[str, Any]]:
    async with looking(app) as existing:
        rows = [await _row(app, info, existing) for info in existing.values() if all_ or not _internal(app, info.name)]
        for plan in app.topics.values():
            if plan.name not in existing and (all_ or not _internal(app, plan.name)):
                kind = "queue" if plan.spec.queue else "topic"
                rows.append({"topic": plan.name, "kind": kind, "partitions": plan.partitions, "state": "to be created"})
    return sorted(rows, key=lambda row: str(row["topic"]))


async def _row(app: App, info: TopicInfo, existing: Mapping[str, TopicInfo]) -> dict[str, Any]:
    state = "internal" if _internal(app, info.name) else "declared" if info.name in app.topics else "not of this app"
    row: dict[str, Any] = {
        "topic": info.name,
        "kind": "queue" if info.queue else "topic",
        "partitions": None if info.queue else info.partitions,
        "state": state,
    }
    if app.running.has_log and not info.queue:
        row["bounds"], row["records"] = await _bounds(app, info)
    letters = existing.get(dead_letter_topic(app.id, info.name))
    if letters is not None and app.running.has_log and not letters.queue:
        row["dead_letters"] = await records_in(app, letters)
    return row


async def records_in(app: App, info: TopicInfo) -> int:
    """How many records a log holds. See `counting`."""
    return (await _bounds(app, info))[1]


async def _bounds(app: App, info: TopicInfo) -> tuple[list[tuple[int | None, int | None]], int]:
    log = await app.running.open_log(info.name)
    try:
        found = [await log.bounds(partition) for partition in range(info.partitions)]
        counts = await records_after(log, dict.fromkeys(range(info.partitions)))
        return [(bounds.first, bounds.last) for bounds in found], sum(counts.values())
    finally:
        await log.close()


def _internal(app: App, name: str) -> bool:
    rest = name.removeprefix(f"{app.id}-")
    made = rest.startswith(("journal-", "dead-letters-")) or f"-{rest}" in OWN
    return rest != name and (made or rest.endswith(("-repartition", "-changes")))
