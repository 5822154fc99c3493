"""Kafka, on the cluster of KAFKA_URL, under a prefix of its own."""

from __future__ import annotations

import asyncio
import atexit
import os
import secrets
import shutil
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from aiokafka.protocol.admin import DeleteTopicsRequest
from brokers.kafka_server import JARS, Server, installed
from missing import missing
from thalweg.contrib.conformance import Rig, Unavailable, transport
from thalweg.errors import BrokerError
from thalweg.transports.kafka import KafkaTransport
from thalweg.url import Url

SERVER = os.environ.get("KAFKA_URL", "kafka://127.0.0.1:9092")
PREFIX = f"test-{secrets.token_hex(6)}."


@cache
def own_server() -> Server:
    folder = tempfile.mkdtemp(prefix="thalweg-kafka-")
    server = Server(Path(folder))
    server.start()
    atexit.register(lambda: (server.kill(), shutil.rmtree(folder, ignore_errors=True)))
    return server


class KafkaRig(Rig):
    lease = 0.6

    def __init__(self) -> None:
        options = f"prefix={PREFIX}&message_bytes=10000&lease={self.lease}"
        super().__init__(f"{SERVER}{'&' if '?' in SERVER else '?'}{options}")

    async def prepare(self) -> None:
        try:
            await (await self.open()).close()
        except BrokerError as error:
            missing("kafka", str(error))

    async def own_broker(self) -> None:
        if not installed():
            raise Unavailable(f"properties that stop the broker start one of their own: they need Java and {JARS}")
        self._server = await asyncio.to_thread(own_server)
        self.url = self.url.replace(SERVER, self._server.url)

    async def stop_broker(self) -> None:
        await asyncio.to_thread(self._server.kill)

    async def start_broker(self) -> None:
        await asyncio.to_thread(self._server.start)

    def through(self, host: str, port: int) -> str:
        return super().through(host, port).replace("kafka://", "brokers.kafka_proxied:ProxiedTransport://", 1)

    async def clean(self, names: Sequence[str]) -> None:
        transport = KafkaTransport.from_url(Url(self.url))
        await transport.open()
        cluster = transport._cluster
        mine = [name for name in await cluster.metadata(None) if name.startswith(PREFIX)]
        if mine:
            await cluster.ask(cluster.controller, DeleteTopicsRequest(mine, 10_000))
        await transport.close()


kafka = transport("kafka://", KafkaRig)
