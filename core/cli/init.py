"""`thalweg init`: a small program to start from, with its test."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from thalweg.errors import ConfigurationError

from .session import session_of
from .templates import FILES

__all__ = ["init"]


def init(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Created if missing")] = Path(),
) -> None:
    """Write a small program, its test, a pyproject.toml and a README into DIR. Never overwrites a file."""
    output = session_of(context).output
    there = [name for name in FILES if (folder / name).exists()]
    if there:
        raise ConfigurationError(
            f"{', '.join(str(folder / name) for name in there)} would be overwritten; nothing was written. "
            "Name another directory: thalweg init DIR"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in FILES.items():
            with (folder / name).open("x", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        raise ConfigurationError(f"cannot write into {str(folder)!r}: {error}") from error
    output.rows(("file",), [{"file": str(folder / name)} for name in FILES])
    enter = "" if folder == Path() else f"cd {shlex.quote(str(folder))} && "
    output.note(f"try: {enter}python bank.py worker")
