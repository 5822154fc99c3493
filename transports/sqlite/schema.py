"""The tables of the file, and how a connection to it is opened. Changing them means a new `VERSION`.

- topics: a topic (log) or queue. retention: ms. dead_letter: the queue to which rejected messages go.
- partitions: `next` is the position that the next record gets; `fence` counts the claims on a journal partition.
- records: what was written. A queue keeps its records in partition 0, until every group has committed them. priority,
  ready (not to be delivered before) and expires (ms since the epoch) are for queues.
- ages: for topics with retention: records below `next` were written before `time` (ms since the epoch).
- groups: consumer groups of a topic.
- cursors: per group and partition: all records below `position` are in `pending`, or done.
- pending: what a group has taken up and not committed: free (holder NULL, ready 0), delayed (holder NULL, ready: ms
  since the epoch), or lent to the consumer whose lease is `holder` until the boot clock says `until` (or NULL).
- leases: locks, members of peer groups, and consumers, each of a living process. door: the owner's file in the folder
  `<file>-doors`. expires: boot clock, seconds; its owner moves it on at every third of `seconds`. The id is the
  fencing number.
- messages: a view for people and foreign programs; inserting into it appends to a topic or queue.
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

from thalweg.errors import BrokerError

__all__ = ["connect", "create"]

VERSION = 1
APPLICATION = 0x74686C77  # "thlw": marks the file as ours, so that nobody else's database is written to

_SCHEMA = """
CREATE TABLE topics (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, partitions INTEGER NOT NULL, queue INTEGER NOT NULL,
    retention INTEGER, dead_letter TEXT);
CREATE TABLE partitions (
    topic INTEGER NOT NULL, partition INTEGER NOT NULL, next INTEGER NOT NULL DEFAULT 0,
    fence INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (topic, partition)) WITHOUT ROWID;
CREATE TABLE records (
    topic INTEGER NOT NULL, partition INTEGER NOT NULL, position INTEGER NOT NULL, timestamp INTEGER NOT NULL,
    key BLOB, value BLOB, headers TEXT, priority INTEGER, ready INTEGER, expires INTEGER,
    PRIMARY KEY (topic, partition, position)) WITHOUT ROWID;
CREATE TABLE ages (
    topic INTEGER NOT NULL, partition INTEGER NOT NULL, time INTEGER NOT NULL, next INTEGER NOT NULL,
    PRIMARY KEY (topic, partition, time)) WITHOUT ROWID;
CREATE TABLE groups (id INTEGER PRIMARY KEY, topic INTEGER NOT NULL, name TEXT NOT NULL, UNIQUE (topic, name));
CREATE TABLE cursors (
    grp INTEGER NOT NULL, partition INTEGER NOT NULL, position INTEGER NOT NULL,
    PRIMARY KEY (grp, partition)) WITHOUT ROWID;
CREATE TABLE pending (
    grp INTEGER NOT NULL, partition INTEGER NOT NULL, position INTEGER NOT NULL, priority INTEGER NOT NULL,
    ready INTEGER NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, holder INTEGER, until REAL,
    PRIMARY KEY (grp, partition, position)) WITHOUT ROWID;
CREATE INDEX pending_free ON pending (grp, priority DESC, partition, position) WHERE holder IS NULL AND ready = 0;
CREATE INDEX pending_delayed ON pending (grp, ready) WHERE holder IS NULL AND ready > 0;
CREATE INDEX pending_lent ON pending (grp, until, holder) WHERE holder IS NOT NULL;
CREATE TABLE leases (
    id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, name TEXT NOT NULL, member TEXT, door TEXT NOT NULL,
    seconds REAL NOT NULL, expires REAL NOT NULL);
CREATE UNIQUE INDEX leases_lock ON leases (name) WHERE kind = 'lock';
CREATE VIEW messages AS
    SELECT t.name AS topic, r.partition, r.position, r.timestamp, r.key, r.value, r.headers, r.priority, r.ready,
           r.expires
      FROM topics t JOIN records r ON r.topic = t.id;
CREATE TRIGGER messages_insert INSTEAD OF INSERT ON messages BEGIN
    SELECT RAISE(ABORT, 'no such topic or partition') WHERE NOT EXISTS (
        SELECT 1 FROM topics t JOIN partitions p ON p.topic = t.id
         WHERE t.name = NEW.topic AND p.partition = coalesce(NEW.partition, 0));
    INSERT INTO records
        SELECT t.id, p.partition, p.next,
               coalesce(NEW.timestamp, CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)),
               CAST(NEW.key AS BLOB), CAST(NEW.value AS BLOB), NEW.headers, NEW.priority, NEW.ready, NEW.expires
          FROM topics t JOIN partitions p ON p.topic = t.id
         WHERE t.name = NEW.topic AND p.partition = coalesce(NEW.partition, 0);
    UPDATE partitions SET next = next + 1
     WHERE topic = (SELECT id FROM topics WHERE name = NEW.topic) AND partition = coalesce(NEW.partition, 0);
END;
"""


def connect(file: Path, busy_timeout: float) -> sqlite3.Connection:
    """A connection in autocommit mode, for use by the calling thread only. TEXT comes back as bytes."""
    connection = sqlite3.connect(file, timeout=busy_timeout, isolation_level=None, cached_statements=256)
    connection.text_factory = bytes
    return connection


def create(connection: sqlite3.Connection, file: Path, synchronous: str, busy_timeout: float) -> None:
    """Make `connection` the writing one: durable settings, and the tables if they are missing."""
    if sqlite3.sqlite_version_info < (3, 35):
        raise BrokerError(f"sqlite:// needs SQLite 3.35 or newer; this Python has {sqlite3.sqlite_version}")
    # Refuse a foreign file before anything of it is changed.
    connection.execute("BEGIN")  # one look at all three, while another process may be creating the tables
    try:
        found, version, tables = _identity(connection)
    finally:
        connection.execute("ROLLBACK")
    if found != APPLICATION and tables:
        raise BrokerError(f"{file} is a SQLite database of another program; name a file of its own for the broker")
    if found == APPLICATION and version != VERSION:
        raise BrokerError(f"{file} has schema version {version}; this release reads version {VERSION}. Use a new file")
    _set_wal_mode(connection, file, busy_timeout)
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    connection.execute("PRAGMA fullfsync = 1")  # macOS: an fsync that reaches the disk; ignored elsewhere
    connection.execute("PRAGMA wal_autocheckpoint = 4000")
    connection.execute("PRAGMA journal_size_limit = 16777216")
    connection.execute("PRAGMA cache_size = -32768")
    connection.execute("BEGIN IMMEDIATE")
    try:
        if _identity(connection)[0] != APPLICATION:
            for statement in _statements(_SCHEMA):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
        # SQLite begins a transaction on a file that may only be read, and complains at the first change.
        connection.execute("DELETE FROM topics WHERE id < 0")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _identity(connection: sqlite3.Connection) -> tuple[int, int, int]:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return application, version, tables


def _set_wal_mode(connection: sqlite3.Connection, file: Path, busy_timeout: float) -> None:
    """SQLite does not wait for the lock by itself when processes change a new file to WAL at the same moment."""
    deadline = time.monotonic() + busy_timeout
    while True:
        try:
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            break
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.005)
    if mode != b"wal":
        raise BrokerError(f"{file}: its file system offers no write-ahead log; put the file on a local disk")


def _statements(script: str) -> list[str]:
    """Split at the semicolons that end a statement (`executescript` would end our transaction)."""
    statements, text = [], ""
    for line in script.splitlines(keepends=True):
        text += line
        if sqlite3.complete_statement(text):
            statements.append(text)
            text = ""
    return statements
