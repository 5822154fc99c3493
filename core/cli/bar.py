"""A bar on the terminal while a worker recovers."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from thalweg.runtime.recovery import Recovering

__all__ = ["Bar"]


class Bar:
    """Shown as long as `show` is told how it goes; gone when it is told None, or the block ends."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None

    def show(self, how: Recovering | None) -> None:
        if how is None:
            self._end()
            return
        if self._progress is None:
            self._progress = Progress(
                TextColumn("[bold]recovering"),
                BarColumn(),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                console=self._console,
                transient=True,
                auto_refresh=False,
            )
            self._progress.add_task("", total=1.0)
            self._progress.start()
        self._progress.update(self._progress.task_ids[0], completed=how.share, description=str(how), refresh=True)

    def _end(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
