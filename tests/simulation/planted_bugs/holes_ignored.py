"""A record of the owner counts whatever its number is, though one before it may not have arrived."""

from __future__ import annotations

from contextlib import AbstractContextManager
from unittest.mock import patch

from thalweg.journal.records import Entry, Fold, Marker, decode_entry

RULE = "1"


def planted() -> AbstractContextManager[object]:
    feed = Fold.feed

    def any_number(self: Fold, data: bytes | None) -> Entry | None:
        entry = decode_entry(data or b"")
        if not isinstance(entry, Marker) and self.marker is not None and entry.token == self.marker.token:
            self.number = max(self.number, entry.number - 1)
        return feed(self, data)

    return patch.object(Fold, "feed", any_number)
