"""Deleting what tests have made on a RabbitMQ that is shared: AMQP cannot list it, but the driver's registry knows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from thalweg.errors import BrokerError
from thalweg.transports.rabbitmq import RabbitTransport
from thalweg.transports.rabbitmq.connection import Connection
from thalweg.url import Url

__all__ = ["delete_all"]


async def delete_all(url: str, groups: Iterable[str] = ()) -> None:
    """What the URL's prefix names. groups: of members, and of consumers of topics."""
    transport = RabbitTransport.from_url(Url(url))
    await transport.open()
    names, registry = transport._names, transport._registry
    await registry.sync()
    groups = list(groups)
    queues = [names.own("topics"), names.own("numbers"), *(names.own("members", group) for group in groups)]
    exchanges = [names.own("delayed"), names.own("members")]
    for topic in registry.topics.values():
        base = names.topic(topic.name)
        exchanges.append(base)
        queues += [base, *(names.topic(topic.name, group) for group in registry._groups.get(topic.name, [])[1:])]
        for number in range(topic.partitions):
            queues.append(names.topic(topic.name, number))
            queues += [names.topic(topic.name, number, "group", group) for group in groups]
        queues += [names.own("members", f"group {group} of {topic.name}") for group in groups]
        if topic.truncated:
            log = transport._logs.log(topic)
            with contextlib.suppress(BrokerError):
                await log._parts.root.refresh()  # type: ignore[union-attr]
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
    await transport.close()
