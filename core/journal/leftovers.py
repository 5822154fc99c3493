"""State that an app keeps under another partition count than it now declares: it must not be orphaned in silence."""

from __future__ import annotations

from collections.abc import Iterable

from thalweg.capabilities import Log
from thalweg.errors import JournalMismatch

from .replay import committed_rows
from .rows import UNFINISHED

__all__ = ["names_in", "orphaned", "unfinished"]


async def names_in(journal: Log, partitions: Iterable[int]) -> frozenset[tuple[str, str]]:
    """Which tables and inputs have rows there: pairs of ("table", name) and ("input", agent/topic).

    Raises JournalMismatch if a reset or restore has not ended there.
    """
    found: set[tuple[str, str]] = set()
    for partition in partitions:
        rows = await committed_rows(journal, partition, UNFINISHED, b"u")
        if UNFINISHED in rows:
            raise unfinished(f"partition {partition}", rows[UNFINISHED])
        found.update(name for key in rows if (name := _name(key)) is not None)
    return frozenset(found)


def unfinished(where: str, what: bytes) -> JournalMismatch:
    return JournalMismatch(
        f"{where}: {what.decode()} has not ended, and the state is not whole. If it was interrupted, do it again, or "
        "`thalweg reset`"
    )


def orphaned(what: Iterable[str], journal: str, partitions: int) -> JournalMismatch:
    """`what`: the tables and positions that are kept in `journal`, and belong elsewhere by the program."""
    return JournalMismatch(
        f"{', '.join(what)}: kept in {journal!r} with {partitions} partitions, but the program now has another count "
        "for it, and the state would be orphaned. Restore the old partition count (`partitions=`, `like=`), or "
        "`thalweg reset`, and the agents begin anew"
    )


def _name(key: bytes) -> tuple[str, str] | None:
    """See `rows.py` for the keys."""
    if key.startswith(b"t"):
        return "table", key[1:].partition(b"\0")[0].decode()
    return ("input", key[1:].decode()) if key.startswith(b"p") else None
