"""State that an app keeps under another partition count than it now declares: it must not be orphaned in silence."""

from __future__ import annotations

from collections.abc import Iterable

from thalweg.capabilities import Log
from thalweg.errors import JournalMismatch

from .replay import committed_rows

__all__ = ["names_in", "orphaned"]


async def names_in(journal: Log, partitions: Iterable[int]) -> frozenset[tuple[str, str]]:
    """Which tables and inputs have rows there: pairs of ("table", name) and ("input", agent/topic)."""
    found: set[tuple[str, str]] = set()
    for partition in partitions:
        rows = await committed_rows(journal, partition, b"p", b"u")
        found.update(name for key in rows if (name := _name(key)) is not None)
    return frozenset(found)


def orphaned(what: Iterable[str], journal: str, partitions: int) -> JournalMismatch:
    """`what`: the tables and positions that are kept in `journal`, and belong elsewhere by the program."""
    return JournalMismatch(
        f"{', '.join(what)}: kept in {journal!r} with {partitions} partitions, but the program now has another count "
        "for it, and the state would be orphaned. Restore the old partition count (`partitions=`, `like=`), or start "
        "under a new app id and replay the topics"
    )


def _name(key: bytes) -> tuple[str, str] | None:
    """See `rows.py` for the keys."""
    if key.startswith(b"t"):
        return "table", key[1:].partition(b"\0")[0].decode()
    return ("input", key[1:].decode()) if key.startswith(b"p") else None
