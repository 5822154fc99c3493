"""`thalweg worker`: run the app until it is told to stop, and say at the start what runs."""

from __future__ import annotations

import asyncio
import os
import time
from importlib.metadata import version
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text
from thalweg.app import App
from thalweg.registry import load_mirrors, load_stores
from thalweg.runtime.worker import Worker
from thalweg.serving import serve
from thalweg.starting import mirrored

from .bar import Bar
from .declared import agent_rows, guarantee_name, schedule_rows, table_rows
from .output import Output, facts, table, to_json
from .session import session_of

__all__ = ["worker"]


def worker(
    context: typer.Context,
    worker_id: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A name that restarts of this worker share: its tasks are kept for it"),
    ] = None,
    zone: Annotated[str | None, typer.Option(metavar="NAME", help="Where it runs: standbys lie in other zones")] = None,
) -> None:
    """Run the app's agents, tables and timers until SIGINT (Ctrl-C) or SIGTERM, then drain, commit and stop.

    A second signal stops at once: what was not committed is done again by the next worker.
    """
    session = session_of(context)
    app, output = session.app(log_level="INFO"), session.output
    if worker_id:
        app.worker_id = worker_id
    if zone:
        app.zone = zone
    began, started = time.monotonic(), False

    def announce(running: Worker) -> None:
        nonlocal started
        started = True
        _announce(app, running, output, time.monotonic() - began)

    try:
        with Bar(output.err) as bar:
            session.run(serve(app, announce, bar.show if output.err.is_terminal else None))
    except asyncio.CancelledError:
        output.note("stopped at once; what was not committed will be done again")
        raise typer.Exit(130) from None
    output.note("drained, committed, stopped" if started else "stopped before it had started")


def _announce(app: App, running: Worker, output: Output, took: float) -> None:
    facts_ = [
        ("app", app.id),
        ("broker", running.transport.description),
        ("store", load_stores(app.store).description),
        *(
            ("mirror", f"{load_mirrors(where).description}: {', '.join(t.name for t in tables)}")
            for where, tables in mirrored(app)
        ),
        ("guarantee", guarantee_name(app.guarantee)),
        ("tasks", str(len(running.tasks))),
    ]
    warnings = list(running.transport.warnings)
    if said := running.transport.limits.lease_warning(app.lease):
        warnings.append(said)
    if output.json:
        output.line(
            to_json(
                {
                    "event": "started",
                    "pid": os.getpid(),
                    **dict(facts_),
                    "tasks": len(running.tasks),
                    "agents": agent_rows(app),
                    "tables": table_rows(app),
                    "queues": _queues(app),
                    "schedule": [dict(zip(("kind", "name", "when"), row, strict=True)) for row in schedule_rows(app)],
                    "warnings": warnings,
                }
            )
        )
    elif output.terminal:
        output.show(_screen(app, facts_, warnings, took))
    else:
        for line in _plain(app, facts_, warnings):
            output.line("\t".join(line))


def _plain(app: App, facts_: list[tuple[str, str]], warnings: list[str]) -> list[tuple[str, ...]]:
    lines: list[tuple[str, ...]] = [*facts_]
    for agent in agent_rows(app):
        stateful = "uses tables" if agent["tables"] else ""
        lines.append(("agent", agent["agent"], agent["sources"], f"x{agent['concurrency']}", stateful))
    lines.extend(("table", row["table"], str(row["partitions"])) for row in table_rows(app))
    lines.extend(("queue", name) for name in _queues(app))
    lines.extend(schedule_rows(app))
    lines.extend(("warning", text) for text in warnings)
    lines.append(("ready",))
    return lines


def _screen(app: App, facts_: list[tuple[str, str]], warnings: list[str], took: float) -> RenderableType:
    strong = {"app": "bold", "guarantee": "green" if app.guarantee == "exactly_once" else "yellow"}
    parts: list[RenderableType] = [
        "",
        facts(
            Text.assemble(("thalweg", "bold blue"), f" {version('thalweg')}"),
            [(name, Text(value, strong.get(name, ""))) for name, value in facts_],
        ),
    ]
    found = agent_rows(app)
    if found:
        parts.append(table(("agent", "sources", "concurrency", "tables"), found))
    if rows := table_rows(app):
        parts.append(table(("table", "partitions", "kind"), rows))
    if scheduled := list(schedule_rows(app)):
        parts.append(
            table(("runs", "kind", "when"), [{"runs": name, "kind": k, "when": w} for k, name, w in scheduled])
        )
    parts.extend(Text.assemble((" ! ", "bold yellow"), (text, "yellow")) for text in warnings)
    parts.append(Text.assemble((" ready", "bold green"), f" after {took:.1f} s. ", ("Ctrl-C drains and stops.", "dim")))
    parts.append("")
    return Group(*parts)


def _queues(app: App) -> list[str]:
    return [plan.name for plan in app.topics.values() if plan.spec.queue]
