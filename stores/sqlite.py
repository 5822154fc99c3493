"""`sqlite:///folder`: one SQLite file a store, for state that need not fit into memory, with nothing to install.

`sqlite:///state` is relative, `sqlite:////var/lib/state` absolute. The store `bank-3` lies in `state/bank-3.db`, with
`bank-3.db-wal` while it is open and `bank-3.db.lock`, which stays. Options: see `SqliteOptions`.

Written with `synchronous=NORMAL`: a killed process loses nothing, a power cut may take back the last commits but leaves
the file whole. That is enough, as the journal gives them again; `OFF` would not be: it can leave a torn file.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated
from zlib import crc32

import msgspec
from thalweg.errors import StoreError
from thalweg.store import Checkpoint
from thalweg.url import Url

from .disk import Place, folder_of, remove
from .paging import in_pages

__all__ = ["SqliteOptions", "SqliteStore", "SqliteStores"]

_FORMAT = 0x54484C01
"""`application_id`: "THL" and the version of the layout below."""

_SCHEMA = (
    # Rows lie in the tree of their keys: a get is one descent, a scan reads neighbours, and a key is written once.
    "CREATE TABLE rows (key BLOB PRIMARY KEY, value BLOB NOT NULL, crc INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE checkpoint (id INTEGER PRIMARY KEY, position INTEGER NOT NULL, checksum INTEGER NOT NULL, "
    "crc INTEGER NOT NULL)",
)
_SETTINGS = (
    "locking_mode=EXCLUSIVE",  # no system calls for locks at each read
    "journal_mode=WAL",
    "synchronous=NORMAL",
    "wal_autocheckpoint=8192",  # pages (32 MiB): a page written by many applies goes to the file, and to disk, once
    "journal_size_limit=67108864",
    "cache_size=-8192",  # KiB
)
SORTED = 100
"""Above so many rows they are written in the order of the tree: neighbours find their page in the cache."""
_GET = "SELECT value, crc FROM rows WHERE key = ?"
_PUT = (
    "INSERT INTO rows VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value, crc = excluded.crc"
    # not INSERT OR REPLACE, which takes the old row out of its page first
)
_DELETE = "DELETE FROM rows WHERE key = ?"
_PAGE = "SELECT key, value, crc FROM rows WHERE key >= ? ORDER BY key LIMIT ?"
_PAGE_UP_TO = "SELECT key, value, crc FROM rows WHERE key >= ? AND key < ? ORDER BY key LIMIT ?"
_DAMAGE = (
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_ERROR,  # our statements are right: the schema or the file format is not
    sqlite3.SQLITE_READONLY,  # as one flipped bit in the header makes it
)


_UNREADABLE = (sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ, sqlite3.SQLITE_IOERR_CORRUPTFS)
_UNWRITABLE = (
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR_WRITE,
    sqlite3.SQLITE_IOERR_FSYNC,
    sqlite3.SQLITE_IOERR_DIR_FSYNC,
    sqlite3.SQLITE_IOERR_TRUNCATE,
    sqlite3.SQLITE_IOERR_SHMSIZE,
)


class SqliteOptions(msgspec.Struct, frozen=True):
    """Options of `sqlite:///folder`.

    verify_mb: files up to so many MiB are read through and verified when they are opened (about 7 ms a MiB); of larger
    ones only what is read, when it is read, by a checksum of each row.
    """

    verify_mb: Annotated[int, msgspec.Meta(ge=0)] = 256


class _Damage(Exception):
    """Something in the file is not what was written."""


class SqliteStores:
    """Stores in the files of one folder, which is created if missing."""

    def __init__(self, folder: str | os.PathLike[str], *, verify_mb: int = 256) -> None:
        self._folder = Path(folder)
        self._verify_mb = verify_mb
        self._open: set[SqliteStore] = set()

    @classmethod
    def from_url(cls, url: Url) -> SqliteStores:
        return cls(folder_of(url), verify_mb=url.options(SqliteOptions).verify_mb)

    @property
    def description(self) -> str:
        return f"SQLite {sqlite3.sqlite_version} in {self._folder}"

    def open(self, name: str) -> SqliteStore:
        place = Place(self._folder, name, ".db")
        try:
            store = SqliteStore(place, self._verify_mb, closed=self._open.discard)
        except BaseException:
            place.release()
            raise
        self._open.add(store)
        return store

    def remove(self, name: str) -> bool:
        return remove(self._folder, name, ".db")

    def close(self) -> None:
        for store in list(self._open):
            store.close()


class SqliteStore:
    """One task's rows in one file, each with a checksum over key and value."""

    def __init__(self, place: Place, verify_mb: int, closed: Callable[[SqliteStore], object]) -> None:
        self._place = place
        self._verify_mb = verify_mb
        self._closed = closed
        self._connection = self._connect()

    def get(self, key: bytes, /) -> bytes | None:
        try:
            row = self._connection.execute(_GET, (key,)).fetchone()
            return None if row is None else _checked(key, *row)
        except (sqlite3.Error, _Damage) as error:
            raise self._failed(error) from error

    def scan(self, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        return in_pages(self._page, start, stop)

    def _page(self, start: bytes, stop: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        query, values = (_PAGE, (start, limit)) if stop is None else (_PAGE_UP_TO, (start, stop, limit))
        try:
            return [(key, _checked(key, value, crc)) for key, value, crc in self._connection.execute(query, values)]
        except (sqlite3.Error, _Damage) as error:
            raise self._failed(error) from error

    def apply(self, changes: Mapping[bytes, bytes | None], checkpoint: Checkpoint) -> None:
        self._place.check()
        written = [(key, value, crc32(value, crc32(key))) for key, value in changes.items() if value is not None]
        if len(written) > SORTED:
            written.sort()
        deleted = [(key,) for key, value in changes.items() if value is None]
        with self._transaction():
            self._connection.executemany(_PUT, written)
            self._connection.executemany(_DELETE, deleted)
            row = (checkpoint.position, checkpoint.checksum, _crc_of(*checkpoint))
            self._connection.execute("INSERT OR REPLACE INTO checkpoint VALUES (0, ?, ?, ?)", row)

    def checkpoint(self) -> Checkpoint | None:
        try:
            return _checkpoint(self._connection)
        except (sqlite3.Error, _Damage) as error:
            raise self._failed(error) from error

    def clear(self) -> None:
        self._place.check()
        try:
            with self._transaction():
                self._connection.execute("DELETE FROM rows")
                self._connection.execute("DELETE FROM checkpoint")
        except StoreError:
            if self._place.damage is None:
                raise
        if self._place.damage is not None:
            self._connection.close()
            self._place.set_aside()
            self._connection = self._connect()

    def close(self) -> None:
        self._connection.close()
        self._place.release()
        self._closed(self)

    def _connect(self) -> sqlite3.Connection:
        """Open the file; an empty one instead if it is damaged."""
        try:
            connection = self._try_to_connect()
        except StoreError:
            if self._place.damage is None:
                raise
            self._place.set_aside()
            connection = self._try_to_connect()
        self._place.remember()
        return connection

    def _try_to_connect(self) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(self._place.path, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise self._failed(error) from error
        try:
            self._prepare(connection)
        except BaseException as error:
            connection.close()
            if isinstance(error, sqlite3.Error | _Damage):
                raise self._failed(error) from error
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.text_factory = _no_text
        for setting in _SETTINGS:
            connection.execute(f"PRAGMA {setting}")
        connection.execute("BEGIN IMMEDIATE")
        if not _schema(connection):
            for statement in _SCHEMA:
                connection.execute(statement)
        else:
            _verify(connection, thorough=self._place.path.stat().st_size <= self._verify_mb << 20)
        connection.execute(f"PRAGMA application_id={_FORMAT}")  # each time: it shows that the file can be written
        connection.execute("COMMIT")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            yield
            self._connection.execute("COMMIT")
        except BaseException as error:
            self._roll_back()
            if isinstance(error, sqlite3.Error):
                raise self._failed(error) from error
            raise

    def _roll_back(self) -> None:
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error:
            self._connection.close()  # which rolls back too

    def _failed(self, error: sqlite3.Error | _Damage) -> StoreError:
        code = getattr(error, "sqlite_errorcode", 0)
        if isinstance(error, _Damage) or code & 0xFF in _DAMAGE or code in _UNREADABLE:
            self._place.damage = error
        return self._place.error(str(error), full=code in _UNWRITABLE)


def _checked(key: bytes, value: object, crc: object) -> bytes:
    if type(key) is bytes and type(value) is bytes and crc32(value, crc32(key)) == crc:
        return value
    raise _Damage(f"the row {key!r} does not match its checksum")


def _crc_of(position: int, checksum: int) -> int:
    return crc32(b"%d %d" % (position, checksum))


def _checkpoint(connection: sqlite3.Connection) -> Checkpoint | None:
    rows = connection.execute("SELECT position, checksum, crc FROM checkpoint").fetchall()
    if not rows:
        return None
    position, checksum, crc = rows[0]
    if not isinstance(position, int) or not isinstance(checksum, int) or _crc_of(position, checksum) != crc:
        raise _Damage("the checkpoint does not match its checksum")
    return Checkpoint(position, checksum)


def _schema(connection: sqlite3.Connection) -> tuple[str, ...]:
    return tuple(sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master ORDER BY rootpage"))


def _verify(connection: sqlite3.Connection, thorough: bool) -> None:
    """Raise `_Damage` for what is not a sound store of this format; without `thorough` only its head is looked at."""
    if connection.execute("PRAGMA application_id").fetchone() != (_FORMAT,) or _schema(connection) != _SCHEMA:
        raise _Damage("it is not a store of this version of Thalweg")
    _checkpoint(connection)
    if thorough:
        for (finding,) in connection.execute("PRAGMA quick_check(1)"):
            if finding != "ok":
                raise _Damage(finding)
        for key, value, crc in connection.execute("SELECT key, value, crc FROM rows"):
            _checked(key, value, crc)


def _no_text(data: bytes) -> str:
    """Rows hold no text: where SQLite finds some it must become no `bytes`, nor fail as UTF-8 that it is not."""
    return data.decode("latin-1")
