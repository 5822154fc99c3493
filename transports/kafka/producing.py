"""One producer as the broker knows it, and how its batches get there: each once, or with the truth about why not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any, TypeAlias

from aiokafka.protocol.produce import ProduceRequest
from aiokafka.protocol.transaction import InitProducerIdRequest
from thalweg.message import Position

from .connection import DENIED, RETRIABLE, TRANSACTION, Cluster, Denied, Lost, Unreachable
from .records import Outgoing

__all__ = ["CONCURRENT", "FENCED", "SERVER_ERROR", "TOO_LARGE", "Pause", "Place", "Producer", "Refused", "Unknown"]

Place: TypeAlias = tuple[str, int]
"""A topic, as Kafka calls it, and a partition."""

CONCURRENT = 51
"""A transaction is still being ended; it takes a moment."""

FENCED = frozenset({47, 48, 49, 90})
"""The producer's epoch, state or id is not the broker's any more: another took its id, or its time had run out."""

TOO_LARGE = frozenset({10, 18})

STALE = frozenset({45, 47, 49, 59})
"""The broker does not know what this producer wrote: its numbering begins anew under another id."""

SERVER_ERROR = -1
"""Something went wrong in the broker, at whatever point: to be asked again."""

_MAYBE_WRITTEN = frozenset({7, 20, SERVER_ERROR})


class Refused(Exception):
    """The broker said no, and nothing was written. `code` is its own; 0: nothing was even sent (`why`)."""

    def __init__(self, code: int, why: str = "") -> None:
        super().__init__(code, why)
        self.code, self.why = code, why


class Unknown(Exception):
    """It may or may not have been written."""


class Pause:
    """Between attempts: longer each time, within a deadline."""

    def __init__(self, deadline: float, first: float = 0.005, longest: float = 0.5) -> None:
        self._deadline, self._next, self._longest = deadline, first, longest

    async def wait(self) -> bool:
        """False, at once, where the deadline would pass."""
        if time.monotonic() + self._next > self._deadline:
            return False
        await asyncio.sleep(self._next)
        self._next = min(2 * self._next, self._longest)
        return True


class Producer:
    """An id, an epoch, and the number of the next record for each partition. transactional_id: None for a plain one."""

    def __init__(self, cluster: Cluster, number: int, epoch: int, transactional_id: str | None = None) -> None:
        self._cluster = cluster
        self.number, self.epoch, self.transactional_id = number, epoch, transactional_id
        self._sequences: dict[Place, int] = {}

    @classmethod
    async def begin(
        cls, cluster: Cluster, deadline: float, transactional_id: str | None = None, transaction_timeout: float = 10.0
    ) -> Producer:
        """A transactional id loses its former producer by this, and its open transaction.

        Raises Denied or another BrokerError.
        """
        pause = Pause(deadline, first=0.002, longest=0.1)
        request = InitProducerIdRequest(transactional_id, round(transaction_timeout * 1000))
        while True:
            try:
                if transactional_id is None:
                    answer = await cluster.ask_any(request)
                else:
                    node = await cluster.coordinator(TRANSACTION, transactional_id)
                    answer = await cluster.ask(node, request, "transactions")
                code = answer.error_code
                if code == 0:
                    return cls(cluster, answer.producer_id, answer.producer_epoch, transactional_id)
                if code in DENIED:
                    raise Denied(cluster.endpoint.explain(code, "asking for the id of a producer: "))
                if code not in RETRIABLE and code not in FENCED and code not in (CONCURRENT, SERVER_ERROR):
                    raise cluster.explain(code, "asking for the id of a producer: ")
                problem = cluster.explain(code, "asking for the id of a producer: ")
            except (Unreachable, Lost) as error:
                code, problem = -1, error
            if code != CONCURRENT and transactional_id is not None:
                cluster.forget_coordinator(TRANSACTION, transactional_id)
            if not await pause.wait():
                raise problem

    async def deliver(
        self, batches: Mapping[Place, Outgoing], lane: str, deadline: float
    ) -> Mapping[Place, Position | Refused | Unknown]:
        """One batch for each partition: the offset of its first record, or why there is none.

        An attempt whose answer is lost is repeated, under the same number, which the broker knows again. The next batch
        for a partition may go only after the answer for this one.
        """
        results: dict[Place, Position | Refused | Unknown] = {}
        unsure: set[Place] = set()
        stamped: dict[Place, bytes] = {}
        for place, batch in batches.items():
            sequence = self._sequences.get(place, 0)
            stamped[place] = batch.stamped(self.number, self.epoch, sequence)
            self._sequences[place] = (sequence + batch.count) & 0x7FFFFFFF
        pause = Pause(deadline)
        while waiting := [place for place in batches if place not in results]:
            answers = await self._round({place: stamped[place] for place in waiting}, lane)
            for place, (code, offset) in answers.items():
                if code == 0:
                    results[place] = offset
                elif code in _MAYBE_WRITTEN or code == _LOST:
                    unsure.add(place)
                elif code not in RETRIABLE and code not in (CONCURRENT, _UNSENT):
                    results[place] = Unknown() if place in unsure else Refused(code)
            failed = [place for place in waiting if place not in results]
            if failed:
                self._cluster.forget_leaders({topic for topic, _ in failed})
                if not await pause.wait():
                    for place in failed:
                        code = answers[place][0]
                        results[place] = Unknown() if place in unsure else Refused(max(code, 0))
        for place, result in results.items():
            if isinstance(result, Refused):  # its numbers are free
                self._sequences[place] = (self._sequences[place] - batches[place].count) & 0x7FFFFFFF
        return results

    async def _round(self, batches: Mapping[Place, bytes], lane: str) -> Mapping[Place, tuple[int, Position]]:
        """Each once to its leader: a code and an offset."""
        by_node: dict[int, dict[str, list[tuple[int, bytes]]]] = {}
        answers: dict[Place, tuple[int, Position]] = {}
        for (topic, partition), data in batches.items():
            try:
                node = await self._cluster.leader(topic, partition)
            except (Unreachable, Lost):
                answers[topic, partition] = _UNSENT, -1
            else:
                by_node.setdefault(node, {}).setdefault(topic, []).append((partition, data))
        asked = [self._ask(node, topics, lane) for node, topics in by_node.items()]
        for found in await asyncio.gather(*asked):
            answers.update(found)
        return answers

    async def _ask(
        self, node: int, topics: Mapping[str, list[tuple[int, bytes]]], lane: str
    ) -> Mapping[Place, tuple[int, Position]]:
        timeout = round(self._cluster.endpoint.timeout * 900)
        request = ProduceRequest(self.transactional_id, -1, timeout, list(topics.items()))
        places = [(topic, partition) for topic, partitions in topics.items() for partition, _ in partitions]
        try:
            answer: Any = await self._cluster.ask(node, request, lane)
        except Unreachable:
            return dict.fromkeys(places, (_UNSENT, -1))
        except Lost:
            return dict.fromkeys(places, (_LOST, -1))
        return {
            (topic, partition): (code, offset)
            for topic, partitions in answer.topics
            for partition, code, offset, *_ in partitions
        }


_UNSENT, _LOST = -2, -3
"""Instead of a broker's code."""
