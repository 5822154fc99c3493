"""Kafka for the contract tests: on the cluster of KAFKA_URL, with a prefix of its own for all it makes."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable
from typing import NoReturn

from aiokafka.protocol.admin import DeleteTopicsRequest
from thalweg.channel import Transport
from thalweg.errors import BrokerError
from thalweg.transports.kafka import KafkaTransport
from thalweg.url import Url

SERVER = os.environ.get("KAFKA_URL", "kafka://127.0.0.1:9092")


class KafkaRig:
    lease = 0.6
    message_bytes = 10_000

    def __init__(self, options: str = "") -> None:
        prefix = f"test-{secrets.token_hex(6)}."
        own = f"prefix={prefix}&message_bytes={self.message_bytes}&lease={self.lease}{options}"
        self._url = Url(f"{SERVER}{'&' if '?' in SERVER else '?'}{own}")
        self._transports: list[KafkaTransport] = []

    async def check(self, missing: Callable[[str, str], NoReturn]) -> None:
        try:
            await (await self.open()).close()
        except BrokerError as error:
            missing("kafka", str(error))

    async def open(self) -> KafkaTransport:
        transport = KafkaTransport.from_url(self._url)
        self._transports.append(transport)
        await transport.open()
        return transport

    async def crash(self, transport: Transport) -> None:
        """Its connections are gone, and it makes no others."""
        assert isinstance(transport, KafkaTransport)
        await transport._cluster.close()

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def close(self) -> None:
        for transport in self._transports:
            await transport.close()
        last = await self.open()
        await delete_all(last)
        await last.close()


async def delete_all(transport: KafkaTransport) -> None:
    """What the transport's prefix names."""
    prefix = transport._options.prefix
    assert prefix
    names = [name for name in await transport._cluster.metadata(None) if name.startswith(prefix)]
    if names:
        await transport._cluster.ask(transport._cluster.controller, DeleteTopicsRequest(names, 10_000))
