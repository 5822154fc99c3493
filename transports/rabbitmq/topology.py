"""Queues and exchanges as they are made. What exists is left as it is, whatever its arguments."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from .connection import Connection, Refused
from .names import Names
from .registry import Topic

__all__ = ["ensure_queue"]

MANY = 1_000_000_000
"""As x-delivery-limit: how often is the runtime's to decide; RabbitMQ 4 drops a message after 20."""


async def ensure_queue(connection: Connection, name: str, arguments: Mapping[str, Any]) -> None:
    """Durable. One that exists otherwise stays as it is."""
    channel = await connection.channel()
    try:
        await connection.ask(
            channel.queue_declare(name, durable=True, arguments=dict(arguments)), f"declaring queue {name!r}: "
        )
    except Refused as refused:
        channel = await connection.channel()
        try:
            await connection.ask(channel.queue_declare(name, passive=True))
        except Refused:
            raise refused from None
    finally:
        with contextlib.suppress(Exception):
            await channel.close()


async def create_log(connection: Connection, names: Names, topic: Topic) -> None:
    arguments: dict[str, Any] = {"x-queue-type": "stream"}
    if topic.retention is not None:
        arguments["x-max-age"] = f"{max(1, round(topic.retention))}s"
    for number in range(topic.partitions):
        await ensure_queue(connection, names.topic(topic.name, number), arguments)
