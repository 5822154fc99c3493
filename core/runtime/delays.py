"""Sends that wait (`delay=`), and their cancelling: messages to a topic of the app's own, which its workers work off.

That makes them what all messages are: durable when `send` returns, or part of the event's commit. A record's key is the
topic and the id of what waits, so all about one id lies in one partition, in order; its value says what is to leave
when, and no value cancels. `delayed.py` is the other end.

The topic is made by the first send that needs it, which says so in the roster: programs that delay nothing have none.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from thalweg import headers as names
from thalweg.channel import Transport
from thalweg.clock import Clock
from thalweg.errors import BrokerError, MessageTooLarge
from thalweg.journal.origin import HEADER_BYTES
from thalweg.journal.rows import Waiting, encode
from thalweg.message import Headers, Message
from thalweg.plan import TopicPlan

from .roster import Delaying, Roster, as_messages

if TYPE_CHECKING:
    from .lane import Lane
    from .scheduled_run import ScheduledRun

__all__ = ["SUFFIX", "Delays"]

log = logging.getLogger("thalweg")

SUFFIX = "-delays"
"""What follows the app's id in the name of the topic."""

FIRST_BACKOFF, LONGEST_BACKOFF = 0.1, 5.0

T = TypeVar("T")
Send = Callable[[str, Mapping[int, Sequence[Message]]], Awaitable[None]]


class Delays:
    """Of a running app. plan: of the topic. exists: whether it is known to be there. message_bytes: the limit."""

    def __init__(
        self,
        plan: TopicPlan,
        exists: bool,
        transport: Transport,
        roster: Roster,
        send: Send,
        clock: Clock,
        message_bytes: int | None,
    ) -> None:
        self.plan, self.exists = plan, exists
        self._transport, self._roster, self._send, self._clock = transport, roster, send, clock
        self._limit = message_bytes
        self._me = secrets.token_hex(8)
        self._said = False
        self._preparing = asyncio.Lock()

    # --- sending -------------------------------------------------------------------------------------------------

    async def put(self, what: str, name: bytes, waiting: Waiting | None, lane: Lane | ScheduledRun | None) -> None:
        """Have a message leave when it is due, instead of the one of that name that waits; None: have none leave.

        what: of the program's, for errors. Raises MessageTooLarge, BrokerError.
        """
        await self._write(what, name, waiting, (), lane)

    async def put_once(self, what: str, name: bytes, waiting: Waiting, lane: Lane | ScheduledRun | None) -> None:
        """Likewise, but of all that ever had this name only the first counts, as long as names are remembered."""
        await self._write(what, name, waiting, ((names.ONCE, name),), lane)

    async def _write(
        self, what: str, name: bytes, waiting: Waiting | None, headers: Headers, lane: Lane | ScheduledRun | None
    ) -> None:
        value = None if waiting is None else encode(waiting)
        message = Message(value, name, headers, round(self._clock.now() * 1000))
        self._check_size(what, message, waiting)
        if not self._said and lane is None:
            await self._prepare()
        elif not self._said:  # no fault of the event's, which would meet its policy
            await self._insist(self._prepare)
        partition = self.plan.partition_of(name, self.plan.partitions)
        if lane is not None:
            lane.send((self.plan.name, partition), message)
        else:
            await self._send(self.plan.name, {partition: [message]})

    def _check_size(self, what: str, message: Message, waiting: Waiting | None) -> None:
        """What waits is wrapped in another message, and leaves, on some brokers, with a header more."""
        limit = self._limit
        if limit is None:
            return
        size = max(message.size, 0 if waiting is None else waiting.message.size + HEADER_BYTES)
        if size > limit:
            raise MessageTooLarge(
                f"{what}: a message of {size} bytes with all that it needs to wait is above the broker's limit of "
                f"{limit}; nothing of it was sent"
            )

    async def _prepare(self) -> None:
        """Before this process first writes: see to it that the topic is there, and that workers know. Whoever did so
        before may have died in between."""
        async with self._preparing:
            if self._said:
                return
            (info,) = await self._transport.declare([self.plan.spec])
            self.plan.partitions = info.partitions
            await self._send(self._roster.topic, {0: as_messages(Delaying(self._me), self._clock, self._roster.limit)})
            self._said = self.exists = True

    # --- working off ---------------------------------------------------------------------------------------------

    async def until_there(self) -> bool:
        """Return when the topic is there; whether it has the partitions that the worker's tasks were made for."""
        planned = self.plan.partitions
        if not self.exists:
            await self._roster.start()
            await self._look()
            while not (self.exists or self._roster.delaying):
                await self._roster.change()
        there = await self._insist(self._declared)
        self.exists = True
        if there != planned:
            log.critical(
                "topic %r was made with %d partitions by another version of the program, and this worker expected %d: "
                "delayed messages wait until it is started again",
                *(self.plan.name, there, planned),
            )
        return there == planned

    async def _look(self) -> None:
        """It may have come to be after the app looked, and before the roster's past that is read."""
        self.exists = await self._insist(self._listed) or self.exists

    async def _listed(self) -> bool:
        return any(info.name == self.plan.name for info in await self._transport.topics())

    async def _declared(self) -> int:
        (info,) = await self._transport.declare([self.plan.spec])
        return info.partitions

    async def _insist(self, ask: Callable[[], Awaitable[T]]) -> T:
        backoff = FIRST_BACKOFF
        while True:
            try:
                return await ask()
            except BrokerError as error:
                self._roster.complaints.warn("delays", "topic %r: %s; again in %.1f s", self.plan.name, error, backoff)
                await self._clock.sleep(backoff)
                backoff = min(2 * backoff, LONGEST_BACKOFF)
