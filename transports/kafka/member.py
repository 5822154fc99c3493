"""One member of a Kafka group: it joins, is heard, shares out if it leads, leaves.

All of it in a thread of its own, so that an event loop which is blocked for a while costs no membership. Kafka's group
protocol spoken directly, on what aiokafka has of its messages: aiokafka's own coordinator takes all from
everybody at each change and does not say when the broker last heard of it. Here a member goes on with what it holds
while the group agrees anew. The broker keeps who is a member, elects the leader and hands the shares out.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import threading
from collections.abc import Callable, Collection
from typing import Any

import msgspec
from aiokafka import errors as kafka
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata
from aiokafka.protocol.group import HeartbeatRequest, JoinGroupRequest, LeaveGroupRequest, SyncGroupRequest
from thalweg.aside import Aside
from thalweg.capabilities import Part, Role
from thalweg.clock import boot_clock
from thalweg.errors import BrokerError, Superseded
from thalweg.pulse import Pulse

from .connection import GROUP, Cluster, Lost, Unreachable
from .requests import FENCED_INSTANCE, StaticHeartbeat
from .sharing import Door, Plan, Verdict, Word, newcomers, share_out

__all__ = ["DEFAULT_SHORTEST_SESSION", "MOVED", "Member", "Quarters", "failure"]

log = logging.getLogger("thalweg")

DEFAULT_SHORTEST_SESSION = 6.0
"""Seconds: Kafka's group.min.session.timeout.ms unless the broker's settings say otherwise."""

_STRATEGY = "thalweg"
_LONGEST_BEAT, _SHORTEST_BEAT = 0.5, 0.1
"""Seconds between signs of life, which is how soon a member hears of a change: the shorter while one is under way."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0
_GOODBYE = 2.0
_numbers = itertools.count(1)

MOVED = (
    kafka.NotCoordinatorForGroupError,
    kafka.GroupCoordinatorNotAvailableError,
    kafka.GroupLoadInProgressError,
)
"""The coordinator is another one, or will be there soon."""


class _Again(BrokerError):
    """The group could not be joined just now."""


class Quarters:
    """Where the members of one transport live: the thread, the cluster as it is reached from there, and whether the
    main event loop still turns."""

    def __init__(self, cluster: Cluster, stuck: float) -> None:
        self.cluster = cluster
        self.aside = Aside("kafka groups")
        self.pulse = Pulse(stuck)

    async def close(self) -> None:
        """All members must have left."""
        await self.aside.run(self.cluster.close())
        await self.aside.close()


class Member:
    """From `start` until it is lost or closed; to come back takes another.

    name: what plans call it, alone in its group. role: its worker id is its name to the broker over restarts
    (group.instance.id); while it restarts, its session goes on.

    share: what the group has given this member, None until it has joined. What is in a share that it took (`take`) and
    no more in a later one is to be given up, by telling what is still held (`keep`): until then nobody else gets it.
    Both are looked at and changed under one lock, as the main event loop takes and keeps while the thread tells the
    group. place: the generation and the member id. plan: the last of
    the group, by names. agreed: the group is not just about to agree anew.
    lost: why it is no member any more; all may be another's.
    changed: called in the main event loop when share or lost changes. calm: seconds without a newcomer after which
    those that have come get their share.
    """

    def __init__(
        self,
        quarters: Quarters,
        group: str,
        topic: str,
        n: int,
        session: float,
        name: str,
        role: Role,
        changed: Callable[[], object],
        calm: float = 0.0,
    ) -> None:
        self.group, self.topic, self.n, self.session = group, topic, n, session
        self.name, self.role = name, role
        self.share: frozenset[int] | None = None
        self.lost: BrokerError | None = None
        self.place = (-1, "")
        self.agreed = False
        self._cluster, self._aside, self._pulse = quarters.cluster, quarters.aside, quarters.pulse
        self._changed = changed
        number = next(_numbers)
        self._lane, self._waiting_lane = f"member {number}.", f"member {number}.joining"
        self._heard: float | None = None
        self._lock = threading.Lock()
        self._held: frozenset[int] = frozenset()
        self._claimed: frozenset[int] = frozenset()
        self._resting = False
        self.plan = Plan()
        self._door = Door(calm)
        self._opening: asyncio.TimerHandle | None = None
        self._rejoin, self._agreed, self._more = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._left: asyncio.Task[None] | None = None

    # --- called in the main event loop -------------------------------------------------------------------------

    def start(self, resting: bool = False) -> None:
        self._resting = resting
        self._aside.do(self._start)

    def take(self) -> frozenset[int]:
        """The share now; all of it is held from now on, beside what is held already."""
        with self._lock:
            share = self.share or frozenset()
            self._held |= share
            return share

    def keep(self, held: Collection[int]) -> None:
        """Nothing but this is held any more: if others wait for the rest, they get it."""
        with self._lock:
            self._held = frozenset(held)
            waited_for = self._holds_others()
        if waited_for:
            self.join_again()

    def rest(self, resting: bool) -> None:
        """Whether it is to get nothing for now."""
        if self._resting != resting:
            self._resting = resting
            self.join_again()

    def join_again(self) -> None:
        if self.lost is None:
            self._aside.do(self._rejoin.set)

    def end(self, error: BrokerError) -> None:
        """From any thread."""
        with self._lock:
            if self.lost is not None:
                return
            self.lost = error
        self._aside.do(self._stop)
        self._aside.tell_main(self._changed)

    @property
    def part(self) -> Part | None:
        """What the plan gives it."""
        return self.plan.part_of(self.name)

    @property
    def is_certain(self) -> bool:
        """Whether it is a member still, by the machine's own clock."""
        return self.lost is None and self._heard is not None and boot_clock() < self._heard + self.session

    async def agreement(self) -> bool:
        """Wait until the group has agreed anew (then True), this member is lost, or patience is at its end."""
        return await self._aside.run(self._agreement())

    async def close(self) -> None:
        """Leave at once. Done even if the caller is cancelled."""
        self.end(self.problem("this member has left"))
        if self._left is None:
            self._left = asyncio.get_running_loop().create_task(self._aside.run(self._leave()))
        await asyncio.shield(self._left)

    @property
    def patience(self) -> float:
        """Seconds that the group may take to agree: one that died is waited for until its session ends."""
        return 2 * self.session + 5.0

    def problem(self, what: str) -> BrokerError:
        return BrokerError(self._cluster.endpoint.explain(f"group {self.group!r}: {what}"))

    # --- called in the thread ----------------------------------------------------------------------------------

    def _start(self) -> None:
        if self.lost is None:
            self._rejoin.set()
            for work in (self._follow(), self._be_heard()):
                task = asyncio.get_running_loop().create_task(work, name=f"kafka {self.group}")
                task.add_done_callback(self._ended)
                self._tasks.append(task)

    def _stop(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
        for task in self._tasks:
            task.cancel()

    async def _agreement(self) -> bool:
        agreed = asyncio.ensure_future(self._agreed.wait())
        try:
            await asyncio.wait([agreed, *self._tasks], timeout=self.patience, return_when=asyncio.FIRST_COMPLETED)
            return self._agreed.is_set()
        finally:
            agreed.cancel()

    async def _leave(self) -> None:
        """A member with an instance id says no goodbye: what it had waits for its next run, until its session ends."""
        self._stop()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        _, me = self.place
        if me and self.role.worker_id is None:
            with contextlib.suppress(BrokerError, TimeoutError):  # then it is missed when its session ends
                async with asyncio.timeout(_GOODBYE):
                    await self._ask(LeaveGroupRequest(self.group, me))
        self._cluster.hang_up(self._lane)

    async def _be_heard(self) -> None:
        while True:
            if self._more.is_set():
                await asyncio.sleep(_SHORTEST_BEAT)
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(self.session / 4, _LONGEST_BEAT)):
                        await self._more.wait()
            if self._heard is not None:
                self._check_pulse()
                try:
                    await self._beat()
                except (Unreachable, Lost):
                    self._cluster.forget_coordinator(GROUP, self.group)

    def _check_pulse(self) -> None:
        if self._aside.is_orphan:
            raise self.problem("the event loop of this member was closed")
        if not self._pulse.allows(self.session):
            raise self.problem("the event loop of this member is stuck, so its tasks are given to others")

    async def _beat(self) -> None:
        """Raises BrokerError when the membership is over."""
        asked, (generation, me), agreed = boot_clock(), self.place, self.agreed
        left = self.session if self._heard is None else self._heard + self.session - asked
        if left <= 0:
            raise self.problem(f"the group has not answered for {self.session:g} s, and may have given all to others")
        instance = self.role.worker_id
        request: object = HeartbeatRequest(self.group, generation, me)
        if instance is not None:
            request = StaticHeartbeat(self.group, generation, me, instance)
        try:
            async with asyncio.timeout(min(left, self.session / 3)):
                answer = await self._ask(request)
        except TimeoutError:  # a connection that swallows all must not cost the membership
            self._cluster.hang_up(self._lane)
            self._cluster.forget_coordinator(GROUP, self.group)
            return
        error = failure(answer.error_code)
        if error is None or isinstance(error, kafka.RebalanceInProgressError):
            self._heard = max(asked, self._heard or 0.0)
            if error is not None and agreed and self.agreed and generation == self.place[0]:
                self._rejoin.set()
        elif isinstance(error, kafka.IllegalGenerationError):
            if agreed and generation == self.place[0] and self.agreed:
                raise self.problem("the group went on without this member")
        elif isinstance(error, MOVED):
            self._cluster.forget_coordinator(GROUP, self.group)
        elif isinstance(error, kafka.UnknownMemberIdError):
            raise self.problem("the group knows this member no more: it was not heard of for too long")
        else:
            self._check_place(answer.error_code)
            raise self._cluster.explain(error, f"group {self.group!r}: ")

    async def _follow(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            await self._rejoin.wait()
            self._rejoin.clear()
            self._agreed.clear()
            self.agreed = False
            try:
                share = await self._join()
            except (Unreachable, Lost, _Again):
                self._rejoin.set()
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
                continue
            pause = _FIRST_PAUSE
            with self._lock:
                self.share = share
                waited_for = self._holds_others()
            self.agreed = True
            self._agreed.set()
            if waited_for:  # what it was to get and has not taken yet, it gives up at once
                self._rejoin.set()
            self._aside.tell_main(self._changed)

    def _holds_others(self) -> bool:
        """Whether the group believes something to be held that is not, and that others may wait for."""
        return self.share is not None and not self._claimed <= self.share | self._held

    async def _join(self) -> frozenset[int]:
        with self._lock:
            self._claimed = self._held | (self.share or frozenset())
        word = Word(self.n, self._claimed, self._resting, self.name, self.role.zone, self.plan)
        generation, me = self.place
        request = JoinGroupRequest(
            self.group,
            round(self.session * 1000),
            round(self.session * 1000),
            me,
            self.role.worker_id,
            "consumer",
            [(_STRATEGY, ConsumerProtocolMemberMetadata(0, [self.topic], msgspec.msgpack.encode(word)).encode())],
        )
        answer = await self._ask(request, waits=True)
        if isinstance(failure(answer.error_code), kafka.MemberIdRequired):
            self.place = generation, answer.member_id
            return await self._join()
        await self._check(answer.error_code)
        generation, me = self.place = answer.generation_id, answer.member_id
        shares: list[tuple[str, bytes]] = []
        if answer.leader_id == me:
            shares = self._share_out(generation, answer.members)
        answer = await self._ask(SyncGroupRequest(self.group, generation, me, self.role.worker_id, shares), waits=True)
        await self._check(answer.error_code)
        await self._beat()  # so that what it knows of being heard is not older than its share
        if self._heard is None:
            raise _Again("the group agrees anew")
        assignment = ConsumerProtocolMemberAssignment.decode(answer.member_assignment)
        verdict = msgspec.msgpack.decode(assignment.user_data, type=Verdict)
        self.plan = verdict.plan
        (self._more.set if verdict.more else self._more.clear)()
        return frozenset(place.partition for place in assignment.partitions())

    async def _check(self, code: int) -> None:
        """Of joining. Raises _Again, or BrokerError when the membership is over."""
        error = failure(code)
        if error is None:
            return
        self._check_place(code)
        if isinstance(error, kafka.UnknownMemberIdError | kafka.IllegalGenerationError) and self._heard is None:
            self.place = -1, ""  # it took too long to come in, and begins anew
        elif isinstance(error, MOVED):
            self._cluster.forget_coordinator(GROUP, self.group)
        elif isinstance(error, kafka.InvalidSessionTimeoutError) and self.session < DEFAULT_SHORTEST_SESSION:
            self.session = DEFAULT_SHORTEST_SESSION
        elif isinstance(error, kafka.InconsistentGroupProtocolError):
            raise self.problem("other programs than Thalweg's are members of it; use another app id or prefix")
        elif not isinstance(error, kafka.RebalanceInProgressError | kafka.IllegalGenerationError):
            raise self._cluster.explain(error, f"group {self.group!r}: ")
        raise _Again(str(error))

    def _check_place(self, code: int) -> None:
        if code == FENCED_INSTANCE:
            what = (
                f"a newer worker runs under the worker id {self.role.worker_id!r} and has taken the place of this one; "
                "give each worker that runs at the same time an id of its own"
            )
            raise Superseded(str(self.problem(what)))

    def _share_out(self, generation: int, members: Collection[Any]) -> list[tuple[str, bytes]]:
        words = {
            member: msgspec.msgpack.decode(ConsumerProtocolMemberMetadata.decode(metadata).user_data, type=Word)
            for member, *_, metadata in members
        }
        self.n = max(self.n, *(word.n for word in words.values()))
        waiting = newcomers(words)
        wait = self._door.wait(waiting, boot_clock())
        if wait:
            self._opening = asyncio.get_running_loop().call_later(wait, self._rejoin.set)
        outside = waiting if wait else frozenset()
        shares, verdict = share_out(
            self.group, self.n, generation, words, outside, self.role.assignor, self.role.standbys
        )
        about = msgspec.msgpack.encode(verdict)
        return [
            (member, ConsumerProtocolMemberAssignment(0, [(self.topic, sorted(share))], about).encode())
            for member, share in shares.items()
        ]

    async def _ask(self, request: object, waits: bool = False) -> Any:
        """waits: the broker answers when all members are there. Meanwhile its other requests go another way."""
        node = await self._cluster.coordinator(GROUP, self.group)
        try:
            if waits:
                return await self._cluster.ask(node, request, self._waiting_lane, patience=self.patience)
            return await self._cluster.ask(node, request, self._lane)
        except (Unreachable, Lost):
            self._cluster.forget_coordinator(GROUP, self.group)
            raise

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            if not isinstance(error, BrokerError):
                log.error("group %s: %s", self.group, error, exc_info=error)
                error = self.problem(f"{type(error).__name__}: {error}")
            self.end(error)


def failure(code: int) -> kafka.KafkaError | None:
    return None if code == 0 else kafka.for_code(code)()
