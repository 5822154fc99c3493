"""A Redis Cluster of the tests' own: all of a program's keys lie in one slot, and the driver follows the slot."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import redis
from missing import missing
from thalweg.capabilities import Commit
from thalweg.channel import TopicSpec
from thalweg.errors import BrokerError, Fenced
from thalweg.message import Message
from thalweg.transports.redis import RedisTransport
from thalweg.url import Url

from brokers.bank import Withdrawal, make_bank
from brokers.program_runs import LONG, becomes, eventually, handled, send_all, values


class Node:
    """One server of a cluster."""

    def __init__(self, folder: Path, port: int, bus: int) -> None:
        self.folder, self.port, self.bus = folder, port, bus
        folder.mkdir()
        cluster = ["--cluster-enabled", "yes", "--cluster-port", str(bus), "--cluster-node-timeout", "1000"]
        durable = ["--appendonly", "yes", "--appendfsync", "always", "--repl-diskless-sync-delay", "0"]
        self.process = subprocess.Popen(
            [*("redis-server", "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder)), *cluster, *durable],
            stdout=subprocess.DEVNULL,
        )

    @property
    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port)

    def ask(self, *command: str | int | bytes) -> object:
        with self.client as client:
            return client.execute_command(*command)

    @property
    def name(self) -> str:
        found = self.ask("CLUSTER", "MYID")
        return found.decode() if isinstance(found, bytes) else str(found)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Cluster:
    """Three primaries, and perhaps replicas of one of them."""

    def __init__(self, folder: Path, nodes: int = 3) -> None:
        probes = [socket.socket() for _ in range(2 * nodes)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        ports = [probe.getsockname()[1] for probe in probes]
        for probe in probes:
            probe.close()
        self.nodes = [Node(folder / str(n), ports[n], ports[nodes + n]) for n in range(nodes)]

    async def form(self) -> None:
        for node in self.nodes:
            await eventually(lambda node=node: answers(node))  # type: ignore[misc]
        places = [f"127.0.0.1:{node.port}" for node in self.nodes]
        create = ["redis-cli", "--cluster", "create", *places[:3], "--cluster-yes"]
        await asyncio.to_thread(subprocess.run, create, check=True, capture_output=True)
        await self.agree(self.nodes[:3])

    async def agree(self, nodes: Sequence[Node]) -> None:
        for node in nodes:
            await eventually(lambda node=node: "cluster_state:ok" in text(node, "CLUSTER INFO"))  # type: ignore[misc]

    async def replicate(self, primary: Node) -> None:
        """What is not a primary becomes its replica."""
        for node in self.nodes[3:]:
            node.ask("CLUSTER", "MEET", "127.0.0.1", primary.port, primary.bus)
            await eventually(lambda node=node: primary.name in text(node, "CLUSTER NODES"))  # type: ignore[misc]
            node.ask("CLUSTER", "REPLICATE", primary.name)
        await self.agree(self.nodes)
        names = {node.name for node in self.nodes}  # a primary that has not heard of a replica does not vote for it
        for node in self.nodes:
            await eventually(lambda node=node: all(name in text(node, "CLUSTER NODES") for name in names))  # type: ignore[misc]
        replicas = f"connected_slaves:{len(self.nodes) - 3}"
        await eventually(lambda: replicas in text(primary, "INFO replication"))

    def owner(self, slot: int) -> Node:
        for node in self.nodes:
            if node.process.poll() is None and slot in slots_of(node):
                return node
        raise AssertionError(f"nobody has slot {slot}")

    async def move(self, slot: int, source: Node, target: Node, halfway: asyncio.Event, go_on: asyncio.Event) -> None:
        """As `redis-cli --cluster reshard` does; in the middle, it waits."""
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.name)
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.name)
        keys = source.ask("CLUSTER", "GETKEYSINSLOT", slot, 100_000)
        assert isinstance(keys, list)
        for number, key in enumerate(keys):
            if number == len(keys) // 2:
                halfway.set()
                await go_on.wait()
            source.ask("MIGRATE", "127.0.0.1", target.port, key, 0, 5000)
        while rest := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 100_000):
            assert isinstance(rest, list)
            for key in rest:
                source.ask("MIGRATE", "127.0.0.1", target.port, key, 0, 5000)
        for node in (target, source):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", target.name)

    def kill(self) -> None:
        for node in self.nodes:
            node.kill()


def answers(node: Node) -> bool:
    try:
        return bool(node.client.ping())
    except redis.RedisError:
        return False


def text(node: Node, command: str) -> str:
    """What the server says, not what its client library makes of it."""
    with node.client as client:
        client.set_response_callback(command, lambda found: found)
        client.set_response_callback(command.split()[0], lambda found: found)
        found = client.execute_command(command)
    return found.decode() if isinstance(found, bytes) else str(found)


def slots_of(node: Node) -> set[int]:
    (mine,) = [line.split() for line in text(node, "CLUSTER NODES").splitlines() if "myself" in line]
    if "master" not in mine[2]:
        return set()
    ranges = [part.split("-") for part in mine[8:] if not part.startswith("[")]
    return {slot for first, *last in ranges for slot in range(int(first), int((last or [first])[0]) + 1)}


@pytest.fixture(params=[3])
async def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Cluster]:
    """param: how many servers."""
    if shutil.which("redis-server") is None or shutil.which("redis-cli") is None:
        missing("redis", "tests of clusters start one of their own, and need redis-server and redis-cli on PATH")
    cluster = Cluster(tmp_path, request.param)
    try:
        await cluster.form()
        yield cluster
    finally:
        cluster.kill()


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[RedisTransport]:
    transport = RedisTransport.from_url(Url(url))
    await transport.open()
    try:
        yield transport
    finally:
        await transport.close()


def slot_of(node: Node, tag: str) -> int:
    found = node.ask("CLUSTER", "KEYSLOT", tag)
    assert isinstance(found, int)
    return found


async def test_a_program_runs_exactly_once_on_a_cluster_in_one_slot(cluster: Cluster) -> None:
    for node, prefix in zip(cluster.nodes, ("", "shop.", "{odd}"), strict=True):  # any node is an entrance
        url = f"redis://127.0.0.1:{node.port}?prefix={prefix.replace('{', '%7B').replace('}', '%7D')}"
        bank = make_bank(url)
        async with bank.app:
            assert bank.app.guarantee == "exactly_once"
            assert await bank.total.ask(Withdrawal(0, "ada", 5), key="ada") == 5
            assert await bank.total.ask(Withdrawal(1, "ada", 500), key="ada") == 505
            assert await bank.mail.ask("bob") == "BOB"
            await eventually(lambda bank=bank: sorted(bank.mailed) == ["ada", "bob"])  # type: ignore[misc]
        again = make_bank(url)
        async with again.app:
            assert await again.total.ask(Withdrawal(2, "ada", 1), key="ada") == 506
            assert handled(again) == [0, 1, 2]
    first = cluster.nodes[0]
    for tag in ("{thalweg}", "{shop.}", "{odd}"):
        slot = slot_of(first, tag)
        keys = cluster.owner(slot).ask("CLUSTER", "GETKEYSINSLOT", slot, 100_000)
        assert isinstance(keys, list)
        assert keys
        assert all(tag.encode() in key for key in keys)
    used = {slot_of(first, key.decode()) for node in cluster.nodes for key in node.client.keys("*")}
    assert len(used) == 3


async def test_a_foreign_program_finds_a_topic_under_its_name_on_a_cluster(cluster: Cluster) -> None:
    async with opened(f"redis://127.0.0.1:{cluster.nodes[0].port}") as transport:
        assert "cluster" in transport.description
        await transport.declare([TopicSpec("t", partitions=4)])
        log = await transport.log("t")
        with redis.RedisCluster(port=cluster.nodes[1].port, host="127.0.0.1") as other:
            other.xadd("{thalweg}{3}:t", {"key": "ada", "value": "1"})
            assert await values(log, 3) == [b"1"]


async def test_a_slot_that_is_moved_loses_and_repeats_nothing_and_no_call_fails(cluster: Cluster) -> None:
    entrance = cluster.nodes[0]
    slot = slot_of(entrance, "{thalweg}")
    source = cluster.owner(slot)
    target = next(node for node in cluster.nodes if node is not source)
    halfway, go_on, moved = asyncio.Event(), asyncio.Event(), asyncio.Event()
    async with opened(f"redis://127.0.0.1:{entrance.port}") as transport:
        specs = [TopicSpec("t", partitions=2), TopicSpec("q", queue=True), TopicSpec("j", partitions=1)]
        await transport.declare(specs)
        log = await transport.log("t")
        queue, channel = await transport.channel("q", "g"), await transport.channel("t", "g")
        claim = await transport.claim("j", 0, Message(b"m"))
        held = await transport.try_lock("x", 30)
        for _ in range(10):
            await channel.get(1, 0)

        written, got, queued = list[int](), list[bytes | None](), list[bytes | None]()

        async def produce() -> None:
            while not moved.is_set() or len(written) < 100:
                number = len(written)
                await transport.commit(
                    {claim: Commit([Message(b"%d" % number)], {("t", 0): [Message(b"%d" % number)]})}
                )
                await queue.put([Message(b"%d" % number)])
                written.append(number)

        async def consume(which: object, into: list[bytes | None]) -> None:
            assert which in (queue, channel)
            while not (producing.done() and len(into) >= len(written)):
                deliveries = await which.get(10, 0.1)  # type: ignore[attr-defined]
                await which.commit(deliveries)  # type: ignore[attr-defined]
                into += [delivery.record.value for delivery in deliveries]

        producing = asyncio.create_task(produce())
        consuming = [asyncio.create_task(consume(queue, queued)), asyncio.create_task(consume(channel, got))]
        await eventually(lambda: len(written) >= 20)
        waiting = asyncio.create_task(log.read({1: None}, LONG, LONG, 60))
        moving = asyncio.create_task(cluster.move(slot, source, target, halfway, go_on))
        await halfway.wait()
        go_on.set()
        await moving
        moved.set()
        await producing
        await log.append({1: [Message(b"last")]})
        assert [record.value for record in (await waiting)[1].records] == [b"last"]
        await asyncio.gather(*consuming)
        expected = [b"%d" % number for number in written]
        assert await values(log) == expected
        assert await values(await transport.log("j")) == [b"m", *expected]
        assert got == expected
        assert sorted(queued, key=lambda value: int(value or b"")) == expected
        assert cluster.owner(slot) is target
        assert held is not None
        assert not held.lost.is_set()
        async with opened(f"redis://127.0.0.1:{source.port}") as rival:  # the fence has moved along
            await rival.claim("j", 0, Message(b"n"))
            with pytest.raises(Fenced):
                await transport.commit({claim: Commit([Message(b"late")])})


async def test_a_call_in_the_middle_of_a_move_fails_within_its_time_out_and_has_done_nothing(cluster: Cluster) -> None:
    slot = slot_of(cluster.nodes[0], "{thalweg}")
    source = cluster.owner(slot)
    target = next(node for node in cluster.nodes if node is not source)
    halfway, go_on = asyncio.Event(), asyncio.Event()
    async with opened(f"redis://127.0.0.1:{source.port}?timeout=0.5") as transport:
        await transport.declare([TopicSpec("q", queue=True), TopicSpec("t", partitions=1)])
        queue = await transport.channel("q", "g")
        await queue.put([Message(b"%d" % number) for number in range(3)])
        first = await queue.get(2, 1)
        moving = asyncio.create_task(cluster.move(slot, source, target, halfway, go_on))
        await halfway.wait()
        for call in (queue.put([Message(b"x")]), queue.commit(first), queue.get(1, 0)):
            with pytest.raises(BrokerError, match="cluster"):
                await call
        go_on.set()
        await moving
        await queue.commit(first[:1])
        await queue.close()
        heir = await transport.channel("q", "g")
        again = [*await heir.get(10, 1)]
        assert sorted(delivery.record.value or b"" for delivery in again) == [b"1", b"2"]


@pytest.mark.parametrize("cluster", [5], indirect=True, ids=["two replicas"])
async def test_after_a_fail_over_the_promoted_node_is_found_and_has_all_that_was_done(cluster: Cluster) -> None:
    slot = slot_of(cluster.nodes[0], "{thalweg}")
    owner = cluster.owner(slot)
    await cluster.replicate(owner)
    bank = make_bank(f"redis://127.0.0.1:{owner.port}?replicas=1&timeout=5")  # one entrance, and it will die
    async with bank.app:
        await send_all(bank, range(100))
        await eventually(lambda: len(handled(bank)) == 100)
        await asyncio.to_thread(owner.kill)

        async def sent() -> bool:
            try:
                await bank.withdrawals.send(Withdrawal(100, "ada", 1), key="ada")
            except BrokerError:
                return False
            return True

        await becomes(sent, bool, 60)
        await eventually(lambda: len(handled(bank)) > 100, 60)  # partitions come back one by one
        assert handled(bank) == list(range(101))
    assert cluster.owner(slot) is not owner


async def test_a_database_number_is_refused_on_a_cluster(cluster: Cluster) -> None:
    with pytest.raises(BrokerError, match="cluster"):
        await RedisTransport.from_url(Url(f"redis://127.0.0.1:{cluster.nodes[0].port}/3")).open()
