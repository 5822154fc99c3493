"""Deleting what tests have made on a RabbitMQ that is shared: AMQP cannot list it, but the driver's registry knows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from thalweg.errors import BrokerError
from thalweg.transports.rabbitmq import RabbitTransport
from thalweg.transports.rabbitmq.connection import Connection
from thalweg.url import Url

__all__ = ["delete_all"]


async def delete_all(url: str, member_groups: Iterable[str] = ()) -> None:
    """What the URL's prefix names."""
    transport = RabbitTransport.from_url(Url(url))
    await transport.open()
    names, registry = transport._names, transport._registry
    await registry.sync()
    queues = [names.own("topics"), names.own("numbers"), *(names.own("members", group) for group in member_groups)]
    exchanges = [names.own("delayed"), names.own("members")]
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
    await transport.close()
