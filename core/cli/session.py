"""What the options before (or after) a command said, and what follows from them for every command."""

from __future__ import annotations

import asyncio
import concurrent
import logging
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import typer
from rich.console import Console
from rich.logging import RichHandler
from thalweg.app import App
from thalweg.url import Url

from .loading import load_app
from .output import Output

__all__ = ["Session", "session_of"]

T = TypeVar("T")

OURS = str(Path(__file__).parents[1])
"""Where Thalweg's own code lies: its frames in a traceback take a line each, the program's are shown with code."""


class Session:
    """app: the program's own, where it was started as `python program.py`; else it is found by `path`."""

    def __init__(
        self,
        app: App | None,
        path: str | None,
        broker: str | None,
        store: str | None,
        log_level: str | None,
        output: Output,
    ) -> None:
        self.output = output
        self._app, self._path, self._broker, self._store = app, path, broker, store
        self._log_level = log_level

    def app(self, log_level: str = "WARNING") -> App:
        """The app, its broker and store as the command line wants them, and everything that it includes.

        log_level: what is logged from here on, unless the program or the command line has decided.
        """
        if self._app is None:
            if not self._path:
                raise typer.BadParameter(
                    "which program? Give -A module:app (or -A file.py:app), or set THALWEG_APP", param_hint="-A"
                )
            self._app = load_app(self._path)
        app = self._app
        if self._broker:
            app.broker = self._broker
        if self._store:
            app.store = self._store
        app.load()
        self._log(log_level)
        return app

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run(coroutine)

    def _log(self, default: str) -> None:
        """Send logs to standard error, unless the program has set up logging for itself."""
        root = logging.getLogger()
        if not root.handlers:
            root.addHandler(_handler(self.output.err))
            root.setLevel(self._log_level or default)
        elif self._log_level:
            root.setLevel(self._log_level)

    def warn_if_nothing_lasts(self, app: App) -> None:
        """A command that looks into another process's memory:// would find nothing, and not say why."""
        if isinstance(app.broker, str) and Url(app.broker).scheme == "memory":
            self.output.warning(
                "memory:// exists in one process only, and this command is another than the worker's. Name a broker "
                "that both can reach: --broker sqlite:///file, or set THALWEG_BROKER"
            )


def session_of(context: typer.Context) -> Session:
    session = context.obj
    assert isinstance(session, Session)
    return session


def _handler(console: Console) -> logging.Handler:
    if sys.stderr.isatty():
        return RichHandler(
            console=console,
            show_path=False,
            omit_repeated_times=False,
            log_time_format="[%H:%M:%S]",
            rich_tracebacks=True,
            tracebacks_suppress=[OURS, asyncio, concurrent],
        )
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    return handler
