"""Queues and exchanges as they are made. What exists is left as it is, whatever its arguments."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from aiormq.abc import AbstractChannel
from thalweg.errors import TopicMismatch

from .connection import Connection, Refused
from .names import Names
from .registry import Topic

__all__ = [
    "MANY",
    "bind",
    "create_log",
    "create_queue",
    "create_stream",
    "delete_queue",
    "ensure_exchange",
    "ensure_queue",
    "exists",
    "group_queue",
    "stream_of",
]

MANY = 1_000_000_000
"""As x-delivery-limit: how often is the runtime's to decide; RabbitMQ 4 drops a message after 20."""

LEVELS = 10
"""Priorities 0 to 9, of classic queues."""


_SEGMENT = 50_000_000
"""Bytes of the files of which a stream with a retention consists: it is whole files that expire."""


def stream_of(names: Names, topic: Topic, partition: int) -> str:
    """A topic that belongs to others says by its option `stream` what its streams are called."""
    if topic.kind == "existing":
        return topic.options.get("stream", topic.name).replace("{partition}", str(partition))
    return names.topic(topic.name, partition)


async def create_log(connection: Connection, names: Names, topic: Topic) -> None:
    """A stream for each partition, and the root of those that will be truncated."""
    streams = [stream_of(names, topic, number) for number in range(topic.partitions)]
    if topic.truncated:
        streams.append(names.topic(topic.name, "root"))
    for start in range(0, len(streams), 8):
        await asyncio.gather(*(create_stream(connection, stream, topic) for stream in streams[start : start + 8]))


async def create_stream(connection: Connection, stream: str, topic: Topic) -> None:
    """Raises `TopicMismatch` where there is a queue of another kind under this name."""
    arguments: dict[str, Any] = {"x-queue-type": "stream"}
    if topic.retention is not None:
        arguments["x-max-age"] = f"{max(1, round(topic.retention))}s"
        arguments["x-stream-max-segment-size-bytes"] = _SEGMENT
    arguments.update(own_arguments(topic.options))
    try:
        await ensure_queue(connection, stream, arguments, "x-queue-type")
    except Refused as refused:
        if "x-queue-type" in str(refused):
            raise TopicMismatch(
                f"topic {topic.name!r} needs a stream named {stream!r}, and there is a queue of another kind: {refused}"
            ) from None
        raise


async def delete_queue(connection: Connection, name: str) -> None:
    """Gone already is as good."""
    channel = await connection.channel()
    with contextlib.suppress(Refused):
        await connection.ask(channel.queue_delete(name))
    await _close(channel)


async def create_queue(connection: Connection, names: Names, topic: Topic) -> None:
    """The exchange where messages come in, and the queue of the first consumer group."""
    name = names.topic(topic.name)
    await ensure_exchange(connection, name, "fanout")
    await group_queue(connection, names, topic, None)


async def group_queue(connection: Connection, names: Names, topic: Topic, group: str | None) -> str:
    """The queue of a consumer group; None: of the first. Returns its name."""
    exchange = names.topic(topic.name)
    name = exchange if group is None else names.topic(topic.name, group)
    arguments: dict[str, Any] = {"x-queue-type": topic.kind}
    if topic.kind == "classic":
        arguments["x-max-priority"] = LEVELS - 1
    else:
        arguments["x-delivery-limit"] = MANY
    arguments.update(own_arguments(topic.options))
    await ensure_queue(connection, name, arguments)
    await bind(connection, exchange, "", queue=name)
    return name


def own_arguments(options: Mapping[str, str]) -> dict[str, Any]:
    """RabbitMQ's own arguments among the options: `x-max-length`, …"""
    return {name: _typed(value) for name, value in options.items() if name.startswith("x-")}


async def ensure_queue(connection: Connection, name: str, arguments: Mapping[str, Any], essential: str = "") -> None:
    """Durable. One that exists otherwise stays as it is; if it differs in what is essential, raises `Refused`."""
    await _ensure(
        connection,
        lambda channel: channel.queue_declare(name, durable=True, arguments=dict(arguments)),
        lambda channel: channel.queue_declare(name, passive=True),
        f"declaring the queue {name!r}: ",
        essential,
    )


async def ensure_exchange(connection: Connection, name: str, kind: str) -> None:
    """Durable. One that exists otherwise stays as it is."""
    await _ensure(
        connection,
        lambda channel: channel.exchange_declare(name, exchange_type=kind, durable=True),
        lambda channel: channel.exchange_declare(name, passive=True),
        f"declaring the exchange {name!r}: ",
    )


async def exists(connection: Connection, queue: str = "", exchange: str = "") -> bool:
    """Whether there is this queue, or this exchange."""
    channel = await connection.channel()
    try:
        if queue:
            await connection.ask(channel.queue_declare(queue, passive=True))
        else:
            await connection.ask(channel.exchange_declare(exchange, passive=True))
    except Refused:
        return False
    await _close(channel)
    return True


async def bind(connection: Connection, source: str, key: str, queue: str = "", exchange: str = "") -> None:
    channel = await connection.channel()
    target = queue or exchange
    what = f"binding {target!r} to {source!r}: "
    if queue:
        await connection.ask(channel.queue_bind(queue, source, key), what)
    else:
        await connection.ask(channel.exchange_bind(exchange, source, key), what)
    await _close(channel)


async def _ensure(
    connection: Connection,
    declare: Callable[[AbstractChannel], Coroutine[Any, Any, Any]],
    look: Callable[[AbstractChannel], Coroutine[Any, Any, Any]],
    what: str,
    essential: str = "",
) -> None:
    channel = await connection.channel()
    try:
        await connection.ask(declare(channel), what)
    except Refused as refused:
        if essential and f"'{essential}'" in str(refused):
            raise
        channel = await connection.channel()
        try:
            await connection.ask(look(channel))
        except Refused:
            raise refused from None
    await _close(channel)


async def _close(channel: AbstractChannel) -> None:
    with contextlib.suppress(Exception):
        await channel.close()


def _typed(value: str) -> str | int | bool:
    if value in ("true", "false"):
        return value == "true"
    return int(value) if value.lstrip("-").isdigit() else value
