"""What is not an event may write to tables: with whichever commit comes next."""

from __future__ import annotations

from contextlib import AbstractContextManager
from unittest.mock import patch

from thalweg.table import Table

RULE = "14"

setitem = Table.__setitem__


def from_anywhere(self: Table[str, int], key: str, value: int) -> None:
    running = self._app.running
    worker = running.worker
    if (self._view.get() or self._open_view()) is not None or worker is None:
        setitem(self, key, value)
        return
    for task in worker.tasks.values():
        if self.name in task.tables and worker.serving(*task.key) is not None:
            state = task.tables[self.name]
            state.hot[key] = value
            state.dirty[key] = None
            task.busy()
            return


def planted() -> AbstractContextManager[object]:
    return patch.object(Table, "__setitem__", from_anywhere)
