"""A topic or queue as one consumer group sees it.

A group takes records up in log order into `pending` (`cursors` says how far it is), and lends them from there. A member
that has messages of a key on loan is the only one to get more of that key, so that its order survives competition.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import msgspec
from thalweg.clock import boot_clock
from thalweg.errors import BrokerError, MissingCapability, StaleDelivery
from thalweg.message import Delivery, Message, QueueMessage
from thalweg.partitioner import murmur2_partitioner

from . import records
from .database import Database, Transaction
from .doorbell import Doorbell
from .leases import Lease, Leases

__all__ = ["SqliteChannel", "SqliteQueue"]

_LOAN_BYTES = 64 << 20  # one `get` stops here, whatever its limit
_SKIPS = 2000  # free messages of keys that others are working on, passed over in one `get`
_TAKE_UP = 20_000  # records taken up by a queue's group in one transaction


class _Loan(msgspec.Struct, eq=False):
    """The handle of a delivery. holder: number of the consumer's lease. until: end of its own lease, boot clock."""

    channel: SqliteChannel
    partition: int
    position: int
    attempt: int
    holder: int
    until: float | None
    done: bool = False


class _Taken(msgspec.Struct):
    """What a claim brought. lease: a new one, and its end. due: boot clock, when time alone may free a message."""

    lease: tuple[int, float] | None
    deliveries: list[Delivery]
    due: float | None
    more: bool


class SqliteChannel:
    """A topic's channel: deliveries stay with this member as long as its process lives and runs."""

    def __init__(
        self,
        database: Database,
        bell: Doorbell,
        leases: Leases,
        topic: records.Topic,
        group: int,
        message_bytes: int,
        lease: float,
    ) -> None:
        self._database = database
        self._bell = bell
        self._leases = leases
        self._topic = topic
        self._group = group
        self._message_bytes = message_bytes
        self._seconds = lease
        self._lease: Lease | None = None
        self._claim: asyncio.Future[_Taken] | None = None
        self._rung = asyncio.Event()
        self._fetched: deque[Delivery] = deque()
        self._turn = 0
        self._closed = False

    async def put(self, messages: Sequence[Message]) -> None:
        self._check_open()
        parts = self._spread(records.prepare(messages, self._message_bytes, self._topic.name))

        def work(transaction: Transaction) -> None:
            for partition, part in parts.items():
                records.append(transaction, self._topic, partition, part)

        await self._database.write(work)

    async def get(self, limit: int, timeout: float) -> Sequence[Delivery]:
        self._check_open()
        deadline = time.monotonic() + timeout
        while limit > 0 and not self._closed:
            if deliveries := self._next(limit):
                return deliveries
            claim = self._claiming(limit)
            rung = self._rung
            try:
                taken = await asyncio.shield(claim)
            except asyncio.CancelledError:
                claim.add_done_callback(self._ring)  # what it brings is for whoever waits here
                raise
            if deliveries := self._next(limit):
                return deliveries
            if taken.deliveries or taken.more:
                continue  # others were faster, or there is more to look through
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                break
            if taken.due is not None:
                remaining = min(remaining, max(0.001, taken.due - boot_clock()))
            await self._bell.wait(rung, remaining)
        return []

    async def commit(self, deliveries: Sequence[Delivery]) -> None:
        loans = [loan for loan in self._loans(deliveries) if not loan.done]
        if not loans:
            return

        def work(transaction: Transaction) -> list[_Loan]:
            done: list[tuple[int, int]] = []
            stale: list[_Loan] = []
            for loan in loans:
                if self._remove(transaction, loan):
                    done.append((loan.partition, loan.position))
                else:
                    stale.append(loan)
            self._clear(transaction, done)
            if self._unblocks(transaction, loans[0].holder):
                transaction.touched.add(self._topic.id)
            return stale

        stale = await self._database.write(work)
        for loan in loans:
            loan.done = loan not in stale
        if stale:
            raise self._stale(stale, len(loans), "the others are committed")

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._ring(None)
            await asyncio.shield(asyncio.ensure_future(self._leave()))

    async def _leave(self) -> None:
        if self._claim is not None:
            await asyncio.wait([self._claim])
        if self._lease is not None:
            await self._leases.release(self._lease)

    def _spread(self, messages: Sequence[Message]) -> dict[int, list[Message]]:
        """By key, as everywhere; those without one all to one partition, another one at each call."""
        parts: dict[int, list[Message]] = {}
        self._turn += 1
        for message in messages:
            if isinstance(message, QueueMessage) and (message.priority or message.delay or message.expires is not None):
                raise MissingCapability(
                    f"{self._topic.name!r} is a topic: priority, delay and expires need a queue (TopicSpec(queue=True))"
                )
            count = self._topic.partitions
            partition = (self._turn if message.key is None else murmur2_partitioner(message.key, count)) % count
            parts.setdefault(partition, []).append(message)
        return parts

    # --- lending ---------------------------------------------------------------------------------------------

    def _claiming(self, limit: int) -> asyncio.Future[_Taken]:
        """The claim under way, or a new one. It survives the `get` that started it: what it brings is kept.

        `_rung` has been listening since before it began.
        """
        if self._claim is None:
            self._rung = self._bell.event(self._topic.id)
            self._turn += 1
            holder = None if self._lease is None or self._lease.lost.is_set() else self._lease.number
            self._claim = self._database.write(partial(self._take, holder=holder, limit=limit))
            self._claim.add_done_callback(self._claimed)
        return self._claim

    def _claimed(self, claim: asyncio.Future[_Taken]) -> None:
        self._claim = None
        if claim.cancelled() or claim.exception() is not None:
            return
        taken = claim.result()
        if taken.lease is not None:
            self._lease = self._leases.hold(*taken.lease, self._seconds)
        self._fetched.extend(taken.deliveries)

    def _ring(self, _: object) -> None:
        self._bell.ring_here((self._topic.id,))

    def _next(self, limit: int) -> list[Delivery]:
        """Of what was fetched, what is still ours."""
        deliveries: list[Delivery] = []
        holder = None if self._lease is None or self._lease.lost.is_set() else self._lease.number
        while self._fetched and len(deliveries) < limit:
            delivery = self._fetched.popleft()
            loan = delivery.handle
            assert isinstance(loan, _Loan)
            if loan.holder == holder and (loan.until is None or loan.until > boot_clock()):
                deliveries.append(delivery)
        return deliveries

    def _take(self, transaction: Transaction, holder: int | None, limit: int) -> _Taken:
        self._leases.reap(transaction)  # before all else: what comes back goes before what is new
        lease = None
        if holder is None or not transaction.execute("SELECT 1 FROM leases WHERE id = ?", (holder,)).fetchone():
            lease = self._leases.take(transaction, "consumer", str(self._group), None, self._seconds)
            holder = lease[0]
        deliveries, more = self._take_and_lend(transaction, holder, limit)
        return _Taken(lease, deliveries, None if deliveries else self._next_due(transaction), more)

    def _next_due(self, transaction: Transaction) -> float | None:
        ready, until = transaction.execute(
            "SELECT (SELECT min(ready) FROM pending WHERE grp = ?1 AND holder IS NULL AND ready > 0), "
            "(SELECT min(until) FROM pending WHERE grp = ?1 AND holder IS NOT NULL AND until > 0)",
            (self._group,),
        ).fetchone()
        delayed = None if ready is None else boot_clock() + (ready - records.wall_clock()) / 1000
        return min((due for due in (delayed, until) if due is not None), default=None)

    def _take_and_lend(self, transaction: Transaction, holder: int, limit: int) -> tuple[list[Delivery], bool]:
        skipped = 0
        while True:
            more = self._take_up(transaction, limit + skipped)
            deliveries, passed_over = self._lend(transaction, holder, limit)
            if deliveries or passed_over in (skipped, _SKIPS):
                return deliveries, more and not passed_over
            skipped = passed_over  # all of keys that others have on loan: look further

    def _take_up(self, transaction: Transaction, limit: int) -> bool:
        """Copy the places of new records into `pending`, so that `limit` are free; True: there are more.

        Of a queue many at once, as priorities and delays decide which comes first.
        """
        free = 0
        if not self._topic.queue:
            (free,) = transaction.execute(
                "SELECT count(*) FROM (SELECT 1 FROM pending INDEXED BY pending_free "
                "WHERE grp = ? AND holder IS NULL AND ready = 0 LIMIT ?)",
                (self._group, limit),
            ).fetchone()
        behind = transaction.execute(
            "SELECT p.partition, p.next, coalesce(c.position, 0) FROM partitions p "
            "LEFT JOIN cursors c ON c.grp = ? AND c.partition = p.partition "
            "WHERE p.topic = ? AND p.next > coalesce(c.position, 0)",
            (self._group, self._topic.id),
        ).fetchall()
        room = _TAKE_UP if self._topic.queue else limit - free
        more = False
        start = self._turn % len(behind) if behind else 0
        for partition, end, cursor in behind[start:] + behind[:start]:
            if room <= 0:
                return True
            place = (self._topic.id, partition, cursor)
            (first,) = transaction.execute(
                "SELECT min(position) FROM records WHERE topic = ? AND partition = ? AND position >= ?", place
            ).fetchone()
            stop = end if first is None else min(end, first + room)
            more |= stop < end
            room -= transaction.execute(
                "INSERT INTO pending (grp, partition, position, priority, ready) "
                "SELECT ?, partition, position, coalesce(priority, 0), coalesce(ready, 0) FROM records "
                "WHERE topic = ? AND partition = ? AND position >= ? AND position < ?",
                (self._group, *place, stop),
            ).rowcount
            transaction.execute("INSERT OR REPLACE INTO cursors VALUES (?, ?, ?)", (self._group, partition, stop))
        return more

    def _lend(self, transaction: Transaction, holder: int, limit: int) -> tuple[list[Delivery], int]:
        """Lend what is free; also says how many messages were passed over."""
        now, until = records.wall_clock(), self._until()
        transaction.execute(
            "UPDATE pending SET ready = 0 WHERE grp = ? AND holder IS NULL AND ready > 0 AND ready <= ?",
            (self._group, now),
        )
        transaction.execute(
            "UPDATE pending SET holder = NULL, until = NULL WHERE grp = ? AND holder IS NOT NULL AND until <= ?",
            (self._group, boot_clock()),
        )
        busy = self._busy_keys(transaction, holder)
        deliveries: list[Delivery] = []
        lent: list[tuple[int, float | None, int, int, int]] = []
        dropped: list[tuple[int, int]] = []
        size = skipped = 0
        rows = transaction.execute(
            "SELECT p.partition, p.position, p.attempts, r.timestamp, r.key, r.value, r.headers, r.expires, "
            "r.position IS NULL FROM pending p LEFT JOIN records r "
            "ON r.topic = ? AND r.partition = p.partition AND r.position = p.position "
            "WHERE p.grp = ? AND p.holder IS NULL AND p.ready = 0 "
            "ORDER BY p.grp, p.priority DESC, p.partition, p.position",
            (self._topic.id, self._group),
        )
        for partition, position, attempts, timestamp, key, value, headers, expires, gone in rows:
            if gone or (expires is not None and expires <= now and not attempts):
                dropped.append((partition, position))
                continue
            if key in busy:
                skipped += 1
                if skipped == _SKIPS:
                    break
                continue
            message = Message(value, key, records.decode_headers(headers) if headers else (), timestamp)
            loan = _Loan(self, partition, position, attempts + 1, holder, until)
            deliveries.append(Delivery(message, loan.attempt, loan))
            lent.append((holder, until, self._group, partition, position))
            size += message.size
            if len(deliveries) >= limit or size >= _LOAN_BYTES:
                break
        rows.close()
        transaction.executemany(
            "UPDATE pending SET holder = ?, until = ?, attempts = attempts + 1 "
            "WHERE grp = ? AND partition = ? AND position = ?",
            lent,
        )
        transaction.executemany(
            "DELETE FROM pending WHERE grp = ? AND partition = ? AND position = ?",
            [(self._group, *place) for place in dropped],
        )
        self._clear(transaction, dropped)
        return deliveries, skipped

    def _until(self) -> float | None:
        return None

    def _unblocks(self, transaction: Transaction, holder: int) -> bool:
        """Whether other members may be waiting for keys that this one had on loan."""
        query = "SELECT 1 FROM leases WHERE kind = 'consumer' AND name = ? AND id <> ?"
        return transaction.execute(query, (str(self._group), holder)).fetchone() is not None

    def _busy_keys(self, transaction: Transaction, holder: int) -> set[bytes]:
        """Those that other members have on loan."""
        others = transaction.execute(
            "SELECT DISTINCT r.key FROM pending p JOIN records r "
            "ON r.topic = ? AND r.partition = p.partition AND r.position = p.position "
            "WHERE p.grp = ? AND p.holder IS NOT NULL AND p.holder <> ? AND r.key IS NOT NULL",
            (self._topic.id, self._group, holder),
        )
        return {key for (key,) in others}

    # --- settling --------------------------------------------------------------------------------------------

    async def _settle(self, loans: Sequence[_Loan], change: Callable[[Transaction, _Loan], bool]) -> None:
        """Apply `change` to all, or raise and change nothing."""

        def work(transaction: Transaction) -> None:
            stale = [loan for loan in loans if not change(transaction, loan)]
            if stale:
                raise self._stale(stale, len(loans), "nothing was changed")
            transaction.touched.add(self._topic.id)

        if loans:
            await self._database.write(work)

    def _loans(self, deliveries: Iterable[Delivery]) -> list[_Loan]:
        self._check_open()
        loans: list[_Loan] = []
        for delivery in deliveries:
            loan = delivery.handle
            if not isinstance(loan, _Loan) or loan.channel is not self:
                raise BrokerError(f"this delivery was not lent by this channel of {self._topic.name!r}")
            loans.append(loan)
        return loans

    def _stale(self, stale: Sequence[_Loan], total: int, outcome: str) -> StaleDelivery:
        return StaleDelivery(
            f"{len(stale)} of {total} deliveries of {self._topic.name!r} had gone back to the group, as their lease "
            f"had ended (the first: partition {stale[0].partition}, position {stale[0].position}); {outcome}"
        )

    def _remove(self, transaction: Transaction, loan: _Loan) -> bool:
        return bool(
            transaction.execute(
                "DELETE FROM pending WHERE grp = ? AND partition = ? AND position = ? AND holder = ? AND attempts = ?",
                self._place(loan),
            ).rowcount
        )

    def _place(self, loan: _Loan) -> tuple[int, int, int, int, int]:
        return self._group, loan.partition, loan.position, loan.holder, loan.attempt

    def _clear(self, transaction: Transaction, places: Sequence[tuple[int, int]]) -> None:
        """A topic keeps its records."""

    def _check_open(self) -> None:
        if self._closed:
            raise BrokerError(f"this channel of {self._topic.name!r} is closed; open another by transport.channel()")


class SqliteQueue(SqliteChannel):
    """A queue's channel, as `WorkQueue` of the contract. A delivery also comes back when its own lease ends."""

    async def extend(self, deliveries: Sequence[Delivery], lease: float) -> None:
        until = boot_clock() + lease

        def change(transaction: Transaction, loan: _Loan) -> bool:
            return _update(transaction, "until = ?", until, self._place(loan))

        loans = self._loans(deliveries)
        await self._settle(loans, change)
        for loan in loans:
            loan.until = until

    async def retry(self, delivery: Delivery, delay: float) -> None:
        ready = records.wall_clock() + round(delay * 1000) if delay > 0 else 0

        def change(transaction: Transaction, loan: _Loan) -> bool:
            return _update(transaction, "holder = NULL, until = NULL, ready = ?", ready, self._place(loan))

        await self._settle(self._loans([delivery]), change)

    async def reject(self, delivery: Delivery, reason: str) -> None:
        """Its copy on the queue that the option `dead_letter` names tells where it was rejected, and why."""
        loans = self._loans([delivery])
        record, origin = delivery.record, self._topic
        headers = (*record.headers, ("rejected-from", origin.name.encode()), ("rejected-because", reason.encode()))
        copy = Message(record.value, record.key, headers, record.timestamp)

        def change(transaction: Transaction, loan: _Loan) -> bool:
            if not self._remove(transaction, loan):
                return False
            self._clear(transaction, [(loan.partition, loan.position)])
            dead_letters = origin.dead_letter and records.find_topic(transaction, origin.dead_letter)
            if dead_letters:
                records.append(transaction, dead_letters, 0, [copy])
            return True

        await self._settle(loans, change)
        loans[0].done = True

    def _spread(self, messages: Sequence[Message]) -> dict[int, list[Message]]:
        return {0: list(messages)}

    def _until(self) -> float | None:
        return boot_clock() + self._seconds

    def _unblocks(self, transaction: Transaction, holder: int) -> bool:
        return False

    def _busy_keys(self, transaction: Transaction, holder: int) -> set[bytes]:
        """A queue promises no order to competing members: each gets the next message."""
        return set()

    def _clear(self, transaction: Transaction, places: Sequence[tuple[int, int]]) -> None:
        """Delete those of these records, done with here, for which no other group is waiting."""
        others = transaction.execute(
            "SELECT g.id, coalesce(c.position, 0) FROM groups g "
            "LEFT JOIN cursors c ON c.grp = g.id AND c.partition = 0 WHERE g.topic = ? AND g.id <> ?",
            (self._topic.id, self._group),
        ).fetchall()
        waits = "SELECT 1 FROM pending WHERE grp = ? AND partition = ? AND position = ?"
        transaction.executemany(
            "DELETE FROM records WHERE topic = ? AND partition = ? AND position = ?",
            [
                (self._topic.id, *place)
                for place in places
                if not any(
                    cursor <= place[1] or transaction.execute(waits, (group, *place)).fetchone()
                    for group, cursor in others
                )
            ],
        )


def _update(transaction: Transaction, change: str, value: float, place: tuple[int, int, int, int, int]) -> bool:
    where = "grp = ? AND partition = ? AND position = ? AND holder = ? AND attempts = ?"
    return bool(transaction.execute(f"UPDATE pending SET {change} WHERE {where}", (value, *place)).rowcount)
