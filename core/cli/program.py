"""The command line: `thalweg -A module:app COMMAND`, or `python program.py COMMAND` by `app.main()`."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, Sequence
from enum import StrEnum
from importlib.metadata import version
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, NoReturn

import typer
import typer.main
from thalweg.app import App
from thalweg.errors import ThalwegError

from .dead_letters import dead_letters
from .declared import agents, tables
from .doctor import doctor
from .init import init
from .lag import lag
from .loading import BadPath
from .output import Output, without_secrets
from .send import send
from .session import Session
from .table import table
from .topics import topics
from .upkeep import backup, reset, restore
from .worker import worker
from .workers import workers

__all__ = ["main"]

FLAGS = ("--json", "--debug")
SETTINGS = ("-A", "--app", "--broker", "--store", "--log-level")


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    CRITICAL = "critical"


program = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@program.callback()
def options(
    context: typer.Context,
    app: Annotated[
        str | None, typer.Option("-A", "--app", envvar="THALWEG_APP", help="The program: module:app, or file.py:app")
    ] = None,
    broker: Annotated[
        str | None, typer.Option(metavar="URL", help="Beats THALWEG_BROKER, which beats App(broker=…)")
    ] = None,
    store: Annotated[
        str | None, typer.Option(metavar="URL", help="Beats THALWEG_STORE, which beats App(store=…)")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON lines")] = False,
    log_level: Annotated[
        LogLevel | None, typer.Option(case_sensitive=False, help="Default: info for worker, else warning")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error")] = False,
    version_: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit", is_eager=True, callback=lambda on: _show_version(on)
        ),
    ] = False,
) -> None:
    """Run a stream program, look into it, and mend what failed. Options may stand after the command too."""
    given = context.obj if isinstance(context.obj, App) else None
    level = None if log_level is None else log_level.value.upper()
    context.obj = Session(given, app, broker, store, level, Output(json))


program.command()(worker)
program.command()(workers)
program.command()(agents)
program.command()(tables)
program.command()(topics)
program.command()(send)
program.command()(table)
program.command()(lag)
program.add_typer(dead_letters, name="dead-letters")
program.command()(reset)
program.command()(backup)
program.command()(restore)
program.command()(doctor)
program.command()(init)


def main(app: App | None = None) -> NoReturn:
    """Run the command that `sys.argv` names, and exit.

    Exit codes: 0 done, 1 it could not be done (one sentence on standard error), 2 not understood, 130 interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that knows no such letter is no reason to fail
    if app is not None:
        _importable_by_name()
    arguments = list(_options_first(sys.argv[1:])) or ["--help"]
    name = "thalweg" if app is None else f"python {Path(sys.argv[0]).name}"
    command = typer.main.get_command(program)
    try:
        code = command.main(arguments, prog_name=name, standalone_mode=False, obj=app)
    except Exception as error:
        code = _explained(error, "--debug" in arguments)
    sys.stdout.flush()
    sys.exit(code if isinstance(code, int) else 0)


def _options_first(arguments: Sequence[str]) -> Iterator[str]:
    """Our own options may stand anywhere (`worker --broker URL`); the parser wants them ahead of the command."""
    moved: list[str] = []
    rest: list[str] = []
    left = iter(arguments)
    for argument in left:
        name, equals, _ = argument.partition("=")
        if argument == "--":
            rest.extend((argument, *left))
        elif argument in FLAGS or (equals and name in SETTINGS):
            moved.append(argument)
        elif argument in SETTINGS:
            moved.append(argument)
            moved.extend(value for value in [next(left, None)] if value is not None)
        else:
            rest.append(argument)
    yield from moved
    yield from rest


def _explained(error: Exception, debug: bool) -> int:
    """Say on standard error what went wrong; the exit code."""
    output = Output()
    if debug:
        traceback.print_exception(error)
    if isinstance(error, BadPath):
        output.error(without_secrets(str(error)))
        return 2
    known = list(_known(error))
    if known:
        for one in known:
            output.error(str(one) or type(one).__name__)
        return 1
    usage = getattr(error, "format_message", None)  # of the parser's own exceptions
    if callable(usage):
        context = getattr(error, "ctx", None)
        path = getattr(context, "command_path", "thalweg")
        output.error(without_secrets(str(usage())))
        output.note(f"{path} --help tells more")
        return int(getattr(error, "exit_code", 2))
    if not debug:
        traceback.print_exception(error)
    return 1


def _known(error: BaseException) -> Iterator[ThalwegError]:
    """The error, or those in the group, if all are ours to explain in a sentence."""
    if isinstance(error, BaseExceptionGroup):
        found = [list(_known(part)) for part in error.exceptions]
        if all(found):
            yield from (one for part in found for one in part)
    elif isinstance(error, ThalwegError):
        yield error


def _importable_by_name() -> None:
    """`python bank.py` runs the module as `__main__`; what it includes may say `from bank import app`, and must get
    this very app, not a second one that nothing is declared on."""
    module = sys.modules["__main__"]
    spec, file = getattr(module, "__spec__", None), getattr(module, "__file__", None)
    name = spec.name if spec is not None else Path(file).stem if file else None
    if name:
        sys.modules.setdefault(name.removesuffix(".__main__"), module)


def _show_version(on: bool) -> None:
    if on:
        print(f"thalweg {version('thalweg')}")
        raise typer.Exit
