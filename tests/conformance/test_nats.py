"""NATS, on the server of NATS_URL, under a prefix of its own; once more as servers before 2.12 are."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Sequence

import nats as client
from brokers.nats_server import PROGRAM, Server, delete_streams
from nats.js import api
from server_rig import ServerRig
from thalweg.contrib.conformance import transport

SERVER = os.environ.get("NATS_URL", "nats://127.0.0.1:4222")
PREFIX = f"test-{secrets.token_hex(6)}"


class NatsRig(ServerRig):
    broker, shared, prefix, kind = "nats", SERVER, PREFIX, Server
    locks_outlast_connections = True
    counts_survive_restarts = False  # the server writes its consumers' state ten times a second

    def lacking(self) -> str:
        return "" if PROGRAM else "`scripts/brokers install nats` fetches it"

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
# Appends and puts go another way; what is read, lent and locked is the same.
nats_without_fencing = transport(
    "nats://?fencing=false", lambda: NatsRig("&fencing=false"), profiles=["Durable", "Ordered", "Replay", "Fenced"]
)
