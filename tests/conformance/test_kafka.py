"""Kafka, on the cluster of KAFKA_URL, under a prefix of its own."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence

from aiokafka.protocol.admin import DeleteTopicsRequest
from brokers.kafka_server import JARS, Server, installed
from server_rig import ServerRig
from thalweg.contrib.conformance import transport
from thalweg.transports.kafka import KafkaTransport
from thalweg.url import Url

SERVER = os.environ.get("KAFKA_URL", "kafka://127.0.0.1:9092")
PREFIX = f"test-{secrets.token_hex(6)}."


class KafkaRig(ServerRig):
    broker, shared, prefix, kind = "kafka", SERVER, PREFIX, Server

    def lacking(self) -> str:
        return "" if installed() else f"they need Java and {JARS}"

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
