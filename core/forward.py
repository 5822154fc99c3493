"""The agents behind `group_by`, `repartition` and `to`: they send a stream's events on, keeping their timestamps."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from . import headers as names
from .composing import encoded
from .event import Event
from .message import Message
from .plan import TopicPlan
from .runtime.context import current_lane
from .runtime.lane import Lane
from .stream import Stream

if TYPE_CHECKING:
    from .app import App
    from .queue import Queue
    from .topic import Topic

__all__ = ["forwarder", "sending_to"]


def forwarder(
    app: App, topic: TopicPlan, key_of: Callable[[Any], Any] | None, keeps_bytes: bool
) -> Callable[[Stream[Event[Any, Any]]], Awaitable[None]]:
    """Forward events to `topic` under `key_of(value)`; bytes as they are, where no step changed the value."""

    title, key_title = f"topic {topic.name!r}", f"topic {topic.name!r}, key"

    async def forward(stream: Stream[Event[Any, Any]]) -> None:
        async for event in stream:
            lane = current_lane.get()
            assert isinstance(lane, Lane)
            record = event.record
            key = record.key if key_of is None else encoded(topic.key, key_of(event.value), key_title)
            if key_of is not None and key is not None:
                app.running.check_head(key_title, len(key))
            value = record.value if keeps_bytes else encoded(topic.value, event.value, title)
            message = Message(value, key, names.hidden(record.headers), round(event.timestamp * 1000))
            app.running.check_size(title, message)
            partition = event.partition if key is None else topic.partition_of(key, topic.partitions)
            lane.send((topic.name, partition % topic.partitions), message)

    return forward


def sending_to(target: Topic[Any, Any] | Queue[Any, Any]) -> Callable[[Stream[Any]], Awaitable[None]]:
    """Send events' values on to a topic or queue, with key, headers and timestamp."""

    async def send(stream: Stream[Any]) -> None:
        async for value in stream:
            lane = current_lane.get()
            assert isinstance(lane, Lane)
            record = lane.open_record
            headers = None if record is None else record.headers
            key = None if record is None or record.key is None else target._plan.key.decode(record.key)
            await target.send(value, key=key, headers=headers)

    return send
