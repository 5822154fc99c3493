"""What the program declares, compiled once at start-up: plain data that the runtime works from."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from .channel import TopicSpec
from .codec import TypeCodec, codec_for
from .ops import Op
from .policy import Policy

if TYPE_CHECKING:
    from .runtime.lane import Lane

__all__ = ["AgentPlan", "Destination", "SourcePlan", "TopicPlan"]


class TopicPlan(msgspec.Struct):
    """A topic or queue. `partitions` is known once the broker has been met."""

    spec: TopicSpec
    key: TypeCodec[Any]
    value: TypeCodec[Any]
    partition_of: Callable[[bytes, int], int]
    partitioner: str
    start: Literal["earliest", "latest"] | float = "earliest"
    key_of: Callable[[Any], Any] | None = None
    timestamp_of: Callable[[Any], float] | None = None
    partitions: int = 0

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def decode(self) -> Callable[[bytes], Any]:
        return self.value.decode

    @property
    def group(self) -> str:
        """The co-partitioned group: topics of the same partition count share tasks."""
        return str(self.partitions)


QUEUE_GROUP = "work"
"""The consumer group of all who use a queue: they compete, and a program that only puts adds no reader."""

ANY: TypeCodec[Any] = codec_for(Any)

Destination = tuple[str, int]
"""Topic and partition that an output goes to."""


class SourcePlan(msgspec.Struct):
    """One topic or queue that an agent reads, and what is done to each value before the agent sees it."""

    topic: TopicPlan
    ops: Sequence[Op] = ()


class AgentPlan(msgspec.Struct):
    """An agent or handler. `body` is called once per instance; a generator's items are answers."""

    name: str
    sources: Sequence[SourcePlan]
    body: Callable[[Lane], AsyncIterator[Any] | Awaitable[None]]
    policy: Policy
    concurrency: int = 1
    sinks: Sequence[Callable[[Any], Awaitable[object]]] = ()
    tables: set[str] = msgspec.field(default_factory=set)  # that it uses: seen in its code, or learned
    answer: TypeCodec[Any] = ANY
