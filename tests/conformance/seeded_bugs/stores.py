"""Bugs of stores: wrong rows, halves of batches, damage that goes unnoticed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import thalweg.stores.sqlite
from thalweg.errors import StoreError
from thalweg.store import Checkpoint, Store
from thalweg.stores.sqlite import SqliteStores
from thalweg.url import Url

from .base import caught_by

Changes = Mapping[bytes, bytes | None]


class StoreThrough:
    """A store that passes everything on to another."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def get(self, key: bytes, /) -> bytes | None:
        found: bytes | None = self.inner.get(key)
        return found

    def scan(self, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        found: Iterator[tuple[bytes, bytes]] = self.inner.scan(start, stop)
        return found

    def apply(self, changes: Changes, checkpoint: Checkpoint) -> None:
        self.inner.apply(changes, checkpoint)

    def checkpoint(self) -> Checkpoint | None:
        found: Checkpoint | None = self.inner.checkpoint()
        return found

    def clear(self) -> None:
        self.inner.clear()

    def close(self) -> None:
        self.inner.close()


class SeededStores(SqliteStores):
    """Without a bug of its own."""

    store: type[StoreThrough] = StoreThrough

    @classmethod
    def from_url(cls, url: Url) -> SeededStores:
        return cls(Path(url.file))

    def open(self, name: str) -> Any:
        return self.store(super().open(name))


# --- rows ----------------------------------------------------------------------------------------------------


@caught_by("a_missing_key_is_none_and_an_empty_value_is_not_missing")
class MissingIsEmpty(SeededStores):
    class store(StoreThrough):
        def get(self, key: bytes, /) -> bytes | None:
            return super().get(key) or b""


@caught_by("a_missing_key_is_none_and_an_empty_value_is_not_missing")
class EmptyIsMissing(SeededStores):
    class store(StoreThrough):
        def get(self, key: bytes, /) -> bytes | None:
            return super().get(key) or None


@caught_by("deleting_is_idempotent_and_a_deleted_key_can_come_back")
class DeletesByEmptyValue(SeededStores):
    class store(StoreThrough):
        def apply(self, changes: Changes, checkpoint: Checkpoint) -> None:
            super().apply({key: value or b"" for key, value in changes.items()}, checkpoint)


@caught_by("the_last_value_wins")
class FirstValueWins(SeededStores):
    class store(StoreThrough):
        def apply(self, changes: Changes, checkpoint: Checkpoint) -> None:
            kept = {k: v for k, v in changes.items() if v is None or self.inner.get(k) is None}
            super().apply(kept, checkpoint)


@caught_by("any_bytes_are_keys_and_values")
class KeysEndAtNul(SeededStores):
    class store(StoreThrough):
        def apply(self, changes: Changes, checkpoint: Checkpoint) -> None:
            super().apply({key.split(b"\0")[0]: value for key, value in changes.items()}, checkpoint)

        def get(self, key: bytes, /) -> bytes | None:
            return super().get(key.split(b"\0")[0])


@caught_by("a_large_value_is_kept_whole")
class ValuesAreCut(SeededStores):
    class store(StoreThrough):
        def apply(self, changes: Changes, checkpoint: Checkpoint) -> None:
            super().apply({key: value and value[: 1 << 20] for key, value in changes.items()}, checkpoint)


@caught_by("an_empty_batch_moves_the_checkpoint")
class SkipsEmptyBatches(SeededStores):
    class store(StoreThrough):
        def apply(self, changes: Changes, checkpoint: Checkpoint) -> None:
            if changes:
                super().apply(changes, checkpoint)


@caught_by("an_empty_batch_moves_the_checkpoint")
class ForgetsChecksums(SeededStores):
    class store(StoreThrough):
        def apply(self, changes: Changes, checkpoint: Checkpoint) -> None:
            super().apply(changes, Checkpoint(checkpoint.position, 0))


@caught_by("clear_deletes_rows_and_checkpoint_and_the_store_goes_on")
class ClearKeepsTheCheckpoint(SeededStores):
    class store(StoreThrough):
        def clear(self) -> None:
            last = self.inner.checkpoint()
            super().clear()
            if last is not None:
                super().apply({}, last)


@caught_by("a_batch_that_is_interrupted_changes_nothing")
class AppliesRowByRow(SeededStores):
    class store(StoreThrough):
        def apply(self, changes: Changes, checkpoint: Checkpoint) -> None:
            before = self.inner.checkpoint() or Checkpoint(0, 0)
            for key, value in changes.items():
                super().apply({key: value}, before)
            super().apply({}, checkpoint)


# --- scans ---------------------------------------------------------------------------------------------------


@caught_by("a_range_holds_its_start_but_not_its_stop")
class ScanHoldsItsStop(SeededStores):
    class store(StoreThrough):
        def scan(self, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
            return super().scan(start, stop if stop is None else stop + b"\0")


@caught_by("a_range_holds_its_start_but_not_its_stop")
class ScanLeavesOutItsStart(SeededStores):
    class store(StoreThrough):
        def scan(self, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
            return super().scan(start + b"\0" if start else start, stop)


@caught_by("a_range_holds_its_start_but_not_its_stop")
class ScanEndsAtFF(SeededStores):
    """Without a stop, up to the largest key that came to mind."""

    class store(StoreThrough):
        def scan(self, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
            return super().scan(start, b"\xff\xff" if stop is None else stop)


@caught_by("a_scan_is_in_bytewise_order")
class ScansByText(SeededStores):
    class store(StoreThrough):
        def scan(self, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
            return iter(sorted(super().scan(start, stop), key=lambda row: row[0].decode("latin-1").lower()))


@caught_by("rows_that_do_not_change_during_a_scan_are_yielded_exactly_once")
class ScansByOffset(SeededStores):
    """Page by page by OFFSET: a row that is deleted before it moves all that follow."""

    class store(StoreThrough):
        def scan(self, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
            at = 0
            self.inner.scan(start, stop)
            while page := list(self.inner.scan(start, stop))[at : at + 64]:
                yield from page
                at += 64


@caught_by("a_scan_that_nobody_finishes_hinders_nothing")
class ScansHoldTheStore(SeededStores):
    """database table is locked"""

    class store(StoreThrough):
        scanning = 0

        def scan(self, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
            self.scanning += 1
            yield from super().scan(start, stop)
            self.scanning -= 1

        def clear(self) -> None:
            if self.scanning:
                raise StoreError("database table is locked")
            super().clear()


# --- opening and surviving -----------------------------------------------------------------------------------


@caught_by("a_second_opener_is_refused_until_the_first_closes")
class AdmitsASecondOpener(SeededStores):
    """A second connection to the same rows."""

    opened: dict[str, Any] = {}  # noqa: RUF012

    def open(self, name: str) -> Any:
        try:
            store = self.opened[name] = super().open(name)
        except StoreError:
            return self.opened.get(name) or super().open(name)
        return store


@caught_by("allowed_names_open_stores_of_their_own")
class NamesAreStems(SeededStores):
    """What follows a dot is taken for an extension."""

    def open(self, name: str) -> Any:
        stem = name.split(".")[0] if len(name) < 30 and not name.startswith(".") else name
        return super().open(stem or name)


@caught_by("a_closed_store_refuses_to_work")
class ClosedStoresAnswer(SeededStores):
    class store(StoreThrough):
        def get(self, key: bytes, /) -> bytes | None:
            try:
                return super().get(key)
            except StoreError:
                return None


@caught_by("a_reopened_store_is_identical")
class WritesBehind(SeededStores):
    """Keeps the last batch in memory until the next one; close does not think of it."""

    class store(StoreThrough):
        late: tuple[Changes, Checkpoint] | None = None

        def apply(self, changes: Changes, checkpoint: Checkpoint) -> None:
            self.flush()
            self.late = dict(changes.items()), checkpoint

        def flush(self) -> None:
            if self.late is not None:
                late, self.late = self.late, None
                super().apply(*late)

        def get(self, key: bytes, /) -> bytes | None:
            self.flush()
            return super().get(key)

        def scan(self, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
            self.flush()
            return super().scan(start, stop)

        def checkpoint(self) -> Checkpoint | None:
            return self.late[1] if self.late else super().checkpoint()


@caught_by("a_kill_leaves_whole_batches_and_takes_back_nothing_acknowledged")
class CheckpointIsAheadOfItsRows(SeededStores):
    """Two transactions, the checkpoint first: what a kill takes between them, nobody gives again."""

    class store(StoreThrough):
        def apply(self, changes: Changes, checkpoint: Checkpoint) -> None:
            rows = dict(changes.items())
            super().apply({}, checkpoint)
            for start in range(0, len(rows), 50):
                super().apply(dict(list(rows.items())[start : start + 50]), checkpoint)


@caught_by("a_kill_leaves_whole_batches_and_takes_back_nothing_acknowledged")
class RowsAreAheadOfTheirCheckpoint(SeededStores):
    """Two transactions, the rows first: replay does to them again what is done."""

    class store(StoreThrough):
        def apply(self, changes: Changes, checkpoint: Checkpoint) -> None:
            rows, before = dict(changes.items()), self.inner.checkpoint() or Checkpoint(0, 0)
            for start in range(0, len(rows), 50):
                super().apply(dict(list(rows.items())[start : start + 50]), before)
            super().apply({}, checkpoint)


@caught_by("what_is_removed_is_gone_and_what_is_open_is_not_removed")
class RemovesNothing(SeededStores):
    def remove(self, name: str) -> bool:
        return False


@caught_by("a_restore_that_was_interrupted_starts_over")
class ClearsInSteps(SeededStores):
    """Rows stay until they are written again."""

    class store(StoreThrough):
        def clear(self) -> None:
            rows = list(self.inner.scan(b"", None))
            super().clear()
            for key, value in rows:
                if key == b"old":
                    super().apply({key: value}, Checkpoint(0, 0))


@caught_by("a_flipped_bit_anywhere_is_detected_or_harmless")
class TrustsTheDisk(SeededStores):
    """No checksums, for the rest of a run: it must be the last here."""

    def open(self, name: str) -> Store:
        thalweg.stores.sqlite.crc32 = lambda data, value=0: 0  # type: ignore[assignment]
        return super().open(name)
