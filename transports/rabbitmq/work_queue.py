"""A queue as one consumer group sees it: an AMQP queue of which each member takes as many messages as it asks for.

Messages come by a consumer with exactly that prefetch, which is given up when nobody asks any more: what lies in this
process but in nobody's hands could be another member's work.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import time
from collections import deque
from collections.abc import Coroutine, Iterable, Sequence
from functools import partial
from math import inf
from typing import Any

import msgspec
from aiormq.abc import AbstractChannel, DeliveredMessage
from pamqp.commands import Basic
from thalweg.clock import boot_clock
from thalweg.errors import AmbiguousCommit, BrokerError, MissingCapability, StaleDelivery
from thalweg.finishing import finish, ignore_failure
from thalweg.message import Delivery, Message, QueueMessage, Record

from .connection import Connection, Outgoing
from .delays import LONGEST, Delays
from .wire import ATTEMPTS, EXPIRES, check, from_amqp, to_amqp

__all__ = ["Place", "RabbitQueue"]

_PREFETCH = 1000
_LINGER = 0.01  # seconds that a consumer stays after a `get` which found something, for the next one
_PATIENCE = 1.0  # seconds that it stays for what is on its way, at most
_SOON = 0.05  # seconds within which a message that the server has ready arrives


class Place(msgspec.Struct, frozen=True):
    """Where a queue's messages are put and where this group takes them from.

    kind: quorum, classic, or existing (whatever it is). address: of the exchange, for delays; queue_address: of the
    group's queue. dead_letter: the exchange of the queue to which rejected messages go.
    """

    name: str
    kind: str
    exchange: str
    routing_key: str
    queue: str
    address: str
    queue_address: str
    dead_letter: str = ""


class _Consumer:
    """outstanding: what it brought and was not settled; at `prefetch` the server sends no more."""

    def __init__(self, channel: AbstractChannel, prefetch: int) -> None:
        self.channel = channel
        self.prefetch = prefetch
        self.outstanding = 0
        self.tag: str | None = None

    @property
    def hungry(self) -> bool:
        return self.tag is not None and not self.channel.is_closed and self.outstanding < self.prefetch


class _Loan(msgspec.Struct, eq=False):
    """The handle of a delivery. until: boot clock. settled: nothing more is to be done about it. done: committed."""

    owner: RabbitQueue
    consumer: _Consumer
    message: DeliveredMessage
    attempts: int
    until: float
    settled: bool = False
    done: bool = False

    @property
    def tag(self) -> int:
        assert self.message.delivery_tag is not None
        return self.message.delivery_tag

    @property
    def stands(self) -> bool:
        return not self.settled and self.until > boot_clock() and not self.consumer.channel.is_closed


class RabbitQueue:
    """As `WorkQueue` of the contract. A delivery comes back when its lease ends, which this process looks after; when
    the process dies, or hangs for longer than the server's patience with its heartbeat, the server does.
    """

    def __init__(
        self, writing: Connection, reading: Connection, delays: Delays, place: Place, lease: float, message_bytes: int
    ) -> None:
        self._writing = writing
        self._reading = reading
        self._delays = delays
        self._place = place
        self._lease = lease
        self._limit = message_bytes
        self._channel: AbstractChannel | None = None
        self._consumer: _Consumer | None = None
        self._changing = asyncio.Lock()
        self._writing_down = asyncio.Lock()
        self._prefetch = 0
        self._arrived: deque[_Loan] = deque()  # in nobody's hands yet
        self._lent: dict[_Loan, None] = {}
        self._unsettled: dict[int, _Loan] = {}  # by delivery tag, in that order: what has arrived or is lent
        self._asking: set[asyncio.Future[None]] = set()
        self._demand = 0
        self._feeding: asyncio.Task[None] | None = None
        self._resting: asyncio.TimerHandle | None = None
        self._ending: asyncio.TimerHandle | None = None
        self._led: set[str] = set()
        self._background: set[asyncio.Task[Any]] = set()
        self._closed = False
        self._left: asyncio.Task[None] | None = None

    @property
    def closed(self) -> bool:
        return self._closed

    # --- writing ---------------------------------------------------------------------------------------------

    async def put(self, messages: Sequence[Message]) -> None:
        self._check_open()
        place = self._place
        check(messages, self._limit, place.name)
        outgoing: list[Outgoing] = []
        for message in messages:
            body, properties = to_amqp(message)
            exchange, key = place.exchange, place.routing_key
            if isinstance(message, QueueMessage):
                if message.priority:
                    self._check_priority(message.priority)
                    properties.priority = message.priority
                if message.expires is not None:
                    left = max(0, round(message.expires * 1000))
                    assert properties.headers is not None
                    properties.headers[EXPIRES] = time.time_ns() // 1_000_000 + left
                    if message.delay <= 0:
                        properties.expiration = str(left)
                if message.delay > 0:
                    exchange, key = await self._delayed(message.delay)
            outgoing.append(Outgoing(exchange, key, body, properties))
        if outgoing:
            await self._writing.publish(outgoing, f"queue {place.name!r}")

    async def _delayed(self, delay: float) -> tuple[str, str]:
        place = self._place
        if delay > LONGEST:
            raise BrokerError(f"a delay of {delay:g} s for {place.name!r}: RabbitMQ takes {LONGEST:g} s at most")
        if place.kind == "existing" and (place.exchange or not place.queue):
            raise MissingCapability(
                f"{place.name!r} is an exchange that was there before: a delay would change the routing key that "
                "it goes by; declare the queue without declare=False, or send without delay="
            )
        if place.kind == "existing":
            await self._lead(place.queue_address, queue=place.queue)
            return await self._delays.route(delay, place.queue_address)
        await self._lead(place.address, exchange=place.exchange)
        return await self._delays.route(delay, place.address)

    async def _lead(self, address: str, queue: str = "", exchange: str = "") -> None:
        if address not in self._led:
            await finish(self._delays.lead(address, queue, exchange), self._background)
            self._led.add(address)

    def _check_priority(self, priority: int) -> None:
        if not 0 <= priority <= 9:
            raise BrokerError(f"priority {priority} of a message for {self._place.name!r}: expected 0 to 9")
        if self._place.kind == "quorum":
            raise MissingCapability(
                f"{self._place.name!r} is a quorum queue, which has no priorities: open the broker with "
                "?queues=classic before the queue is first declared (a classic queue is not replicated)"
            )

    # --- reading ---------------------------------------------------------------------------------------------

    async def get(self, limit: int, timeout: float) -> Sequence[Delivery]:
        self._check_open()
        if limit <= 0:
            return []
        found = self._take(limit)
        if found:
            return found
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        self._demand += limit
        self._stop(self._resting)
        try:
            while not found and not self._closed:
                await self._arrival(limit, deadline)
                found = self._take(limit)
                if loop.time() >= deadline:
                    break
        finally:
            self._demand -= limit
            if not self._demand and not self._closed:
                self._resting = loop.call_later(_LINGER if found else 0, self._rest_soon)
        if not found and not self._demand and not self._closed:
            await finish(self._rest(), self._background)
            found = self._take(limit)
        return found

    async def _arrival(self, limit: int, deadline: float) -> None:
        """Wait until something has arrived, but not much longer than until `deadline` (of the loop's clock)."""
        loop = asyncio.get_running_loop()
        if self._consumer is None or not self._consumer.hungry:
            if self._feeding is None:
                self._feeding = loop.create_task(self._feed())
                self._feeding.add_done_callback(self._fed)
            feeding = self._feeding
            await asyncio.wait([feeding], timeout=max(_SOON, deadline - loop.time()))
            if not feeding.done():
                return  # it still connects
            feeding.result()
        if not self._arrived and not self._closed:
            patience = deadline - loop.time()
            if patience <= 0 and await finish(self._any_ready(), self._background):
                patience = _SOON
            if patience > 0:
                woken = loop.create_future()
                self._asking.add(woken)
                try:
                    await asyncio.wait([woken], timeout=patience)
                finally:
                    self._asking.discard(woken)
        while self._arrived and len(self._arrived) < limit:  # what is on its way through the client comes along
            count = len(self._arrived)
            for _ in range(5):
                await asyncio.sleep(0)
            if len(self._arrived) == count:
                break

    async def _feed(self) -> None:
        """See to it that the server sends something as soon as it has it."""
        async with self._changing:
            consumer, channel = self._consumer, self._channel
            if channel is None or channel.is_closed or not self._reading.alive:
                channel = await self._reading.channel()
                self._forget_all()
                self._channel, consumer = channel, None
                channel.closing.add_done_callback(self._wake)
                channel.on_consumer_cancel_callbacks.add(self._cancelled)
            if self._closed or (consumer is not None and consumer.hungry):
                return
            await self._give_up(consumer)
            prefetch = min(max(1, self._demand), _PREFETCH)
            self._prefetch = prefetch
            self._consumer = consumer = _Consumer(channel, prefetch)
            await self._reading.ask(channel.basic_qos(prefetch_count=prefetch))
            asked = channel.basic_consume(self._place.queue, partial(self._arrive, consumer))
            answer = await self._reading.ask(asked, f"reading queue {self._place.name!r}: ")
            consumer.tag = answer.consumer_tag

    def _fed(self, feeding: asyncio.Task[None]) -> None:
        self._feeding = None
        if not feeding.cancelled():
            feeding.exception()
        self._wake(None)

    async def _give_up(self, consumer: _Consumer | None) -> None:
        if consumer is not None and consumer.tag is not None and not consumer.channel.is_closed:
            tag, consumer.tag = consumer.tag, None
            await self._reading.ask(consumer.channel.basic_cancel(tag))

    async def _any_ready(self) -> bool:
        async with self._changing:
            channel = self._channel
            if self._arrived or channel is None or channel.is_closed:
                return bool(self._arrived)
            return await self._count_ready(channel) > 0

    async def _count_ready(self, channel: AbstractChannel) -> int:
        """Of the messages that went to nobody; what the server had sent to us before is here when it answers."""
        found = await self._reading.ask(
            channel.queue_declare(self._place.queue, passive=True), f"reading queue {self._place.name!r}: "
        )
        return found.message_count or 0

    async def _arrive(self, consumer: _Consumer, message: DeliveredMessage) -> None:
        if message.channel is not self._channel or message.delivery_tag is None:
            return
        consumer.outstanding += 1
        headers = message.header.properties.headers or {}
        before, returned = headers.get(ATTEMPTS), headers.get("x-delivery-count")
        attempts = 1 + (before if isinstance(before, int) else 0)
        attempts += returned if isinstance(returned, int) else bool(message.redelivered)
        loan = _Loan(self, consumer, message, attempts, 0.0)
        self._unsettled[loan.tag] = loan
        self._arrived.append(loan)
        self._wake(None)

    def _take(self, limit: int) -> list[Delivery]:
        """Lend of what has arrived. What has expired on its way is dropped."""
        taken: list[Delivery] = []
        now, until = time.time_ns() // 1_000_000, boot_clock() + self._lease
        while self._arrived and len(taken) < limit:
            loan = self._arrived.popleft()
            if loan.settled or loan.consumer.channel.is_closed:
                continue
            expires = (loan.message.header.properties.headers or {}).get(EXPIRES)
            if loan.attempts == 1 and isinstance(expires, int) and expires <= now:
                self._later(self._ack([loan]))
                continue
            loan.until = until
            self._lent[loan] = None
            taken.append(Delivery(from_amqp(loan.message, now), loan.attempts, loan))
        if self._arrived:
            self._wake(None)
        self._watch()
        return taken

    def _rest_soon(self) -> None:
        self._later(self._rest())

    async def _rest(self) -> None:
        """Nobody asks: take nothing more, and after a while give back what nobody has fetched.

        But first let come what is on its way: the server takes it back when its consumer is gone, and lines it up last.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + _PATIENCE
        while not self._demand and not self._closed:
            async with self._changing:
                consumer = self._consumer
                moving = consumer is not None and consumer.hungry and loop.time() < end
                if not (moving and consumer is not None and await self._count_ready(consumer.channel)):
                    if self._demand:  # by now
                        return
                    await self._give_up(consumer)
                    self._stop(self._resting)
                    if self._arrived and not self._closed:
                        self._resting = loop.call_later(self._lease, self._return_arrived)
                    return
            await asyncio.sleep(_LINGER)

    def _return_arrived(self) -> None:
        if self._arrived and not self._demand:
            loans = list(self._arrived)
            self._arrived.clear()
            self._later(self._return(loans))

    # --- leases ----------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        if self._ending is None and self._lent and not self._closed:
            left = min(loan.until for loan in self._lent) - boot_clock()
            self._ending = asyncio.get_running_loop().call_later(max(0.0, left), self._end_leases)

    def _end_leases(self) -> None:
        self._ending = None
        now = boot_clock()
        ended = [loan for loan in self._lent if loan.until <= now]
        if ended:
            self._later(self._return(ended))
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
        (loan,) = self._standing([delivery])
        await finish(self._retry(loan, delay), self._background)

    async def reject(self, delivery: Delivery, reason: str) -> None:
        """Where the option `dead_letter` names a queue, a copy there tells where it was rejected, and why.

        A crash between the two may leave it on both, never on none. Otherwise RabbitMQ's own dead-lettering has it,
        if an argument of the queue or a policy says so.
        """
        (loan,) = self._standing([delivery])
        await finish(self._reject(loan, delivery.record, reason), self._background)

    async def _commit(self, loans: Sequence[_Loan]) -> None:
        await self._ack(loans)
        for loan in loans:
            loan.done = True

    async def _retry(self, loan: _Loan, delay: float) -> None:
        place, loan.until = self._place, inf  # it must not come back by itself meanwhile
        if delay <= 0 and place.kind != "classic":
            await self._return([loan])
            return
        properties = copy.copy(loan.message.header.properties)
        headers = {name: value for name, value in (properties.headers or {}).items() if not name.startswith("x-")}
        properties.headers = {**headers, ATTEMPTS: loan.attempts}
        properties.expiration, properties.delivery_mode = None, 2
        exchange, key = "", place.queue
        if delay > 0:
            await self._lead(place.queue_address, queue=place.queue)
            exchange, key = await self._delays.route(delay, place.queue_address)
        await self._replace(loan, Outgoing(exchange, key, loan.message.body, properties), f"queue {place.name!r}")

    async def _reject(self, loan: _Loan, record: Record, reason: str) -> None:
        place, loan.until = self._place, inf
        if not place.dead_letter:
            await self._return([loan], requeue=False)
            return
        headers = (*record.headers, ("rejected-from", place.name.encode()), ("rejected-because", reason.encode()))
        body, properties = to_amqp(Message(record.value, record.key, headers, record.timestamp))
        outgoing = Outgoing(place.dead_letter, "", body, properties)
        await self._replace(loan, outgoing, f"the dead letters of queue {place.name!r}")

    async def _replace(self, loan: _Loan, message: Outgoing, what: str) -> None:
        """Another message takes its place. A crash in between leaves both."""
        try:
            await self._writing.publish([message], what)
        except BrokerError:
            loan.until = boot_clock() + self._lease
            raise
        await self._ack([loan])

    async def _ack(self, loans: Sequence[_Loan]) -> None:
        """The beginning of what is unsettled in one frame; the server has it all when this returns."""
        tags, last = {loan.tag for loan in loans if not loan.settled}, 0
        for tag in self._unsettled:
            if tag not in tags:
                break
            last = tag
        channel = loans[0].consumer.channel
        self._settle(loans)

        async def write() -> None:
            if last:
                await channel.basic_ack(last, multiple=True, wait=False)
            for tag in sorted(tags):
                if tag > last:
                    await channel.basic_ack(tag, wait=False)

        await self._settled(channel, write())

    async def _return(self, loans: Sequence[_Loan], requeue: bool = True) -> None:
        """One by one, which keeps their order; or, without requeue, to where dead letters go."""
        tags = sorted(loan.tag for loan in loans if not loan.settled)
        channel = loans[0].consumer.channel
        self._settle(loans)

        async def write() -> None:
            for tag in tags:
                await channel.basic_nack(tag, requeue=requeue, wait=False)

        await self._settled(channel, write())

    def _settle(self, loans: Iterable[_Loan]) -> None:
        for loan in loans:
            if not loan.settled:
                loan.settled = True
                loan.consumer.outstanding -= 1
                self._lent.pop(loan, None)
                self._unsettled.pop(loan.tag, None)

    async def _settled(self, channel: AbstractChannel, writing: Coroutine[Any, Any, Any]) -> None:
        """AMQP does not answer an acknowledgement; but it keeps the order of a channel, and answers this."""
        try:
            async with self._writing_down:  # what begins with the first tags must not overtake what they are in
                await self._reading.ask(writing)
            await self._reading.ask(channel.basic_qos(prefetch_count=self._prefetch))
        except BrokerError as error:
            raise AmbiguousCommit(f"queue {self._place.name!r}: {error} (whether it was settled is unknown)") from None

    def _forget_all(self) -> None:
        """The channel is gone, and the server has taken everything back."""
        self._settle(list(self._unsettled.values()))
        self._unsettled.clear()
        self._arrived.clear()

    # --- the rest --------------------------------------------------------------------------------------------

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._left = asyncio.get_running_loop().create_task(self._leave())
        self._wake(None)
        assert self._left is not None
        await asyncio.shield(self._left)

    async def _leave(self) -> None:
        for timer in (self._resting, self._ending):
            self._stop(timer)
        tasks = {*self._background, *([self._feeding] if self._feeding is not None else [])}
        if tasks:
            await asyncio.wait(tasks, timeout=self._reading.endpoint.timeout)
        channel, consumer = self._channel, self._consumer
        if channel is not None and not channel.is_closed:
            with contextlib.suppress(BrokerError):  # closing the channel alone would do, but in any order
                end = time.monotonic() + _PATIENCE
                while consumer is not None and consumer.hungry and await self._count_ready(channel):
                    if time.monotonic() > end:
                        break
                    await asyncio.sleep(_LINGER)
                await self._give_up(consumer)
                if count := len(self._unsettled):
                    await self._return(list(self._unsettled.values()))
                    for _ in range(5):  # RabbitMQ lets a new consumer overtake what is given back
                        if await self._count_ready(channel) >= count:
                            break
                        await asyncio.sleep(_LINGER)
                await self._reading.ask(channel.close())
        self._channel = None

    def _cancelled(self, frame: Basic.Cancel) -> None:
        """By the server: the queue was deleted, or has moved."""
        if self._consumer is not None and frame.consumer_tag == self._consumer.tag:
            self._consumer.tag = None
        self._wake(None)

    def _wake(self, _: object) -> None:
        for woken in self._asking:
            if not woken.done():
                woken.set_result(None)

    def _standing(self, deliveries: Iterable[Delivery]) -> list[_Loan]:
        loans = self._loans_of(deliveries)
        for loan in loans:
            if not loan.stands:
                raise self._stale(1, 1, "nothing was changed")
        return loans

    def _loans_of(self, deliveries: Iterable[Delivery]) -> list[_Loan]:
        self._check_open()
        loans: dict[_Loan, None] = {}
        for delivery in deliveries:
            loan = delivery.handle
            if not isinstance(loan, _Loan) or loan.owner is not self:
                raise BrokerError(f"this delivery was not lent by this channel of {self._place.name!r}")
            loans[loan] = None
        return list(loans)

    def _stale(self, stale: int, total: int, outcome: str) -> StaleDelivery:
        return StaleDelivery(
            f"{stale} of {total} deliveries of {self._place.name!r} had gone back to the queue, as their lease had "
            f"ended or the connection was lost; {outcome}"
        )

    def _check_open(self) -> None:
        if self._closed:
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
