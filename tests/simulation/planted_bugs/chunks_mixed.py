"""The pieces of an entry that a dead owner left unfinished count as the beginning of the next owner's."""

from __future__ import annotations

from contextlib import AbstractContextManager
from unittest.mock import patch

from thalweg.journal.records import Entry, Fold, Marker

RULE = "6"

feed = Fold.feed


def mixing(self: Fold, data: bytes | None) -> Entry | None:
    left = list(self._chunks)
    entry = feed(self, data)
    if isinstance(entry, Marker):
        self._chunks[:] = left
    return entry


def planted() -> AbstractContextManager[object]:
    return patch.object(Fold, "feed", mixing)
