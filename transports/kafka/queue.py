"""A queue as one consumer group sees it: a topic's channel with leases, retries and rejections of single deliveries."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from functools import partial

from thalweg.clock import boot_clock
from thalweg.errors import BrokerError, MissingCapability
from thalweg.message import Delivery, Headers, Message, QueueMessage

from .channel import KafkaChannel, Means, now
from .line import DUE, EXPIRES, FINISHING, LENT, Entry
from .sweeping import finished_by_all

__all__ = ["KafkaQueue"]

log = logging.getLogger("thalweg")

_SWEEP = 60.0


class KafkaQueue(KafkaChannel):
    """A queue's channel, as `WorkQueue` of the contract. A delivery comes back when its own lease ends."""

    is_queue = True

    def __init__(self, means: Means, dead_letters: KafkaChannel | None, sweeps: bool) -> None:
        super().__init__(means)
        self._dead_letters = dead_letters
        self.sweep_every = _SWEEP if sweeps else math.inf
        """Seconds between deletions of what all groups have finished."""
        self._swept = time.monotonic()
        self._sweeping: asyncio.Task[None] | None = None
        self._nap: asyncio.TimerHandle | None = None
        self._first_end = math.inf  # no loan ends sooner
        self._alarm: asyncio.TimerHandle | None = None

    async def extend(self, deliveries: Sequence[Delivery], lease: float) -> None:
        entries = self._entries_of(deliveries)
        self._end_loans()
        valid = [entry for entry in entries if entry.state in (LENT, FINISHING)]
        until = boot_clock() + lease
        for entry in valid:
            entry.until = until
        self._watch(until)
        if len(valid) < len(entries):
            raise self._stale(len(entries) - len(valid), len(entries), "the others are extended")

    async def retry(self, delivery: Delivery, delay: float) -> None:
        (entry,) = self._entries_of([delivery])
        self._end_loans()
        if entry.state != LENT:
            raise self._stale(1, 1, "nothing was changed")
        again = entry.line.take_back(entry, now() + round(delay * 1000) if delay > 0 else 0)
        stored = self._storing.store([entry.line.number])
        stored.add_done_callback(partial(self._given_back, entry, again))
        await asyncio.shield(stored)

    def _given_back(self, entry: Entry, again: Entry, stored: asyncio.Future[None]) -> None:
        if stored.cancelled() or stored.exception() is not None:
            entry.line.lend_again(entry, again)
            self._watch(entry.until)
        self._let_go()
        self._wake()

    async def reject(self, delivery: Delivery, reason: str) -> None:
        """Its copy on the queue that the option `dead_letter` names tells where it was rejected, and why.

        A crash between the two may leave it on both queues, never on none.
        """
        (entry,) = self._entries_of([delivery])
        record = delivery.record
        if self._dead_letters is not None and entry.state == LENT:
            about: Headers = (("rejected-from", self._topic.name.encode()), ("rejected-because", reason.encode()))
            await self._dead_letters.put(
                [Message(record.value, record.key, (*record.headers, *about), record.timestamp)]
            )
        await self.commit([delivery])

    def _outgoing(self, message: Message) -> Message:
        if not isinstance(message, QueueMessage):
            return message
        if message.priority:
            raise MissingCapability(f"queue {self._topic.name!r}: Kafka knows no priority")
        headers: Headers = message.headers
        if message.delay > 0:
            headers = (*headers, (DUE, b"%d" % (now() + round(message.delay * 1000))))
        if message.expires is not None:
            headers = (*headers, (EXPIRES, b"%d" % max(1, now() + round(message.expires * 1000))))
        return Message(message.value, message.key, headers, message.timestamp)

    def _has_stored(self) -> None:
        super()._has_stored()
        if self._sweeping is None and time.monotonic() - self._swept >= self.sweep_every:
            self._sweeping = asyncio.get_running_loop().create_task(self._sweep(), name=f"kafka {self._topic.name}")

    async def _sweep(self) -> None:
        try:
            mine = [number for number, line in self._lines.items() if not line.leaving]
            for number, first in (await finished_by_all(self._cluster, self._topic, mine)).items():
                await self._log.truncate(number, first)
        except BrokerError as error:
            log.debug("queue %s: what is finished was not deleted this time: %s", self._topic.name, error)
        finally:
            self._swept, self._sweeping = time.monotonic(), None

    def _spread(self) -> None:
        self._next_place += 1

    def _watch(self, until: float) -> None:
        if until < self._first_end and not self._closed:
            self._first_end = until
            if self._alarm is not None:
                self._alarm.cancel()
            self._alarm = asyncio.get_running_loop().call_later(max(0.0, until - boot_clock()), self._end_loans)

    def _end_loans(self) -> None:
        clock = boot_clock()
        if clock < self._first_end:
            return
        self._first_end = math.inf
        lent = [entry for line in self._lines.values() for entry in line.lent()]
        over = [entry for entry in lent if entry.until <= clock]
        if over:
            self._give_back(over)
        self._watch(min((entry.until for entry in lent if entry.until > clock), default=math.inf))

    def _stay_awake(self) -> None:
        super()._stay_awake()
        if self._nap is not None:
            self._nap.cancel()
        self._rest(False)

    def _may_rest(self) -> None:
        """One that is not asked for so long is full or stuck: others get the partitions that have nothing on loan."""
        if not self._closed:
            self._nap = asyncio.get_running_loop().call_later(self._lease, self._rest, True)

    def _rest(self, resting: bool) -> None:
        self._end_loans()
        self._resting = resting
        if self._member is not None:
            self._member.rest(resting)

    async def close(self) -> None:
        for waiting in (self._nap, self._alarm, self._sweeping):
            if waiting is not None:
                waiting.cancel()
        await super().close()
