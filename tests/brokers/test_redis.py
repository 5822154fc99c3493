"""Whole programs and single calls on a real Redis; those that hurt the server start one of their own."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NoReturn

import pytest
import redis
from thalweg.capabilities import Commit, Log
from thalweg.channel import Capability, TopicSpec
from thalweg.errors import AccessDenied, AmbiguousCommit, BrokerError, ConfigurationError, Fenced, Gap, UnknownOption
from thalweg.message import Delivery, Message
from thalweg.transports.redis import RedisTransport
from thalweg.transports.redis.connection import Connection, _Wire
from thalweg.url import Url

from brokers.program_runs import LONG, becomes, eventually, hang, opened, survives_restarts
from brokers.redis_server import Server


@pytest.fixture
def server(tmp_path: Path, broker_missing: Callable[[str, str], NoReturn]) -> Iterator[Server]:
    if shutil.which("redis-server") is None:
        broker_missing("redis", "tests that stop the server start one of their own, and need redis-server on PATH")
    server = Server(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture
async def broker(broker_missing: Callable[[str, str], NoReturn]) -> AsyncIterator[str]:
    """The shared server, under a prefix of this test's own."""
    shared = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379")
    prefix = f"test-{secrets.token_hex(6)}-"
    client = redis.Redis.from_url(shared)
    try:
        client.ping()
    except redis.RedisError as error:
        broker_missing("redis", str(error))
    yield f"{shared}{'&' if '?' in shared else '?'}prefix={prefix}"
    for key in list(client.scan_iter(f"*{prefix}*", count=1000)):
        client.delete(key)
    client.close()


@asynccontextmanager
async def opened_log(url: str, name: str = "t") -> AsyncIterator[tuple[RedisTransport, Log]]:
    async with opened(url) as transport:
        await transport.declare([TopicSpec(name, partitions=1)])
        yield transport, await transport.log(name)


async def values(log: Log, partition: int = 0, after: int | None = None) -> list[bytes | None]:
    batch = (await log.read({partition: after}, LONG, LONG, 0)).get(partition)
    return [record.value for record in batch.records] if batch else []


# --- whole programs ------------------------------------------------------------------------------------------


async def test_a_server_that_restarts_loses_nothing_and_the_program_goes_on_by_itself(server: Server) -> None:
    await survives_restarts(server, server.url)


async def test_a_connection_that_is_lost_as_it_is_made_leaves_nobody_waiting(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened_log(server.url) as (_, log):
        await log.append({0: [Message(b"0")]})
        connection: Connection = log._connection  # type: ignore[attr-defined]

        def cut(wire: _Wire) -> None:
            connection._connected(wire)
            wire.abort(ConnectionError("cut"))

        monkeypatch.setattr(connection._connecting, "_made", cut)
        connection.drop()
        async with asyncio.timeout(60):
            with pytest.raises(AmbiguousCommit):
                await log.append({0: [Message(b"1")]})
        monkeypatch.undo()
        await log.append({0: [Message(b"2")]})
        assert await values(log) == [b"0", b"2"]


# --- what others do to the data ------------------------------------------------------------------------------


async def test_other_programs_write_and_read_a_topic_with_any_client(server: Server) -> None:
    async with opened_log(server.url) as (_, log):
        with server.client as other:
            other.xadd("{0}:t", {"key": "ada", "value": "1", "header:trace": "x"})
            other.execute_command("XADD", "{0}:t", "*", "header:a", "1", "header:a", "2", "unknown", "?")
            other.execute_command("XADD", "{0}:t", "*", "key", "k", "value", "v", "timestamp", "yesterday")
        batch = (await log.read({0: None}, LONG, LONG, 0))[0]
        assert [(r.key, r.value, r.headers) for r in batch.records] == [
            (b"ada", b"1", (("trace", b"x"),)),
            (None, None, (("a", b"1"), ("a", b"2"))),
            (b"k", b"v", ()),
        ]
        assert all(record.timestamp > 1_500_000_000_000 for record in batch.records)
        await log.append({0: [Message(b"2", b"bob", (("n", b"h"),), 1_700_000_000_000)]})
        with server.client as other:
            (_, fields) = other.xrevrange("{0}:t", count=1)[0]
        assert fields == {b"key": b"bob", b"value": b"2", b"header:n": b"h", b"timestamp": b"1700000000000"}


async def test_an_entry_whose_id_is_no_position_is_refused_by_name(server: Server) -> None:
    async with opened_log(server.url) as (_, log):
        with server.client as other:
            other.xadd("{0}:t", {"value": "1"}, id="5-18446744073709551615")
        with pytest.raises(BrokerError, match="5-18446744073709551615"):
            await log.read({0: None}, 1, LONG, 0)


async def test_what_others_trim_is_a_gap_for_all_but_a_reader_at_the_end(server: Server) -> None:
    async with opened_log(server.url) as (_, log):
        places = (await log.append({0: [Message(b"%d" % n) for n in range(5)]}))[0]
        with server.client as other:
            other.xtrim("{0}:t", maxlen=0, approximate=False)
        assert await values(log, after=places[-1]) == []
        with pytest.raises(Gap):
            await values(log, after=places[-2])
        assert await values(log) == []
        await log.append({0: [Message(b"5")]})
        with pytest.raises(Gap):
            await values(log, after=places[0])


async def test_a_stream_that_was_deleted_is_a_gap(server: Server) -> None:
    async with opened_log(server.url) as (_, log):
        last = (await log.append({0: [Message(b"1")]}))[0][-1]
        with server.client as other:
            other.delete("{0}:t")
        with pytest.raises(Gap):
            await values(log, after=last)


async def test_scripts_that_the_server_forgot_are_sent_again(server: Server) -> None:
    async with opened_log(server.url) as (_, log):
        with server.client as other:
            other.script_flush()
        await log.append({0: [Message(b"1")]})
        assert await values(log) == [b"1"]


async def test_a_key_of_another_program_stops_the_whole_commit(server: Server) -> None:
    async with opened(server.url) as transport:
        await transport.declare([TopicSpec("j", partitions=1), TopicSpec("a", partitions=1), TopicSpec("b")])
        claim = await transport.claim("j", 0, Message(b"m"))
        with server.client as other:
            other.set("{0}:b", "mine")
        outputs = {("a", 0): [Message(b"1")], ("b", 0): [Message(b"2")]}
        with pytest.raises(BrokerError, match="WRONGTYPE"):
            await transport.commit({claim: Commit([Message(b"r")], outputs)})
        assert await values(await transport.log("a")) == []
        assert await values(await transport.log("j")) == [b"m"]


async def test_retention_drops_what_is_old_and_readers_of_it_are_told(server: Server) -> None:
    async with opened(server.url) as transport:
        await transport.declare([TopicSpec("t", partitions=1, retention=0.3)])
        log = await transport.log("t")
        places = (await log.append({0: [Message(b"1"), Message(b"2")]}))[0]
        assert await values(log) == [b"1", b"2"]
        await becomes(lambda: log.bounds(0), lambda bounds: bounds.first is None)
        assert await values(log, after=places[1]) == []
        with pytest.raises(Gap):
            await values(log, after=places[0])


async def test_many_records_at_once_keep_their_order_and_positions(server: Server) -> None:
    async with opened_log(server.url) as (_, log):
        with server.client as other:  # the clock went back: Redis goes on counting within the last millisecond
            other.xadd("{0}:t", {"value": "first"}, id=f"{int(time.time() * 1000) + 60_000}-1048570")
        places = [*(await log.append({0: [Message(b"%d" % n) for n in range(10)]}))[0]]
        places += (await log.append({0: [Message(b"%d" % n) for n in range(10, 20)]}))[0]
        batch = (await log.read({0: None}, LONG, LONG, 0))[0]
        assert [record.value for record in batch.records] == [b"first", *(b"%d" % n for n in range(20))]
        assert list(batch.positions)[1:] == places == sorted(set(places))


# --- what a server refuses -----------------------------------------------------------------------------------


async def test_a_full_memory_is_a_clear_error_and_loses_nothing(server: Server) -> None:
    async with opened_log(server.url + "?message_bytes=400000000") as (transport, log):
        await transport.declare([TopicSpec("j", partitions=1), TopicSpec("q", queue=True)])
        claim = await transport.claim("j", 0, Message(b"m"))
        queue = await transport.channel("q", "g")
        await queue.put([Message(b"1")])
        (delivery,) = await queue.get(1, 1)
        await log.append({0: [Message(b"1")]})
        with server.client as other:
            other.config_set("maxmemory", "1mb")
            for write in (
                log.append({0: [Message(b"2")]}),
                transport.commit({claim: Commit([Message(b"r")], {("t", 0): [Message(b"2")]})}),
                queue.put([Message(b"2")]),
            ):
                with pytest.raises(BrokerError, match=r"OOM.*maxmemory"):
                    await write
            assert await values(log) == [b"1"]
            await queue.commit([delivery])  # what makes room goes on
            await log.truncate(0, LONG << 60)
            other.config_set("maxmemory", "0")
        await transport.commit({claim: Commit([Message(b"r")], {("t", 0): [Message(b"2")]})})
        assert await values(log) == [b"2"]


async def test_a_wrong_password_is_told_and_not_shown(server: Server) -> None:
    with server.client as other:
        other.config_set("requirepass", "s3cret")
        other.auth("s3cret")
        url = server.url.replace("//", "//default:hunter2@")
        for wrong, said in ((url, "WRONGPASS"), (server.url, "NOAUTH")):
            with pytest.raises(BrokerError, match=said) as caught:
                await RedisTransport.from_url(Url(wrong)).open()
            assert "hunter2" not in str(caught.value)
        async with opened(server.url.replace("//", "//:s3cret@") + "/3") as transport:
            await transport.declare([TopicSpec("t")])
            assert "s3cret" not in transport.description
        assert other.execute_command("INFO", "keyspace").keys() == {"db3"}


async def test_a_user_who_may_only_read_gets_a_clear_error(server: Server) -> None:
    async with opened_log(server.url) as (_, log):
        await log.append({0: [Message(b"1")]})
    with server.client as other:
        other.execute_command("ACL", "SETUSER", "reader", "on", ">pw", "~*", "+@all", "-@write", "-@dangerous", "+info")
    async with opened(server.url.replace("//", "//reader:pw@")) as transport:
        log = await transport.log("t")
        assert await values(log) == [b"1"]
        with pytest.raises(AccessDenied, match="ACL SETUSER"):
            await log.append({0: [Message(b"2")]})
        assert await values(log) == [b"1"]


async def test_an_unreachable_host_is_told_within_the_time_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection, and never answers
        port = silent.getsockname()[1]
        async with asyncio.timeout(5):
            with pytest.raises(BrokerError, match=rf"127.0.0.1:{port}.*no answer within 0.2 s"):
                await RedisTransport.from_url(Url(f"redis://127.0.0.1:{port}?timeout=0.2")).open()
    async with asyncio.timeout(5):
        with pytest.raises(BrokerError, match=f"127.0.0.1:{port}"):
            await RedisTransport.from_url(Url(f"redis://127.0.0.1:{port}")).open()


async def test_a_server_that_hangs_is_told_within_the_time_out(server: Server) -> None:
    async with opened_log(server.url + "?timeout=0.3") as (_, log):
        hang(server.process)
        try:
            async with asyncio.timeout(10):
                with pytest.raises(BrokerError, match="unknown"):
                    await log.append({0: [Message(b"1")]})
        finally:
            server.process.send_signal(signal.SIGCONT)
        await log.append({0: [Message(b"2")]})
        assert (await values(log))[-1] == b"2"


async def test_what_does_not_last_is_warned_of(server: Server) -> None:
    async with opened(server.url) as transport:
        assert transport.warnings == []
    with server.client as other:
        other.config_set("appendfsync", "everysec")
        other.config_set("maxmemory-policy", "allkeys-lru")
        async with opened(server.url) as transport:
            assert [text.partition("=")[0] for text in transport.warnings] == ["appendfsync", "maxmemory-policy"]
        other.config_set("appendonly", "no")
        async with opened(server.url) as transport:
            assert "appendonly=no" in transport.warnings[0]


async def test_a_replica_is_refused(server: Server) -> None:
    with server.client as other:
        other.replicaof("127.0.0.1", server.port + 1)
        with pytest.raises(BrokerError, match="replica"):
            await RedisTransport.from_url(Url(server.url)).open()


async def test_after_a_fail_over_the_new_primary_is_found_and_has_all_that_was_done(
    server: Server, tmp_path: Path
) -> None:
    (tmp_path / "second").mkdir()
    second = Server(tmp_path / "second")
    second.start("--replicaof", "127.0.0.1", str(server.port))
    try:
        both = f"redis://127.0.0.1:{second.port},127.0.0.1:{server.port}"
        with second.client as other:
            await eventually(lambda: other.info("replication")["master_link_status"] == "up")
        async with opened_log(server.url) as (careless, _):
            assert "?replicas=1" in careless.warnings[0]
        async with opened_log(f"{both}?replicas=1&timeout=6") as (transport, log):
            assert transport.warnings == []
            await log.append({0: [Message(b"1")]})
            await asyncio.to_thread(server.kill)
            with second.client as other:
                other.execute_command("REPLICAOF", "NO", "ONE")

            async def found() -> list[bytes | None]:
                try:
                    return await values(log)
                except BrokerError:
                    return []

            assert await becomes(found, bool) == [b"1"]
            with pytest.raises(AmbiguousCommit, match="0 of the 1 replicas"):
                await log.append({0: [Message(b"2")]})
    finally:
        second.kill()


async def test_a_fence_survives_the_servers_death(server: Server) -> None:
    async with opened(server.url) as old, opened(server.url) as new:
        await old.declare([TopicSpec("j", partitions=1)])
        stale = await old.claim("j", 0, Message(b"old"))
        claim = await new.claim("j", 0, Message(b"new"))
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        with pytest.raises(Fenced):
            await old.commit({stale: Commit([Message(b"x")])})
        await new.commit({claim: Commit([Message(b"y")])})
        assert await values(await new.log("j")) == [b"old", b"new", b"y"]


async def test_tls_and_unix_sockets(server: Server, tmp_path: Path) -> None:
    server.kill()
    key, certificate, path = tmp_path / "key.pem", tmp_path / "cert.pem", tmp_path / "redis.sock"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "1"]
    command = [*make, *subject, "-keyout", str(key), "-out", str(certificate)]
    await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)
    tls = ("--tls-port", str(server.port), "--port", "0", "--tls-auth-clients", "no", "--unixsocket", str(path))
    server.start(*tls, "--tls-cert-file", str(certificate), "--tls-key-file", str(key))
    secure = server.url.replace("redis:", "rediss:")
    for url in (f"{secure}?tls_ca={certificate}", f"{secure}?tls_verify=false", f"redis://?socket={path}"):
        async with opened(url) as transport:
            await transport.declare([TopicSpec("t")])
    with pytest.raises(BrokerError, match="certificate"):
        await RedisTransport.from_url(Url(secure)).open()


def test_options_are_checked_when_the_url_is_read() -> None:
    for url, error in (
        ("redis://h?nonsense=1", UnknownOption),
        ("redis://h/orders", ConfigurationError),
        ("redis://h/1?database=2", ConfigurationError),
        ("redis://h?tls_ca=x", ConfigurationError),
        ("rediss://h?tls_ca=/nowhere", ConfigurationError),
    ):
        with pytest.raises(error):
            RedisTransport.from_url(Url(url))


async def test_a_lock_is_kept_while_the_event_loop_is_busy_and_lost_when_the_server_hangs(
    server: Server,
) -> None:
    async with opened(server.url + "?timeout=0.5") as a, opened(server.url) as b:
        assert {Capability.LOCKS, Capability.PEERS} <= a.capabilities
        held = await a.try_lock("x", 0.6)
        assert held is not None
        time.sleep(1.5)  # noqa: ASYNC251 - the point: the loop is stuck, the thread renews
        assert not held.lost.is_set()
        assert await b.try_lock("x", 0.6) is None
        hang(server.process)
        try:
            await asyncio.wait_for(held.lost.wait(), 10)
        finally:
            server.process.send_signal(signal.SIGCONT)
        heir = await becomes(lambda: b.try_lock("x", 0.6), lambda heir: heir is not None)
        assert heir is not None
        assert heir.number > held.number


@pytest.mark.parametrize("queue", [False, True], ids=["log", "queue"])
async def test_what_was_lent_in_an_answer_that_got_lost_comes_again(server: Server, queue: bool) -> None:
    async with opened(f"{server.url}?timeout=0.3&lease=1") as transport:
        await transport.declare([TopicSpec("t", queue=queue)])
        channel = await transport.channel("t", "g")
        await channel.get(1, 0)
        await channel.put([Message(b"1")])
        hang(server.process)
        try:
            with pytest.raises(BrokerError):
                await channel.get(1, 0)
        finally:
            server.process.send_signal(signal.SIGCONT)

        async def got() -> Sequence[Delivery]:
            try:
                return await channel.get(1, 1)
            except BrokerError:
                return []

        (delivery,) = await becomes(got, bool)
        assert delivery.record.value == b"1"
        await channel.commit([delivery])


async def test_a_commit_whose_answer_got_lost_may_be_repeated(server: Server) -> None:
    async with opened(f"{server.url}?timeout=0.3") as transport:
        await transport.declare([TopicSpec("q", queue=True)])
        queue = await transport.channel("q", "g")
        await queue.put([Message(b"1")])
        deliveries = await queue.get(1, 1)
        hang(server.process)
        try:
            with pytest.raises(AmbiguousCommit):
                await queue.commit(deliveries)
        finally:
            server.process.send_signal(signal.SIGCONT)

        async def committed() -> bool:
            try:
                await queue.commit(deliveries)
            except AmbiguousCommit:
                return False
            return True

        await becomes(committed, bool)
        with server.client as other:
            assert other.xlen("queue:{q}:0") == 0
