"""A work queue: competing consumers, each delivery leased, with priority, delay and expiry."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from heapq import heappop, heappush
from itertools import count
from typing import Protocol

from thalweg.channel import Capability, TopicInfo
from thalweg.errors import BrokerError, MissingCapability
from thalweg.message import Delivery, Message, QueueMessage

from .faults import Faults
from .partition import prepare
from .session import Clock, Session, Timer, Waiters, wake

__all__ = ["Queue", "QueueChannel"]


class Item:
    """A message of a queue, as one group sees it, from `put` until it is done, rejected or dropped."""

    __slots__ = ("attempts", "expires_at", "loan", "message", "number", "priority")

    def __init__(self, number: int, message: Message, priority: int, expires_at: float | None) -> None:
        self.number, self.message, self.priority, self.expires_at = number, message, priority, expires_at
        self.attempts = 0
        self.loan: QueueLoan | None = None


class QueueLoan:
    """One item in a consumer's hands until `until`. `done`: committed or rejected."""

    __slots__ = ("done", "item", "member", "until")

    def __init__(self, item: Item, member: QueueChannel, until: float) -> None:
        self.item, self.member, self.until = item, member, until
        self.done = False


class QueueGroup:
    """One consumer group of a queue. Highest priority first, then in order of `put`, what came back included."""

    def __init__(self, clock: Clock) -> None:
        self.waiters: Waiters = set()
        self.unfinished: dict[int, Item] = {}
        self._clock = clock
        self._ready: list[tuple[int, int, Item]] = []  # (-priority, number, item)
        self._delayed: list[tuple[float, int, Item]] = []  # (due, number, item)
        self._leases: list[tuple[float, int, QueueLoan]] = []  # (until, number, loan); outdated entries are skipped
        self._alarm: Timer | None = None
        self._alarm_at = 0.0

    def add(self, item: Item, due: float | None) -> None:
        self.unfinished[item.number] = item
        self._schedule(item, due)

    def take(self, member: QueueChannel, limit: int, lease: float) -> list[Delivery]:
        now = self._clock.now()
        self._catch_up(now)
        taken: list[Delivery] = []
        while self._ready and len(taken) < limit:
            _, number, item = heappop(self._ready)
            if not item.attempts and item.expires_at is not None and item.expires_at <= now:
                del self.unfinished[number]
                continue
            item.attempts += 1
            item.loan = loan = QueueLoan(item, member, now + lease)
            member.loans[loan] = None
            heappush(self._leases, (loan.until, number, loan))
            taken.append(Delivery(item.message, item.attempts, loan))
        self.set_alarm()
        return taken

    def extend(self, loan: QueueLoan, until: float) -> None:
        loan.until = until
        heappush(self._leases, (until, loan.item.number, loan))

    def finish(self, loan: QueueLoan) -> None:
        self._settle(loan)
        loan.done = True
        del self.unfinished[loan.item.number]

    def give_back(self, loan: QueueLoan, due: float | None = None) -> None:
        self._settle(loan)
        self._schedule(loan.item, due)

    def owns(self, loan: QueueLoan) -> bool:
        """Whether the loan still stands: a lease that ended has ended, even if nobody has asked since."""
        self._catch_up(self._clock.now())
        return loan.item.loan is loan

    def set_alarm(self) -> None:
        """While someone waits, wake them when the next delay or lease ends."""
        due = min((heap[0][0] for heap in (self._delayed, self._leases) if heap), default=None)
        if not self.waiters or due is None or (self._alarm is not None and self._alarm_at <= due):
            return
        self.stop_alarm()
        self._alarm_at = due
        self._alarm = self._clock.call_later(max(due - self._clock.now(), 0.0), self._ring)

    def stop_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _ring(self) -> None:
        self._alarm = None
        wake(self.waiters)

    def _settle(self, loan: QueueLoan) -> None:
        loan.item.loan = None
        loan.member.loans.pop(loan, None)

    def _schedule(self, item: Item, due: float | None) -> None:
        if due is None:
            heappush(self._ready, (-item.priority, item.number, item))
        else:
            heappush(self._delayed, (due, item.number, item))

    def _catch_up(self, now: float) -> None:
        while self._delayed and self._delayed[0][0] <= now:
            self._schedule(heappop(self._delayed)[2], None)
        while self._leases and self._leases[0][0] <= now:
            loan = heappop(self._leases)[2]
            if loan.item.loan is loan and loan.until <= now:
                self.give_back(loan)


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
            group = self._groups[name] = self._before_any if not self._groups else self._copy()
        return group

    def _copy(self) -> QueueGroup:
        """For a later group: all that some other has not finished yet."""
        group = QueueGroup(self._clock)
        kept: dict[int, Item] = {}
        for other in self._groups.values():
            kept.update(other.unfinished)
        for number in sorted(kept):
            item = kept[number]
            group.add(Item(number, item.message, item.priority, item.expires_at), None)
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
                group.add(Item(number, message, priority, expires_at), due)
        for group in groups:
            wake(group.waiters)

    def bury(self, message: Message, reason: str) -> None:
        if self._dead_letters is not None:
            headers = (*message.headers, ("rejected-from", self.name.encode()), ("rejected-because", reason.encode()))
            self._dead_letters.put([Message(message.value, message.key, headers, message.timestamp)])


class _Broker(Protocol):
    @property
    def faults(self) -> Faults: ...


class QueueChannel:
    """See `thalweg.capabilities.WorkQueue`. A delivery comes back when its lease ends, unless it was extended."""

    def __init__(
        self,
        broker: _Broker,
        session: Session,
        queue: Queue,
        group: str,
        lease: float,
        message_bytes: int | None,
        capabilities: frozenset[Capability],
    ) -> None:
        self.session, self._queue, self._lease, self._limit = session, queue, lease, message_bytes
        self._capabilities = capabilities
        self._group = queue.group(group)
        self._faults = broker.faults
        self.loans: dict[QueueLoan, None] = {}
        self._waiters: Waiters = set()
        self._closed = False

    async def put(self, messages: Sequence[Message]) -> None:
        if self._faults.armed:
            await self._faults.before("put", self._queue.name, self.session)
        self._check()
        for message in messages:
            if isinstance(message, QueueMessage):
                self._check_options(message)
        ready = prepare(messages, self._limit, self._queue.name, self.session.clock)
        self._queue.put(
            stamped if type(message) is Message else _with_timestamp(message, stamped.timestamp)
            for message, stamped in zip(messages, ready.messages, strict=True)
        )
        if self._faults.armed:
            await self._faults.after("put", self._queue.name, self.session)

    async def get(self, limit: int, timeout: float) -> Sequence[Delivery]:
        if self._faults.armed:
            await self._faults.before("get", self._queue.name, self.session)
        self._check()
        taken = self._group.take(self, limit, self._lease)
        if not taken and timeout > 0:
            taken = await self._wait(limit, timeout)
        if self._faults.armed:
            try:
                await self._faults.after("get", self._queue.name, self.session)
            except BaseException:  # nobody will ever know of these
                self._return([loan for d in taken if isinstance(loan := d.handle, QueueLoan)])
                raise
        return taken

    async def _wait(self, limit: int, timeout: float) -> list[Delivery]:
        clock, group = self.session.clock, self._group
        deadline = clock.now() + timeout
        taken: list[Delivery] = []
        waiting = True
        while waiting and not taken:
            try:
                waiting = await self.session.wait(
                    (self._waiters, group.waiters), deadline - clock.now(), group.set_alarm
                )
            finally:
                if not group.waiters:
                    group.stop_alarm()
            self._check()
            taken = group.take(self, limit, self._lease)
        return taken

    async def commit(self, deliveries: Sequence[Delivery]) -> None:
        if self._faults.armed:
            await self._faults.before("ack", self._queue.name, self.session)
        self._check()
        loans = [self._loan(delivery) for delivery in deliveries]
        stale = 0
        for loan in loans:
            if self._group.owns(loan):
                self._group.finish(loan)
            elif not loan.done:
                stale += 1
        if self._faults.armed:
            await self._faults.after("ack", self._queue.name, self.session)
        if stale:
            raise self._stale(stale, len(loans), "committed")

    async def extend(self, deliveries: Sequence[Delivery], lease: float) -> None:
        loans = await self._standing(deliveries, "extended")
        until = self.session.clock.now() + lease
        for loan in loans:
            self._group.extend(loan, until)
        wake(self._group.waiters)
        if self._faults.armed:
            await self._faults.after("ack", self._queue.name, self.session)

    async def retry(self, delivery: Delivery, delay: float) -> None:
        for loan in await self._standing([delivery], "retried"):
            self._group.give_back(loan, self.session.clock.now() + delay if delay > 0 else None)
        wake(self._group.waiters)
        if self._faults.armed:
            await self._faults.after("ack", self._queue.name, self.session)

    async def reject(self, delivery: Delivery, reason: str) -> None:
        for loan in await self._standing([delivery], "rejected"):
            self._group.finish(loan)
            self._queue.bury(loan.item.message, reason)
        if self._faults.armed:
            await self._faults.after("ack", self._queue.name, self.session)

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            if self.session.down is None:
                self._return(self.loans)
            wake(self._waiters)

    def _return(self, loans: Iterable[QueueLoan]) -> None:
        for loan in list(loans):
            if self._group.owns(loan):
                self._group.give_back(loan)
        wake(self._group.waiters)

    async def _standing(self, deliveries: Sequence[Delivery], verb: str) -> list[QueueLoan]:
        """The loans of these deliveries; raises if the power is undeclared or one of them has gone back."""
        if Capability.WORK_QUEUE not in self._capabilities:
            raise MissingCapability(f"memory:// was opened with work_queue=false: deliveries cannot be {verb}")
        if self._faults.armed:
            await self._faults.before("ack", self._queue.name, self.session)
        self._check()
        loans = [self._loan(delivery) for delivery in deliveries]
        stale = sum(not self._group.owns(loan) for loan in loans)
        if stale:
            raise self._stale(stale, len(loans), verb)
        return loans

    def _loan(self, delivery: Delivery) -> QueueLoan:
        loan = delivery.handle
        if isinstance(loan, QueueLoan) and loan.member is self:
            return loan
        raise BrokerError(f"this delivery was not lent by this channel of {self._queue.name!r}")

    def _stale(self, stale: int, total: int, verb: str) -> BrokerError:
        return BrokerError(
            f"{stale} of {total} deliveries of {self._queue.name!r} had gone back to the queue before they were {verb}"
        )

    def _check_options(self, message: QueueMessage) -> None:
        wanted = {
            Capability.PRIORITY: message.priority != 0,
            Capability.DELAY: message.delay != 0,
            Capability.EXPIRY: message.expires is not None,
        }
        for capability, used in wanted.items():
            if used and capability not in self._capabilities:
                raise MissingCapability(f"memory:// was opened with {capability.value}=false")
        if not 0 <= message.priority <= 9:
            raise BrokerError(f"priority={message.priority}; expected 0 (lowest) to 9")

    def _check(self) -> None:
        self.session.check()
        if self._closed:
            raise BrokerError(f"this channel of {self._queue.name!r} is closed")


def _with_timestamp(message: Message, timestamp: int) -> Message:
    if not isinstance(message, QueueMessage):
        return Message(message.value, message.key, message.headers, timestamp)
    return QueueMessage(
        message.value, message.key, message.headers, timestamp, message.priority, message.delay, message.expires
    )
