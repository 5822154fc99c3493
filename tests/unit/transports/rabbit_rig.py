"""RabbitMQ for the contract tests: on the server of RABBITMQ_URL, with a prefix of its own for all it makes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import Callable
from typing import NoReturn

from thalweg.channel import Transport
from thalweg.errors import BrokerError
from thalweg.transports.rabbitmq import RabbitTransport
from thalweg.transports.rabbitmq.connection import Connection
from thalweg.url import Url

SERVER = os.environ.get("RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672")


class RabbitRig:
    lease = 0.6
    message_bytes = 10_000

    def __init__(self, options: str = "") -> None:
        prefix = f"test-{secrets.token_hex(6)}."
        own = f"prefix={prefix}&message_bytes={self.message_bytes}&lease={self.lease}&heartbeat=20{options}"
        self._url = Url(f"{SERVER}{'&' if '?' in SERVER else '?'}{own}")
        self._transports: list[RabbitTransport] = []

    async def check(self, missing: Callable[[str, str], NoReturn]) -> None:
        try:
            await (await self.open()).close()
        except BrokerError as error:
            missing("rabbitmq", str(error))

    async def open(self) -> RabbitTransport:
        transport = RabbitTransport.from_url(self._url)
        self._transports.append(transport)
        await transport.open()
        return transport

    async def crash(self, transport: Transport) -> None:
        """Its connections are gone, and it makes no others."""
        assert isinstance(transport, RabbitTransport)
        for connection in (transport._connection, transport._reading):
            connection._open = False
            connection.drop()

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def close(self) -> None:
        for transport in self._transports:
            await transport.close()
        last = await self.open()
        await delete_all(last)
        await last.close()


async def delete_all(transport: RabbitTransport) -> None:
    """What the transport's prefix names. AMQP cannot list it, but the registry knows."""
    names, registry = transport._names, transport._registry
    await registry.sync()
    queues = [names.own("topics")]
    exchanges = [names.own("delayed")]
    for topic in registry.topics.values():
        base = names.topic(topic.name)
        exchanges.append(base)
        queues += [base, *(names.topic(topic.name, group) for group in registry._groups.get(topic.name, [])[1:])]
        queues += [names.topic(topic.name, number) for number in range(topic.partitions)]
    for digit in range(28):
        queues.append(names.own("delay", digit))
        exchanges.append(names.own("delay", digit))
    connection = Connection(transport._endpoint, "clean up")
    channel = await connection.channel()
    with contextlib.suppress(BrokerError):
        for name in queues:
            await connection.ask(channel.queue_delete(name))
        for name in exchanges:
            await connection.ask(channel.exchange_delete(name))
    await connection.close()
