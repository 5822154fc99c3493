"""The contract of mirrors: databases in which other programs read what a table holds.

A mirror is fed after the commit and never read by the owner: the truth is in the journal and the store. One owner feeds
each partition of a table; an owner's *epoch* fences those before it. What a mirror has taken it remembers with its
*place*, so that who feeds it next goes on from there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import msgspec

from .codec import Form
from .message import Position

__all__ = ["Mirror", "MirrorTable", "Mirrors", "Place"]


class MirrorTable(msgspec.Struct, frozen=True):
    """The table to be mirrored. `partition_of(key, partitions)` says which partition a key belongs to."""

    app: str
    name: str
    partitions: int
    key_form: Form
    value_form: Form
    partition_of: Callable[[bytes, int], int]


class Place(msgspec.Struct, frozen=True):
    """Up to where in the partition's journal a mirror is current. Grows with each commit.

    note: for Thalweg alone, at most a few hundred bytes.
    """

    position: Position
    note: bytes


class Mirror(Protocol):
    """One table. Any number of partitions are fed at once.

    Every method raises `Fenced` if a higher epoch has claimed the partition (nothing was changed), and `MirrorError` if
    the database refuses, fails or cannot be reached (within the driver's time-out). A cancelled call has happened or
    not, and the mirror still works. No driver tries again by itself.
    """

    async def claim(self, partition: int, epoch: int) -> Place | None:
        """Refuse all lower epochs from now on; creates what is missing. Returns the place that was last applied.

        None: nothing was, or `apply` was given None last: the partition must be filled anew.
        """
        ...

    async def apply(
        self,
        partition: int,
        changes: Mapping[bytes, bytes | None],
        since: Place | None,
        place: Place | None,
        epoch: int,
    ) -> None:
        """Write rows (None deletes) and the place, in one atomic step. Durable as far as the database's settings go.

        Raises `MirrorError`, and changes nothing, if the epoch or the place is not what `claim` and the calls since
        have left: the database has lost a part of what it had (a restart, a fail-over, a backup that was restored).
        since: the place last applied.

        A row that this kind of database cannot hold is left out, with a warning (logger `thalweg`).
        """
        ...

    def keys(self, partition: int) -> AsyncIterator[Sequence[bytes]]:
        """The keys that it holds of this partition, some at a time, in any order; a key may come twice."""
        ...


@runtime_checkable
class Mirrors(Protocol):
    """A database. Found by URL scheme (entry point group `thalweg.mirrors`), built by `from_url(url: Url)`.

    Nothing connects before the first call that must: a database that is away holds up no start.
    """

    @property
    def description(self) -> str:
        """One line for the start-up banner. Never a credential."""
        ...

    def table(self, table: MirrorTable) -> Mirror:
        """Raises `ConfigurationError` if the table's name cannot be one there."""
        ...

    async def check(self) -> str:
        """Connect, and say what was met (product, version), for `thalweg doctor`. Raises `MirrorError`."""
        ...

    async def close(self) -> None:
        """Twice is harmless."""
        ...
