"""NATS, on the server of NATS_URL, under a prefix of its own; once more as servers before 2.12 are."""

from __future__ import annotations

import asyncio
import atexit
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import nats as client
from brokers.nats_server import PROGRAM, Server, delete_streams
from missing import missing
from nats.js import api
from thalweg.contrib.conformance import Rig, Unavailable, transport
from thalweg.errors import BrokerError

SERVER = os.environ.get("NATS_URL", "nats://127.0.0.1:4222")
PREFIX = f"test-{secrets.token_hex(6)}"


@cache
def own_server() -> Server:
    folder = tempfile.mkdtemp(prefix="thalweg-nats-")
    server = Server(Path(folder))
    server.start()
    atexit.register(lambda: (server.kill(), shutil.rmtree(folder, ignore_errors=True)))
    return server


class NatsRig(Rig):
    lease = 0.6
    counts_survive_restarts = False  # the server writes its consumers' state ten times a second

    def __init__(self, options: str = "") -> None:
        own = f"prefix={PREFIX}&message_bytes=10000&lease={self.lease}{options}"
        super().__init__(f"{SERVER}{'&' if '?' in SERVER else '?'}{own}")

    async def prepare(self) -> None:
        try:
            await (await self.open()).close()
        except BrokerError as error:
            missing("nats", str(error))

    async def own_broker(self) -> None:
        if PROGRAM is None:
            raise Unavailable("properties that stop the server start one of their own: `scripts/brokers up nats`")
        self._server = await asyncio.to_thread(own_server)
        self.url = self.url.replace(SERVER, self._server.url)

    async def stop_broker(self) -> None:
        await asyncio.to_thread(self._server.kill)

    async def start_broker(self) -> None:
        await asyncio.to_thread(self._server.start)

    async def raw_rate(self, messages: int, size: int) -> float:
        """nats-py: published without waiting for each answer, fetched and acknowledged."""
        connection = await client.connect(SERVER.partition("?")[0])
        stream, name = connection.jetstream(), f"{PREFIX}-raw"
        await stream.add_stream(api.StreamConfig(name=name, subjects=[name]))
        began, count = time.perf_counter(), 0
        for _ in range(messages):
            await stream.publish_async(name, b"x" * size)
        await stream.publish_async_completed()
        consumer = await stream.pull_subscribe(name, durable="raw")
        while count < messages:
            for message in await consumer.fetch(1000, timeout=5):
                await message.ack()
                count += 1
        seconds = time.perf_counter() - began
        await stream.delete_stream(name)
        await connection.close()
        return messages / seconds

    async def clean(self, names: Sequence[str]) -> None:
        await delete_streams(self.url, PREFIX)


nats = transport("nats://", NatsRig)
nats_without_fencing = transport("nats://?fencing=false", lambda: NatsRig("&fencing=false"))
