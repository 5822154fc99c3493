"""`thalweg dead-letters`: what failed and why, and another try."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.text import Text
from thalweg.app import App
from thalweg.dead_letters import DeadLetterRecord, dead_letter_topic, read_dead_letters, replay
from thalweg.starting import client_running, looking
from thalweg.text import shortened

from .output import Output, facts, printable, readable, to_json
from .session import session_of

__all__ = ["dead_letters"]

COLUMNS = ("source", "agent", "attempts", "time", "key", "value", "reason")
SHOWN = 60  # characters of a key or value

dead_letters = typer.Typer(help="List what failed, and replay it.", no_args_is_help=True)


@dead_letters.command("list")
def list_(
    context: typer.Context,
    source: Annotated[str | None, typer.Argument(help="A topic or queue of the program; default: all of them")] = None,
    full: Annotated[bool, typer.Option("--full", help="Each with its traceback, headers and whole value")] = False,
) -> None:
    """List what failed: which agent, how often it was tried, why. Oldest first."""
    session = session_of(context)
    app, output = session.app(), session.output
    sources = list(app.topics) if source is None else [app.source(source).name]
    session.warn_if_nothing_lasts(app)
    letters = session.run(_letters(app, sources))
    queues = {plan.name for plan in app.topics.values() if plan.spec.queue}
    where = "" if source is None else f" of {source!r}"
    if output.json:
        output.rows((), [_whole(letter) for letter in letters])
    elif full:
        _show_in_full(output, letters, queues)
    else:
        output.paged(COLUMNS, [_short(letter, queues) for letter in letters])
    if not letters:
        output.note(f"no dead letters{where}")


@dead_letters.command("replay")
def replay_(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="A topic or queue of the program")],
) -> None:
    """Send every dead letter of SOURCE back where it came from, for the agent that failed.

    A letter is removed once its message is durable again. Interrupted, it may be done again: agents of a topic handle a
    letter once, those of a queue perhaps twice. What fails again becomes a new letter.
    """
    session = session_of(context)
    app, output = session.app(), session.output
    name = app.source(source).name
    session.warn_if_nothing_lasts(app)
    count = session.run(_replay(app, name))
    if output.json:
        output.rows((), [{"source": name, "replayed": count}])
    else:
        output.note(f"replayed {count:,} dead letter{'' if count == 1 else 's'} of {name!r}")


async def _letters(app: App, sources: list[str]) -> list[DeadLetterRecord]:
    async with looking(app) as existing:
        return [
            letter
            for source in sources
            if dead_letter_topic(app.id, source) in existing
            async for letter in read_dead_letters(app, source)
        ]


async def _replay(app: App, source: str) -> int:
    async with client_running(app):
        return await replay(app, source)


def _short(letter: DeadLetterRecord, queues: Collection[str]) -> dict[str, Any]:
    return {
        "source": _source(letter, queues),
        "agent": letter.agent,
        "attempts": letter.attempts,
        "time": _time(letter),
        "key": _text(letter.key, SHOWN),
        "value": _text(letter.value, SHOWN),
        "reason": shortened(letter.reason),
    }


def _whole(letter: DeadLetterRecord) -> dict[str, Any]:
    return {
        "source": letter.topic,
        "partition": letter.partition,
        "position": letter.position,
        "agent": letter.agent,
        "attempts": letter.attempts,
        "timestamp": letter.timestamp,
        "key": readable(letter.key),
        "value": readable(letter.value),
        "headers": [(name, readable(value)) for name, value in letter.headers],
        "reason": letter.reason,
        "traceback": letter.traceback,
        "id": letter.id,
    }


def _show_in_full(output: Output, letters: list[DeadLetterRecord], queues: Collection[str]) -> None:
    for letter in letters:
        pairs = [
            ("agent", letter.agent),
            ("attempts", str(letter.attempts)),
            ("time", _time(letter)),
            ("key", _text(letter.key)),
            ("value", _text(letter.value)),
            *((f"header {name}", _text(value)) for name, value in letter.headers),
            ("reason", letter.reason),
        ]
        title = _source(letter, queues)
        if output.terminal:
            output.show(_screen(title, pairs, letter.traceback))
            continue
        output.line(f"source: {title}")
        for name, text in pairs:
            output.line(f"{name}: {text}")
        output.line(letter.traceback.rstrip() + "\n" if letter.traceback else "")


def _screen(title: str, pairs: list[tuple[str, str]], traceback: str) -> RenderableType:
    styles = {"reason": "red", "agent": "cyan"}
    box = facts(title, [(printable(name), Text(printable(text), styles.get(name, ""))) for name, text in pairs])
    return Group(box, Text(printable(traceback), "dim"))


def _source(letter: DeadLetterRecord, queues: Collection[str]) -> str:
    """Where it lay. In a queue a message has no place of its own."""
    return letter.topic if letter.topic in queues else f"{letter.topic}[{letter.partition}]@{letter.position}"


def _time(letter: DeadLetterRecord) -> str:
    return datetime.fromtimestamp(letter.timestamp, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _text(data: bytes | None, limit: int | None = None) -> str:
    found = readable(data)
    text = found if isinstance(found, str) else "" if found is None else to_json(found)
    return text if limit is None else shortened(text, limit)
