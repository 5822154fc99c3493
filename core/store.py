"""The contract of a local store: where a task keeps its table state, rebuildable from the journal at any time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol, runtime_checkable

from .message import Position

__all__ = ["Checkpoint", "Store", "Stores"]


class Checkpoint(NamedTuple):
    """Up to where in the journal a store is current: a position, and the CRC-32 of the record there.

    The checksum tells a journal that lost its suffix and reused positions from the one this store was built on.
    """

    position: Position
    checksum: int


class Store(Protocol):
    """One task's rows: bytes to bytes, ordered bytewise. Local and synchronous; used from one thread at a time."""

    def get(self, key: bytes) -> bytes | None:
        """The value, or None if missing (an empty value is `b""`). Raises `StoreError` if damage is detected."""
        ...

    def scan(self, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """Rows with start <= key < stop (None: to the end), in bytewise order, as of the call.

        Lazy: taking the first rows of a large range is cheap. Stable under `apply` while it is iterated.
        """
        ...

    def apply(self, changes: Mapping[bytes, bytes | None], checkpoint: Checkpoint) -> None:
        """Write all changes (None deletes) and the checkpoint in one atomic step: all or nothing after a crash.

        Need not be durable at once: what a crash takes back, the journal gives again.
        """
        ...

    def checkpoint(self) -> Checkpoint | None:
        """That of the last `apply` that survived; None for a new or cleared store."""
        ...

    def clear(self) -> None:
        """Delete every row and the checkpoint, in one atomic step."""
        ...

    def close(self) -> None:
        """Twice is harmless."""
        ...


@runtime_checkable
class Stores(Protocol):
    """Opens stores by name. Found by URL scheme (entry point group `thalweg.stores`), built by `from_url(url: Url)`."""

    @property
    def description(self) -> str:
        """One line for the start-up banner."""
        ...

    def open(self, name: str) -> Store:
        """Open or create the store `name` (letters, digits, `.`, `_`, `-`).

        A second opener of the same one is refused with `StoreError`. Damage found on opening: the store is emptied,
        one warning is logged, and `checkpoint()` is None.
        """
        ...

    def close(self) -> None: ...
