"""Redis, on the server of REDIS_URL, under a prefix of its own."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence

from missing import missing
from thalweg.contrib.conformance import Rig, transport
from thalweg.errors import BrokerError
from thalweg.transports.redis import RedisTransport
from thalweg.transports.redis.connection import Connection
from thalweg.url import Url

SERVER = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379")
PREFIX = f"test-{secrets.token_hex(6)}-"


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
