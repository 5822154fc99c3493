"""A journal is cut off at the end of its snapshot instead of at the beginning."""

from __future__ import annotations

from contextlib import AbstractContextManager
from unittest.mock import patch

from thalweg.journal.snapshot import Snapshotter
from thalweg.message import Position

committed = Snapshotter.committed


def too_far(self: Snapshotter, first: Position, size: int) -> Position | None:
    before = committed(self, first, size)
    return None if before is None else first


def planted() -> AbstractContextManager[object]:
    return patch.object(Snapshotter, "committed", too_far)
