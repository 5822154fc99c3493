"""A queue as one consumer group sees it: `WorkQueue` of the contract. A stream, and a durable consumer for each group.

A message leaves the stream once every group has finished it. The server lends each delivery for `ack_wait`; that it is
over is known here by the machine's own clock, for the server takes a late acknowledgement without a word.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import msgspec
from thalweg.clock import boot_clock
from thalweg.errors import AmbiguousCommit, BrokerError, MissingCapability, StaleDelivery
from thalweg.finishing import ignore_failure
from thalweg.message import Delivery, Message, QueueMessage

from .connection import ApiError, Connection, ConnectionLost
from .done import DoneNotes
from .log import Topic
from .publish import Entry, check, publish_all
from .pull import Pull
from .records import DELAY, EXPIRES, decode, header_value, place_of, token
from .streams import StreamConfig
from .wire import WireLost, pub

__all__ = ["UNCLAIMED", "NatsQueue", "consumer_config", "queue_config"]

UNCLAIMED = "unclaimed"
"""The consumer that keeps what is put before there is any group."""

_NO_CONSUMER = 10014
_MOST = 1000  # messages that one `get` takes, whatever its limit
_LATE = 0.005  # seconds added to delays, so that a message is not back before its time


class _Consumers(msgspec.Struct):
    consumer_count: int = 0


class _Info(msgspec.Struct):
    """Answer to STREAM.INFO, as far as it is of use."""

    config: StreamConfig
    state: _Consumers


class Queues(Protocol):
    """Where the queue of dead letters is found."""

    async def queue(self, name: str) -> Topic: ...


class _Loan(msgspec.Struct, eq=False):
    """The handle of a delivery. until: when it ends here (boot clock); wanted: when it shall end, by `extend`."""

    channel: NatsQueue
    reply: bytes
    until: float
    wanted: float = 0.0
    done: bool = False
    gone: bool = False


class NatsQueue:
    """A group's member. lease: seconds. atomic: whether the server has atomic batches."""

    def __init__(
        self,
        connection: Connection,
        queues: Queues,
        topic: Topic,
        group: str,
        lease: float,
        message_bytes: int,
        atomic: bool,
        notes: DoneNotes,
    ) -> None:
        self._connection = connection
        self._queues = queues
        self._topic = topic
        self._consumer = token(group)
        self._lease = lease
        self._message_bytes = message_bytes
        self._atomic = atomic
        self._notes = notes
        self._loans: dict[bytes, _Loan] = {}
        self._fetched: deque[Delivery] = deque()
        self._pulls: set[Pull] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._extending: asyncio.Task[None] | None = None
        self._closed = False
        self._left: asyncio.Task[None] | None = None

    @property
    def closed(self) -> bool:
        return self._closed

    async def join(self) -> None:
        """Be known as a group: from now on nothing leaves the queue before this group has finished it."""
        topic, stream = self._topic, self._topic.stream
        config = consumer_config(self._consumer, self._lease)
        if topic.foreign and topic.subjects != ">":
            config["filter_subject"] = topic.subjects
        request = {"stream_name": stream, "config": config}
        await self._connection.api(f"CONSUMER.DURABLE.CREATE.{stream}.{self._consumer}", msgspec.Raw, request)
        if not topic.foreign:
            try:
                await self._connection.api(f"CONSUMER.DELETE.{stream}.{UNCLAIMED}", msgspec.Raw)
            except ApiError as error:
                if error.code != _NO_CONSUMER:
                    raise
        info = await self._connection.api(f"STREAM.INFO.{stream}", _Info)
        self._atomic = self._atomic and info.config.allow_atomic
        if info.state.consumer_count > 1 and not topic.foreign:
            await self._notes.begin()

    # --- putting ---------------------------------------------------------------------------------------------

    async def put(self, messages: Sequence[Message]) -> None:
        self._check_open()
        await self._put(self._topic, messages)

    async def _put(self, topic: Topic, messages: Sequence[Message]) -> None:
        subject, entries = topic.subject(0), list[Entry]()
        for message in messages:
            lines = b""
            if isinstance(message, QueueMessage):
                if message.priority:
                    raise MissingCapability(f"{topic.name!r}: queues on NATS know no priority")
                if message.delay > 0:
                    lines += b"%b: %.3f\r\n" % (DELAY, message.delay)
                if message.expires is not None:
                    # The server counts whole seconds, and at least one.
                    lines += b"%b: %.3f\r\nNats-TTL: %ds\r\n" % (
                        EXPIRES,
                        message.expires,
                        max(1, -int(-message.expires // 1)),
                    )
            entries.append(Entry(subject, message, lines))
        check(self._connection, entries, self._message_bytes, topic.name)
        await publish_all(self._connection, entries, self._atomic)

    # --- lending ---------------------------------------------------------------------------------------------

    async def get(self, limit: int, timeout: float) -> Sequence[Delivery]:
        self._check_open()
        deadline = time.monotonic() + timeout
        while limit > 0 and not self._closed:
            if deliveries := self._next(limit):
                return deliveries
            remaining = deadline - time.monotonic()
            # A task of its own: cancelled here, what it brings is for whoever gets next.
            taking = self._background(self._take(min(limit, _MOST), remaining))
            woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(woken)
            try:
                await asyncio.wait([taking, woken], return_when=asyncio.FIRST_COMPLETED)
            except asyncio.CancelledError:
                taking.cancel()
                raise
            finally:
                with contextlib.suppress(ValueError):
                    self._waiting.remove(woken)
            if not taking.done():
                taking.cancel()  # there is something already: more than another has asked for
                await asyncio.wait([taking])
            if not taking.cancelled():
                taking.result()
            if remaining <= 0:
                break
        return self._next(limit)

    async def _take(self, limit: int, seconds: float) -> None:
        """Put what is free into `_fetched`; wait for the first message if there is none."""
        if await self._pull(limit) or seconds <= 0:
            return
        # A short request, so that the moment of asking is a safe start of the loan even for a process that was stopped.
        if await self._pull(1, min(seconds, self._lease / 3)) and limit > 1:
            await self._pull(limit - 1)

    async def _pull(self, batch: int, seconds: float = 0.0) -> bool:
        """Whether it brought anything that can be handed out."""
        until, brought = boot_clock() + self._lease, False

        def take(subject: bytes, reply: bytes, header: bytes, payload: bytes) -> None:
            nonlocal brought
            brought = self._arrived(reply, header, payload, until) or brought

        await self._notes.recall()
        wire = await self._connection.wire()
        subject = f"{self._connection.endpoint.api}CONSUMER.MSG.NEXT.{self._topic.stream}.{self._consumer}"
        try:
            pull = Pull(wire, subject, 0, take, lambda: None, batch, seconds)
        except WireLost as error:
            raise self._connection.endpoint.explain(error, "the connection was lost: ") from None
        self._pulls.add(pull)
        try:
            await pull.finish(self._connection.endpoint.timeout)
        except asyncio.CancelledError:
            self._background(self._withdraw(pull))
            raise
        finally:
            self._pulls.discard(pull)
        if pull.failed and not brought:
            said = pull.status.decode(errors="replace").strip()
            raise self._connection.endpoint.explain(f"queue {self._topic.name!r}: {said}")
        return brought

    async def _withdraw(self, pull: Pull) -> None:
        await pull.withdraw()
        if self._fetched:
            self._wake()

    def _arrived(self, reply: bytes, header: bytes, payload: bytes, until: float) -> bool:
        attempts, sequence, _, stored = place_of(reply)
        if (sequence, stored) in self._notes:
            self._say(reply, b"+ACK")
            return False
        if header and (delay := header_value(header, DELAY)):
            if (left := stored / 1e9 + float(delay) - time.time()) > 0:
                self._say(reply, _nak(left + _LATE))
                return False
            attempts = max(1, attempts - 1)  # the first time it was only put off
        if header and (expires := header_value(header, EXPIRES)) and stored / 1e9 + float(expires) <= time.time():
            self._say(reply, b"+TERM expired")
            return False
        loan = _Loan(self, reply, until)
        self._loans[reply] = loan
        self._fetched.append(Delivery(decode(header, payload, stored // 1_000_000), attempts, loan))
        return True

    def _say(self, reply: bytes, words: bytes) -> None:
        """Unheard, it comes back when the lease ends."""
        wire = self._connection.current
        if wire is not None:
            with contextlib.suppress(WireLost):
                wire.send(pub(reply, b"", words))

    def _next(self, limit: int) -> list[Delivery]:
        """Of what was fetched, what is still ours."""
        deliveries: list[Delivery] = []
        while self._fetched and len(deliveries) < limit:
            delivery = self._fetched.popleft()
            loan = delivery.handle
            assert isinstance(loan, _Loan)
            if loan.until > boot_clock():
                deliveries.append(delivery)
            else:
                self._loans.pop(loan.reply, None)
        if self._fetched:
            self._wake()
        return deliveries

    def _wake(self) -> None:
        while self._waiting:
            woken = self._waiting.popleft()
            if not woken.done():
                woken.set_result(None)
                break

    # --- settling --------------------------------------------------------------------------------------------

    async def commit(self, deliveries: Sequence[Delivery]) -> None:
        await self._settle([loan for loan in self._loans_of(deliveries) if not loan.done], b"+ACK", "committed")

    async def extend(self, deliveries: Sequence[Delivery], lease: float) -> None:
        loans = self._loans_of(deliveries)
        asked = boot_clock()
        stale = await self._tell(loans, b"+WPI")
        for loan in loans:
            if loan not in stale:
                loan.until, loan.wanted = asked + min(lease, self._lease), asked + lease
        if lease > self._lease and self._extending is None:
            self._extending = self._background(self._extend_on())
        self._raise_stale(len(stale), len(loans), "extended")

    async def _extend_on(self) -> None:
        """The server knows one length of lease: what was extended for longer is extended again."""
        while longer := [loan for loan in self._loans.values() if loan.wanted > loan.until]:
            await asyncio.sleep(self._lease / 3)
            asked = boot_clock()
            loans = [loan for loan in longer if not loan.done and loan.wanted > loan.until > asked]
            with contextlib.suppress(BrokerError):
                stale = await self._tell(loans, b"+WPI")
                for loan in loans:
                    if loan not in stale:
                        loan.until = min(loan.wanted, asked + self._lease)
        self._extending = None

    async def retry(self, delivery: Delivery, delay: float) -> None:
        (loan,) = loans = self._loans_of([delivery])
        stale = await self._tell(loans, _nak(delay + _LATE if delay > 0 else 0))
        loan.gone = True
        self._loans.pop(loan.reply, None)
        self._raise_stale(len(stale), 1, "given back")

    async def reject(self, delivery: Delivery, reason: str) -> None:
        """Its copy on the queue that the option `dead_letter` names tells where it was rejected, and why.

        A crash between the two may leave it on both queues, never on none.
        """
        (loan,) = self._loans_of([delivery])
        record, origin = delivery.record, self._topic
        if origin.dead_letter and not loan.done:
            headers = (*record.headers, ("rejected-from", origin.name.encode()), ("rejected-because", reason.encode()))
            target = await self._queues.queue(origin.dead_letter)
            await self._put(target, [Message(record.value, record.key, headers, record.timestamp)])
        words = " ".join(reason.split())[:200]
        await self._settle([loan] if not loan.done else [], f"+TERM {words}".encode(), "removed")

    async def _settle(self, loans: Sequence[_Loan], words: bytes, done: str) -> None:
        stale = await self._tell(loans, words)
        for loan in loans:
            loan.done = loan.done or loan not in stale
            self._loans.pop(loan.reply, None)
        self._raise_stale(len(stale), len(loans), done)

    async def _tell(self, loans: Sequence[_Loan], words: bytes) -> Sequence[_Loan]:
        """Say it for each, and wait until the server has heard it; returns those whose loan was over."""
        now = boot_clock()
        stale = [loan for loan in loans if loan.gone or loan.done or loan.until <= now]
        good = [loan for loan in loans if not (loan.gone or loan.done or loan.until <= now)]
        if not good:
            return stale
        connection, subject = self._connection, good[0].reply
        if self._notes.needed and words.startswith((b"+ACK", b"+TERM")):
            places = [place_of(loan.reply) for loan in good]
            await self._notes.note([(sequence, stored) for _, sequence, _, stored in places])
        wire = await connection.wire()
        reply, heard = wire.collect(subject, len(good))
        try:
            wire.send(b"".join([pub(loan.reply, reply, words) for loan in good]))
            await connection.answer(heard, subject)
        except (ConnectionLost, WireLost) as error:
            raise AmbiguousCommit(f"{error} (whether it was taken is unknown)") from None
        finally:
            heard.cancel()
        return stale

    def _loans_of(self, deliveries: Iterable[Delivery]) -> list[_Loan]:
        self._check_open()
        loans: list[_Loan] = []
        for delivery in deliveries:
            loan = delivery.handle
            if not isinstance(loan, _Loan) or loan.channel is not self:
                raise BrokerError(f"this delivery was not lent by this channel of {self._topic.name!r}")
            loans.append(loan)
        return loans

    def _raise_stale(self, stale: int, total: int, done: str) -> None:
        if stale:
            raise StaleDelivery(
                f"{stale} of {total} deliveries of {self._topic.name!r} had gone back to the group, as their lease had "
                f"ended; the others are {done}"
            )

    # --- closing ---------------------------------------------------------------------------------------------

    async def close(self) -> None:
        self._closed = True
        if self._left is None:
            self._left = asyncio.get_running_loop().create_task(self._leave())
        for woken in self._waiting:
            if not woken.done():
                woken.set_result(None)
        await asyncio.shield(self._left)

    async def _leave(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        while self._tasks:
            await asyncio.wait(self._tasks)
        with contextlib.suppress(BrokerError):  # it comes back when the lease ends
            await self._tell(list(self._loans.values()), _nak(0))
        self._loans.clear()

    def _background(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(ignore_failure)  # who gave up does not ask
        return task

    def _check_open(self) -> None:
        if self._closed:
            raise BrokerError(f"this channel of {self._topic.name!r} is closed; open another by transport.channel()")


def queue_config(topic: Topic, replicas: int, atomic: bool) -> dict[str, object]:
    config: dict[str, object] = {
        "name": topic.stream,
        "subjects": [topic.subjects],
        "retention": "interest",
        "allow_msg_ttl": True,
        "num_replicas": replicas,
        "discard": "new",
    }
    if topic.retention is not None:
        config["max_age"] = round(topic.retention * 1e9)
    return config | {"allow_atomic": True} if atomic else config


def consumer_config(name: str, lease: float) -> dict[str, object]:
    return {
        "durable_name": name,
        "ack_policy": "explicit",
        "ack_wait": round(lease * 1e9),
        "max_ack_pending": -1,
        "max_waiting": 10_000,
    }


def _nak(delay: float) -> bytes:
    return b'-NAK {"delay": %d}' % round(delay * 1e9) if delay > 0 else b"-NAK"
