"""Journals that an app left behind under another partition count: state must not be orphaned in silence."""

from __future__ import annotations

from collections.abc import Iterable

from thalweg.capabilities import Log

from .replay import committed_rows

__all__ = ["names_in"]


async def names_in(journal: Log, partitions: Iterable[int]) -> frozenset[tuple[str, str]]:
    """Which tables and inputs have rows there: pairs of ("table", name) and ("input", agent/topic)."""
    found: set[tuple[str, str]] = set()
    for partition in partitions:
        rows = await committed_rows(journal, partition, b"p", b"u")
        found.update(name for key in rows if (name := _name(key)) is not None)
    return frozenset(found)


def _name(key: bytes) -> tuple[str, str] | None:
    """See `rows.py` for the keys."""
    if key.startswith(b"t"):
        return "table", key[1:].partition(b"\0")[0].decode()
    return ("input", key[1:].decode()) if key.startswith(b"p") else None
