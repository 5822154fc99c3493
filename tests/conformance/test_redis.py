"""Redis, on the server of REDIS_URL, under a prefix of its own."""

from __future__ import annotations

import asyncio
import atexit
import os
import secrets
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from brokers.redis_cluster import Cluster, lacking
from brokers.redis_server import Server
from missing import missing
from server_rig import ServerRig
from thalweg.contrib.conformance import Unavailable, transport
from thalweg.transports.redis import RedisTransport
from thalweg.transports.redis.connection import Connection
from thalweg.url import Url

SERVER = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379")
PREFIX = f"test-{secrets.token_hex(6)}-"


class RedisRig(ServerRig):
    broker, shared, prefix, kind = "redis", SERVER, PREFIX, Server
    locks_outlast_connections = True

    def lacking(self) -> str:
        return "" if shutil.which("redis-server") else "they need redis-server on PATH"

    async def clean(self, names: Sequence[str]) -> None:
        connection = Connection(RedisTransport.from_url(Url(self.url))._endpoint)
        cursor: bytes = b"0"
        while True:
            cursor, keys = await connection.call(b"SCAN", cursor, b"MATCH", f"*{PREFIX}*", b"COUNT", 1000)
            if keys:
                await connection.call(b"DEL", *keys)
            if cursor == b"0":
                break
        await connection.close()


class ClusterRig(RedisRig):
    """A cluster of its own, one a process."""

    lease = 1.0  # three servers share the machine, and a client that connects asks all of them

    def __init__(self) -> None:
        super().__init__()
        if not lacking():
            self.url = self.url.replace(SERVER, own_cluster().url)

    async def prepare(self) -> None:
        if reason := lacking():
            missing("redis", reason)

    async def own_broker(self) -> None:
        """It is."""

    async def stop_broker(self) -> None:
        await asyncio.to_thread(own_cluster().kill)

    async def start_broker(self) -> None:
        for node in own_cluster().nodes:
            node.start()

    async def clean(self, names: Sequence[str]) -> None:
        """The cluster ends with the process."""

    def address(self) -> tuple[str, int]:
        raise Unavailable("servers of a cluster send clients to one another, past any proxy")


@cache
def own_cluster() -> Cluster:
    folder = tempfile.mkdtemp(prefix="thalweg-cluster-")
    cluster = Cluster(Path(folder))
    atexit.register(lambda: (cluster.kill(), shutil.rmtree(folder, ignore_errors=True)))
    with ThreadPoolExecutor(1) as thread:  # for here an event loop may run
        thread.submit(asyncio.run, cluster.form()).result()
    return cluster


redis = transport("redis://", RedisRig)
# Its scripts must be of one slot.
redis_cluster = transport("redis:// (cluster)", ClusterRig, profiles=["Fenced"])
