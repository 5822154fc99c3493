"""A topic or queue as one consumer group sees it: each partition is one member's, and with it all of its messages.

What was delivered how often, and what is finished, is stored with the group's offsets: see `progress.py`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from typing import NamedTuple

from thalweg.capabilities import Role
from thalweg.clock import boot_clock
from thalweg.errors import BrokerError, Gap, MissingCapability, StaleDelivery
from thalweg.message import Delivery, Message, QueueMessage
from thalweg.partitioner import murmur2_partitioner

from .connection import Cluster
from .line import FINISHED, FINISHING, LENT, READ_RECORDS, Entry, Line, settle
from .log import KafkaLog
from .member import Member, Quarters
from .offsets import Offsets
from .progress import Progress
from .storing import Storing
from .topics import Topic

__all__ = ["KafkaChannel", "Means", "now"]

log = logging.getLogger("thalweg")

_READ_BYTES = 4 << 20
"""How much is read at a time, in all. Only when nothing waits to be lent."""

_LONGEST_READ = 5.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0


class Means(NamedTuple):
    """What a channel works with. lease: of a queue's deliveries, session: of its membership, in seconds."""

    cluster: Cluster
    quarters: Quarters
    log: KafkaLog
    topic: Topic
    group: str
    lease: float
    session: float


class KafkaChannel:
    """A topic's channel: what is lent stays with this member for as long as it is one."""

    is_queue = False

    def __init__(self, means: Means) -> None:
        self._cluster, self._quarters, self._log, self._topic, self._group, self._lease, self._session = means
        topic = self._topic
        self._lines: dict[int, Line] = {}
        self._opening: frozenset[int] = frozenset()
        self._turn = 0
        self._next_place = secrets.randbelow(topic.partitions)
        self._member: Member | None = None
        self._offsets: Offsets | None = None
        self._life: asyncio.Task[None] | None = None
        self._problem: BrokerError | None = None
        self._full = False  # some partition is left out of reads until something of it is finished
        self._reading: asyncio.Task[None] | None = None
        self._waiting: set[asyncio.Future[None]] = set()
        self._storing = Storing(f"kafka offsets of {self._group}", self._store_now, self._has_stored)
        self._asking = 0
        self._resting = False
        self._closed = False
        self._left: asyncio.Task[None] | None = None

    async def put(self, messages: Sequence[Message]) -> None:
        """By key, as everywhere; those without one all to one partition, another one at each call."""
        self._check_open()
        parts: dict[int, list[Message]] = {}
        count = self._topic.partitions
        if not self.is_queue:
            self._next_place += 1
        for message in messages:
            number = self._next_place % count if message.key is None else murmur2_partitioner(message.key, count)
            parts.setdefault(number, []).append(self._outgoing(message))
            self._spread()
        if parts:
            await self._log.append(parts, positions=False)

    async def get(self, limit: int, timeout: float) -> Sequence[Delivery]:
        self._check_open()
        self._stay_awake()
        try:
            return await self._get(limit, timeout)
        finally:
            self._asking -= 1
            if not self._asking:
                self._may_rest()

    async def _get(self, limit: int, timeout: float) -> Sequence[Delivery]:
        if self._life is None:
            self._life = asyncio.get_running_loop().create_task(self._live(), name=f"kafka {self._group}")
            self._life.add_done_callback(self._died)
        deadline = time.monotonic() + timeout
        looked = False
        while limit > 0 and not self._closed:
            lent = self._lend(limit)
            if lent:
                deliveries = await self._hand_out(lent)
                if deliveries:
                    return deliveries
                continue
            if self._problem is not None:
                raise BrokerError(str(self._problem))
            remaining = deadline - time.monotonic()
            if remaining <= 0 and (looked or not self._lines or self._reading is not None):
                break
            looked = True
            await self._news(max(0.0, remaining))
        return []

    async def commit(self, deliveries: Sequence[Delivery]) -> None:
        entries = self._entries_of(deliveries)
        self._end_loans()
        ending: list[Entry] = []
        places: set[int] = set()
        for entry in entries:
            if entry.state == LENT:
                entry.state = FINISHING
                ending.append(entry)
            if entry.state == FINISHING:
                places.add(entry.line.number)
        if places:
            stored = self._storing.store(places)
            stored.add_done_callback(partial(self._finished, ending))
            await asyncio.shield(stored)
        stale = [entry for entry in entries if entry.state != FINISHED]
        if stale:
            raise self._stale(len(stale), len(deliveries), "the others are committed")

    async def close(self) -> None:
        self._closed = True
        self._wake()
        if self._left is None:
            self._left = asyncio.get_running_loop().create_task(self._leave())
        await asyncio.shield(self._left)

    async def _leave(self) -> None:
        for task in (self._life, self._reading):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        await self._storing.close()
        if self._member is not None and self._offsets is not None:
            await self._member.close()
            self._offsets.close()
        self._drop_lines()
        await self._log.close()

    # --- lending -----------------------------------------------------------------------------------------------

    def _lend(self, limit: int) -> list[Entry]:
        """Partitions take turns at being first."""
        self._end_loans()
        lines = list(self._lines.values())
        self._turn += 1
        start = self._turn % len(lines) if lines else 0
        until = boot_clock() + self._lease if self.is_queue else math.inf
        lent: list[Entry] = []
        for line in lines[start:] + lines[:start]:
            if len(lent) == limit:
                break
            lent += line.lend(limit - len(lent), now(), until)
        if lent:
            self._watch(until)
        return lent

    async def _hand_out(self, entries: Sequence[Entry]) -> list[Delivery]:
        """First it is stored that they were delivered, so that whoever gets them after a crash knows."""
        handed_out = False
        try:
            await asyncio.shield(self._storing.store({entry.line.number for entry in entries}))
            handed_out = True
        except StaleDelivery:
            return []
        finally:
            if not handed_out:
                self._give_back(entries, unseen=True)
        return [Delivery(entry.record, entry.attempts, entry) for entry in entries if entry.state == LENT]

    def _give_back(self, entries: Sequence[Entry], *, unseen: bool = False) -> None:
        for entry in reversed(entries):
            if entry.state == LENT:
                entry.line.take_back(entry, unseen=unseen)
        self._let_go()
        self._wake()

    def _end_loans(self) -> None:
        """Take back what was neither finished nor extended in time."""

    def _watch(self, until: float) -> None:
        """A loan ends then (boot clock)."""

    # --- waiting for something to lend -------------------------------------------------------------------------

    async def _news(self, seconds: float) -> None:
        """Wait, at most so long, for something that may be lent. Raises BrokerError if reading fails."""
        if self._reading is None and self._lines:
            self._reading = asyncio.get_running_loop().create_task(self._read(min(seconds, _LONGEST_READ)))
            self._reading.add_done_callback(self._has_read)
        due = [(line.next_due - now()) / 1000 for line in self._lines.values() if line.next_due is not None]
        news: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(news)
        # A read that does not wait ends by itself, and has to be waited for.
        patience = max(0.001, min([seconds, *due])) if seconds > 0 else None
        try:
            await asyncio.wait([news], timeout=patience)
            if news.done():
                news.result()
        finally:
            self._waiting.discard(news)
            if news.done():
                news.exception()  # if it came together with a cancellation, nobody else asks

    async def _read(self, timeout: float) -> None:
        lines = {number: line for number, line in self._lines.items() if line.has_room}
        self._full = len(lines) < len(self._lines)
        if not lines:
            await asyncio.sleep(timeout)  # until something is finished, which ends this
            return
        after = {number: line.after for number, line in lines.items()}
        try:
            found = await self._log.read(after, READ_RECORDS, _READ_BYTES, timeout)
        except Gap as gap:
            lines[gap.partition].skip_to(gap.first)
            return
        for number, batch in found.items():
            lines[number].add(batch)

    def _has_read(self, reading: asyncio.Task[None]) -> None:
        if self._reading is reading:
            self._reading = None
        if reading.cancelled():
            self._wake()
        else:
            self._wake(reading.exception())

    def _wake(self, error: BaseException | None = None) -> None:
        for news in self._waiting:
            if not news.done():
                if error is None:
                    news.set_result(None)
                else:
                    news.set_exception(error)
        self._waiting.clear()

    def _look_anew(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
        else:
            self._wake()

    # --- being a member ----------------------------------------------------------------------------------------

    async def _live(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            changed = asyncio.Event()
            what, me = (self._group, self._topic.kafka, self._topic.partitions), secrets.token_hex(6)
            member = Member(self._quarters, *what, self._session, me, Role(), changed.set)
            self._member, self._offsets = member, Offsets(self._cluster, member)
            member.start(self._resting)
            while member.lost is None:
                await changed.wait()
                changed.clear()
                await self._follow(member)
            self._drop_lines()
            if member.share is None:
                self._problem = member.lost
                self._wake()
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                log.warning("joining again: %s", member.lost)
                pause = _FIRST_PAUSE
            self._opening = frozenset()
            await member.close()
            self._offsets.close()

    def _died(self, life: asyncio.Task[None]) -> None:
        if not life.cancelled() and (error := life.exception()) is not None:
            log.error("%s", error, exc_info=error)
            self._problem = BrokerError(f"this channel of {self._topic.name!r} has failed: {error!r}")
            self._wake()

    async def _follow(self, member: Member) -> None:
        """Do what the member's share says."""
        if member.lost is not None or member.share is None:
            return
        share = member.take()
        self._problem = None
        for number, line in self._lines.items():
            line.leaving = number not in share
        self._opening = share - self._lines.keys()
        if self._opening:
            stored = await self._committed(member, self._opening)
            for number in self._opening & (member.share or set()) if member.lost is None else ():
                progress = Progress.decode(*stored[number]) if number in stored else None
                self._lines[number] = Line(self, number, progress, self.is_queue)
            self._opening = frozenset()
        self._let_go()
        self._look_anew()

    async def _committed(self, member: Member, numbers: Collection[int]) -> dict[int, tuple[int, str]]:
        assert self._offsets is not None
        while member.lost is None:
            try:
                return dict(await self._offsets.committed(numbers))
            except BrokerError as error:
                log.warning("asking again: %s", error)
                await asyncio.sleep(_FIRST_PAUSE)
        return {}

    def _let_go(self) -> None:
        """Give up what is to leave and is at rest."""
        busy = self._storing.busy
        for number in [n for n, line in self._lines.items() if line.leaving and not line.on_loan and n not in busy]:
            self._lines.pop(number).drop()
        if self._member is not None:
            self._member.keep(self._lines.keys() | self._opening)

    def _drop_lines(self) -> None:
        for line in self._lines.values():
            line.drop()
        self._lines.clear()
        if self._reading is not None:
            self._reading.cancel()

    # --- storing -----------------------------------------------------------------------------------------------

    async def _store_now(self, numbers: Iterable[int]) -> None:
        assert self._offsets is not None
        offsets: dict[int, tuple[int, str]] = {}
        for number in numbers:
            line = self._lines.get(number)
            progress = None if line is None else line.progress()
            if progress is not None:
                offsets[number] = progress.encode()
        await self._offsets.commit(offsets)

    def _finished(self, entries: Iterable[Entry], stored: asyncio.Future[None]) -> None:
        failed = stored.cancelled() or stored.exception() is not None
        settle(entries, finished=not failed)
        if not failed and self._waiting and self._full:
            self._look_anew()
        self._let_go()

    # --- helpers -----------------------------------------------------------------------------------------------

    def _entries_of(self, deliveries: Iterable[Delivery]) -> list[Entry]:
        self._check_open()
        entries: list[Entry] = []
        for delivery in deliveries:
            entry = delivery.handle
            if not isinstance(entry, Entry) or entry.line.channel is not self:
                raise BrokerError(f"this delivery was not lent by this channel of {self._topic.name!r}")
            entries.append(entry)
        return entries

    def _outgoing(self, message: Message) -> Message:
        if isinstance(message, QueueMessage) and (message.priority or message.delay or message.expires is not None):
            raise MissingCapability(
                f"{self._topic.name!r} is a topic: priority, delay and expires need a queue (TopicSpec(queue=True))"
            )
        return message

    def _spread(self) -> None:
        """Called after each message of a `put`."""

    def _has_stored(self) -> None:
        """Called when something was stored, or could not be."""
        self._let_go()

    def _stay_awake(self) -> None:
        """Called when somebody asks."""
        self._asking += 1

    def _may_rest(self) -> None:
        """Called when nobody asks any more."""

    def _stale(self, stale: int, total: int, outcome: str) -> StaleDelivery:
        return StaleDelivery(
            f"{stale} of {total} deliveries of {self._topic.name!r} had gone back to the group, as their lease or the "
            f"membership had ended; {outcome}"
        )

    def _check_open(self) -> None:
        if self._closed:
            raise BrokerError(f"this channel of {self._topic.name!r} is closed; open another by transport.channel()")


def now() -> int:
    """Milliseconds since the epoch."""
    return round(time.time() * 1000)
