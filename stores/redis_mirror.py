"""Mirrors on Redis: a table is one hash, of which any client reads a field.

    HGET thalweg:bank:totals ada

`thalweg:<app>:<table>` holds the rows, key and value as the program's codecs write them. `thalweg-mirror:<app>:<table>`
holds for each partition the epoch of its owner and the place up to which it is current. Each call is one script, so a
commit is seen whole or not at all (but for one of thousands of rows), and a stale owner's write does nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Annotated, Any

import hiredis
import msgspec
from thalweg.errors import ConfigurationError, Fenced, MirrorError
from thalweg.mirror import MirrorTable, Place
from thalweg.tls import tls_context
from thalweg.url import Url

__all__ = ["RedisMirror", "RedisMirrors"]

CLAIM = b"""
local partition, epoch = ARGV[1], ARGV[2]
local owner = redis.call('HGET', KEYS[2], partition .. ':epoch')
if owner and tonumber(owner) > tonumber(epoch) then return {owner} end
redis.call('HSET', KEYS[2], partition .. ':epoch', epoch)
return {'', redis.call('HGET', KEYS[2], partition .. ':position'), redis.call('HGET', KEYS[2], partition .. ':note')}
"""

APPLY = b"""
local partition, epoch, since, position, note, rows = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6])
local owner = redis.call('HGET', KEYS[2], partition .. ':epoch')
if not owner or tonumber(owner) < tonumber(epoch) then return 'lost' end
if owner ~= epoch then return owner end
if (redis.call('HGET', KEYS[2], partition .. ':position') or '') ~= since then return 'lost' end
for i = 7, 6 + 2 * rows, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
for i = 7 + 2 * rows, #ARGV do redis.call('HDEL', KEYS[1], ARGV[i]) end
if position == '' then
    redis.call('HDEL', KEYS[2], partition .. ':position', partition .. ':note')
else
    redis.call('HSET', KEYS[2], partition .. ':position', position, partition .. ':note', note)
end
return ''
"""


class RedisMirrorOptions(msgspec.Struct, frozen=True):
    """Query options of `redis://` and `rediss://` as mirrors.

    prefix: what the keys begin with. timeout: seconds to connect, and for an answer. tls_*: for `rediss://`, files of
    the authority and of this client's certificate and key; tls_verify=false trusts any server.
    """

    prefix: str = "thalweg"
    timeout: Annotated[float, msgspec.Meta(gt=0)] = 10.0
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_verify: bool = True


class RedisMirrors:
    """One connection for all tables: calls go one after another."""

    def __init__(self, url: Url, options: RedisMirrorOptions) -> None:
        self._prefix = options.prefix
        self._client = _Client(url, options)
        self.description = f"Redis at {self._client.place}, keys {options.prefix}:*"

    @classmethod
    def from_url(cls, url: Url) -> RedisMirrors:
        return cls(url, url.options(RedisMirrorOptions))

    def table(self, table: MirrorTable) -> RedisMirror:
        name = f"{table.app}:{table.name}"
        return RedisMirror(self._client, table, f"{self._prefix}:{name}", f"{self._prefix}-mirror:{name}")

    async def check(self) -> str:
        info = await self._client.call(b"INFO", b"server")
        lines = dict(line.partition(":")[::2] for line in info.decode(errors="replace").splitlines())
        return f"Redis {lines.get('redis_version', '?')} at {self._client.place}"

    async def close(self) -> None:
        await self._client.close()


class RedisMirror:
    def __init__(self, client: _Client, table: MirrorTable, rows: str, places: str) -> None:
        self._client, self._table = client, table
        self._rows, self._places = rows.encode(), places.encode()

    async def claim(self, partition: int, epoch: int) -> Place | None:
        answer = await self._client.call(b"EVAL", CLAIM, 2, self._rows, self._places, partition, epoch)
        if answer[0]:
            raise self._fenced(partition, epoch, answer[0])
        return None if answer[1] is None else Place(int(answer[1]), answer[2])

    async def apply(
        self,
        partition: int,
        changes: Mapping[bytes, bytes | None],
        since: Place | None,
        place: Place | None,
        epoch: int,
    ) -> None:
        position, note = (b"", b"") if place is None else (place.position, place.note)
        rows = [part for key, value in changes.items() if value is not None for part in (key, value)]
        gone = [key for key, value in changes.items() if value is None]
        about = (partition, epoch, b"" if since is None else since.position, position, note, len(rows) // 2)
        owner = await self._client.call(b"EVAL", APPLY, 2, self._rows, self._places, *about, *rows, *gone)
        if owner == b"lost":
            raise MirrorError(f"{self._rows.decode()} on Redis at {self._client.place} has lost a part of what it had")
        if owner:
            raise self._fenced(partition, epoch, owner)

    async def keys(self, partition: int) -> AsyncIterator[Sequence[bytes]]:
        """Looks at the keys of all partitions, for they lie in one hash."""
        cursor = b"0"
        while True:
            cursor, pairs = await self._client.call(b"HSCAN", self._rows, cursor, b"COUNT", 1000)
            partition_of, partitions = self._table.partition_of, self._table.partitions
            mine = [key for key in pairs[::2] if partition_of(key, partitions) == partition]
            if mine:
                yield mine
            if cursor == b"0":
                return

    def _fenced(self, partition: int, epoch: int, owner: bytes) -> Fenced:
        where = f"{self._rows.decode()} partition {partition}"
        return Fenced(f"{where}: epoch {epoch} is not that of its owner, {owner.decode()}; nothing was written")


class _ServerSaid(Exception):
    """An error among the answers."""


class _Client:
    """A connection that is made when it is needed, and dropped when anything about it is in doubt."""

    def __init__(self, url: Url, options: RedisMirrorOptions) -> None:
        self._url, self._timeout = url, options.timeout
        self._addresses = url.addresses(6379)
        path = url.path.strip("/")
        if path and not path.isdigit():
            raise ConfigurationError(f"{url}: the path of a redis:// URL is the number of a database: redis://host/3")
        self._database = path or "0"
        self._tls = tls_context(url, "rediss", options)
        self._turn = asyncio.Lock()
        self._wire: tuple[asyncio.StreamReader, asyncio.StreamWriter, hiredis.Reader] | None = None
        hosts = ",".join(f"{host}:{port}" for host, port in self._addresses)
        self.place = f"{hosts}/{self._database}" if path else hosts

    async def call(self, *command: bytes | int) -> Any:
        async with self._turn:
            try:
                async with asyncio.timeout(self._timeout):
                    if self._wire is None:
                        await self._connect()
                    return await self._ask(*command)
            except _ServerSaid as error:
                if str(error).startswith(("READONLY", "LOADING", "MASTERDOWN")):
                    await self._drop()  # the primary may be at another address by now
                    self._addresses.append(self._addresses.pop(0))
                raise self._explain(error) from None
            except TimeoutError:
                await self._drop()
                raise self._explain(f"no answer within {self._timeout:g} s") from None
            except (OSError, EOFError, hiredis.ProtocolError) as error:
                await self._drop()
                raise self._explain(error) from None
            except BaseException:  # cancelled: an answer may still be on its way
                await self._drop()
                raise

    def _explain(self, error: object) -> MirrorError:
        said = self._url.redact(str(error) or type(error).__name__)
        return MirrorError(f"the mirror on Redis at {self.place}: {said}")

    async def _connect(self) -> None:
        trouble: OSError | None = None
        for host, port in list(self._addresses):
            try:
                reader, writer = await asyncio.open_connection(host, port, ssl=self._tls)
                break
            except OSError as error:
                trouble = error
        else:
            raise trouble or OSError("no address")
        self._wire = reader, writer, hiredis.Reader(replyError=_ServerSaid)
        try:
            if self._url.password is not None:
                who = [self._url.username] if self._url.username else []
                await self._ask(b"AUTH", *(part.encode() for part in (*who, self._url.password)))
            if self._database != "0":
                await self._ask(b"SELECT", self._database.encode())
        except _ServerSaid:  # as it is, it would lead to another database
            await self._drop()
            raise

    async def _ask(self, *command: bytes | int) -> Any:
        assert self._wire is not None
        reader, writer, parser = self._wire
        writer.write(hiredis.pack_command(command))  # type: ignore[arg-type] # hiredis types it as one of a single item
        await writer.drain()
        while (answer := parser.gets()) is False:
            data = await reader.read(1 << 16)
            if not data:
                raise EOFError("the server has closed the connection")
            parser.feed(data)
        if isinstance(answer, _ServerSaid):
            raise answer
        return answer

    async def _drop(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            wire[1].transport.abort()
            with contextlib.suppress(OSError):
                await wire[1].wait_closed()

    async def close(self) -> None:
        async with self._turn:
            await self._drop()
