"""What the conformance suite does not know of our stores: their options, what they say, what they set aside."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from thalweg.contrib.conformance import StoreRig
from thalweg.contrib.conformance.stores.surviving import Image
from thalweg.contrib.conformance.stores.trial import StoreTrial, rows_of
from thalweg.errors import ConfigurationError, StoreError, UnknownOption
from thalweg.registry import load_stores
from thalweg.store import Checkpoint, Stores

DISK = ["sqlite", "rocksdb"]
KINDS = ["memory", *DISK]


def url_of(kind: str, folder: Path) -> str:
    return "memory://" if kind == "memory" else f"{kind}:///{folder}"


@pytest.fixture(params=DISK)
def on_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stores]:
    opened = load_stores(url_of(request.param, tmp_path / "state"))
    yield opened
    opened.close()


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_option_is_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UnknownOption, match="nonsense"):
        load_stores(f"{url_of(kind, tmp_path)}?nonsense=1")


@pytest.mark.parametrize("kind", DISK)
def test_a_url_without_a_folder_is_refused(kind: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{kind}:///folder"):
        load_stores(f"{kind}://")


# --- memory ------------------------------------------------------------------------------------------------


def test_a_memory_store_is_gone_when_it_is_closed() -> None:
    stores = load_stores("memory://")
    store = stores.open("task")
    store.apply({b"k": b"v"}, Checkpoint(1, 0))
    store.close()
    again = stores.open("task")
    assert (rows_of(again), again.checkpoint()) == ({}, None)


def test_two_memory_stores_share_nothing() -> None:
    one, other = load_stores("memory://").open("task"), load_stores("memory://").open("task")
    one.apply({b"k": b"v"}, Checkpoint(1, 0))
    assert rows_of(other) == {}


# --- disk: damage ------------------------------------------------------------------------------------------


def test_sqlite_pages_that_count_too_few_or_too_many_rows_are_found(tmp_path: Path) -> None:
    trial = StoreTrial(StoreRig(url_of("sqlite", tmp_path)))
    image = Image(trial, running=False)
    (place,) = image.restore()
    sound, verdicts = place.read_bytes(), set()
    for page in range(4096, len(sound), 4096):
        image.restore()
        flipped = bytearray(sound)
        flipped[page + 4] ^= 1  # the low byte of the number of cells in this page
        place.write_bytes(flipped)
        verdicts.add(image.verdict())  # fails if rows are missing
    assert "empty" in verdicts
    image.close()
    trial.close()


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "thalweg.stores"]


def test_what_is_not_a_store_is_set_aside_with_one_warning(on_disk: Stores, caplog: pytest.LogCaptureFixture) -> None:
    store = on_disk.open("task")
    store.apply({b"k": b"v"}, Checkpoint(1, 0))
    store.close()
    (place,) = (path for path in _folder(on_disk).iterdir() if path.suffix != ".lock")
    if place.is_dir():
        (place / "CURRENT").write_bytes(b"no database" * 1000)
    else:
        place.write_bytes(b"no database" * 1000)
    store = on_disk.open("task")
    assert (rows_of(store), store.checkpoint()) == ({}, None)
    assert len(warnings_in(caplog)) == 1
    assert f"{place} is damaged and will be rebuilt; set aside as {place}.damaged" in warnings_in(caplog)[0]
    store.apply({b"k": b"new"}, Checkpoint(2, 0))
    store.close()
    store = on_disk.open("task")
    assert (rows_of(store), store.checkpoint()) == ({b"k": b"new"}, Checkpoint(2, 0))
    assert len(warnings_in(caplog)) == 1
    aside = Path(f"{place}.damaged")
    assert b"no database" in (aside / "CURRENT" if aside.is_dir() else aside).read_bytes()


def test_a_file_in_the_place_of_a_store_is_set_aside(on_disk: Stores, caplog: pytest.LogCaptureFixture) -> None:
    on_disk.open("task").close()
    (place,) = (path for path in _folder(on_disk).iterdir() if path.suffix != ".lock")
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    place.write_bytes(b"x" * 1000)
    store = on_disk.open("task")
    store.apply({b"k": b"v"}, Checkpoint(1, 0))
    assert rows_of(store) == {b"k": b"v"}
    assert len(warnings_in(caplog)) == 1


def test_a_folder_in_the_place_of_an_sqlite_file_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "task.db").mkdir()
    stores = load_stores(url_of("sqlite", tmp_path))
    for _ in range(2):  # the first attempt lets go of the lock
        with pytest.raises(StoreError, match="unable to open"):
            stores.open("task")


def test_a_store_whose_folder_is_deleted_meanwhile_refuses_to_write(on_disk: Stores) -> None:
    store = on_disk.open("task")
    store.apply({b"k": b"v"}, Checkpoint(1, 0))
    shutil.rmtree(_folder(on_disk))
    with pytest.raises(StoreError, match="deleted or replaced"):
        store.apply({b"k": b"w"}, Checkpoint(2, 0))
    store.close()
    again = on_disk.open("task")
    assert (rows_of(again), again.checkpoint()) == ({}, None)
    again.apply({b"k": b"x"}, Checkpoint(1, 0))


def test_a_folder_that_cannot_be_made_is_a_store_error(on_disk: Stores) -> None:
    _folder(on_disk).parent.mkdir(parents=True, exist_ok=True)
    _folder(on_disk).write_bytes(b"a file")
    with pytest.raises(StoreError, match="cannot be opened"):
        on_disk.open("task")


def _folder(stores: Stores) -> Path:
    return Path(stores.description.partition(" in ")[2])


class DamagedRow:
    """A store with a damaged row that opening it does not find: SQLite with `verify_mb=0`, RocksDB always."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.stores = load_stores(url_of(kind, folder) + ("?verify_mb=0" if kind == "sqlite" else "?cache_mb=2"))
        self.rows = {b"key%04d" % n: random.Random(n).randbytes(200) for n in range(4000)}
        self.bad = b"key2000"
        store = self.stores.open("task")
        store.apply(self.rows, Checkpoint(1, 0))
        store.close()
        self.stores.open("task").close()  # RocksDB moves its log into a table on this occasion
        (found,) = (file for file in folder.rglob("*") if file.is_file() and self.rows[self.bad] in file.read_bytes())
        data = bytearray(found.read_bytes())
        data[data.index(self.rows[self.bad]) + 100] ^= 1
        found.write_bytes(data)
        self.store = self.stores.open("task")


@pytest.fixture(params=DISK)
def damaged(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DamagedRow]:
    made = DamagedRow(request.param, tmp_path)
    yield made
    made.stores.close()


def test_a_damaged_row_is_refused_by_get_and_scan_and_sound_rows_are_not(damaged: DamagedRow) -> None:
    assert damaged.store.get(b"key0001") == damaged.rows[b"key0001"]
    with pytest.raises(StoreError):
        damaged.store.get(damaged.bad)
    with pytest.raises(StoreError):
        list(damaged.store.scan(b"", None))
    assert len(list(damaged.store.scan(b"", b"key1000"))) == 1000


def test_after_damage_was_found_the_next_opener_gets_an_empty_store(
    damaged: DamagedRow, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(StoreError) as caught:
        list(damaged.store.scan(b"", None))
    damaged.store.close()
    again = damaged.stores.open("task")
    assert (rows_of(again), again.checkpoint()) == ({}, None)
    assert len(warnings_in(caplog)) == 1
    assert caught.value.__cause__ is not None  # the error is still alive: it holds nothing of the store open


def test_clear_replaces_a_damaged_store(damaged: DamagedRow, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(StoreError):
        damaged.store.get(damaged.bad)
    damaged.store.clear()
    assert len(warnings_in(caplog)) == 1
    damaged.store.apply({b"k": b"v"}, Checkpoint(2, 0))
    assert rows_of(damaged.store) == {b"k": b"v"}
    damaged.store.close()
    assert rows_of(damaged.stores.open("task")) == {b"k": b"v"}
    assert len(warnings_in(caplog)) == 1


def test_sqlite_finds_a_damaged_row_on_opening_unless_the_file_is_too_large(tmp_path: Path) -> None:
    damaged = DamagedRow("sqlite", tmp_path)
    damaged.stores.close()
    stores = load_stores(url_of("sqlite", tmp_path))
    assert stores.open("task").checkpoint() is None
    stores.close()


def test_sqlite_finds_a_flipped_checkpoint(tmp_path: Path) -> None:
    stores = load_stores(url_of("sqlite", tmp_path) + "?verify_mb=0")
    store = stores.open("task")
    store.apply({b"k": b"v"}, Checkpoint(0x1234567890ABCD, 0x1F2E3D4C))
    store.close()
    file = tmp_path / "task.db"
    data = file.read_bytes()
    assert data.count(bytes.fromhex("1234567890ABCD")) == 1
    file.write_bytes(data.replace(bytes.fromhex("1234567890ABCD"), bytes.fromhex("1234567890ABCF")))
    assert stores.open("task").checkpoint() is None
    stores.close()


def test_rocksdb_files_that_changed_after_it_was_closed_are_found(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A MANIFEST that lost its last records is whole to RocksDB itself, which then misses a table."""
    pytest.importorskip("rocksdict")
    rows = {b"key%04d" % n: random.Random(n).randbytes(200) for n in range(500)}
    stores = load_stores(url_of("rocksdb", tmp_path / "state"))
    for batch, keys in enumerate((sorted(rows)[:250], sorted(rows)[250:])):
        store = stores.open("task")
        store.apply({key: rows[key] for key in keys}, Checkpoint(batch, 0))
        store.close()
    place = tmp_path / "state" / "task.rocksdb"
    saved = tmp_path / "saved"
    shutil.copytree(place, saved)
    (manifest,) = saved.glob("MANIFEST-*")
    sound = manifest.read_bytes()
    for end in range(0, len(sound), 37):
        stores.remove("task")
        shutil.copytree(saved, place)
        (place / manifest.name).write_bytes(sound[:end])
        caplog.clear()
        store = stores.open("task")
        assert (rows_of(store), store.checkpoint()) == ({}, None)
        assert len(warnings_in(caplog)) == 1
        store.close()
    stores.remove("task")
    shutil.copytree(saved, place)
    store = stores.open("task")
    assert (rows_of(store), store.checkpoint()) == (rows, Checkpoint(1, 0))
    stores.close()
