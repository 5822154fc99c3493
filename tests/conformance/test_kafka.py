"""Kafka, on the cluster of KAFKA_URL, under a prefix of its own."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence

from aiokafka.protocol.admin import DeleteTopicsRequest
from missing import missing
from thalweg.contrib.conformance import Rig, transport
from thalweg.errors import BrokerError
from thalweg.transports.kafka import KafkaTransport
from thalweg.url import Url

SERVER = os.environ.get("KAFKA_URL", "kafka://127.0.0.1:9092")
PREFIX = f"test-{secrets.token_hex(6)}."


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

    async def clean(self, names: Sequence[str]) -> None:
        transport = KafkaTransport.from_url(Url(self.url))
        await transport.open()
        cluster = transport._cluster
        mine = [name for name in await cluster.metadata(None) if name.startswith(PREFIX)]
        if mine:
            await cluster.ask(cluster.controller, DeleteTopicsRequest(mine, 10_000))
        await transport.close()


kafka = transport("kafka://", KafkaRig)
