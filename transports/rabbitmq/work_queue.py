"""A queue as one consumer group sees it: an AMQP queue of which each member takes as many messages as it asks for."""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections.abc import Coroutine, Iterable, Sequence
from math import inf
from typing import Any

from thalweg.clock import boot_clock
from thalweg.errors import BrokerError, StaleDelivery
from thalweg.finishing import finish, ignore_failure
from thalweg.message import Delivery, Message, Record

from .connection import Connection, Outgoing
from .delays import Delays
from .intake import LINGER, Intake
from .loans import Loan, Loans
from .place import Place
from .queue_writing import QueueWriting
from .settling import Settling
from .wire import ATTEMPTS, to_amqp

__all__ = ["RabbitQueue"]


class RabbitQueue:
    """As `WorkQueue` of the contract. A delivery comes back when its lease ends, which this process looks after; when
    the process dies, or hangs for longer than the server's patience with its heartbeat, the server does.
    """

    def __init__(
        self, writing: Connection, reading: Connection, delays: Delays, place: Place, lease: float, message_bytes: int
    ) -> None:
        self._reading = reading
        self._place = place
        self._lease = lease
        self._loans = Loans()
        self._intake = Intake(reading, place.queue, place.name, self._loans)
        self._settling = Settling(reading, self._intake, self._loans, place.name)
        self._writing = QueueWriting(writing, delays, place, message_bytes)
        self._resting: asyncio.TimerHandle | None = None
        self._ending: asyncio.TimerHandle | None = None
        self._background: set[asyncio.Task[Any]] = set()
        self._left: asyncio.Task[None] | None = None

    @property
    def closed(self) -> bool:
        return self._intake.closed

    # --- writing and reading ---------------------------------------------------------------------------------

    async def put(self, messages: Sequence[Message]) -> None:
        self._check_open()
        await self._writing.put(messages)

    async def get(self, limit: int, timeout: float) -> Sequence[Delivery]:
        self._check_open()
        if limit <= 0:
            return []
        found = self._take(limit)
        if found:
            return found
        intake, loop = self._intake, asyncio.get_running_loop()
        deadline = loop.time() + timeout
        intake.demand += limit
        self._stop(self._resting)
        try:
            while not found and not intake.closed:
                await intake.arrival(limit, deadline)
                found = self._take(limit)
                if loop.time() >= deadline:
                    break
        finally:
            intake.demand -= limit
            if not intake.demand and not intake.closed:
                self._resting = loop.call_later(LINGER if found else 0, self._rest_soon)
        if not found and not intake.demand and not intake.closed:
            await finish(self._rest(), self._background)
            found = self._take(limit)
        return found

    def _take(self, limit: int) -> list[Delivery]:
        """Lend of what has arrived. What has expired on its way is dropped."""
        taken, expired = self._loans.lend(limit, self._lease)
        if expired:
            self._later(self._settling.ack(expired))
        if self._loans.arrived:
            self._intake.wake()
        self._watch()
        return taken

    def _rest_soon(self) -> None:
        self._later(self._rest())

    async def _rest(self) -> None:
        """Nobody asks: take nothing more, and after a while give back what nobody has fetched."""
        if await self._intake.rest():
            self._stop(self._resting)
            if self._loans.arrived and not self.closed:
                self._resting = asyncio.get_running_loop().call_later(self._lease, self._return_arrived)

    def _return_arrived(self) -> None:
        arrived = self._loans.arrived
        if arrived and not self._intake.demand:
            loans = list(arrived)
            arrived.clear()
            self._later(self._settling.give_back(loans))

    # --- leases ----------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        lent = self._loans.lent
        if self._ending is None and lent and not self.closed:
            left = min(loan.until for loan in lent) - boot_clock()
            self._ending = asyncio.get_running_loop().call_later(max(0.0, left), self._end_leases)

    def _end_leases(self) -> None:
        self._ending = None
        now = boot_clock()
        ended = [loan for loan in self._loans.lent if loan.until <= now]
        if ended:
            self._later(self._settling.give_back(ended))
        self._watch()

    # --- settling --------------------------------------------------------------------------------------------

    async def commit(self, deliveries: Sequence[Delivery]) -> None:
        loans = [loan for loan in self._loans_of(deliveries) if not loan.done]
        standing = [loan for loan in loans if loan.stands]
        if standing:
            await finish(self._commit(standing), self._background)
        if len(standing) < len(loans):
            raise self._stale(len(loans) - len(standing), len(loans), "the others are committed")

    async def extend(self, deliveries: Sequence[Delivery], lease: float) -> None:
        loans = self._loans_of(deliveries)
        standing = [loan for loan in loans if loan.stands]
        for loan in standing:
            loan.until = boot_clock() + lease
        if self._ending is not None:
            self._stop(self._ending)
            self._ending = None
        self._watch()
        if len(standing) < len(loans):
            raise self._stale(len(loans) - len(standing), len(loans), "the others are extended")

    async def retry(self, delivery: Delivery, delay: float) -> None:
        await finish(self._retry(self._standing(delivery), delay), self._background)

    async def reject(self, delivery: Delivery, reason: str) -> None:
        """Where the option `dead_letter` names a queue, a copy there tells where it was rejected, and why.

        A crash between the two may leave it on both, never on none. Otherwise RabbitMQ's own dead-lettering has it,
        if an argument of the queue or a policy says so.
        """
        await finish(self._reject(self._standing(delivery), delivery.record, reason), self._background)

    async def _commit(self, loans: Sequence[Loan]) -> None:
        await self._settling.ack(loans)
        for loan in loans:
            loan.done = True

    async def _retry(self, loan: Loan, delay: float) -> None:
        place, loan.until = self._place, inf  # it must not come back by itself meanwhile
        if delay <= 0 and place.kind != "classic":
            await self._settling.give_back([loan])
            return
        properties = copy.copy(loan.message.header.properties)
        headers = {name: value for name, value in (properties.headers or {}).items() if not name.startswith("x-")}
        properties.headers = {**headers, ATTEMPTS: loan.attempts}
        properties.expiration, properties.delivery_mode = None, 2
        exchange, key = ("", place.queue) if delay <= 0 else await self._writing.back_after(delay)
        await self._replace(loan, Outgoing(exchange, key, loan.message.body, properties), f"queue {place.name!r}")

    async def _reject(self, loan: Loan, record: Record, reason: str) -> None:
        place, loan.until = self._place, inf
        if not place.dead_letter:
            await self._settling.give_back([loan], requeue=False)
            return
        headers = (*record.headers, ("rejected-from", place.name.encode()), ("rejected-because", reason.encode()))
        body, properties = to_amqp(Message(record.value, record.key, headers, record.timestamp))
        outgoing = Outgoing(place.dead_letter, "", body, properties)
        await self._replace(loan, outgoing, f"the dead letters of queue {place.name!r}")

    async def _replace(self, loan: Loan, message: Outgoing, what: str) -> None:
        """Another message takes its place. A crash in between leaves both."""
        try:
            await self._writing.write(message, what)
        except BrokerError:
            loan.until = boot_clock() + self._lease
            raise
        await self._settling.ack([loan])

    # --- the rest --------------------------------------------------------------------------------------------

    async def close(self) -> None:
        if not self.closed:
            self._intake.closed = True
            self._left = asyncio.get_running_loop().create_task(self._leave())
        self._intake.wake()
        assert self._left is not None
        await asyncio.shield(self._left)

    async def _leave(self) -> None:
        for timer in (self._resting, self._ending):
            self._stop(timer)
        tasks = self._background | self._intake.tasks | self._writing.background
        if tasks:
            await asyncio.wait(tasks, timeout=self._reading.endpoint.timeout)
        intake, channel = self._intake, self._intake.channel
        if channel is not None and not channel.is_closed:
            with contextlib.suppress(BrokerError):
                await intake.end(channel)
                if left := self._loans.unsettled:
                    await self._settling.give_back(left)
                    for _ in range(5):  # RabbitMQ lets a new consumer overtake what is given back
                        if await intake.count_ready(channel) >= len(left):
                            break
                        await asyncio.sleep(LINGER)
                await self._reading.ask(channel.close())
        intake.channel = None

    def _standing(self, delivery: Delivery) -> Loan:
        (loan,) = self._loans_of([delivery])
        if not loan.stands:
            raise self._stale(1, 1, "nothing was changed")
        return loan

    def _loans_of(self, deliveries: Iterable[Delivery]) -> list[Loan]:
        self._check_open()
        loans: dict[Loan, None] = {}
        for delivery in deliveries:
            loan = delivery.handle
            if not isinstance(loan, Loan) or loan.book is not self._loans:
                raise BrokerError(f"this delivery was not lent by this channel of {self._place.name!r}")
            loans[loan] = None
        return list(loans)

    def _stale(self, stale: int, total: int, outcome: str) -> StaleDelivery:
        return StaleDelivery(
            f"{stale} of {total} deliveries of {self._place.name!r} had gone back to the queue, as their lease had "
            f"ended or the connection was lost; {outcome}"
        )

    def _check_open(self) -> None:
        if self.closed:
            raise BrokerError(f"this channel of {self._place.name!r} is closed; open another by transport.channel()")

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        """What nobody waits for. If it fails, the connection is gone, and with it what was to be settled."""
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        task.add_done_callback(ignore_failure)

    def _stop(self, timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()
