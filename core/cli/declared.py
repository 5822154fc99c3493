"""What a program declares, as rows: for `agents`, `tables` and the banner of `worker`. No broker is met."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer
from thalweg.agent import Agent
from thalweg.app import App
from thalweg.grouping import topics_of
from thalweg.plan import TopicPlan

from .session import session_of

__all__ = ["agent_rows", "agents", "guarantee_name", "is_internal", "schedule_rows", "table_rows", "tables"]

AGENT_COLUMNS = ("agent", "sources", "concurrency", "tables", "about")
TABLE_COLUMNS = ("table", "partitions", "kind", "default")


def agents(context: typer.Context) -> None:
    """List the agents and handlers: what they read, how many at once, whether they use tables."""
    session = session_of(context)
    app = session.app()
    session.output.rows(AGENT_COLUMNS, agent_rows(app), none=f"app {app.id!r} declares no agents")


def tables(context: typer.Context) -> None:
    """List the tables and what they are partitioned like."""
    session = session_of(context)
    app = session.app()
    session.output.rows(TABLE_COLUMNS, table_rows(app), none=f"app {app.id!r} declares no tables")


def agent_rows(app: App) -> list[dict[str, Any]]:
    """The program's own agents first, then those behind group_by, to and topic tables."""
    rows = [
        {
            "agent": agent.name,
            "sources": ", ".join(_source(source.topic) for source in agent.plan.sources),
            "concurrency": agent.plan.concurrency,
            "tables": bool(agent.plan.tables) or _keeps_table(agent),
            "about": _about(agent),
            "internal": is_internal(agent),
        }
        for agent in app.agents.values()
    ]
    return sorted(rows, key=lambda row: bool(row["internal"]))


def table_rows(app: App) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name, plan in app.tables.items():
        like = app.table_like[name]
        if isinstance(like, TopicPlan):
            partitions: int | str = plan.partitions or f"as topic {like.name}"
        else:
            feeding = sorted({topic.name for topic in topics_of(app, name)})
            as_fed = f"as topic {', '.join(feeding)}" if feeding else app.default_partitions
            partitions = plan.partitions or like or as_fed
        kind = "of a topic" if f"table-{name}" in app.agents else "own"
        rows.append({"table": name, "partitions": partitions, "kind": kind, "default": plan.default is not None})
    rows.extend(
        {
            "table": replica.name,
            "partitions": f"all of topic {replica.topic_name}",
            "kind": "replicated",
            "default": False,
        }
        for replica in app.replicas
    )
    return rows


def schedule_rows(app: App) -> Iterator[tuple[str, str, str]]:
    """Kind, name, when."""
    for timer in app.timers:
        yield "timer", timer.name, f"every {timer.interval:g} s{_where(timer.on_leader)}"
    for crontab in app.crontabs:
        yield "crontab", crontab.name, f"{crontab.expression} ({crontab.zone}){_where(crontab.on_leader)}"
    for part in app.backgrounds:
        yield "background", part.name, f"from the start{_where(part.on_leader)}"


def is_internal(agent: Agent[Any, Any]) -> bool:
    """Made by Thalweg itself, for a group_by, a to or a table of a topic."""
    return str(getattr(agent.function, "__module__", "")).partition(".")[0] == "thalweg"


def guarantee_name(guarantee: str) -> str:
    return guarantee.replace("_", " ")


def _keeps_table(agent: Agent[Any, Any]) -> bool:
    return is_internal(agent) and agent.name.startswith("table-")


def _source(topic: TopicPlan) -> str:
    return f"{topic.name} (queue)" if topic.spec.queue else topic.name


def _about(agent: Agent[Any, Any]) -> str:
    if is_internal(agent):
        return "made by Thalweg"
    text = (agent.__doc__ or "").strip()
    return text.splitlines()[0] if text else ""


def _where(on_leader: bool) -> str:
    return ", on the leader" if on_leader else ""
