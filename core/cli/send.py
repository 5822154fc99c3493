"""`thalweg send`: messages from the command line or from standard input, of the types that the program declares."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Annotated, Any

import typer
from thalweg.app import App
from thalweg.errors import ConfigurationError, DecodeError, ThalwegError
from thalweg.queue import Queue
from thalweg.starting import client_running
from thalweg.topic import Topic

from .session import Session, session_of
from .values import parsed

__all__ = ["send"]

AHEAD = 1000
"""How many lines are read ahead of what is durable."""


def send(
    context: typer.Context,
    topic: Annotated[str, typer.Argument(help="A topic or queue that the program declares")],
    value: Annotated[
        str, typer.Argument(help="JSON of the declared type, bare text for str; -: one for each line of standard input")
    ],
    key: Annotated[
        str | None, typer.Option("--key", "-k", help="The key: JSON of the declared type, bare text for str")
    ] = None,
    headers: Annotated[
        list[str] | None, typer.Option("--headers", "-H", metavar="NAME=VALUE", help="A header; repeatable")
    ] = None,
    partition: Annotated[
        int | None, typer.Option("--partition", "-p", help="Instead of the one that the key belongs to")
    ] = None,
    priority: Annotated[int | None, typer.Option(help="For queues: 0 to 9, higher first")] = None,
    delay: Annotated[float | None, typer.Option(help="Seconds until it leaves (a queue: may be delivered)")] = None,
    expires: Annotated[float | None, typer.Option(help="For queues: seconds until it is dropped undelivered")] = None,
    id: Annotated[
        str | None, typer.Option("--id", help="Of messages with one id the first counts; of delayed ones, the last")
    ] = None,
) -> None:
    """Send a message, or one for each line of standard input. Returns once all are durable."""
    session = session_of(context)
    app = session.app()
    target = app.source(topic)
    options = _options(target, headers or [], partition, priority, delay, expires)
    if id is not None:
        if value == "-":
            raise ConfigurationError("--id is for one message, and standard input has many")
        options["id"] = id
    session.warn_if_nothing_lasts(app)
    plan = app.topics[topic]
    if key is not None:
        options["key"] = parsed(plan.key, key, f"--key for {topic!r}")

    def one(text: str) -> Callable[[], Awaitable[None]]:
        found = parsed(plan.value, text, f"value for {topic!r}")
        return lambda: target.send(found, **options)

    if value == "-":
        count = session.run(_send_lines(app, one))
    else:
        session.run(_send_one(app, one(value)))
        count = 1
    _report(session, topic, count)


def _options(
    target: Topic[Any, Any] | Queue[Any, Any],
    headers: Sequence[str],
    partition: int | None,
    priority: int | None,
    delay: float | None,
    expires: float | None,
) -> dict[str, Any]:
    given = {"partition": partition, "priority": priority, "delay": delay, "expires": expires}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    queue = isinstance(target, Queue)
    wrong = [f"--{name}" for name in options if name != "delay" and (name == "partition") == queue]
    if wrong:
        kind, other = ("queue", "topics") if queue else ("topic", "queues")
        raise ConfigurationError(f"{', '.join(wrong)} is for {other}; {target.name!r} is a {kind}")
    pairs = [header.partition("=") for header in headers]
    for name, equals, _ in pairs:
        if not (name and equals):
            raise ConfigurationError(f"--headers {name!r}: expected NAME=VALUE")
    options["headers"] = tuple((name, text.encode()) for name, _, text in pairs)
    return options


async def _send_one(app: App, send_it: Callable[[], Awaitable[None]]) -> None:
    async with client_running(app):
        await send_it()


async def _send_lines(app: App, one: Callable[[str], Callable[[], Awaitable[None]]]) -> int:
    """In order; what has come meanwhile goes together."""
    count = 0
    async with client_running(app):
        async for lines in _lines_of_stdin():
            ready: list[Callable[[], Awaitable[None]]] = []
            problem: BaseException | None = None
            for line in lines:
                try:
                    ready.append(one(_text(line)))
                except ThalwegError as error:
                    problem = error
                    break
            for outcome in await asyncio.gather(*(send_it() for send_it in ready), return_exceptions=True):
                if isinstance(outcome, BaseException):
                    problem = outcome
                    break
                count += 1
            if isinstance(problem, ThalwegError):
                raise ConfigurationError(f"line {count + 1}: {problem}. The {count} before it were sent") from problem
            if problem is not None:
                raise problem
    return count


def _text(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise DecodeError(f"not UTF-8: {error}") from None


async def _lines_of_stdin() -> AsyncIterator[list[bytes]]:
    """What can be read now, at least a line. A thread reads, so that the connection lives while stdin is silent."""
    loop = asyncio.get_running_loop()
    waiting: asyncio.Queue[bytes | None] = asyncio.Queue()
    room = threading.Semaphore(AHEAD)

    def put(line: bytes | None) -> None:
        room.acquire()
        loop.call_soon_threadsafe(waiting.put_nowait, line)

    def read() -> None:
        # By the descriptor: a thread that waits inside sys.stdin would make the interpreter abort when it ends.
        rest = b""
        try:
            while data := os.read(sys.stdin.fileno(), 65536):
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    put(line)
            put(rest)
            put(None)
        except RuntimeError:
            return  # the loop is closed: nobody listens any more

    threading.Thread(target=read, name="stdin", daemon=True).start()
    while True:
        lines = [await waiting.get()]
        while not waiting.empty():
            lines.append(waiting.get_nowait())
        room.release(len(lines))
        found = [line.rstrip(b"\r") for line in lines if line and line != b"\r"]
        if found:
            yield found
        if lines[-1] is None:
            return


def _report(session: Session, topic: str, count: int) -> None:
    if session.output.json:
        session.output.rows((), [{"topic": topic, "sent": count}])
    else:
        session.output.note(f"sent {count:,} message{'' if count == 1 else 's'} to {topic!r}")
