"""Redis, on the server of REDIS_URL, under a prefix of its own."""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from brokers.redis_server import Server
from missing import missing
from thalweg.contrib.conformance import Rig, Unavailable, transport
from thalweg.errors import BrokerError
from thalweg.transports.redis import RedisTransport
from thalweg.transports.redis.connection import Connection
from thalweg.url import Url

SERVER = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379")
PREFIX = f"test-{secrets.token_hex(6)}-"


@cache
def own_server() -> Server:
    folder = tempfile.mkdtemp(prefix="thalweg-redis-")
    server = Server(Path(folder))
    server.start()
    atexit.register(lambda: (server.kill(), shutil.rmtree(folder, ignore_errors=True)))
    return server


class RedisRig(Rig):
    lease = 0.6

    def __init__(self) -> None:
        options = f"prefix={PREFIX}&message_bytes=10000&lease={self.lease}"
        super().__init__(f"{SERVER}{'&' if '?' in SERVER else '?'}{options}")

    async def prepare(self) -> None:
        try:
            await (await self.open()).close()
        except BrokerError as error:
            missing("redis", str(error))

    async def own_broker(self) -> None:
        if shutil.which("redis-server") is None:
            raise Unavailable("properties that stop the server start one of their own, and need redis-server on PATH")
        self._server = own_server()
        self.url = self.url.replace(SERVER, self._server.url)

    async def stop_broker(self) -> None:
        self._server.kill()

    async def start_broker(self) -> None:
        self._server.start()

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
