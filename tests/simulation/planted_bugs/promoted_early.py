"""A standby goes on with what it has read by then, instead of reading on to its own claim."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from unittest.mock import patch

from thalweg.runtime.replay import Replay
from thalweg.runtime.standby import Standbys
from thalweg.runtime.task import TaskKey
from thalweg.store import Store

RULE = "ownership"


def planted() -> AbstractContextManager[object]:
    warm: dict[int, Store] = {}  # stores of standbys, by their identity
    take, flush = Standbys.take, Replay.flush

    def taken(self: Standbys, key: TaskKey) -> Store | None:
        store = take(self, key)
        if store is not None and store.checkpoint() is not None:
            warm[id(store)] = store
        return store

    def without_rows(self: Replay) -> None:
        if id(self.store) in warm:
            self._pending.clear()
            self._seen = None
        flush(self)

    patches = ExitStack()
    patches.enter_context(patch.object(Standbys, "take", taken))
    patches.enter_context(patch.object(Replay, "flush", without_rows))
    return patches
