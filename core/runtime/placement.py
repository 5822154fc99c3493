"""Whether the records of a topic lie in the partitions that its partitioner says: looked at for the first of each run.

Foreign producers may place keys by another rule than the program knows (librdkafka's default is crc32). Then a key's
rows would be looked for in another partition than its events come from, so the worker stops before it handles any.
"""

from __future__ import annotations

import logging

from thalweg import headers as names
from thalweg.errors import TopicMismatch
from thalweg.message import Batch, Headers
from thalweg.partitioner import fitting
from thalweg.plan import TopicPlan

__all__ = ["PlacementCheck"]

log = logging.getLogger("thalweg")

LOOKED_AT = 1000
"""Keyed records of each partition."""


class PlacementCheck:
    """For one partition of one topic. Not looked at: records whose sender named a partition, and keys of no bytes."""

    def __init__(self, topic: TopicPlan, partition: int) -> None:
        self._topic, self._partition = topic, partition
        self._keys: set[bytes] = set()
        self._left = LOOKED_AT if topic.partitions > 1 else 0

    @property
    def done(self) -> bool:
        return self._left <= 0

    def look(self, batch: Batch) -> None:
        """Raises `TopicMismatch` naming the partitioner that fits. If none does, a warning is all there is to say."""
        topic, partition, misplaced = self._topic, self._partition, None
        for record in batch.records:
            key = record.key
            if not key or (record.headers and _was_placed(record.headers)):
                continue
            self._left -= 1
            self._keys.add(key)
            if topic.partition_of(key, topic.partitions) != partition:
                misplaced = key
            if self.done:
                break
        if misplaced is None:
            return
        self._left = 0
        what = (
            f"topic {topic.name!r} partition {partition}: partitioner={topic.partitioner!r} would place the key "
            f"{misplaced!r} in partition {topic.partition_of(misplaced, topic.partitions)}"
        )
        others = fitting(self._keys, partition, topic.partitions)
        if others:
            raise TopicMismatch(
                f"{what}. Whoever fills the topic places its keys by another rule: declare it with "
                f"partitioner={others[0]!r}, which fits all of the first {len(self._keys)} keys there"
            )
        log.warning(
            "%s, and no partitioner known here fits all of the first %d keys. If the topic's producers agree on one, "
            "declare it by a dotted path (partitioner='package.module:function'): tables are right only then",
            *(what, len(self._keys)),
        )


def _was_placed(headers: Headers) -> bool:
    return any(name in (names.PLACED, names.ONLY) for name, _ in headers)
