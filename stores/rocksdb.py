"""`rocksdb:///folder`: one RocksDB database a store, for state far larger than memory (extra: `thalweg[rocksdb]`).

`rocksdb:///state` is relative, `rocksdb:////var/lib/state` absolute. The store `bank-3` lies in `state/bank-3.rocksdb`,
locked by `bank-3.rocksdb.lock`, which stays. Options: see `RocksdbOptions`.

Each `apply` is one write batch that goes to RocksDB's own log, not synced: a killed process loses nothing, a power cut
the last batches, and these the journal gives again. Rows and checkpoint share one column family: its parts reach the
disk in the order of their writing, so that the checkpoint is never ahead of the rows.

Damage is found by RocksDB's checksums, with one exception that it has no means against: a MANIFEST file that lost its
last, once synced, records. So a store that is closed notes the sizes of its files, and checksums of the small ones, and
compares them when it is opened next. After a kill there is no such note: then a MANIFEST whose end a disk has lost may
pass for sound.
"""

from __future__ import annotations

import logging
import os
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import msgspec
from thalweg.errors import StoreError
from thalweg.store import Checkpoint
from thalweg.url import Url

from . import sums
from .disk import Place, folder_of, log, remove
from .paging import in_pages

try:
    from rocksdict import (
        BlockBasedOptions,
        Cache,
        DbClosedError,
        DBRecoveryMode,
        Options,
        Rdict,
        ReadOptions,
        WriteBatch,
        WriteBufferManager,
        WriteOptions,
    )
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError("rocksdict is not installed (extra: thalweg[rocksdb])", name=missing.name) from missing

__all__ = ["RocksdbOptions", "RocksdbStore", "RocksdbStores"]

_CHECKPOINT = b"\0"
_ROW = b"\1"  # before each key
_END = b"\2"
_POSITION_AND_CHECKSUM = struct.Struct(">qI")
_MIB = 1 << 20
BEHIND = 0.005
"""Seconds until RocksDB is asked again that had too much to do."""
_DAMAGE = ("Corruption", "No such file", "File exists", "Invalid argument")
_FULL = ("No space left", "Disk quota exceeded", "File too large", "Input/output error", "previous error")


class RocksdbOptions(msgspec.Struct, frozen=True):
    """Options of `rocksdb:///folder`.

    cache_mb: memory in MiB for all its stores together: blocks read, and up to half of it for rows not yet flushed.
    """

    cache_mb: Annotated[int, msgspec.Meta(ge=2)] = 128


class RocksdbStores:
    """Stores in one folder, which is created if missing; they share one cache."""

    def __init__(self, folder: str | os.PathLike[str], *, cache_mb: int = 128) -> None:
        self._folder = Path(folder)
        self._cache = Cache(cache_mb * _MIB)
        self._buffers = WriteBufferManager.new_write_buffer_manager_with_cache(
            cache_mb * _MIB // 2, allow_stall=False, cache=self._cache
        )
        self._direct: bool | None = None
        self._open: set[RocksdbStore] = set()

    @classmethod
    def from_url(cls, url: Url) -> RocksdbStores:
        return cls(folder_of(url), cache_mb=url.options(RocksdbOptions).cache_mb)

    @property
    def description(self) -> str:
        return f"RocksDB in {self._folder}"

    def open(self, name: str) -> RocksdbStore:
        place = Place(self._folder, name, ".rocksdb")
        if self._direct is None:
            self._direct = _takes_direct_writes(self._folder)
        try:
            store = RocksdbStore(place, self._settings, closed=self._open.discard)
        except BaseException:
            place.release()
            raise
        self._open.add(store)
        return store

    def remove(self, name: str) -> bool:
        return remove(self._folder, name, ".rocksdb")

    def close(self) -> None:
        for store in list(self._open):
            store.close()

    def _settings(self) -> Options:
        blocks = BlockBasedOptions()
        blocks.set_block_cache(self._cache)
        blocks.set_bloom_filter(10, False)  # bits a key: 1 % of the gets of a missing key read a block in vain
        blocks.set_cache_index_and_filter_blocks(True)
        blocks.set_pin_l0_filter_and_index_blocks_in_cache(True)
        settings = Options(raw_mode=True)
        settings.create_if_missing(True)
        settings.set_paranoid_checks(True)
        settings.set_wal_recovery_mode(DBRecoveryMode.point_in_time())
        settings.set_block_based_table_factory(blocks)
        settings.set_write_buffer_manager(self._buffers)
        settings.set_write_buffer_size(16 * _MIB)
        # What is flushed and compacted need not push all else out of the page cache. In 512 MiB of memory for all,
        # pages that waited to be written held up commits for 0.14 s (p99), and now for 0.04 s.
        settings.set_use_direct_io_for_flush_and_compaction(bool(self._direct))
        settings.set_max_open_files(256)  # a store, so that some dozens of them fit the usual limit of a process
        settings.set_keep_log_file_num(1)
        settings.set_max_log_file_size(_MIB)
        settings.set_stats_dump_period_sec(0)
        settings.set_stats_persist_period_sec(0)
        return settings


def _takes_direct_writes(folder: Path) -> bool:
    """Whether its file system can write past the page cache. Some that lie in memory cannot."""
    probe = folder / f".direct-{os.getpid()}"
    try:
        os.close(os.open(probe, os.O_CREAT | os.O_WRONLY | getattr(os, "O_DIRECT", os.O_EXCL), 0o600))
    except OSError:
        return False
    finally:
        probe.unlink(missing_ok=True)
    return hasattr(os, "O_DIRECT")


class RocksdbStore:
    """One task's rows in one database, whose blocks and log records have checksums."""

    def __init__(self, place: Place, settings: Callable[[], Options], closed: Callable[[RocksdbStore], object]) -> None:
        self._place = place
        self._settings = settings
        self._closed = closed
        self._without_waiting = WriteOptions()
        self._without_waiting.no_slowdown = True
        self._database = self._connect()

    def get(self, key: bytes, /) -> bytes | None:
        try:
            value: bytes | None = self._database.get(_ROW + key)
        except Exception as error:
            raise self._failed(error) from error
        return value

    def scan(self, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        return in_pages(self._page, start, stop)

    def _page(self, start: bytes, stop: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        within = ReadOptions()
        within.set_iterate_upper_bound(_END if stop is None else _ROW + stop)
        rows: Any = None
        rest: Any = None
        try:
            rows = self._database.items(from_key=_ROW + start, read_opt=within)
            page = [(key[1:], value) for key, value in islice(rows, limit)]
            if len(page) < limit:
                # It ends at a damaged block as it does at the end of the range. Only `status` tells them apart.
                rest = self._database.iter(within)
                rest.seek(_ROW + (page[-1][0] + b"\0" if page else start))
                rest.status()
        except Exception as error:
            raise self._failed(error) from error
        finally:
            del rows, rest  # the traceback of an error would keep them, and they keep the database open and locked
        return page

    def apply(self, changes: Mapping[bytes, bytes | None], checkpoint: Checkpoint) -> None:
        self._place.check()

        def batch() -> WriteBatch:
            batch = WriteBatch(raw_mode=True)
            put, delete = batch.put, batch.delete
            for key, value in changes.items():
                if value is None:
                    delete(_ROW + key)
                else:
                    put(_ROW + key, value)
            put(_CHECKPOINT, _POSITION_AND_CHECKSUM.pack(*checkpoint))
            return batch

        self._write(batch)

    def checkpoint(self) -> Checkpoint | None:
        try:
            packed: bytes | None = self._database.get(_CHECKPOINT)
            return None if packed is None else Checkpoint(*_POSITION_AND_CHECKSUM.unpack(packed))
        except Exception as error:
            raise self._failed(error) from error

    def clear(self) -> None:
        self._place.check()
        if self._place.damage is not None:
            with suppress(Exception):  # what it has not written, nobody wants; closed it is
                self._database.close()
            self._place.set_aside()
            self._database = self._connect()

        def batch() -> WriteBatch:
            batch = WriteBatch(raw_mode=True)
            batch.delete_range(_ROW, _END)
            batch.delete(_CHECKPOINT)
            return batch

        self._write(batch)

    def close(self) -> None:
        try:
            self._database.close()
            if self._place.damage is None and not self._place.gone:
                sums.write(self._place.path)
        except DbClosedError:
            pass
        except Exception as error:  # it is closed nevertheless; what it could not write, the journal gives again
            known = self._place.damage is not None or self._place.gone or self._place.full
            log.log(logging.DEBUG if known else logging.WARNING, "store %s: %s", self._place.path, error)
        self._place.release()
        self._closed(self)

    def _write(self, batch: Callable[[], WriteBatch]) -> None:
        """While RocksDB is behind with flushing and compacting, it takes no more. It would wait by itself, but holding
        Python's GIL: threads that renew leases would stand still, too.
        """
        while True:
            try:
                self._database.write(batch(), self._without_waiting)
                return
            except Exception as error:
                if "Write stall" not in str(error):
                    raise self._failed(error) from error
            time.sleep(BEHIND)

    def _connect(self) -> Rdict:
        """Open the database; an empty one instead if it is damaged."""
        try:
            database = self._try_to_connect()
        except StoreError:
            if self._place.damage is None:
                raise
            self._place.set_aside()
            database = self._try_to_connect()
        self._place.remember()
        return database

    def _try_to_connect(self) -> Rdict:
        try:
            sums.check(self._place.path)
            return Rdict(str(self._place.path), self._settings())
        except sums.Differs as error:
            self._place.damage = error
            raise self._place.error(str(error)) from error
        except Exception as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> StoreError:
        """What to raise for it. rocksdict raises plain `Exception`s, so that only their texts tell what happened."""
        text = str(error)
        if any(sign in text for sign in _DAMAGE):
            self._place.damage = error
        return self._place.error(text, full=any(sign in text for sign in _FULL))
