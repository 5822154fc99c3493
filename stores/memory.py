"""`memory://`: rows in a dict, their order beside it. Gone on close: the journal brings them back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice

import msgspec
from sortedcontainers import SortedList
from thalweg.errors import StoreError
from thalweg.store import Checkpoint, check_name
from thalweg.url import Url

from .paging import in_pages

__all__ = ["MemoryStore", "MemoryStores"]


class MemoryOptions(msgspec.Struct, frozen=True):
    """`memory://` has no options."""


class MemoryStores:
    """Stores that live as long as they are open, each by itself: two `MemoryStores` share nothing."""

    def __init__(self) -> None:
        self._open: dict[str, MemoryStore] = {}

    @classmethod
    def from_url(cls, url: Url) -> MemoryStores:
        url.options(MemoryOptions)
        return cls()

    @property
    def description(self) -> str:
        return "memory (rebuilt from the journal at each start)"

    def open(self, name: str) -> MemoryStore:
        if check_name(name) in self._open:
            raise StoreError(f"memory store {name!r} is open already; close it first")
        store = self._open[name] = MemoryStore(name, closed=lambda: self._open.pop(name))
        return store

    def remove(self, name: str) -> bool:
        if check_name(name) in self._open:
            raise StoreError(f"memory store {name!r} is open; close it first")
        return False

    def close(self) -> None:
        for store in list(self._open.values()):
            store.close()


class MemoryStore:
    """One task's rows in memory."""

    get: Callable[[bytes], bytes | None]

    def __init__(self, name: str, closed: Callable[[], object]) -> None:
        self._name = name
        self._closed = closed
        self._rows: dict[bytes, bytes] = {}
        self._keys: SortedList[bytes] = SortedList()
        self._checkpoint: Checkpoint | None = None
        self._is_open = True
        self.get = self._rows.get  # hot: the lookup itself; a method around it would add a third

    def scan(self, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        self._check_open()
        return in_pages(self._page, start, stop)

    def _page(self, start: bytes, stop: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        self._check_open()
        keys = self._keys.irange(start, stop, inclusive=(True, False))
        return [(key, self._rows[key]) for key in islice(keys, limit)]

    def apply(self, changes: Mapping[bytes, bytes | None], checkpoint: Checkpoint) -> None:
        self._check_open()
        written = {key: value for key, value in changes.items() if value is not None}
        deleted = [key for key, value in changes.items() if value is None] if len(written) < len(changes) else ()
        rows, before = self._rows, len(self._rows)
        rows.update(written)
        # A dict keeps new keys at its end, so that those of keys it had cost nothing here.
        self._keys.update(islice(reversed(rows), len(rows) - before))
        for key in deleted:
            if rows.pop(key, None) is not None:
                self._keys.remove(key)
        self._checkpoint = checkpoint

    def checkpoint(self) -> Checkpoint | None:
        self._check_open()
        return self._checkpoint

    def clear(self) -> None:
        self._check_open()
        self._rows.clear()
        self._keys.clear()
        self._checkpoint = None

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            self.get = self._refuse
            self._rows.clear()
            self._keys.clear()
            self._closed()

    def _check_open(self) -> None:
        if not self._is_open:
            raise StoreError(f"memory store {self._name!r} is closed")

    def _refuse(self, key: bytes) -> bytes | None:
        raise StoreError(f"memory store {self._name!r} is closed: cannot get {key!r}")
