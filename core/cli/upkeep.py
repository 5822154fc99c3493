"""`thalweg reset`, `backup` and `restore`: an app's state taken away, kept, and put back, while no worker runs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from thalweg.app import App
from thalweg.upkeep import backup as backups
from thalweg.upkeep import restore as restores
from thalweg.upkeep.reset import plan_reset
from thalweg.upkeep.reset import reset as reset_now

from .output import Output, to_json
from .session import session_of

__all__ = ["backup", "reset", "restore"]

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking")]
File = Annotated[Path, typer.Argument(help="The backup", dir_okay=False)]


def reset(context: typer.Context, yes: Yes = False) -> None:
    """Take the app's state away: rows of tables, positions, retries, timers, unsent messages, local stores.

    Topics, queues and dead letters stay. Agents then read their topics from where `start=` says, by default from the
    first message kept. Refused while workers run.
    """
    session = session_of(context)
    app, output = session.app(), session.output
    session.warn_if_nothing_lasts(app)
    plan = session.run(plan_reset(app))
    output.note(f"app {app.id!r} on {plan.broker}")
    for group, n in plan.groups.items():
        output.note(f"  taken away: journal {app.id}-journal-{group}, {n} tasks{_tables(app, group)}")
    output.note(f"  taken away: local stores of these tasks ({plan.store})")
    for name in plan.own:
        output.note(f"  passed over: what lies in {name}, which the app sent to itself")
    output.note("  kept: topics, queues, dead letters; mirrors, until the next worker has filled them anew")
    _confirm(output, yes)
    removed = session.run(reset_now(app))
    output.note(f"reset; {removed} local stores removed")
    _tell(output, {"app": app.id, "groups": plan.groups, "stores_removed": removed})


def backup(context: typer.Context, file: File) -> None:
    """Write the committed state of every task to a file: rows, positions, retries, timers, unsent messages.

    Workers may run, unless the app's agents send to one another through topics of its own (group_by, repartition,
    changes): then they must be stopped for the time.
    """
    session = session_of(context)
    app, output = session.app(), session.output
    session.warn_if_nothing_lasts(app)
    made = session.run(backups.backup(app, file, output.note))
    output.note(f"{file}: {made.tasks} tasks, {made.rows:,} rows (of tables, positions, timers…), {made.bytes:,} bytes")
    _tell(output, {"app": app.id, "file": str(file), **msgspec.structs.asdict(made)})


def restore(
    context: typer.Context,
    file: File,
    inputs: Annotated[
        restores.Inputs | None,
        typer.Option(help="Where agents begin in a topic that is not certainly the one of the backup"),
    ] = None,
    yes: Yes = False,
) -> None:
    """Put a backup into an app that has no state (see `reset`), on the same broker or on another.

    The file is verified to its last byte before anything is changed. Refused while workers run.
    """
    session = session_of(context)
    app, output = session.app(), session.output
    session.warn_if_nothing_lasts(app)
    head, end = restores.inspect(app, file)
    taken = datetime.fromtimestamp(head.taken / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    output.note(
        f"{file}: app {head.app!r} on {head.broker}, {taken}, {end.tasks} tasks, {end.rows:,} rows; it is whole"
    )
    _confirm(output, yes)
    done = session.run(restores.restore(app, file, inputs, output.note))
    output.note(
        f"restored: {done.tasks} tasks, {done.rows:,} rows; positions: {done.exact} as they were, {done.chosen} as "
        f"--inputs says; {done.sent:,} messages of the app's own sent again"
    )
    _tell(output, {"app": app.id, "file": str(file), **msgspec.structs.asdict(done)})


def _tables(app: App, group: str) -> str:
    names = [name for name, table in app.tables.items() if table.group == group]
    return f" (tables: {', '.join(names)})" if names else ""


def _tell(output: Output, result: Mapping[str, object]) -> None:
    if output.json:
        output.line(to_json(result))


def _confirm(output: Output, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        output.error("nobody can be asked here; --yes does it")
        raise typer.Exit(1)
    typer.confirm("Go on?", abort=True, err=True)
