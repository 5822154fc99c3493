"""The offsets of a group, as one of its members stores them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from aiokafka import errors as kafka
from aiokafka.protocol.commit import OffsetCommitRequest, OffsetFetchRequest
from thalweg.errors import StaleDelivery

from .connection import GROUP, Answer, Cluster, Lost, Unreachable
from .member import MOVED, Member, failure

__all__ = ["Offsets"]


class Offsets:
    """Stored from the main event loop, under what the member's thread knows of the group: whoever cannot commit because
    its event loop is blocked is a member all the same."""

    def __init__(self, cluster: Cluster, member: Member) -> None:
        self._cluster, self._member = cluster, member
        self._lane = f"offsets {id(member)}"

    async def commit(self, offsets: Mapping[int, tuple[int, str]]) -> None:
        """Store offset and metadata of partitions. Raises StaleDelivery once it is a member no more, or BrokerError."""
        member = self._member
        while offsets:
            (generation, me), agreed = member.place, member.agreed
            self._check()
            places = [(partition, offset, text) for partition, (offset, text) in offsets.items()]
            answer = await self._ask(OffsetCommitRequest(member.group, generation, me, -1, [(member.topic, places)]))
            again: dict[int, tuple[int, str]] = {}
            for partition, code in answer.topics[0][1]:
                error = failure(code)
                if isinstance(error, kafka.UnknownMemberIdError):
                    member.end(member.problem("the group knows this member no more"))
                elif isinstance(error, kafka.RebalanceInProgressError | kafka.IllegalGenerationError):
                    if agreed and member.agreed and generation == member.place[0]:
                        member.join_again()
                    again[partition] = offsets[partition]
                else:
                    self._raise(error, partition)
            offsets = again
            if offsets:
                await self._agreement()

    async def committed(self, partitions: Collection[int]) -> Mapping[int, tuple[int, str]]:
        """Offset and metadata of those partitions that have one."""
        member = self._member
        answer = await self._ask(OffsetFetchRequest(member.group, [(member.topic, sorted(partitions))]))
        found: dict[int, tuple[int, str]] = {}
        for _, places in answer.topics:
            for partition, offset, text, code in places:
                self._raise(failure(code), partition)
                if offset >= 0:
                    found[partition] = offset, text or ""
        return found

    def close(self) -> None:
        self._cluster.hang_up(self._lane)

    async def _ask(self, request: object) -> Answer:
        node = await self._cluster.coordinator(GROUP, self._member.group)
        try:
            return await self._cluster.ask(node, request, self._lane)
        except (Unreachable, Lost):
            self._cluster.forget_coordinator(GROUP, self._member.group)
            raise

    async def _agreement(self) -> None:
        """Wait until the group has agreed anew. Raises StaleDelivery if it does without this member."""
        agreed = await self._member.agreement()
        self._check()
        if not agreed:
            raise self._member.problem(f"it has not agreed on its members for {self._member.patience:g} s")

    def _check(self) -> None:
        if self._member.lost is not None:
            raise StaleDelivery(str(self._member.lost))

    def _raise(self, error: kafka.KafkaError | None, partition: int) -> None:
        if error is not None:
            if isinstance(error, MOVED):
                self._cluster.forget_coordinator(GROUP, self._member.group)
            what = f"group {self._member.group!r}, offset of {self._member.topic}/{partition}: "
            raise self._cluster.explain(error, what)
