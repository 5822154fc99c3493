"""RabbitMQ, on the server of RABBITMQ_URL, under a prefix of its own."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Sequence

import pytest
from missing import missing
from thalweg.contrib.conformance import Rig, transport
from thalweg.errors import BrokerError
from thalweg.transports.rabbitmq import RabbitTransport
from thalweg.transports.rabbitmq.connection import Connection
from thalweg.url import Url

SERVER = os.environ.get("RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672")
PREFIX = f"test-{secrets.token_hex(6)}."


class RabbitRig(Rig):
    lease = 0.6

    def __init__(self, options: str = "") -> None:
        own = f"prefix={PREFIX}&message_bytes=10000&lease={self.lease}&heartbeat=20{options}"
        super().__init__(f"{SERVER}{'&' if '?' in SERVER else '?'}{own}")

    async def prepare(self) -> None:
        try:
            await (await self.open()).close()
        except BrokerError as error:
            missing("rabbitmq", str(error))

    async def clean(self, names: Sequence[str]) -> None:
        last = RabbitTransport.from_url(Url(self.url))
        await last.open()
        await delete_all(last, names)
        await last.close()


async def delete_all(transport: RabbitTransport, used: Sequence[str]) -> None:
    """What the transport's prefix names. AMQP cannot list it, but the registry knows."""
    names, registry = transport._names, transport._registry
    await registry.sync()
    queues = [names.own("topics"), names.own("numbers"), *(names.own("members", name) for name in used)]
    exchanges = [names.own("delayed"), names.own("members")]
    for topic in registry.topics.values():
        base = names.topic(topic.name)
        exchanges.append(base)
        queues += [base, *(names.topic(topic.name, group) for group in registry._groups.get(topic.name, [])[1:])]
        queues += [names.topic(topic.name, number) for number in range(topic.partitions)]
        if topic.truncated:
            log = transport._logs.log(topic)
            with contextlib.suppress(BrokerError):
                await log._root.refresh()
            queues += [name for partition in log._partitions for name in partition.generations.everything]
            queues.append(names.topic(topic.name, "root"))
            await log.close()
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


pytestmark = pytest.mark.skip("some queue properties still fail; all of logs and topics pass")

rabbitmq = transport("amqp://", RabbitRig)
over_amqp = transport("amqp://?streams=amqp", lambda: RabbitRig("&streams=amqp"))
