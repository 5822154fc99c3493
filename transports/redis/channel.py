"""A topic or queue as one consumer group sees it. Who has what on loan is kept on the server, see `scripts.py`.

A member that has messages of a key on loan is the only one to get more of that key, so that its order survives
competition.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import deque
from collections.abc import Iterable, Sequence

import msgspec
from thalweg.clock import boot_clock
from thalweg.errors import AmbiguousCommit, BrokerError, MissingCapability, StaleDelivery
from thalweg.message import Delivery, Message, Position, QueueMessage
from thalweg.partitioner import murmur2_partitioner

from . import scripts
from .connection import Connection
from .leases import Lease, Leases
from .log import Topic
from .waker import Waker, Watch
from .wire import decode, encode, pack

__all__ = ["PRIORITIES", "RedisChannel", "RedisQueue"]

PRIORITIES = 10
_LOAN_BYTES = 16 << 20  # one `get` stops here, whatever its limit
_LOAN_COUNT = 1000  # likewise: while a script runs, nothing else does


class _Loan(msgspec.Struct, eq=False):
    """The handle of a delivery. until: end of the loan, boot clock (queues).

    asked: a commit of it got no answer.
    """

    channel: RedisChannel
    member: bytes
    attempts: int
    consumer: bytes
    until: float | None
    asked: bool = False
    done: bool = False


class RedisChannel:
    """A topic's channel: deliveries stay with this member as long as its process lives and runs."""

    is_queue = False

    def __init__(
        self, connection: Connection, waker: Waker, leases: Leases, topic: Topic, group: str, options: ChannelOptions
    ) -> None:
        self._connection = connection
        self._waker = waker
        self._leases = leases
        self._topic = topic
        self._options = options
        self._groups = topic.key("group").encode() + b":"
        self._name = group.encode()
        self._key = self._groups + self._name
        self._bell = topic.key("bell").encode()
        self._delayed = topic.key("delayed").encode()
        self._streams = self._all_streams()
        self._lease: Lease | None = None
        self._me = b""
        self._loans: dict[bytes, _Loan] = {}
        self._unsure = False
        self._fetched: deque[Delivery] = deque()
        self._taking: set[asyncio.Task[Watch | None]] = set()
        self._waiting: set[Watch] = set()
        self._due: float | None = None
        self._turn = 0
        self._closed = False
        self._left: asyncio.Task[None] | None = None

    def _all_streams(self) -> list[bytes]:
        return [self._topic.stream(number) for number in range(self._topic.partitions)]

    @property
    def closed(self) -> bool:
        return self._closed

    async def join(self) -> None:
        """Be known as a group, before the first `get`."""

    async def put(self, messages: Sequence[Message]) -> None:
        """By key, as everywhere; those without one all to one partition, another one at each call."""
        self._check_open()
        topic, parts = self._topic, dict[int, list[Message]]()
        self._turn += 1
        for message in messages:
            if isinstance(message, QueueMessage) and (message.priority or message.delay or message.expires is not None):
                raise MissingCapability(
                    f"{topic.name!r} is a topic: priority, delay and expires need a queue (TopicSpec(queue=True))"
                )
            count = topic.partitions
            partition = self._turn % count if message.key is None else murmur2_partitioner(message.key, count)
            parts.setdefault(partition, []).append(message)
        arguments: list[bytes | int] = []
        for part in parts.values():
            arguments += (len(part), *encode(part, self._options.message_bytes, topic.name))
        if parts:
            await self._connection.write(scripts.APPEND, [topic.stream(n) for n in parts], *arguments)

    async def get(self, limit: int, timeout: float) -> Sequence[Delivery]:
        self._check_open()
        deadline = time.monotonic() + timeout
        while limit > 0 and not self._closed:
            if deliveries := self._next(limit):
                return deliveries
            # A task of its own: cancelled here, what it brings is for whoever gets next.
            taking = asyncio.get_running_loop().create_task(self._take(min(limit, _LOAN_COUNT)))
            self._taking.add(taking)
            taking.add_done_callback(self._taking.discard)
            try:
                watch = await asyncio.shield(taking)
            except asyncio.CancelledError:
                taking.add_done_callback(self._wake)
                raise
            if watch is None:
                continue
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                break
            self._waiting.add(watch)
            try:
                if not self._fetched and not self._closed:
                    await watch.wait(remaining if self._due is None else min(remaining, self._due))
            finally:
                self._waiting.discard(watch)
        return self._next(limit)

    async def commit(self, deliveries: Sequence[Delivery]) -> None:
        loans = [loan for loan in self._loans_of(deliveries) if not loan.done]
        if not loans:
            return
        stale: list[_Loan] = []
        for consumer, part in _by_consumer(loans).items():
            # One that is gone although its loan lasts was done by a commit whose answer was lost.
            sure = {loan.member for loan in part if not loan.asked}
            for loan in part:
                loan.asked = True
            keys = [self._key, self._bell, self._groups, *self._streams]
            arguments = (int(self.is_queue), self._groups, consumer, *_places(part))
            gone = set(await self._connection.write(scripts.DONE, keys, *arguments))
            for index, loan in enumerate(part):
                loan.asked = False
                if index in gone and loan.member in sure:
                    stale.append(loan)
                else:
                    loan.done = True
                self._forget(loan)
        if stale:
            raise self._stale(len(stale), len(loans), "the others are committed")

    async def close(self) -> None:
        self._closed = True
        if self._left is None:
            self._left = asyncio.get_running_loop().create_task(self._leave())
        self._wake(None)
        await asyncio.shield(self._left)

    async def _leave(self) -> None:
        if self._taking:
            await asyncio.wait(self._taking)
        if self._lease is not None:
            self._leases.forget(self._lease)
        if self._me:
            with contextlib.suppress(BrokerError):  # it comes back when the lease ends
                mine = _places(self._loans.values()) if self.is_queue else ()
                await self._connection.write(scripts.CLOSE, [self._key, self._bell], self._me, *mine)

    # --- lending ---------------------------------------------------------------------------------------------

    async def _take(self, limit: int) -> Watch | None:
        """Put what is free into `_fetched`; if nothing is, say what to wait for."""
        asked = boot_clock()
        self._turn += 1
        if not self._me or (self._lease is not None and self._lease.lost.is_set()):
            self._me, self._lease = secrets.token_hex(8).encode(), None
        me = self._me
        if self._unsure:
            await self._give_back_unknown()
        keys = [self._key, self._bell, self._delayed, *self._streams]
        lease = round(self._options.lease * 1000)
        try:
            full, *rest = await self._connection.write(
                scripts.TAKE, keys, me, lease, limit, _LOAN_BYTES, int(self.is_queue), self._turn
            )
        except AmbiguousCommit:
            self._unsure = not self.is_queue
            raise
        self._joined(asked)
        if not full:
            due, rung, cursors = rest
            self._due = None if due < 0 else due / 1000 + 0.001
            after: dict[bytes, Position] = dict(zip(self._streams, map(pack, cursors), strict=True))
            return self._waker.watch(after | {self._bell: pack(rung)})
        (taken,) = rest
        ends = asked + self._options.lease if self.is_queue else None
        for member, attempts, fields in zip(taken[::3], taken[1::3], taken[2::3], strict=True):
            loan = _Loan(self, member, attempts, me, ends)
            self._loans[member] = loan
            self._fetched.append(Delivery(decode(member[6:].partition(b"-")[0], fields), attempts, loan))
        return None

    async def _give_back_unknown(self) -> None:
        """What an answer that was lost had brought: our lease would keep it from everybody for ever."""
        self._unsure = False
        try:
            found = await self._connection.run(scripts.HELD, [self._key], self._me)
            held = dict(zip(found[::2], found[1::2], strict=True))
            unknown = [
                part for member, attempts in held.items() if member not in self._loans for part in (member, attempts)
            ]
            await self._connection.write(scripts.RETRY, [self._key, self._bell], self._me, 0, *unknown)
        except BrokerError:
            self._unsure = True
            raise

    def _joined(self, since: float) -> None:
        """A topic's consumer is a member of its group for as long as it renews its lease."""
        if self._lease is None:
            consumers = self._key + b":consumers"
            self._lease = self._leases.hold(consumers, self._me, self._options.lease, since)

    def _next(self, limit: int) -> list[Delivery]:
        """Of what was fetched, what is still ours."""
        deliveries: list[Delivery] = []
        while self._fetched and len(deliveries) < limit:
            delivery = self._fetched.popleft()
            loan = delivery.handle
            assert isinstance(loan, _Loan)
            if loan.until is None or loan.until > boot_clock():
                deliveries.append(delivery)
        if self._fetched:
            self._wake(None)
        return deliveries

    def _forget(self, loan: _Loan) -> None:
        if self._loans.get(loan.member) is loan:
            del self._loans[loan.member]

    def _wake(self, _: object) -> None:
        for watch in list(self._waiting):
            watch.wake()

    # --- settling --------------------------------------------------------------------------------------------

    def _loans_of(self, deliveries: Iterable[Delivery]) -> list[_Loan]:
        self._check_open()
        loans: list[_Loan] = []
        for delivery in deliveries:
            loan = delivery.handle
            if not isinstance(loan, _Loan) or loan.channel is not self:
                raise BrokerError(f"this delivery was not lent by this channel of {self._topic.name!r}")
            loans.append(loan)
        return loans

    def _stale(self, stale: int, total: int, outcome: str) -> StaleDelivery:
        return StaleDelivery(
            f"{stale} of {total} deliveries of {self._topic.name!r} had gone back to the group, as their lease had "
            f"ended; {outcome}"
        )

    def _check_open(self) -> None:
        if self._closed:
            raise BrokerError(f"this channel of {self._topic.name!r} is closed; open another by transport.channel()")


class RedisQueue(RedisChannel):
    """A queue's channel, as `WorkQueue` of the contract. A delivery comes back when its own lease ends."""

    is_queue = True

    def _all_streams(self) -> list[bytes]:
        return queue_streams(self._topic)

    async def join(self) -> None:
        """A queue's message is deleted once every group that was known has finished it."""
        await self._connection.call(b"SADD", self._groups, self._name)

    async def put(self, messages: Sequence[Message]) -> None:
        self._check_open()
        await self._put(self._topic, messages)

    async def _put(self, topic: Topic, messages: Sequence[Message]) -> None:
        arguments: list[bytes | int] = []
        for message in messages:
            priority, delay, expires = 0, 0, -1
            if isinstance(message, QueueMessage):
                priority, delay = message.priority, max(0, round(message.delay * 1000))
                expires = -1 if message.expires is None else max(0, round(message.expires * 1000))
                if not 0 <= priority < PRIORITIES:
                    raise BrokerError(f"priority {priority} of a message for {topic.name!r}: expected 0 to 9")
            name = secrets.token_hex(8).encode() if delay else b""
            arguments += (PRIORITIES - priority, name, delay, expires)
            arguments += encode([message], self._options.message_bytes, topic.name)
        if messages:
            keys = [topic.key("bell").encode(), topic.key("delayed").encode(), *queue_streams(topic)]
            await self._connection.write(scripts.PUT, keys, *arguments)

    async def extend(self, deliveries: Sequence[Delivery], lease: float) -> None:
        loans = self._loans_of(deliveries)
        if not loans:
            return
        asked = boot_clock()
        stale = await self._connection.write(
            scripts.EXTEND, [self._key], self._me, round(lease * 1000), *_places(loans)
        )
        for index, loan in enumerate(loans):
            if index not in stale:
                loan.until = asked + lease
        if stale:
            raise self._stale(len(stale), len(loans), "the others are extended")

    async def retry(self, delivery: Delivery, delay: float) -> None:
        loans = self._loans_of([delivery])
        wait = max(0, round(delay * 1000))
        if await self._connection.write(scripts.RETRY, [self._key, self._bell], self._me, wait, *_places(loans)):
            raise self._stale(1, 1, "nothing was changed")
        self._forget(loans[0])

    async def reject(self, delivery: Delivery, reason: str) -> None:
        """Its copy on the queue that the option `dead_letter` names tells where it was rejected, and why.

        A crash between the two may leave it on both queues, never on none.
        """
        loans = self._loans_of([delivery])
        record, origin = delivery.record, self._topic
        if origin.dead_letter and not loans[0].done:
            headers = (*record.headers, ("rejected-from", origin.name.encode()), ("rejected-because", reason.encode()))
            target = msgspec.structs.replace(origin, name=origin.dead_letter)
            await self._put(target, [Message(record.value, record.key, headers, record.timestamp)])
        await self.commit([delivery])

    def _joined(self, since: float) -> None:
        """Each delivery has a lease of its own."""


def queue_streams(topic: Topic) -> list[bytes]:
    """Highest priority first; `…:0` is where messages without a priority go."""
    return [f"{topic.key('queue')}:{priority}".encode() for priority in reversed(range(PRIORITIES))]


def _places(loans: Iterable[_Loan]) -> list[bytes | int]:
    return [part for loan in loans for part in (loan.member, loan.attempts)]


def _by_consumer(loans: Iterable[_Loan]) -> dict[bytes, list[_Loan]]:
    """A channel whose lease had ended goes on as another consumer."""
    found: dict[bytes, list[_Loan]] = {}
    for loan in loans:
        found.setdefault(loan.consumer, []).append(loan)
    return found


class ChannelOptions(msgspec.Struct, frozen=True):
    """message_bytes: largest message. lease: seconds until what a dead consumer had on loan comes back."""

    message_bytes: int
    lease: float
