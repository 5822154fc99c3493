"""A RocksDB that has too much to do is waited for without Python's lock, and takes all in the end."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

pytest.importorskip("rocksdict")

from rocksdict import Options
from thalweg.store import Checkpoint
from thalweg.stores import rocksdb
from thalweg.stores.rocksdb import RocksdbStores


def test_writes_that_come_too_fast_wait_outside_of_the_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would wait by itself, but holding the GIL: no thread could renew a lease meanwhile."""
    real, waits = RocksdbStores._settings, 0

    def soon_behind(stores: RocksdbStores) -> Options:
        settings = real(stores)
        settings.set_write_buffer_size(64 << 10)
        settings.set_level_zero_file_num_compaction_trigger(2)
        settings.set_level_zero_slowdown_writes_trigger(2)
        settings.set_level_zero_stop_writes_trigger(2)
        return settings

    class Clock:
        @staticmethod
        def sleep(seconds: float) -> None:
            nonlocal waits
            waits += 1
            time.sleep(seconds)

    monkeypatch.setattr(RocksdbStores, "_settings", soon_behind)
    monkeypatch.setattr(rocksdb, "time", Clock)
    stores = RocksdbStores(tmp_path)
    store = stores.open("fast")
    for number in range(300):
        rows = {b"%d/%d" % (number, index): b"%d" % index * 1000 for index in range(40)}
        store.apply(rows, Checkpoint(number, 0))
    assert waits > 0
    assert store.checkpoint() == Checkpoint(299, 0)
    assert sum(1 for _ in store.scan(b"", None)) == 300 * 40
    store.clear()
    assert list(store.scan(b"", None)) == []
    stores.close()
