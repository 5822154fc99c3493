"""Mirrors on PostgreSQL: a Thalweg table is a table there, in a schema named as the app.

    SELECT value FROM bank.totals WHERE key = 'ada'

Keys are `text` (those of type bytes: `bytea`), values `jsonb` where the codec is JSON, `text` for str, else `bytea`.
The table `thalweg_mirrors` of the schema holds, for each table and partition, the epoch of the owner and the place up
to which it is current. Each call is one transaction, begun with that row's lock, so a stale owner's write does nothing.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

import asyncpg
import msgspec
from thalweg.errors import ConfigurationError, Fenced, MirrorError
from thalweg.mirror import MirrorTable, Place
from thalweg.url import Url

__all__ = ["PostgresMirror", "PostgresMirrors"]

log = logging.getLogger("thalweg")

PLACES = "thalweg_mirrors"
LONGEST_NAME = 63
"""Bytes; PostgreSQL cuts off what is longer."""
PAGE = 2000

Connection = Any
"""Of asyncpg, which has no types."""


class PostgresMirrorOptions(msgspec.Struct, frozen=True):
    """Query options of `postgresql://`.

    schema: where the tables lie (default: the app's id); created if it is missing. timeout: seconds to connect, and for
    an answer. connections: most at a time. sslmode, sslrootcert: as libpq has them.
    """

    schema: str | None = None
    timeout: Annotated[float, msgspec.Meta(gt=0)] = 10.0
    connections: Annotated[int, msgspec.Meta(ge=1)] = 4
    sslmode: Literal["disable", "prefer", "require", "verify-ca", "verify-full"] = "prefer"
    sslrootcert: str | None = None


class PostgresMirrors:
    def __init__(self, url: Url, options: PostgresMirrorOptions) -> None:
        self._database = _Database(url, options)
        self._schema = options.schema
        self.description = f"PostgreSQL at {self._database.place}"

    @classmethod
    def from_url(cls, url: Url) -> PostgresMirrors:
        return cls(url, url.options(PostgresMirrorOptions))

    def table(self, table: MirrorTable) -> PostgresMirror:
        schema = self._schema or table.app
        for kind, name in (("schema", schema), ("table", table.name)):
            if len(name.encode()) > LONGEST_NAME or "\0" in name or name == PLACES:
                raise ConfigurationError(
                    f"table {table.name!r} cannot be mirrored on PostgreSQL: {name!r} cannot name a {kind} there "
                    f"(at most {LONGEST_NAME} bytes, and not {PLACES!r})"
                )
        return PostgresMirror(self._database, table, schema)

    async def check(self) -> str:
        async with self._database.transaction("") as connection:
            return f"PostgreSQL {await connection.fetchval('SHOW server_version')} at {self._database.place}"

    async def close(self) -> None:
        await self._database.close()


class PostgresMirror:
    def __init__(self, database: _Database, table: MirrorTable, schema: str) -> None:
        self._database, self._table, self._schema = database, table, schema
        self._rows = f"{_quoted(schema)}.{_quoted(table.name)}"
        self._places = f"{_quoted(schema)}.{PLACES}"
        self._key = "bytea" if table.key_form == "bytes" else "text"
        self._value = {"json": "jsonb", "text": "text", "bytes": "bytea"}[table.value_form]

    async def claim(self, partition: int, epoch: int) -> Place | None:
        async with self._transaction() as connection:
            await self._create(connection)
            found = await connection.fetchrow(
                f"INSERT INTO {self._places} AS places (table_name, partition, epoch) VALUES ($1, $2, $3) "
                "ON CONFLICT (table_name, partition) DO UPDATE SET epoch = excluded.epoch "
                "WHERE places.epoch <= excluded.epoch RETURNING position, note",
                *(self._table.name, partition, epoch),
            )
            if found is None:
                raise self._fenced(partition, epoch)
            return None if found["position"] is None else Place(found["position"], found["note"])

    async def apply(
        self,
        partition: int,
        changes: Mapping[bytes, bytes | None],
        since: Place | None,
        place: Place | None,
        epoch: int,
    ) -> None:
        position, note = (None, None) if place is None else (place.position, place.note)
        rows = [(key, value) for key, value in changes.items() if value is not None]
        gone = [
            there for key, value in changes.items() if value is None and (there := self._key_there(key)) is not None
        ]
        async with self._transaction() as connection:
            moved = await connection.fetchval(
                f"UPDATE {self._places} SET position = $5, note = $6, changed = now() WHERE table_name = $1 AND "
                "partition = $2 AND epoch = $3 AND position IS NOT DISTINCT FROM $4 RETURNING true",
                *(self._table.name, partition, epoch, None if since is None else since.position, position, note),
            )
            if not moved:
                raise await self._why_not(connection, partition, epoch)
            if gone:
                await connection.execute(f"DELETE FROM {self._rows} WHERE key = ANY($1::{self._key}[])", gone)
            if rows:
                await self._upsert(connection, partition, rows)

    async def keys(self, partition: int) -> AsyncIterator[Sequence[bytes]]:
        last: Any = None
        query = f"SELECT key FROM {self._rows} WHERE partition = $1 AND ($2::{self._key} IS NULL OR key > $2) "
        while True:
            async with self._transaction() as connection:
                found = await connection.fetch(query + f"ORDER BY key LIMIT {PAGE}", partition, last)
            if not found:
                return
            last = found[-1]["key"]
            yield [row["key"] if self._key == "bytea" else row["key"].encode() for row in found]

    def _transaction(self) -> Any:
        return self._database.transaction(self._rows)

    async def _why_not(self, connection: Connection, partition: int, epoch: int) -> MirrorError | Fenced:
        owner = await connection.fetchval(
            f"SELECT epoch FROM {self._places} WHERE table_name = $1 AND partition = $2", self._table.name, partition
        )
        if owner is not None and owner > epoch:
            return self._fenced(partition, epoch)
        return MirrorError(f"{self._rows} on PostgreSQL at {self._database.place} has lost a part of what it had")

    def _fenced(self, partition: int, epoch: int) -> Fenced:
        return Fenced(
            f"{self._rows} partition {partition}: epoch {epoch} is older than its owner's; nothing was written"
        )

    async def _upsert(self, connection: Connection, partition: int, rows: Sequence[tuple[bytes, bytes]]) -> None:
        carried = "text" if self._value == "jsonb" else self._value
        query = (
            f"INSERT INTO {self._rows} (key, value, partition) "
            f"SELECT key, value::{self._value}, $3 "
            f"FROM unnest($1::{self._key}[], $2::{carried}[]) AS given(key, value) "
            "ON CONFLICT (key) DO UPDATE SET value = excluded.value, partition = excluded.partition"
        )
        try:
            keys, values = [self._key_there(key) for key, _ in rows], [self._value_there(value) for _, value in rows]
            async with connection.transaction():
                await connection.execute(query, keys, values, partition)
        except (
            asyncpg.DataError,
            asyncpg.IntegrityConstraintViolationError,
            asyncpg.ProgramLimitExceededError,
        ) as error:
            if len(rows) > 1:  # find those that PostgreSQL cannot hold
                half = len(rows) // 2
                await self._upsert(connection, partition, rows[:half])
                await self._upsert(connection, partition, rows[half:])
            else:
                said = str(error).partition("\n")[0]
                log.warning("%s: a row is left out that PostgreSQL cannot hold: %s", self._rows, said)
                there = self._key_there(rows[0][0])
                if there is not None:
                    await connection.execute(f"DELETE FROM {self._rows} WHERE key = $1", there)

    def _key_there(self, key: bytes) -> str | bytes | None:
        """None for one that text cannot hold."""
        return key if self._key == "bytea" else None if b"\0" in key else key.decode()

    def _value_there(self, value: bytes) -> str | bytes:
        return value if self._value == "bytea" else value.decode()

    async def _create(self, connection: Connection) -> None:
        """What is missing; a user who may not create anything can be given it all beforehand."""
        columns = await self._columns(connection)
        if not columns or await connection.fetchval("SELECT to_regclass($1)", self._places) is None:
            await connection.execute("SELECT pg_advisory_xact_lock(hashtext($1))", f"thalweg:{self._schema}")
            if not await connection.fetchval("SELECT true FROM pg_namespace WHERE nspname = $1", self._schema):
                await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {_quoted(self._schema)}")
            await connection.execute(
                f"CREATE TABLE IF NOT EXISTS {self._places} (table_name text, partition int, epoch bigint NOT NULL, "
                "position bigint, note bytea, changed timestamptz NOT NULL DEFAULT now(), "
                "PRIMARY KEY (table_name, partition))"
            )
            await connection.execute(
                f"CREATE TABLE IF NOT EXISTS {self._rows} "
                f"(key {self._key} PRIMARY KEY, value {self._value} NOT NULL, partition int NOT NULL)"
            )
            columns = await self._columns(connection)
        wanted = {"key": self._key, "value": self._value}
        if any(columns.get(name) != kind for name, kind in wanted.items()):
            have = ", ".join(f"{name} {kind}" for name, kind in columns.items())
            raise MirrorError(
                f"the mirror {self._rows} on PostgreSQL at {self._database.place} has the columns {have}, and should "
                f"have key {self._key}, value {self._value}: drop that table, or name another schema (?schema=)"
            )

    async def _columns(self, connection: Connection) -> dict[str, str]:
        found = await connection.fetch(
            "SELECT column_name, data_type FROM information_schema.columns WHERE table_schema = $1 AND table_name = $2",
            *(self._schema, self._table.name),
        )
        return {row["column_name"]: row["data_type"] for row in found}


class _Database:
    """A pool of connections, made when they are needed."""

    def __init__(self, url: Url, options: PostgresMirrorOptions) -> None:
        self._url, self._options = url, options
        addresses = url.addresses(5432)
        self._hosts, self._ports = [host for host, _ in addresses], [port for _, port in addresses]
        database = url.path.strip("/")
        self.place = ",".join(f"{host}:{port}" for host, port in addresses) + (f"/{database}" if database else "")
        self._name = database or None
        self._tls: ssl.SSLContext | str = options.sslmode
        if options.sslrootcert is not None:
            try:
                self._tls = ssl.create_default_context(cafile=options.sslrootcert)
            except (OSError, ssl.SSLError) as error:
                raise ConfigurationError(f"{url}: sslrootcert cannot be used: {error}") from None
            self._tls.check_hostname = options.sslmode == "verify-full"
        self._pool: Any = None
        self._opening = asyncio.Lock()

    @asynccontextmanager
    async def transaction(self, about: str) -> AsyncIterator[Connection]:
        try:
            pool = await self._opened()
            async with pool.acquire(timeout=self._options.timeout) as connection, connection.transaction():
                yield connection
        except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as error:
            raise self._explain(error, about) from None
        except TimeoutError:
            raise self._explain(f"no answer within {self._options.timeout:g} s", about) from None

    def _explain(self, error: object, about: str) -> MirrorError:
        said = self._url.redact(str(error) or type(error).__name__)
        return MirrorError(f"the mirror on PostgreSQL at {self.place}: {f'{about}: ' if about else ''}{said}")

    async def _opened(self) -> Any:
        async with self._opening:
            if self._pool is None:
                options = self._options
                self._pool = await asyncpg.create_pool(
                    host=self._hosts,
                    port=self._ports,
                    user=self._url.username,
                    password=self._url.password,
                    database=self._name,
                    ssl=self._tls,
                    timeout=options.timeout,
                    command_timeout=options.timeout,
                    min_size=0,
                    max_size=options.connections,
                    statement_cache_size=0,  # or poolers that lend a connection for one transaction would not do
                )
            return self._pool

    async def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            try:
                async with asyncio.timeout(self._options.timeout):
                    await pool.close()
            except TimeoutError:
                pool.terminate()


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
