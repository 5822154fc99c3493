"""A Redis Cluster of the tests' own, on free ports."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

import redis

from brokers.program_runs import eventually

__all__ = ["Cluster", "Node", "lacking"]


def lacking() -> str:
    """What this machine lacks for one; empty if nothing."""
    there = shutil.which("redis-server") and shutil.which("redis-cli")
    return "" if there else "tests of clusters start one of their own, and need redis-server and redis-cli on PATH"


class Node:
    """One server of a cluster."""

    def __init__(self, folder: Path, port: int, bus: int) -> None:
        self.folder, self.port, self.bus = folder, port, bus
        folder.mkdir()
        self.start()

    def start(self) -> None:
        """It knows its cluster by what it has on disk."""
        cluster = ["--cluster-enabled", "yes", "--cluster-port", str(self.bus), "--cluster-node-timeout", "1000"]
        durable = ["--appendonly", "yes", "--appendfsync", "always", "--repl-diskless-sync-delay", "0"]
        place = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder)]
        self.process = subprocess.Popen(
            ["redis-server", *place, *cluster, *durable],
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

    @property
    def url(self) -> str:
        """One that enters by any of its servers."""
        return "redis://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

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
