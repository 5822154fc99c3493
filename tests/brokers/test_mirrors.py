"""Mirrors on a real Redis and a real PostgreSQL, read as other programs read them."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn, Protocol

import asyncpg
import pytest
import redis
from listing import listed
from thalweg import App, Stream
from thalweg.errors import ConfigurationError, Fenced, MirrorError
from thalweg.mirror import Mirror, Mirrors, MirrorTable, Place
from thalweg.partitioner import murmur2_partitioner
from thalweg.registry import load_mirrors
from thalweg.stores.postgres_mirror import PostgresMirror
from thalweg.stores.redis_mirror import RedisMirror
from thalweg.url import Url

from brokers.redis_server import Server as RedisServer

APP = "bank"
MINE = 1000
"""An epoch."""

REDIS = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379")
POSTGRES = os.environ.get("POSTGRES_URL", "postgresql://postgres@127.0.0.1:5432/postgres")


class Other(Protocol):
    """Another program, which only reads, and now and then takes an axe to the database."""

    url: str

    async def rows(self, table: str) -> dict[Any, Any]: ...
    async def wipe(self) -> None: ...


class RedisReader:
    def __init__(self, server: str) -> None:
        self.prefix = f"test-{secrets.token_hex(6)}"
        self.url = f"{server}?prefix={self.prefix}&timeout=3"
        self.client = redis.Redis.from_url(server)

    async def rows(self, table: str) -> dict[Any, Any]:
        return dict(self.client.hgetall(f"{self.prefix}:{APP}:{table}"))

    async def wipe(self) -> None:
        for key in list(self.client.scan_iter(f"{self.prefix}*", count=1000)):
            self.client.delete(key)


class PostgresReader:
    def __init__(self, server: str) -> None:
        self.server, self.schema = server, f"test-{secrets.token_hex(6)}"
        self.url = f"{server}?schema={self.schema}&timeout=3"

    async def query(self, text: str) -> list[Any]:
        connection = await asyncpg.connect(self.server)
        try:
            return list(await connection.fetch(text))
        finally:
            await connection.close()

    async def rows(self, table: str) -> dict[Any, Any]:
        try:
            found = await self.query(f'SELECT key, value FROM "{self.schema}"."{table}"')
        except asyncpg.UndefinedTableError:
            return {}
        as_bytes = [tuple(part if isinstance(part, bytes) else part.encode() for part in row) for row in found]
        return dict(as_bytes)

    async def wipe(self) -> None:
        await self.query(f'DROP SCHEMA IF EXISTS "{self.schema}" CASCADE')


@pytest.fixture(params=["redis", "postgres"])
async def other(
    request: pytest.FixtureRequest, broker_missing: Callable[[str, str], NoReturn]
) -> AsyncIterator[RedisReader | PostgresReader]:
    """The shared server, under a name of this test's own."""
    reader: RedisReader | PostgresReader
    reader = RedisReader(REDIS) if request.param == "redis" else PostgresReader(POSTGRES)
    try:
        await reader.wipe()
    except (redis.RedisError, OSError) as error:
        broker_missing(request.param, str(error))
    yield reader
    await reader.wipe()


def table(name: str = "totals", key: str = "text", value: str = "json", partitions: int = 4) -> MirrorTable:
    return MirrorTable(APP, name, partitions, key, value, murmur2_partitioner)  # type: ignore[arg-type]


@asynccontextmanager
async def opened(url: str, *tables: MirrorTable) -> AsyncIterator[list[Mirror]]:
    mirrors: Mirrors = load_mirrors(url)
    yield [mirrors.table(one) for one in tables or (table(),)]
    await mirrors.close()
    await mirrors.close()


# --- the contract ------------------------------------------------------------------------------------------------


async def test_what_is_applied_is_there_with_its_place(other: Other) -> None:
    async with opened(other.url) as (mirror,):
        assert await mirror.claim(0, MINE) is None
        first = Place(7, b"\x00note\xff")
        await mirror.apply(0, {b"ada": b"1", "ü\N{SNOWMAN}".encode(): b"2", b"": b"3"}, None, first, MINE)
        assert await other.rows("totals") == {b"ada": b"1", "ü\N{SNOWMAN}".encode(): b"2", b"": b"3"}
        await mirror.apply(0, {b"ada": b"10", b"": None, b"never there": None}, first, Place(1 << 62, b""), MINE)
        assert await other.rows("totals") == {b"ada": b"10", "ü\N{SNOWMAN}".encode(): b"2"}
    async with opened(other.url) as (again,):
        assert await again.claim(0, MINE + 1) == Place(1 << 62, b"")
        assert await again.claim(1, MINE + 1) is None
        await again.apply(0, {}, Place(1 << 62, b""), None, MINE + 1)
        assert await again.claim(0, MINE + 1) is None


@pytest.mark.parametrize(("key", "value"), [("bytes", "bytes"), ("text", "text"), ("json", "json"), ("json", "bytes")])
async def test_keys_and_values_lie_in_their_forms(other: Other, key: str, value: str) -> None:
    keys = {"bytes": [bytes(range(256)), b""], "text": [b"a'b\"\\", "\N{SNOWMAN}".encode()], "json": [b"5", b'"x"']}[
        key
    ]
    values = {"bytes": [b"\x00\xff", b""], "text": [b"it's", b""], "json": [b'{"a": [1, null]}', b"null"]}[value]
    rows = dict(zip(keys, values, strict=True))
    async with opened(other.url, table(key=key, value=value)) as (mirror,):
        await mirror.claim(0, MINE)
        await mirror.apply(0, rows, None, Place(1, b""), MINE)
        assert await other.rows("totals") == rows
        assert sorted([k async for page in mirror.keys(0) for k in page]) == sorted(
            k for k in keys if isinstance(other, PostgresReader) or murmur2_partitioner(k, 4) == 0
        )


async def test_a_stale_owner_changes_nothing(other: Other) -> None:
    async with opened(other.url) as (old,), opened(other.url) as (new,):
        await old.claim(0, MINE)
        await old.apply(0, {b"k": b"1"}, None, Place(1, b""), MINE)
        assert await new.claim(0, MINE + 1) == Place(1, b"")
        with pytest.raises(Fenced):
            await old.apply(0, {b"k": b"666", b"more": b"1"}, Place(1, b""), Place(2, b""), MINE)
        with pytest.raises(Fenced):
            await old.claim(0, MINE)
        assert await other.rows("totals") == {b"k": b"1"}
        await new.apply(0, {b"k": b"2"}, Place(1, b""), Place(2, b""), MINE + 1)
        with pytest.raises(Fenced):
            await old.apply(0, {b"k": None}, Place(2, b""), None, MINE)
        await old.claim(1, MINE)  # the other partitions are still its own
        assert await other.rows("totals") == {b"k": b"2"}


async def test_a_database_that_lost_a_part_of_what_it_had_says_so(other: Other) -> None:
    async with opened(other.url) as (mirror,):
        await mirror.claim(0, MINE)
        await mirror.apply(0, {b"k": b"1"}, None, Place(1, b""), MINE)
        with pytest.raises(MirrorError, match="lost"):
            await mirror.apply(0, {b"k": b"9"}, Place(5, b""), Place(6, b""), MINE)
        with pytest.raises(MirrorError, match="lost"):
            await mirror.apply(0, {b"k": b"9"}, None, Place(6, b""), MINE)
        with pytest.raises(MirrorError, match="lost"):
            await mirror.apply(2, {b"k": b"9"}, None, Place(6, b""), MINE)  # never claimed
        assert await other.rows("totals") == {b"k": b"1"}
        await other.wipe()
        with pytest.raises(MirrorError):
            await mirror.apply(0, {b"k": b"2"}, Place(1, b""), Place(2, b""), MINE)
        assert await other.rows("totals") == {}
        assert await mirror.claim(0, MINE) is None  # and what is missing is created anew
        await mirror.apply(0, {b"k": b"2"}, None, Place(2, b""), MINE)
        assert await other.rows("totals") == {b"k": b"2"}


async def test_the_keys_of_a_partition_are_all_found_however_many(other: Other) -> None:
    keys: dict[int, set[bytes]] = {partition: set() for partition in range(4)}
    for number in range(9000):
        key = f"key-{number}".encode()
        keys[murmur2_partitioner(key, 4)].add(key)
    async with opened(other.url) as (mirror,):
        for partition, mine in keys.items():
            await mirror.claim(partition, MINE)
            await mirror.apply(partition, dict.fromkeys(mine, b"1"), None, Place(1, b""), MINE)
        for partition, mine in keys.items():
            assert {key async for page in mirror.keys(partition) for key in page} == mine
    assert len(await other.rows("totals")) == 9000


async def test_a_cancelled_call_has_happened_or_not_and_the_mirror_still_works(other: Other) -> None:
    async with opened(other.url) as (mirror,):
        place = await mirror.claim(0, MINE)
        for number in range(40):
            rows = {f"{number}-{n}".encode(): b"1" for n in range(50)}
            applying = asyncio.create_task(mirror.apply(0, rows, place, Place(number + 1, b""), MINE))
            await asyncio.sleep(number * 0.0001)
            applying.cancel()
            await asyncio.gather(applying, return_exceptions=True)
            before, place = place, await mirror.claim(0, MINE)
            there = sum(key.startswith(f"{number}-".encode()) for key in await other.rows("totals"))
            assert (place, there) in ((before, 0), (Place(number + 1, b""), 50))
    assert len(asyncio.all_tasks()) == 1


async def test_many_calls_at_once(other: Other) -> None:
    tables = [table(f"t{number}") for number in range(5)]
    async with opened(other.url, *tables) as mirrors:

        async def feed(mirror: Mirror, partition: int) -> None:
            place = await mirror.claim(partition, MINE)
            for number in range(10):
                following = Place(number, b"")
                await mirror.apply(partition, {f"{partition}-{number}".encode(): b"1"}, place, following, MINE)
                place = following

        await asyncio.gather(*(feed(mirror, partition) for mirror in mirrors for partition in range(4)))
    for one in tables:
        assert len(await other.rows(one.name)) == 40


# --- what goes wrong -----------------------------------------------------------------------------------------------


async def test_what_another_program_uses_under_the_name_is_left_alone(other: Other) -> None:
    if isinstance(other, RedisReader):
        other.client.set(f"{other.prefix}:{APP}:totals", "mine")
        says = "WRONGTYPE"
    else:
        assert isinstance(other, PostgresReader)
        await other.query(f'CREATE SCHEMA "{other.schema}"')
        await other.query(f'CREATE TABLE "{other.schema}".totals (key int, value text)')
        says = "has the columns key integer, value text"
    async with opened(other.url) as (mirror,):
        if isinstance(other, RedisReader):
            await mirror.claim(0, MINE)
            with pytest.raises(MirrorError, match=says):
                await mirror.apply(0, {b"k": b"1"}, None, Place(1, b""), MINE)
            assert other.client.get(f"{other.prefix}:{APP}:totals") == b"mine"
        else:
            with pytest.raises(MirrorError, match=says):
                await mirror.claim(0, MINE)


@pytest.mark.parametrize("scheme", ["redis", "postgresql"])
async def test_who_cannot_be_reached_is_told_within_the_time_out_and_without_the_password(scheme: str) -> None:
    with socket.socket() as silent:  # takes connections and says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        for port in (silent.getsockname()[1], 1):
            url = f"{scheme}://me:hunter2@127.0.0.1:{port}/0?timeout=0.2"
            async with opened(url) as (mirror,), asyncio.timeout(5):
                with pytest.raises(MirrorError, match=f"127.0.0.1:{port}") as caught:
                    await mirror.claim(0, MINE)
                assert "hunter2" not in str(caught.value)


async def refuses(url: str, says: str) -> None:
    async with opened(url) as (mirror,):
        for _ in range(2):  # and goes on doing so
            with pytest.raises(MirrorError, match=says) as caught:
                await mirror.claim(0, MINE)
            assert "hunter2" not in str(caught.value)


async def test_what_postgresql_refuses_is_told_and_changes_nothing(
    broker_missing: Callable[[str, str], NoReturn],
) -> None:
    place, role = Url(POSTGRES).addresses(5432)[0], f"reader_{secrets.token_hex(4)}"
    try:
        admin = await asyncpg.connect(POSTGRES)
    except OSError as error:
        broker_missing("postgres", str(error))
    await admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'hunter2'")
    try:
        url = f"postgresql://{role}:hunter2@{place[0]}:{place[1]}"
        for database, says in (("no-such", "does not exist"), ("postgres", "permission denied")):
            await refuses(f"{url}/{database}?schema=of_{role}", says)
        assert await admin.fetchval("SELECT to_regnamespace($1)", f"of_{role}") is None
    finally:
        await admin.execute(f"DROP ROLE {role}")
        await admin.close()


async def test_what_redis_refuses_is_told_and_changes_nothing(
    tmp_path: Path, broker_missing: Callable[[str, str], NoReturn]
) -> None:
    if shutil.which("redis-server") is None:
        broker_missing("redis", "tests that fill the server start one of their own")
    server = RedisServer(tmp_path)
    server.start("--requirepass", "s3cret")
    try:
        with redis.Redis(port=server.port, password="s3cret") as other:
            other.execute_command("ACL", "SETUSER", "reader", "on", ">hunter2", "~*", "+@all", "-@write")
            for user, database, says in (
                ("default:hunter2", "", "WRONGPASS"),
                ("reader:hunter2", "", "can't run this command"),
                (":s3cret", "/99", "out of range"),
                (":s3cret", "", "OOM"),
            ):
                if says == "OOM":
                    other.config_set("maxmemory", "1mb")
                await refuses(server.url.replace("//", f"//{user}@") + database, says)
            assert other.dbsize() == 0
    finally:
        server.kill()


async def test_rows_that_postgresql_cannot_hold_are_left_out_and_told_of(
    broker_missing: Callable[[str, str], NoReturn], caplog: pytest.LogCaptureFixture
) -> None:
    other = PostgresReader(POSTGRES)
    try:
        await other.wipe()
    except OSError as error:
        broker_missing("postgres", str(error))
    rows = {f"k{number}".encode(): b"1" for number in range(20)}
    odd = {b"nul": b'"\\u0000"', b"a\x00b": b"1", random.Random(1).randbytes(3000).hex().encode(): b"1"}
    async with opened(other.url) as (mirror,):
        await mirror.claim(0, MINE)
        await mirror.apply(0, {b"nul": b"5"}, None, Place(1, b""), MINE)
        with caplog.at_level(logging.WARNING):
            await mirror.apply(0, {**rows, **odd}, Place(1, b""), Place(2, b""), MINE)
        assert await other.rows("totals") == rows  # no stale value either
        assert caplog.text.count("a row is left out") == 3
        await mirror.apply(0, dict.fromkeys(odd), Place(2, b""), Place(3, b""), MINE)
    await other.wipe()


async def test_a_name_that_postgresql_would_cut_off_is_refused() -> None:
    mirrors = load_mirrors(POSTGRES)
    for name in ("x" * 64, "thalweg_mirrors"):
        with pytest.raises(ConfigurationError, match="cannot name a table there"):
            mirrors.table(table(name))


# --- programs ------------------------------------------------------------------------------------------------------


def make_program(mirror: str | None, broker: str, store: str = "memory://") -> tuple[App, Any, Any]:
    app = App(APP, broker=broker, store=store, partitions=4, lease=2.0, mirror=mirror)
    payments = app.topic("payments", key=str, value=int)
    totals = app.table("totals", key=str, value=int, default=int)

    @app.agent(payments)
    async def add(stream: Stream[int]) -> None:
        async for event in stream.events():
            if event.value == 0 and event.key in totals:
                del totals[event.key]
            else:
                totals[event.key] += event.value

    return app, payments, totals


async def eventually(other: Other, rows: Callable[[], dict[bytes, bytes]], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while (there := await other.rows("totals")) != (wanted := rows()):
        assert time.monotonic() < end, f"{len(there)} rows there, {len(wanted)} wanted"
        await asyncio.sleep(0.02)


def encoded(totals: Any) -> dict[bytes, bytes]:
    return {key.encode(): str(value).encode() for key, value in listed(totals).items()}


async def test_other_programs_read_what_a_table_holds(other: Other) -> None:
    app, payments, totals = make_program(other.url, f"memory://{secrets.token_hex(6)}")
    async with app:
        await payments.send_many([(f"a{number % 100}", number) for number in range(5000)])
        await payments.send_many([(f"a{number}", 0) for number in range(10)])
        amounts = Counter({f"a{number % 100}": 0 for number in range(5000)})
        for number in range(5000):
            amounts[f"a{number % 100}"] += number
        state = {key.encode(): str(value).encode() for key, value in amounts.items() if int(key[1:]) >= 10}
        await eventually(other, lambda: state)
        assert encoded(totals) == state
        if isinstance(other, RedisReader) and shutil.which("redis-cli"):
            port = other.client.connection_pool.connection_kwargs["port"]
            command = ["redis-cli", "-p", str(port), "HGET", f"{other.prefix}:bank:totals", "a42"]
            asked = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=True)
            assert asked.stdout.strip() == state[b"a42"]
        if isinstance(other, PostgresReader):
            found = await other.query(f"SELECT value::int FROM \"{other.schema}\".totals WHERE key = 'a42'")
            assert found[0][0] == int(state[b"a42"])
            found = await other.query(f'SELECT sum(value::int) FROM "{other.schema}".totals')
            assert found[0][0] == sum(totals.values())
    assert await other.rows("totals") == state


async def test_a_mirror_declared_later_is_filled_once_and_then_goes_on_from_where_it_was(
    other: Other, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fills = 0

    def counted(real: Callable[[Any, int], Any]) -> Callable[[Any, int], Any]:
        def keys(mirror: Any, partition: int) -> Any:
            nonlocal fills
            fills += 1
            return real(mirror, partition)

        return keys

    for kind in (RedisMirror, PostgresMirror):
        monkeypatch.setattr(kind, "keys", counted(kind.keys))
    broker = f"sqlite:///{tmp_path}/broker.db"
    filled = []
    for round_, mirror in enumerate([None, other.url, None, other.url]):
        app, payments, totals = make_program(mirror, broker)
        async with app:
            await payments.send_many([(f"a{number % 300}", 1) for number in range(3000)])
            while sum(listed(totals).values()) < 3000 * (round_ + 1):  # noqa: ASYNC110 - tables tell nobody when they change
                await asyncio.sleep(0.02)
            if mirror is not None:
                await eventually(other, lambda totals=totals: encoded(totals))
        filled.append(fills)
    assert filled == [0, 4, 4, 4]  # what it had missed came from the journal


@pytest.mark.alone
async def test_an_owner_killed_in_the_midst_of_feeding_leaves_nothing_that_stays_wrong(
    other: Other, tmp_path: Path
) -> None:
    broker, store = f"sqlite:///{tmp_path}/broker.db", f"sqlite:///{tmp_path}/state"
    chance = random.Random(3)
    history = [(f"a{chance.randrange(400)}", chance.randrange(4)) for _ in range(300_000)]
    app, payments, _ = make_program(other.url, broker, store)
    async with app.client():
        await payments.send_many(history)
    states: list[dict[Any, Any]] = [{}]
    command = [sys.executable, __file__, other.url, broker, store]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    for _ in range(5):
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, env=environment)
        assert process.stdout is not None
        assert await process.stdout.readline() == b"up\n"
        async with asyncio.timeout(30):
            while await other.rows("totals") == states[-1]:  # noqa: ASYNC110 - until it feeds
                await asyncio.sleep(0.001)
        await asyncio.sleep(chance.uniform(0.0, 0.02))
        process.send_signal(signal.SIGKILL)
        assert await process.wait() == -signal.SIGKILL
        states.append(await other.rows("totals"))
    truth: Counter[str] = Counter()
    for key, amount in history:
        if amount == 0 and key in truth:
            del truth[key]
        else:
            truth[key] += amount
    expected = {key.encode(): str(value).encode() for key, value in truth.items()}
    assert all(state != expected for state in states)  # or it was not killed in the midst of it
    app, payments, totals = make_program(other.url, broker, store)
    async with app:
        await eventually(other, lambda: expected)
        assert encoded(totals) == expected


async def run(mirror: str, broker: str, store: str) -> None:
    """What the process does that is killed."""
    app, _, _ = make_program(mirror, broker, store)
    async with app:
        print("up", flush=True)
        await asyncio.sleep(60)


# --- a database of one's own, which dies ---------------------------------------------------------------------------


class Server:
    """One that a test may kill. `durable` as far as the test needs: it keeps what it has acknowledged."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.folder = Path(tempfile.mkdtemp(prefix="thalweg-mirror-"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.user = "postgres" if name == "postgres" and os.geteuid() == 0 else None
        if name == "redis":
            self.url = f"redis://127.0.0.1:{self.port}"
            found = shutil.which("redis-server")
            self.command = [found or "", *f"--port {self.port} --bind 127.0.0.1 --dir {self.folder}".split()]
            self.command += ["--appendonly", "yes", "--appendfsync", "always"]
        else:
            self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
            bins = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
            found = shutil.which("postgres", path=str(bins[-1]) if bins else None)
            self.command = [found or "", "-D", f"{self.folder}/data", "-p", str(self.port)]
            self.command += ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
            if found:
                if self.user:
                    shutil.chown(self.folder, self.user)
                initdb = [str(Path(found).with_name("initdb")), "-D", f"{self.folder}/data", "-U", "postgres"]
                subprocess.run(
                    [*initdb, "-A", "trust", "--no-sync"],
                    check=True,
                    user=self.user,
                    stdout=subprocess.DEVNULL,
                    cwd="/",
                )
        self.found = bool(found)

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command, user=self.user, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/"
        )

    async def ready(self, reader: Other) -> None:
        while True:
            try:
                await reader.rows("totals")
                return
            except (redis.RedisError, OSError, asyncpg.PostgresError):
                assert self.process.poll() is None
                await asyncio.sleep(0.02)

    def kill(self) -> None:
        """With all its children: those of PostgreSQL end by themselves when the first process is gone."""
        self.process.kill()
        self.process.wait()

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(params=["redis", "postgres"])
def server(request: pytest.FixtureRequest, broker_missing: Callable[[str, str], NoReturn]) -> Iterator[Server]:
    server = Server(request.param)
    if not server.found:
        broker_missing(request.param, "tests that stop the server start one of their own, and need its program")
    server.start()
    yield server
    server.remove()


@pytest.mark.parametrize("empties", [False, True])
async def test_a_mirror_that_dies_and_comes_back_catches_up_and_nobody_waited_for_it(
    server: Server, empties: bool, caplog: pytest.LogCaptureFixture
) -> None:
    reader: RedisReader | PostgresReader
    reader = RedisReader(server.url) if server.name == "redis" else PostgresReader(server.url)
    await server.ready(reader)
    app, payments, totals = make_program(reader.url, f"memory://{secrets.token_hex(6)}")
    async with app:
        for round_ in range(3):
            await payments.send_many([(f"a{number % 200}", 1) for number in range(2000)])
            if round_:
                server.kill()  # it may have a part of these, or be in the midst of one
            await payments.send_many([(f"a{number % 200}", 1) for number in range(2000)])
            await payments.send(0, key=f"a{round_}")
            if round_:
                async with asyncio.timeout(5):
                    while totals.get(f"a{round_}") is not None:  # noqa: ASYNC110 - the worker goes on
                        await asyncio.sleep(0.01)
                    while "its mirror is behind" not in caplog.text:  # noqa: ASYNC110 - and says what is the matter
                        await asyncio.sleep(0.01)
                server.start()
                await server.ready(reader)
                if empties:  # a mirror that had caught up before learns of it by the commits that follow
                    await reader.wipe()
                    await payments.send_many([(key, 1) for key in list(totals)])
            await eventually(reader, lambda: encoded(totals))
        assert len(encoded(totals)) == 199


if __name__ == "__main__":
    asyncio.run(run(*sys.argv[1:]))
