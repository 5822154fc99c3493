"""One member of a Kafka group: it joins, is heard, shares out if it leads, stores offsets, leaves.

Kafka's group protocol spoken directly, on what aiokafka has of its messages: aiokafka's own coordinator takes all from
everybody at each change and does not say when the broker last heard of it. Here a member goes on with what it holds
while the group agrees anew, and what moves is nobody's until its old holder has given it up and joined again.
The broker keeps who is a member, elects the leader and hands the shares out; what is shared are the numbers 0 to n-1.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

import msgspec
from aiokafka import errors as kafka
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata
from aiokafka.protocol.commit import OffsetCommitRequest, OffsetFetchRequest
from aiokafka.protocol.group import HeartbeatRequest, JoinGroupRequest, LeaveGroupRequest, SyncGroupRequest
from thalweg.assignment import assign
from thalweg.clock import boot_clock
from thalweg.errors import BrokerError, StaleDelivery

from .connection import GROUP, Cluster, Lost, Unreachable

__all__ = ["DEFAULT_SHORTEST_SESSION", "Member"]

log = logging.getLogger("thalweg")

DEFAULT_SHORTEST_SESSION = 6.0
"""Seconds: Kafka's group.min.session.timeout.ms unless the broker's settings say otherwise."""

_STRATEGY = "thalweg"
_MORE = b"more"  # something is still to be given up, so the group will soon agree anew
_LONGEST_BEAT, _SHORTEST_BEAT = 0.5, 0.1
"""Seconds between signs of life, which is how soon a member hears of a change: the shorter while one is under way."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0
_GOODBYE = 2.0
_numbers = itertools.count(1)

_MOVED = (
    kafka.NotCoordinatorForGroupError,
    kafka.GroupCoordinatorNotAvailableError,
    kafka.GroupLoadInProgressError,
)
"""The coordinator is another one, or will be there soon."""


class _Again(BrokerError):
    """The group could not be joined just now."""


class Member:
    """From `start` until it is lost or closed; to come back takes another.

    share: what the group has given this member, None until it has joined. held: what it may be working on, as whoever
    uses it says; a number that is in `held` and no more in `share` is to be given up, by taking it out of `held` and
    telling so by `gave_up`: until then nobody else gets it. resting: it is to get nothing for now. lost: why it is no
    member any more; all may be another's.
    changed: called when share or lost changes.
    """

    def __init__(
        self, cluster: Cluster, group: str, topic: str, n: int, session: float, changed: Callable[[], object]
    ) -> None:
        self.group, self.topic, self.n, self.session = group, topic, n, session
        self.share: frozenset[int] | None = None
        self.held: Collection[int] = frozenset()
        self.resting = False
        self.lost: BrokerError | None = None
        self._cluster, self._changed = cluster, changed
        number = next(_numbers)
        self._lane, self._waiting_lane = f"member {number}.", f"member {number}.joining"
        self._id = ""
        self._generation = -1
        self._heard: float | None = None
        self._claimed: frozenset[int] = frozenset()
        self._rejoin = asyncio.Event()
        self._agreed = asyncio.Event()
        self._more = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._left: asyncio.Task[None] | None = None

    # --- what its user calls -----------------------------------------------------------------------------------

    def start(self) -> None:
        self._rejoin.set()
        loop = asyncio.get_running_loop()
        for coroutine in (self._follow(), self._be_heard()):
            task = loop.create_task(coroutine, name=f"kafka {self.group}")
            task.add_done_callback(self._ended)
            self._tasks.append(task)

    @property
    def is_certain(self) -> bool:
        """Whether it is a member still, by the machine's own clock."""
        return self.lost is None and self._heard is not None and boot_clock() < self._heard + self.session

    def gave_up(self) -> None:
        """Something was taken out of `held`: if others wait for it, they get it."""
        if self.share is not None and not self._claimed <= self.share | frozenset(self.held):
            self._rejoin.set()

    def rest(self, resting: bool) -> None:
        if self.resting != resting:
            self.resting = resting
            self._rejoin.set()

    async def commit(self, offsets: Mapping[int, tuple[int, str]]) -> None:
        """Store offset and metadata of partitions. Raises StaleDelivery once it is a member no more, or BrokerError."""
        while offsets:
            generation, agreed = self._generation, self._agreed.is_set()
            self._check()
            places = [(partition, offset, text) for partition, (offset, text) in offsets.items()]
            answer = await self._ask(
                OffsetCommitRequest(self.group, generation, self._id, -1, [(self.topic, places)]), "its offsets"
            )
            again: dict[int, tuple[int, str]] = {}
            for partition, code in answer.topics[0][1]:
                error = _failure(code)
                if isinstance(error, kafka.UnknownMemberIdError):
                    self._end(self._problem("the group knows this member no more"))
                elif isinstance(error, kafka.RebalanceInProgressError | kafka.IllegalGenerationError):
                    if agreed and self._agreed.is_set() and generation == self._generation:
                        self._rejoin.set()
                    again[partition] = offsets[partition]
                elif error is not None:
                    self._forget_if_moved(error)
                    raise self._cluster.explain(error, f"group {self.group!r}, offset of {self.topic}/{partition}: ")
            offsets = again
            if offsets:
                await self._agreement()

    async def committed(self, partitions: Collection[int]) -> Mapping[int, tuple[int, str]]:
        """Offset and metadata of those partitions that have one."""
        answer = await self._ask(OffsetFetchRequest(self.group, [(self.topic, sorted(partitions))]), "its offsets")
        found: dict[int, tuple[int, str]] = {}
        for _, places in answer.topics:
            for partition, offset, text, code in places:
                error = _failure(code)
                if error is not None:
                    self._forget_if_moved(error)
                    raise self._cluster.explain(error, f"group {self.group!r}, offset of {self.topic}/{partition}: ")
                if offset >= 0:
                    found[partition] = offset, text or ""
        return found

    async def close(self) -> None:
        """Leave at once. Done even if the caller is cancelled."""
        self._end(self._problem("this member has left"))
        if self._left is None:
            self._left = asyncio.get_running_loop().create_task(self._leave())
        await asyncio.shield(self._left)

    # --- being a member ----------------------------------------------------------------------------------------

    async def _be_heard(self) -> None:
        while True:
            if self._more.is_set():
                await asyncio.sleep(_SHORTEST_BEAT)
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(self.session / 4, _LONGEST_BEAT)):
                        await self._more.wait()
            if self._heard is not None:
                try:
                    await self._beat()
                except (Unreachable, Lost):
                    self._cluster.forget_coordinator(GROUP, self.group)

    async def _beat(self) -> None:
        """Raises BrokerError when the membership is over."""
        asked, generation, agreed = boot_clock(), self._generation, self._agreed.is_set()
        left = self.session if self._heard is None else self._heard + self.session - asked
        silent = self._problem(f"the group has not answered for {self.session:g} s, and may have given all to others")
        if left <= 0:
            raise silent
        try:
            async with asyncio.timeout(left):
                answer = await self._ask(HeartbeatRequest(self.group, generation, self._id), "a heartbeat")
        except TimeoutError:
            raise silent from None
        error = _failure(answer.error_code)
        if error is None or isinstance(error, kafka.RebalanceInProgressError):
            self._heard = max(asked, self._heard or 0.0)
            if error is not None and agreed and generation == self._generation:
                self._rejoin.set()
        elif isinstance(error, kafka.IllegalGenerationError):
            if agreed and generation == self._generation and self._agreed.is_set():
                raise self._problem("the group went on without this member")
        elif isinstance(error, _MOVED):
            self._cluster.forget_coordinator(GROUP, self.group)
        elif isinstance(error, kafka.UnknownMemberIdError):
            raise self._problem("the group knows this member no more: it was not heard of for too long")
        else:
            raise self._cluster.explain(error, f"group {self.group!r}: ")

    async def _follow(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            await self._rejoin.wait()
            self._rejoin.clear()
            self._agreed.clear()
            try:
                share = await self._join()
            except (Unreachable, Lost, _Again):
                self._rejoin.set()
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
                continue
            pause = _FIRST_PAUSE
            self.share = share
            self._agreed.set()
            self.gave_up()  # what it was to get and has not taken yet, it gives up at once
            self._changed()

    async def _join(self) -> frozenset[int]:
        self._claimed = frozenset(self.held) | (self.share or frozenset())
        about = msgspec.msgpack.encode((self.n, sorted(self._claimed), self.resting))
        request = JoinGroupRequest(
            self.group,
            round(self.session * 1000),
            round(self.session * 1000),
            self._id,
            None,
            "consumer",
            [(_STRATEGY, ConsumerProtocolMemberMetadata(0, [self.topic], about).encode())],
        )
        answer = await self._ask(request, "its members", waits=True)
        error = _failure(answer.error_code)
        if isinstance(error, kafka.MemberIdRequired):
            self._id = answer.member_id
            return await self._join()
        if error is not None:
            await self._refused(error)
        self._id, self._generation = answer.member_id, answer.generation_id
        shares: list[tuple[str, bytes]] = []
        if answer.leader_id == answer.member_id:
            shares = self._share_out(answer.members)
        answer = await self._ask(
            SyncGroupRequest(self.group, self._generation, self._id, None, shares),
            "its shares",
            waits=True,
        )
        error = _failure(answer.error_code)
        if error is not None:
            await self._refused(error)
        await self._beat()  # so that what it knows of being heard is not older than its share
        if self._heard is None:
            raise _Again("the group agrees anew")
        assignment = ConsumerProtocolMemberAssignment.decode(answer.member_assignment)
        (self._more.set if assignment.user_data == _MORE else self._more.clear)()
        return frozenset(place.partition for place in assignment.partitions())

    async def _refused(self, error: kafka.KafkaError) -> None:
        """Raises _Again, or BrokerError when the membership is over."""
        if isinstance(error, kafka.UnknownMemberIdError | kafka.IllegalGenerationError) and self._heard is None:
            self._id, self._generation = "", -1  # it took too long to come in, and begins anew
        elif isinstance(error, _MOVED):
            self._cluster.forget_coordinator(GROUP, self.group)
        elif isinstance(error, kafka.InvalidSessionTimeoutError) and self.session < DEFAULT_SHORTEST_SESSION:
            self.session = DEFAULT_SHORTEST_SESSION
        elif isinstance(error, kafka.InconsistentGroupProtocolError):
            raise self._problem("other programs than Thalweg's are members of it; use another app id or prefix")
        elif not isinstance(error, kafka.RebalanceInProgressError | kafka.IllegalGenerationError):
            raise self._cluster.explain(error, f"group {self.group!r}: ")
        raise _Again(str(error))

    def _share_out(self, members: Collection[Any]) -> list[tuple[str, bytes]]:
        held: dict[str, frozenset[int]] = {}
        rest: set[str] = set()
        for member_id, *_, metadata in members:
            n, claimed, resting = msgspec.msgpack.decode(
                ConsumerProtocolMemberMetadata.decode(metadata).user_data, type=tuple[int, frozenset[int], bool]
            )
            self.n = max(self.n, n)
            held[member_id] = claimed
            if resting:
                rest.add(member_id)
        shares = assign(self.group, self.n, held, rest)
        about = b"" if all(held[member_id] <= share for member_id, share in shares.items()) else _MORE
        return [
            (member_id, ConsumerProtocolMemberAssignment(0, [(self.topic, sorted(share))], about).encode())
            for member_id, share in shares.items()
        ]

    async def _leave(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._id:
            with contextlib.suppress(BrokerError, TimeoutError):  # then it is missed when its session ends
                async with asyncio.timeout(_GOODBYE):
                    await self._ask(LeaveGroupRequest(self.group, self._id), "its members")
        self._cluster.hang_up(self._lane)

    # --- asking ------------------------------------------------------------------------------------------------

    async def _ask(self, request: object, what: str, waits: bool = False) -> Any:
        """waits: the broker answers when all members are there. Meanwhile its other requests go another way."""
        node = await self._cluster.coordinator(GROUP, self.group)
        try:
            if waits:
                return await self._cluster.ask(node, request, self._waiting_lane, patience=self._patience)
            return await self._cluster.ask(node, request, self._lane)
        except (Unreachable, Lost):
            self._cluster.forget_coordinator(GROUP, self.group)
            raise

    @property
    def _patience(self) -> float:
        """Seconds that the group may take to agree: one that died is waited for until its session ends."""
        return 2 * self.session + 5.0

    async def _agreement(self) -> None:
        """Wait until the group has agreed anew. Raises StaleDelivery if it does without this member."""
        ended = asyncio.ensure_future(self._agreed.wait())
        try:
            await asyncio.wait([ended, *self._tasks], timeout=self._patience, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
        self._check()
        if not self._agreed.is_set():
            raise self._problem(f"it has not agreed on its members for {self._patience:g} s")

    def _forget_if_moved(self, error: kafka.KafkaError) -> None:
        if isinstance(error, _MOVED):
            self._cluster.forget_coordinator(GROUP, self.group)

    def _check(self) -> None:
        if self.lost is not None:
            raise StaleDelivery(str(self.lost))

    def _problem(self, what: str) -> BrokerError:
        return BrokerError(self._cluster.endpoint.explain(f"group {self.group!r}: {what}"))

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            if not isinstance(error, BrokerError):
                log.error("group %s: %s", self.group, error, exc_info=error)
                error = self._problem(f"{type(error).__name__}: {error}")
            self._end(error)

    def _end(self, error: BrokerError) -> None:
        if self.lost is None:
            self.lost = error
            for task in self._tasks:
                task.cancel()
            self._changed()


def _failure(code: int) -> kafka.KafkaError | None:
    return None if code == 0 else kafka.for_code(code)()
