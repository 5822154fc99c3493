"""`thalweg workers`: who is there, and who runs what, by what the workers say of themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

import msgspec
import typer
from thalweg.app import App
from thalweg.channel import TopicInfo
from thalweg.grouping import LEADER_GROUP
from thalweg.runtime.roster import Here, Roster
from thalweg.starting import looking

from .session import session_of

__all__ = ["read_roster", "workers"]

COLUMNS = ("worker", "zone", "host", "pid", "since", "heard", "tasks")


def workers(context: typer.Context) -> None:
    """List the workers that are there: where each runs, since when, which tasks it has, when it was last heard of.

    A task is a partition of all that is read together: "8: 0-3" are the first four of the topics that have eight.
    A worker that died is listed for another minute, with those of its tasks that no other has said to have: "heard"
    tells.
    """
    session = session_of(context)
    app = session.app()
    session.warn_if_nothing_lasts(app)
    rows = session.run(_rows(app))
    session.output.rows(COLUMNS, rows, none=f"no worker of app {app.id!r} is there")


async def read_roster(app: App, existing: Mapping[str, TopicInfo]) -> Roster | None:
    """The roster as it is now; None if no worker ever ran here. For an app that is being looked at."""
    roster = app.running.roster
    if roster.topic not in existing:
        return None
    await roster.start()
    return roster


async def _rows(app: App) -> list[dict[str, Any]]:
    async with looking(app) as existing:
        if not app.running.has_log or (roster := await read_roster(app, existing)) is None:
            return []
        found = sorted(roster.workers.values(), key=lambda here: (here.since, here.me))
        return [_row(_now(here, roster), roster.heard[here.me], app.now()) for here in found]


def _now(here: Here, roster: Roster) -> Here:
    """The worker without the tasks that another has by now: who died could not say that it lost them."""
    owns = {
        group: tuple(number for number in numbers if roster.owner(group, number) in (None, here))
        for group, numbers in here.owns.items()
    }
    return msgspec.structs.replace(here, owns=owns)


def _row(here: Here, heard: float, now: float) -> dict[str, Any]:
    silent = max(0.0, now - heard)
    return {
        "worker": here.name,
        "worker_id": here.worker_id,
        "me": here.me,
        "zone": here.zone or None,
        "host": here.host,
        "pid": here.pid,
        "since": datetime.fromtimestamp(here.since / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S"),
        "heard": f"{silent:.0f} s ago",
        "tasks": tasks_text(here),
        "owns": here.owns,
        "standbys": here.standbys,
        "leader": 0 in here.owns.get(LEADER_GROUP, ()),
        "leaving": here.leaving,
        "recovering": here.recovering,
        "silent_seconds": round(silent, 3),
    }


def tasks_text(here: Here) -> str:
    """As "8: 0-3, 7; leader"."""
    parts = [
        LEADER_GROUP if group == LEADER_GROUP else f"{group}: {_ranges(numbers)}"
        for group, numbers in sorted(here.owns.items())
        if numbers
    ]
    parts += [f"standby of {group}: {_ranges(numbers)}" for group, numbers in sorted(here.standbys.items()) if numbers]
    parts += [] if here.recovering is None else [f"recovering {here.recovering}"]
    return "; ".join([*parts, *(["leaving"] if here.leaving else [])]) or "none"


def _ranges(numbers: Iterable[int]) -> str:
    """As "0-3, 7"."""
    runs: list[list[int]] = []
    for _, run in groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0]):
        runs.append([number for _, number in run])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
