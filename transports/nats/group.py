"""A topic as one consumer group sees it: a partition is one member's at a time, what the group did of it is a note.

The note is the newest message of a subject, and whoever writes it names the sequence of the one before. So a member
that was taken for dead cannot commit, and an heir finds what was committed. A consumer of the server takes the
acknowledgements of a ghost, and would lend later messages to the heir before those that the dead member had in hand.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
import time
from collections import deque
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

import msgspec
from thalweg.errors import AmbiguousCommit, BrokerError, Gap, MissingCapability, StaleDelivery
from thalweg.message import Batch, Delivery, Message, Position, QueueMessage, Record
from thalweg.partitioner import murmur2_partitioner

from .connection import ApiError, Connection
from .floors import WRONG_SEQUENCE, Floors, last_message
from .leases import Lease, Leases
from .log import NatsLog, Topic
from .publish import raw
from .records import token

__all__ = ["NatsChannel"]

_MOST = 1000  # records lent by one `get`, whatever its limit
_BYTES = 16 << 20  # likewise
_LOOK = 0.5  # seconds between two looks at who else is there, at most


class _Note(msgspec.Struct):
    """What a group has done of a partition.

    All at `floor` or before is done, and what is in `done`. The rest up to `given` was lent, once unless `attempts`
    says more. who: the owner that wrote it.
    """

    floor: Position = 0
    given: Position = 0
    done: list[Position] = []
    attempts: dict[Position, int] = {}
    who: str = ""


_read_note = msgspec.json.Decoder(_Note).decode


class _Loan(msgspec.Struct, eq=False):
    """The handle of a delivery."""

    share: _Share
    position: Position
    done: bool = False


class _Share:
    """A partition that is ours as long as its lock is."""

    def __init__(self, channel: NatsChannel, partition: int, lock: Lease, subject: str) -> None:
        self.channel = channel
        self.partition = partition
        self.lock = lock
        self.subject = subject
        self.lent: set[Position] = set()
        self.order: deque[Position] = deque()  # lent at some time, above the floor
        self.cursor: Position = 0
        self.leaving = False
        self.lost = False
        self._writing = asyncio.Lock()
        self._sequence = 0
        self._unsure = False
        self._note = _Note()

    @property
    def ours(self) -> bool:
        return not self.lost and not self.lock.lost.is_set()

    async def load(self, connection: Connection, stream: str) -> None:
        """Take up where the last owner stopped."""
        found = await last_message(connection, stream, self.subject)
        if found is not None:
            self._note, self._sequence = _read_note(found.data), found.seq
        self.cursor = self._note.floor

    def skip(self, floor: Position) -> None:
        """What lies at `floor` or before is gone from the log."""
        self._note.floor = max(self._note.floor, floor)
        self.cursor = max(self.cursor, floor)
        self._note.done = [position for position in self._note.done if position > self._note.floor]

    async def lend(
        self, connection: Connection, stream: str, batch: Batch, limit: int
    ) -> list[tuple[Record, Position, int]]:
        """Note that these are lent before anybody has them, so that their attempts are known whatever happens."""
        async with self._writing:
            note, taken = self._note, list[tuple[Record, Position, int]]()
            attempts, done, cursor = dict(note.attempts), set(note.done), self.cursor
            for record, position in zip(batch.records, batch.positions, strict=True):
                if len(taken) == limit:
                    break
                if position <= cursor:
                    continue
                cursor = position
                if position in done:
                    self.order.append(position)
                    continue
                count = 1
                if position <= note.given:
                    count = attempts.get(position, 1) + 1
                    attempts[position] = count
                taken.append((record, position, count))
            if taken:
                new = _Note(note.floor, max(note.given, cursor), note.done, attempts, self.lock.note.who)
                await self._write(connection, stream, new)
            self.cursor = cursor
            for _, position, _ in taken:
                self.lent.add(position)
                self.order.append(position)
            return taken

    async def finish(self, connection: Connection, stream: str, positions: Sequence[Position]) -> None:
        """Raises `StaleDelivery` if the partition is another's by now."""
        async with self._writing:
            note = self._note
            done, floor, order = {*note.done, *positions}, note.floor, deque(self.order)
            while order and order[0] in done:
                floor = order.popleft()
                done.discard(floor)
            if not order:
                floor = max(floor, self.cursor)
            done = {position for position in done if position > floor}
            attempts = {p: n for p, n in note.attempts.items() if p > floor and p not in done}
            await self._write(connection, stream, _Note(floor, note.given, sorted(done), attempts, self.lock.note.who))
            self.order = order
            self.lent.difference_update(positions)

    async def _write(self, connection: Connection, stream: str, note: _Note) -> None:
        if self._unsure:
            await self._learn(connection, stream)
        if not self.ours:
            raise self._stale()
        lines = b"Nats-Rollup: sub\r\nNats-Expected-Last-Subject-Sequence: %d\r\n" % self._sequence
        try:
            self._sequence = await raw(connection, self.subject.encode(), msgspec.json.encode(note), lines)
        except AmbiguousCommit:
            self._unsure = True
            raise
        except ApiError as error:
            if error.code not in WRONG_SEQUENCE:
                raise
            self.lost = True
            raise self._stale() from None
        self._note = note

    async def _learn(self, connection: Connection, stream: str) -> None:
        """Whether the note whose answer was lost was written: only we write it, while it is ours."""
        found = await last_message(connection, stream, self.subject)
        if found is not None and found.seq != self._sequence and _read_note(found.data).who != self.lock.note.who:
            self.lost = True
        elif found is not None:
            self._sequence = found.seq
        self._unsure = False

    def _stale(self) -> StaleDelivery:
        return StaleDelivery(
            f"partition {self.partition} of this topic is another member's by now: what was lent of it had gone back"
        )


class NatsChannel:
    """`stream`: where the notes lie."""

    def __init__(
        self,
        connection: Connection,
        leases: Leases,
        floors: Floors,
        log: NatsLog,
        topic: Topic,
        group: str,
        lease: float,
        prefix: str,
    ) -> None:
        self._connection = connection
        self._leases = leases
        self._floors = floors
        self._log = log
        self._topic = topic
        self._group = hashlib.sha256(f"{topic.name}\0{group}".encode()).hexdigest()[:32]  # of locks and members
        self._notes = f"{prefix}.group.{token(topic.name)}.{token(group)}."
        self._stream = prefix
        self._lease = lease * 0.75  # the rest is for others to notice
        self._me = secrets.token_hex(8)
        self._place: Lease | None = None
        self._shares: dict[int, _Share] = {}
        self._ready: deque[Delivery] = deque()
        self._turn = asyncio.Lock()
        self._look_at = 0.0
        self._count = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._waiting: set[asyncio.Task[Any]] = set()
        self._closed = False
        self._left: asyncio.Task[None] | None = None

    @property
    def closed(self) -> bool:
        return self._closed

    async def put(self, messages: Sequence[Message]) -> None:
        """By key, as everywhere; those without one all to one partition, another one at each call."""
        self._check_open()
        parts = dict[int, list[Message]]()
        self._count += 1
        for message in messages:
            if isinstance(message, QueueMessage) and (message.priority or message.delay or message.expires is not None):
                raise MissingCapability(
                    f"{self._topic.name!r} is a topic: priority, delay and expires need a queue (TopicSpec(queue=True))"
                )
            count = self._topic.partitions
            partition = self._count % count if message.key is None else murmur2_partitioner(message.key, count)
            parts.setdefault(partition, []).append(message)
        if parts:
            await self._log.append(parts, positions=False)

    # --- lending ---------------------------------------------------------------------------------------------

    async def get(self, limit: int, timeout: float) -> Sequence[Delivery]:
        self._check_open()
        deadline = time.monotonic() + timeout
        while limit > 0 and not self._closed:
            if deliveries := self._next(limit):
                return deliveries
            remaining = deadline - time.monotonic()
            if remaining <= 0 and self._turn.locked():
                break
            taking = self._task(self._take(min(limit, _MOST), remaining))
            self._waiting.add(taking)
            taking.add_done_callback(self._waiting.discard)
            try:
                await asyncio.wait([taking], timeout=remaining if remaining > 0 else None)
            finally:
                taking.cancel()  # where it must not be interrupted, it is not
            if taking.done() and not taking.cancelled():
                taking.result()
            if remaining <= 0:
                break
        return self._next(limit)

    async def _take(self, limit: int, seconds: float) -> None:
        """Put what is free into `_ready`. It may be cancelled: what is being noted as lent then comes to the next."""
        async with self._turn:
            if self._ready:
                return
            if time.monotonic() >= self._look_at:
                await self._uninterrupted(self._look())
            shares = {n: share for n, share in self._shares.items() if share.ours and not share.leaving}
            pause = max(0.0, min(seconds, self._look_at - time.monotonic()))
            if not shares:
                await asyncio.sleep(pause)
                return
            try:
                after: Mapping[int, Position | None] = {n: share.cursor or None for n, share in shares.items()}
                found = await self._log.read(after, limit, _BYTES, pause)
            except Gap as gap:
                kept = self._floors.at(self._topic.token, gap.partition)
                shares[gap.partition].skip(kept if gap.first is None else max(kept, gap.first - 1))
                return
            if found:
                await self._uninterrupted(self._lend(shares, found, limit))

    async def _lend(self, shares: Mapping[int, _Share], found: Mapping[int, Batch], limit: int) -> None:
        for partition, batch in found.items():
            share = shares[partition]
            with contextlib.suppress(StaleDelivery):
                for record, position, attempts in await share.lend(self._connection, self._stream, batch, limit):
                    self._ready.append(Delivery(record, attempts, _Loan(share, position)))

    def _next(self, limit: int) -> list[Delivery]:
        """Of what is ready, what is still ours."""
        deliveries: list[Delivery] = []
        while self._ready and len(deliveries) < limit:
            delivery = self._ready.popleft()
            loan = delivery.handle
            assert isinstance(loan, _Loan)
            if loan.share.ours:
                deliveries.append(delivery)
        return deliveries

    # --- sharing ---------------------------------------------------------------------------------------------

    async def _look(self) -> None:
        """See who else is there; take what is free of our part, give up what is more."""
        if self._place is None or self._place.lost.is_set():
            self._place = await self._leases.join(self._group, self._me, self._lease)
        members, pause = await self._leases.members(self._group, self._lease)
        self._look_at = time.monotonic() + min(pause, _LOOK, self._lease / 4)
        for partition, share in list(self._shares.items()):
            if not share.ours or (share.leaving and not share.lent):
                del self._shares[partition]
                await share.lock.release()
        everyone = sorted({*members, self._me})
        quotient, rest = divmod(self._topic.partitions, len(everyone))
        rank = everyone.index(self._me)
        quota = quotient + (rank < rest)
        for share in sorted(self._shares.values(), key=lambda share: len(share.lent), reverse=True)[quota:]:
            share.leaving = True
            self._look_at = 0.0
        start = rank * quotient + min(rank, rest)
        for number in range(self._topic.partitions):
            if len(self._shares) >= quota:
                break
            partition = (start + number) % self._topic.partitions
            if partition not in self._shares:
                await self._own(partition)

    async def _own(self, partition: int) -> None:
        lock = await self._leases.try_lock(f"{self._group}-{partition}", self._lease)
        if lock is not None:
            share = _Share(self, partition, lock, f"{self._notes}{partition}")
            try:
                await share.load(self._connection, self._stream)
            except BrokerError:
                await self._leases.let_go(lock)
                raise
            self._shares[partition] = share

    # --- settling --------------------------------------------------------------------------------------------

    async def commit(self, deliveries: Sequence[Delivery]) -> None:
        self._check_open()
        parts: dict[_Share, list[_Loan]] = {}
        for delivery in deliveries:
            loan = delivery.handle
            if not isinstance(loan, _Loan) or loan.share.channel is not self:
                raise BrokerError(f"this delivery was not lent by this channel of {self._topic.name!r}")
            if not loan.done:
                parts.setdefault(loan.share, []).append(loan)
        if parts:
            await asyncio.shield(self._task(self._commit(parts)))  # done even if the caller is cancelled

    async def _commit(self, parts: Mapping[_Share, Sequence[_Loan]]) -> None:
        stale: StaleDelivery | None = None
        for share, loans in parts.items():
            try:
                await share.finish(self._connection, self._stream, [loan.position for loan in loans])
            except StaleDelivery as error:
                stale = error
            else:
                for loan in loans:
                    loan.done = True
            if share.leaving:
                self._look_at = 0.0
        if stale is not None:
            raise stale

    # --- closing ---------------------------------------------------------------------------------------------

    async def close(self) -> None:
        self._closed = True
        if self._left is None:
            self._left = asyncio.get_running_loop().create_task(self._leave())
        await asyncio.shield(self._left)

    async def _leave(self) -> None:
        for task in list(self._waiting):
            task.cancel()
        while self._tasks:
            await asyncio.wait(self._tasks)
        for share in self._shares.values():
            await self._leases.let_go(share.lock)
        await self._leases.let_go(self._place)
        await self._log.close()

    def _task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_seen)
        return task

    async def _uninterrupted(self, work: Coroutine[Any, Any, None]) -> None:
        """Only then does a cancelled `_take` end, and the next one begin."""
        task, cancelled = self._task(work), False
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError:
                cancelled = True
        if cancelled:
            raise asyncio.CancelledError
        task.result()

    def _check_open(self) -> None:
        if self._closed:
            raise BrokerError(f"this channel of {self._topic.name!r} is closed; open another by transport.channel()")


def _seen(task: asyncio.Task[None]) -> None:
    """Whoever gave up does not ask for its failure."""
    if not task.cancelled():
        task.exception()
