"""Ids of messages that were handled are known to their worker alone."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from unittest.mock import patch

from thalweg.journal.rows import Remembered
from thalweg.runtime.remembered import RememberedIds, Rows

RULE = "15"


def planted() -> AbstractContextManager[object]:
    collect = RememberedIds.collect

    def kept(self: RememberedIds, rows: Rows) -> None:
        self.__dict__.setdefault("own", {}).update(self._new)
        collect(self, rows)

    def stored(self: RememberedIds, id_: bytes) -> Remembered | None:
        found: Remembered | None = self.__dict__.get("own", {}).get(id_)
        return found

    stack = ExitStack()
    stack.enter_context(patch.object(RememberedIds, "collect", kept))
    stack.enter_context(patch.object(RememberedIds, "_stored", stored))
    return stack
