"""Redis, on the server of REDIS_URL, under a prefix of its own."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Sequence

from brokers.redis_server import Server
from server_rig import ServerRig
from thalweg.contrib.conformance import transport
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


redis = transport("redis://", RedisRig)
