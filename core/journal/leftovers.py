"""Journals that an app left behind under another partition count: state must not be orphaned in silence."""

from __future__ import annotations

from collections.abc import Iterable

from thalweg.capabilities import Log
from thalweg.message import Position

from .records import Part, Rows, decode_entry

__all__ = ["names_in"]


async def names_in(journal: Log, partitions: Iterable[int]) -> frozenset[tuple[str, str]]:
    """Which tables and inputs have rows there: pairs of ("table", name) and ("input", agent/topic)."""
    found: set[tuple[str, str]] = set()
    for partition in partitions:
        after: Position | None = None
        while batch := (await journal.read({partition: after}, 1000, 1 << 24, 0)).get(partition):
            after = batch.positions[-1]
            for record in batch.records:
                entry = decode_entry(record.value or b"")
                if isinstance(entry, Rows | Part):
                    found.update(name for key in entry.rows if (name := _name(key)) is not None)
    return frozenset(found)


def _name(key: bytes) -> tuple[str, str] | None:
    """See `rows.py` for the keys."""
    if key.startswith(b"t"):
        return "table", key[1:].partition(b"\0")[0].decode()
    return ("input", key[1:].decode()) if key.startswith(b"p") else None
