"""A work queue: competing consumers, each delivery leased, with priority, delay and expiry."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf

from thalweg.channel import Capability, TopicInfo
from thalweg.clock import Clock
from thalweg.errors import BrokerError, MissingCapability, StaleDelivery
from thalweg.message import Delivery, Message, QueueMessage

from .faults import Faults
from .partition import prepare
from .session import Session, Waiters, wake

__all__ = ["Queue", "QueueChannel"]


class Item:
    """A message of a queue, as one group sees it, from `put` until it is done, rejected or dropped."""

    __slots__ = ("attempts", "due", "expires_at", "loan", "message", "number", "priority")

    def __init__(
        self, number: int, message: Message, priority: int, due: float | None, expires_at: float | None
    ) -> None:
        self.number, self.message, self.priority = number, message, priority
        self.due, self.expires_at = due, expires_at
        self.attempts = 0
        self.loan: QueueLoan | None = None


class QueueLoan:
    """One item in a consumer's hands until `until`. `done`: committed or rejected."""

    __slots__ = ("done", "item", "member", "until")

    def __init__(self, item: Item, member: QueueChannel) -> None:
        self.item, self.member = item, member
        self.until = 0.0
        self.done = False

    @property
    def stands(self) -> bool:
        return self.item.loan is self


class QueueGroup:
    """One consumer group of a queue. Highest priority first, then in order of `put`, what came back included."""

    def __init__(self, clock: Clock) -> None:
        self.waiters: Waiters = {}
        self.unfinished: dict[int, Item] = {}
        self._clock = clock
        self._ready: list[tuple[int, int, Item]] = []  # (-priority, number, item)
        self._delayed: list[tuple[float, int, Item]] = []  # (due, number, item)
        self._leases: list[tuple[float, int, QueueLoan]] = []  # (until, tie, loan); outdated ones are skipped
        self._ties = count()

    def add(self, item: Item) -> None:
        self.unfinished[item.number] = item
        self._schedule(item, item.due)

    def take(self, member: QueueChannel, limit: int, lease: float) -> list[Delivery]:
        now = self.catch_up()
        taken: list[Delivery] = []
        while self._ready and len(taken) < limit:
            _, number, item = heappop(self._ready)
            if not item.attempts and item.expires_at is not None and item.expires_at <= now:
                del self.unfinished[number]
                continue
            item.attempts += 1
            item.loan = loan = QueueLoan(item, member)
            member.loans[loan] = None
            self.extend(loan, now + lease)
            taken.append(Delivery(item.message, item.attempts, loan))
        self._forget_outdated()
        return taken

    def extend(self, loan: QueueLoan, until: float) -> None:
        loan.until = until
        heappush(self._leases, (until, next(self._ties), loan))

    def finish(self, loan: QueueLoan) -> None:
        self._settle(loan)
        loan.done = True
        del self.unfinished[loan.item.number]

    def give_back(self, loan: QueueLoan, due: float | None = None) -> None:
        self._settle(loan)
        self._schedule(loan.item, due)

    def next_due(self) -> float:
        """When the next delay or lease ends, or earlier. Who waits must ask again whenever it is woken."""
        return min((heap[0][0] for heap in (self._delayed, self._leases) if heap), default=inf)

    def catch_up(self) -> float:
        """Let delays and leases that have ended be over; returns the time."""
        now = self._clock.now()
        while self._delayed and self._delayed[0][0] <= now:
            self._schedule(heappop(self._delayed)[2], None)
        while self._leases and self._leases[0][0] <= now:
            loan = heappop(self._leases)[2]
            if loan.stands and loan.until <= now:
                self.give_back(loan)
        return now

    def _settle(self, loan: QueueLoan) -> None:
        loan.item.loan = None
        loan.member.loans.pop(loan, None)

    def _schedule(self, item: Item, due: float | None) -> None:
        if due is None:
            heappush(self._ready, (-item.priority, item.number, item))
        else:
            heappush(self._delayed, (due, item.number, item))

    def _forget_outdated(self) -> None:
        """What is finished must not be kept in memory until its lease would have ended."""
        if len(self._leases) > 2 * len(self.unfinished) + 1000:
            self._leases = [entry for entry in self._leases if entry[2].stands and entry[2].until == entry[0]]
            heapify(self._leases)


class Queue:
    """A named work queue. Each group gets every message; what was put before there was a group awaits the first."""

    def __init__(self, name: str, clock: Clock, dead_letters: Queue | None) -> None:
        self.name = name
        self._clock = clock
        self._dead_letters = dead_letters
        self._groups: dict[str, QueueGroup] = {}
        self._before_any = QueueGroup(clock)
        self._numbers = count()

    @property
    def info(self) -> TopicInfo:
        return TopicInfo(self.name, 1, queue=True)

    def group(self, name: str) -> QueueGroup:
        group = self._groups.get(name)
        if group is None:
            group = self._groups[name] = self._copy() if self._groups else self._before_any
        return group

    def _copy(self) -> QueueGroup:
        """For a later group: all that some other has not finished yet."""
        kept: dict[int, Item] = {}
        for other in self._groups.values():
            kept.update(other.unfinished)
        group = QueueGroup(self._clock)
        for item in kept.values():
            group.add(Item(item.number, item.message, item.priority, item.due, item.expires_at))
        return group

    def put(self, messages: Iterable[Message]) -> None:
        now = self._clock.now()
        groups = list(self._groups.values()) or [self._before_any]
        for message in messages:
            number, priority = next(self._numbers), 0
            due = expires_at = None
            if isinstance(message, QueueMessage):
                priority = message.priority
                due = now + message.delay if message.delay > 0 else None
                expires_at = None if message.expires is None else now + message.expires
            for group in groups:
                group.add(Item(number, message, priority, due, expires_at))
        for group in groups:
            wake(group.waiters)

    def bury(self, message: Message, reason: str) -> None:
        """Put it on the queue that this one's option `dead_letter` names, if there is one."""
        if self._dead_letters is not None:
            headers = (*message.headers, ("rejected-from", self.name.encode()), ("rejected-because", reason.encode()))
            self._dead_letters.put([Message(message.value, message.key, headers, message.timestamp)])


class QueueChannel:
    """See `thalweg.capabilities.WorkQueue`. A delivery comes back when its lease ends, unless it was extended."""

    def __init__(
        self,
        faults: Faults,
        session: Session,
        queue: Queue,
        group: str,
        lease: float,
        message_bytes: int,
        capabilities: frozenset[Capability],
    ) -> None:
        self._faults, self._session, self._queue, self._group = faults, session, queue, queue.group(group)
        self._lease, self._limit, self._capabilities = lease, message_bytes, capabilities
        self.loans: dict[QueueLoan, None] = {}  # in the order lent
        self._waiters: Waiters = {}
        self._closed = False
        session.channels[self] = None

    async def put(self, messages: Sequence[Message]) -> None:
        if self._faults.armed:
            await self._faults.before("put", self._queue.name, self._session)
        self._check()
        for message in messages:
            if isinstance(message, QueueMessage):
                self._check_options(message)
        ready = prepare(messages, self._limit, self._queue.name, self._session.clock)
        self._queue.put(ready.messages)
        if self._faults.armed:
            await self._faults.after("put", self._queue.name, self._session)

    async def get(self, limit: int, timeout: float) -> Sequence[Delivery]:
        if self._faults.armed:
            await self._faults.before("get", self._queue.name, self._session)
        self._check()
        taken = self._group.take(self, limit, self._lease)
        if not taken and timeout > 0:
            taken = await self._wait(limit, timeout)
        if self._faults.armed:
            try:
                await self._faults.after("get", self._queue.name, self._session)
            except BaseException:  # nobody will ever know of these
                self._return(loan for delivery in taken if isinstance(loan := delivery.handle, QueueLoan))
                raise
        return taken

    async def _wait(self, limit: int, timeout: float) -> list[Delivery]:
        clock, group = self._session.clock, self._group
        deadline = clock.now() + timeout
        taken: list[Delivery] = []
        while not taken:
            now = clock.now()
            left, due = deadline - now, group.next_due() - now
            woken = await self._session.wait((self._waiters, group.waiters), min(left, due))
            self._check()
            taken = group.take(self, limit, self._lease)
            if not woken and left <= due:
                break
        return taken

    async def commit(self, deliveries: Sequence[Delivery]) -> None:
        if self._faults.armed:
            await self._faults.before("ack", self._queue.name, self._session)
        loans = self._loans(deliveries)
        stale = 0
        for loan in loans:
            if loan.stands:
                self._group.finish(loan)
            elif not loan.done:
                stale += 1
        if self._faults.armed:
            await self._faults.after("ack", self._queue.name, self._session)
        if stale:
            raise self._stale(stale, len(loans), "committed; the others are")

    async def extend(self, deliveries: Sequence[Delivery], lease: float) -> None:
        until = self._session.clock.now() + lease
        for loan in await self._standing(deliveries, "extended"):
            self._group.extend(loan, until)
        wake(self._group.waiters)  # it may now end earlier
        if self._faults.armed:
            await self._faults.after("ack", self._queue.name, self._session)

    async def retry(self, delivery: Delivery, delay: float) -> None:
        for loan in await self._standing([delivery], "given back"):
            self._group.give_back(loan, self._session.clock.now() + delay if delay > 0 else None)
        wake(self._group.waiters)
        if self._faults.armed:
            await self._faults.after("ack", self._queue.name, self._session)

    async def reject(self, delivery: Delivery, reason: str) -> None:
        for loan in await self._standing([delivery], "rejected"):
            self._group.finish(loan)
            self._queue.bury(loan.item.message, reason)
        if self._faults.armed:
            await self._faults.after("ack", self._queue.name, self._session)

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._session.channels.pop(self, None)
            if self._session.down is None:
                self._return(self.loans)
            wake(self._waiters)

    def _return(self, loans: Iterable[QueueLoan]) -> None:
        for loan in list(loans):
            if loan.stands:
                self._group.give_back(loan)
        wake(self._group.waiters)

    async def _standing(self, deliveries: Sequence[Delivery], verb: str) -> list[QueueLoan]:
        """The loans of these deliveries, none of which has ended."""
        if Capability.WORK_QUEUE not in self._capabilities:
            raise MissingCapability(f"memory:// was opened with work_queue=false, so nothing can be {verb} one by one")
        if self._faults.armed:
            await self._faults.before("ack", self._queue.name, self._session)
        loans = self._loans(deliveries)
        stale = sum(not loan.stands for loan in loans)
        if stale:
            raise self._stale(stale, len(loans), f"{verb}; nothing was")
        return loans

    def _loans(self, deliveries: Sequence[Delivery]) -> list[QueueLoan]:
        """A lease that has ended has ended, even if nobody has asked since."""
        self._check()
        self._group.catch_up()
        loans: list[QueueLoan] = []
        for delivery in deliveries:
            loan = delivery.handle
            if not isinstance(loan, QueueLoan) or loan.member is not self:
                raise BrokerError(f"this delivery was not lent by this channel of {self._queue.name!r}")
            loans.append(loan)
        return loans

    def _stale(self, stale: int, total: int, outcome: str) -> StaleDelivery:
        return StaleDelivery(
            f"{stale} of {total} deliveries of {self._queue.name!r} had ended or gone back before they were {outcome}"
        )

    def _check_options(self, message: QueueMessage) -> None:
        wanted = {
            Capability.PRIORITY: message.priority != 0,
            Capability.DELAY: message.delay != 0,
            Capability.EXPIRY: message.expires is not None,
        }
        for capability, used in wanted.items():
            if used and capability not in self._capabilities:
                raise MissingCapability(f"memory:// was opened with {capability.value}=false, and a message uses it")
        if not 0 <= message.priority <= 9:
            raise BrokerError(f"priority={message.priority}; expected 0 (lowest) to 9")

    def _check(self) -> None:
        self._session.check()
        if self._closed:
            raise BrokerError(f"this channel of {self._queue.name!r} is closed")
