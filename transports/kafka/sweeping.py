"""A queue's messages are deleted once every group that reads it has finished them; Kafka by itself keeps them all."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from aiokafka.protocol.admin import ListGroupsRequest
from aiokafka.protocol.commit import OffsetFetchRequest
from thalweg.message import Position

from .connection import GROUP, Cluster
from .topics import Topic

__all__ = ["finished_by_all"]


async def finished_by_all(cluster: Cluster, queue: Topic, numbers: Collection[int]) -> Mapping[int, Position]:
    """For those partitions of which every group has finished something: the first position that one still needs.

    A group that has stored nothing about a partition needs all of it. Raises BrokerError.
    """
    needed: dict[int, list[Position]] = {number: [] for number in numbers}
    for group in await _groups(cluster, f"{queue.kafka}/"):
        node = await cluster.coordinator(GROUP, group)
        answer = await cluster.ask(node, OffsetFetchRequest(group, [(queue.kafka, sorted(numbers))]))
        if answer.error_code:
            cluster.forget_coordinator(GROUP, group)
            raise cluster.explain(answer.error_code, f"group {group!r}: ")
        for _, places in answer.topics:
            for number, offset, _, code in places:
                needed[number].append(-1 if code else offset)
    return {number: min(offsets) for number, offsets in needed.items() if offsets and min(offsets) > 0}


async def _groups(cluster: Cluster, prefix: str) -> list[str]:
    """Each broker knows those that it coordinates. If one does not answer, nothing can be said."""
    found: list[str] = []
    for node in list(cluster.brokers):
        answer = await cluster.ask(node, ListGroupsRequest())
        if answer.error_code:
            raise cluster.explain(answer.error_code, "listing groups: ")
        found += [group for group, _ in answer.groups if group.startswith(prefix)]
    return found
