"""The position of the input is committed before the changes to the tables: they go with the next commit."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from unittest.mock import patch

from thalweg.runtime.lane import Lane
from thalweg.runtime.tables import TableState

RULE = "10"


def planted() -> AbstractContextManager[object]:
    collect = TableState.collect
    kept: dict[int, tuple[TableState, dict[bytes, bytes | None]]] = {}  # by the identity of a state, kept with it

    def late(self: TableState, rows: dict[bytes, bytes | None], open_lanes: Sequence[Lane]) -> None:
        rows.update(kept[id(self)][1] if id(self) in kept else {})
        later: dict[bytes, bytes | None] = {}
        kept[id(self)] = (self, later)
        collect(self, later, open_lanes)

    return patch.object(TableState, "collect", late)
