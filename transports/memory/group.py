"""A consumer group over a log topic: members compete, each key stays with one member at a time, in order."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Sequence

from thalweg.errors import BrokerError, MissingCapability, StaleDelivery
from thalweg.message import Delivery, Message, Position, QueueMessage
from thalweg.partitioner import murmur2_partitioner

from .faults import Faults
from .partition import Partition, Prepared, prepare
from .session import Session, Waiters, wake

__all__ = ["LogChannel", "LogGroup"]


class Loan:
    """One record in a member's hands."""

    __slots__ = ("attempts", "cursor", "done", "key", "member", "position")

    def __init__(
        self, cursor: Cursor, member: LogChannel, position: Position, key: bytes | None, attempts: int
    ) -> None:
        self.cursor, self.member, self.position, self.key, self.attempts = cursor, member, position, key, attempts
        self.done = False


class Holder:
    """The member that has records of a key in hand, and how many."""

    __slots__ = ("count", "member")

    def __init__(self, member: LogChannel) -> None:
        self.member, self.count = member, 0


class Cursor:
    """How far a group has come in one partition.

    A record before `next` is committed, lent, or waits: given back, or passed over because another member had its
    key in hand. What waits goes before what is new, and in order within its key.
    """

    def __init__(self, partition: Partition) -> None:
        self.partition = partition
        self._next: Position = partition.first
        self._lent: dict[Position, Loan] = {}
        self._holders: dict[bytes, Holder] = {}
        self._waiting: dict[bytes | None, list[Position]] = {}
        self._attempts: dict[Position, int] = {}

    def take(self, member: LogChannel, limit: int) -> list[Delivery]:
        self.partition.expire()
        taken: list[Delivery] = []
        if self._waiting:
            self._take_waiting(member, limit, taken)
        partition = self.partition
        position = max(self._next, partition.first)
        while len(taken) < limit and position < partition.end:
            key = partition.records[(position - partition.first) // partition.step].key
            if key is not None and self._is_anothers(key, member):
                self._waiting.setdefault(key, []).append(position)
            else:
                taken.append(self._lend(member, position, key))
            position += partition.step
        self._next = position
        return taken

    def _take_waiting(self, member: LogChannel, limit: int, taken: list[Delivery]) -> None:
        for key in sorted(self._waiting, key=lambda key: self._waiting[key][0]):
            room = limit - len(taken)
            if room <= 0:
                return
            if key is not None and self._is_anothers(key, member):
                continue
            positions = self._waiting[key]
            chosen = positions[:room]
            if len(chosen) == len(positions):
                del self._waiting[key]
            else:
                del positions[:room]
            for position in chosen:
                if position >= self.partition.first:  # else it was truncated while it waited
                    taken.append(self._lend(member, position, key))
                else:
                    self._attempts.pop(position, None)

    def _is_anothers(self, key: bytes, member: LogChannel) -> bool:
        holder = self._holders.get(key)
        return holder is not None and holder.member is not member

    def _lend(self, member: LogChannel, position: Position, key: bytes | None) -> Delivery:
        attempts = self._attempts.pop(position, 0) + 1 if self._attempts else 1
        loan = self._lent[position] = Loan(self, member, position, key, attempts)
        member.loans[loan] = None
        if key is not None:
            holder = self._holders.get(key)
            if holder is None:
                holder = self._holders[key] = Holder(member)
            holder.count += 1
        partition = self.partition
        return Delivery(partition.records[(position - partition.first) // partition.step], attempts, loan)

    def owns(self, loan: Loan) -> bool:
        return self._lent.get(loan.position) is loan

    def settle(self, loan: Loan) -> bool:
        """The loan is over. Whether others may now get what waited for its key."""
        del self._lent[loan.position]
        loan.member.loans.pop(loan, None)
        if loan.key is None:
            return False
        holder = self._holders[loan.key]
        holder.count -= 1
        if holder.count:
            return False
        del self._holders[loan.key]
        return loan.key in self._waiting

    def give_back(self, loan: Loan) -> None:
        self._attempts[loan.position] = loan.attempts
        insort(self._waiting.setdefault(loan.key, []), loan.position)
        self.settle(loan)

    def forget_lost(self) -> None:
        """The broker lost the end of the partition: so has the group."""
        end = self.partition.end
        self._next = min(self._next, end)
        for loan in [loan for loan in self._lent.values() if loan.position >= end]:
            self.settle(loan)
        for key, positions in list(self._waiting.items()):
            self._waiting[key] = [position for position in positions if position < end]
            if not self._waiting[key]:
                del self._waiting[key]
        self._attempts = {position: n for position, n in self._attempts.items() if position < end}


class LogGroup:
    """One consumer group over all partitions of a topic. It stays when its members go."""

    def __init__(self, topic: str, partitions: Sequence[Partition]) -> None:
        self.topic = topic
        self.members: dict[LogChannel, None] = {}
        self.waiters: Waiters = {}
        self.partitions = partitions
        self._cursors = [Cursor(partition) for partition in partitions]
        self._turn = 0
        self._keyless = 0

    def take(self, member: LogChannel, limit: int) -> list[Delivery]:
        for gone in [m for m in self.members if m.session.outlived(m.lease)]:
            gone.expire()
        if member not in self.members:  # new, or it was cut off for longer than its lease
            self.members[member] = None
            member.session.hold(member)
        taken: list[Delivery] = []
        self._turn = turn = (self._turn + 1) % len(self._cursors)
        for cursor in self._cursors[turn:] + self._cursors[:turn]:
            if len(taken) < limit:
                taken += cursor.take(member, limit - len(taken))
        return taken

    def commit(self, loans: Iterable[Loan]) -> list[Loan]:
        """Those that were not the caller's any more are returned, and nothing happens to them."""
        stale: list[Loan] = []
        unblocked = False
        for loan in loans:
            if loan.cursor.owns(loan):
                loan.done = True
                unblocked |= loan.cursor.settle(loan)
            elif not loan.done:
                stale.append(loan)
        if unblocked:
            wake(self.waiters)
        return stale

    def give_back(self, loans: Iterable[Loan]) -> None:
        for loan in list(loans):
            if loan.cursor.owns(loan):
                loan.cursor.give_back(loan)
        wake(self.waiters)

    def forget_lost(self) -> None:
        for cursor in self._cursors:
            cursor.forget_lost()

    def partition_for(self, key: bytes | None) -> int:
        if key is not None:
            return murmur2_partitioner(key, len(self.partitions))
        self._keyless = (self._keyless + 1) % len(self.partitions)
        return self._keyless


class LogChannel:
    """See `thalweg.channel.Channel`. A member keeps what it was lent until it commits, closes or dies."""

    def __init__(self, faults: Faults, session: Session, group: LogGroup, lease: float, message_bytes: int) -> None:
        self._faults, self.session, self._group = faults, session, group
        self._lease, self._limit = lease, message_bytes
        self.loans: dict[Loan, None] = {}  # in the order lent
        self._waiters: Waiters = {}
        self._closed = False
        session.channels[self] = None

    @property
    def lease(self) -> float:
        return self._lease

    async def put(self, messages: Sequence[Message]) -> None:
        topic = self._group.topic
        if self._faults.armed:
            await self._faults.before("put", topic, self.session)
        self._check()
        for message in messages:
            if isinstance(message, QueueMessage) and (message.priority or message.delay or message.expires is not None):
                raise MissingCapability(f"priority, delay and expires are for queues; {topic!r} is a topic (a log)")
        ready = prepare(messages, self._limit, topic, self.session.clock)
        parts: dict[int, list[Message]] = {}
        for message in ready.messages:
            parts.setdefault(self._group.partition_for(message.key), []).append(message)
        for number, part in parts.items():
            self._group.partitions[number].append(Prepared(part, ready.largest))
        if self._faults.armed:
            await self._faults.after("put", topic, self.session)

    async def get(self, limit: int, timeout: float) -> Sequence[Delivery]:
        if self._faults.armed:
            await self._faults.before("get", self._group.topic, self.session)
        self._check()
        taken = self._group.take(self, limit)
        if not taken and timeout > 0:
            clock = self.session.clock
            deadline = clock.now() + timeout
            places = [self._waiters, self._group.waiters, *(p.waiters for p in self._group.partitions)]
            waiting = True
            while waiting and not taken:
                waiting = await self.session.wait(places, deadline - clock.now())
                self._check()
                taken = self._group.take(self, limit)
        if self._faults.armed:
            try:
                await self._faults.after("get", self._group.topic, self.session)
            except BaseException:  # nobody will ever know of these
                self._group.give_back(loan for d in taken if isinstance(loan := d.handle, Loan))
                raise
        return taken

    async def commit(self, deliveries: Sequence[Delivery]) -> None:
        if self._faults.armed:
            await self._faults.before("ack", self._group.topic, self.session)
        self._check()
        loans: list[Loan] = []
        for delivery in deliveries:
            loan = delivery.handle
            if not isinstance(loan, Loan) or loan.member is not self:
                raise BrokerError(
                    f"this delivery was not lent by this channel of {self._group.topic!r}; nothing committed"
                )
            loans.append(loan)
        stale = self._group.commit(loans)
        if self._faults.armed:
            await self._faults.after("ack", self._group.topic, self.session)
        if stale:
            raise StaleDelivery(
                f"{len(stale)} of {len(loans)} deliveries of {self._group.topic!r} had gone back to the group before "
                "they were committed, and will come again; the others are committed"
            )

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.session.channels.pop(self, None)
            self.session.give_up(self)
            wake(self._waiters)

    def expire(self) -> None:
        self._group.members.pop(self, None)
        self.session.drop(self)
        if self.loans:
            self._group.give_back(self.loans)

    def _check(self) -> None:
        self.session.check()
        if self._closed:
            raise BrokerError(f"this channel of {self._group.topic!r} is closed")
