"""The contract of a local store: where a task keeps its table state, rebuildable from the journal at any time."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol, runtime_checkable

from .errors import ConfigurationError
from .message import Position

__all__ = ["Checkpoint", "Store", "Stores", "check_name"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


class Checkpoint(NamedTuple):
    """Up to where in the journal a store is current: a position, and the CRC-32 of the record there.

    The checksum tells a journal that lost its suffix and reused positions from the one this store was built on.
    """

    position: Position
    checksum: int


class Store(Protocol):
    """One task's rows: bytes to bytes, ordered bytewise. Local and synchronous; used from one thread at a time.

    Any bytes are a key, `b""` too. Once closed, every method but `close` raises `StoreError`.
    """

    def get(self, key: bytes, /) -> bytes | None:
        """The value, or None if missing (an empty value is `b""`). Raises `StoreError` if damage is detected."""
        ...

    def scan(self, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """Rows with start <= key < stop (None: to the end), in bytewise order.

        Lazy: rows are read a page at a time, so the first of a large range are cheap, and none is held back from
        `apply` or `clear` while the iterator is open. A row that these do not touch meanwhile is yielded exactly once;
        one that they do touch may show its value before or after, or be missing accordingly, but never shows twice.
        So a scan is exact if it ends before the next `apply`; to read on with the latest values, start a new one at the
        last key + `b"\\0"`. Raises `StoreError` if damage is detected: it never ends early in silence.
        """
        ...

    def apply(self, changes: Mapping[bytes, bytes | None], checkpoint: Checkpoint) -> None:
        """Write all changes (None deletes) and the checkpoint in one atomic step: all or nothing after a crash.

        Need not be durable at once: what a crash takes back, the journal gives again. Raises `StoreError` (nothing
        was written); `StoreFull` where it can be written once there is space again, and what it has is sound.
        """
        ...

    def checkpoint(self) -> Checkpoint | None:
        """That of the last `apply` that survived; None for a new or cleared store."""
        ...

    def clear(self) -> None:
        """Delete every row and the checkpoint, in one atomic step. What is damaged is replaced by an empty store."""
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
        """Open or create the store `name` (letters, digits, `.`, `_`, `-`; see `check_name`).

        A second opener of the same one, in any process, is refused with `StoreError` until the first has closed it or
        died. Damage found on opening: what is there is set aside, one warning is logged (logger `thalweg.stores`), and
        the store is empty: `checkpoint()` is None.
        """
        ...

    def remove(self, name: str) -> bool:
        """Delete the store `name`, if there is one; whether there was. Raises `StoreError` if it is open somewhere."""
        ...

    def close(self) -> None:
        """Close every store still open. Twice is harmless."""
        ...


def check_name(name: str) -> str:
    """The name, if a store may have it: it becomes part of a file name. Raises `ConfigurationError` otherwise."""
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"store name {name!r}: expected at most 200 of the letters a-z and A-Z, digits, '.', '_' and '-', of which "
            "the first is a letter or digit"
        )
    return name
