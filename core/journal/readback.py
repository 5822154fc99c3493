"""Commits on a log that cannot refuse a stale owner: append, then count only what is read back (design rule 1).

Each journal is written, and answered for, by itself: one that is stuck holds up no other. One reader for each topic of
journals reads back what was appended there, and runs only while somebody waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec
from thalweg.capabilities import Commit, Fencing, Log
from thalweg.channel import Capability, Transport
from thalweg.clock import Clock
from thalweg.errors import AmbiguousCommit, BrokerError, Fenced, Gap
from thalweg.message import Batch, Message, Position

from .records import Fold, Marker, decode_entry
from .writer import FencedWriter, JournalKey, JournalWriter, Outcome, Written

__all__ = ["ReadBackWriter", "writer_for"]

PATIENCE = 30.0
"""Seconds until an append that was not read back is ambiguous."""
WAIT = 5.0
"""Seconds that one read waits for something new."""
BACKOFF = 0.1
LONGEST_BACKOFF = 2.0
READ_RECORDS, READ_BYTES = 1000, 1 << 24

OpenLog = Callable[[str], Awaitable[Log]]


def writer_for(transport: Transport, open_log: OpenLog, clock: Clock) -> JournalWriter:
    """The cheapest that the broker allows."""
    if Capability.FENCING in transport.capabilities and isinstance(transport, Fencing):
        return FencedWriter(transport, transport.limits.commit_messages)
    return ReadBackWriter(open_log, clock)


class ReadBackWriter:
    """For every log without `Capability.FENCING`."""

    atomic_outputs = False

    def __init__(self, open_log: OpenLog, clock: Clock) -> None:
        self._open_log, self._clock = open_log, clock
        self._topics: dict[str, _Topic] = {}
        self._tails: dict[JournalKey, _Tail] = {}

    def _topic(self, name: str) -> _Topic:
        if name not in self._topics:
            self._topics[name] = _Topic(name, self._open_log, self._clock)
        return self._topics[name]

    async def claim(self, journal: JournalKey, marker: Message) -> None:
        topic, partition = self._topic(journal[0]), journal[1]
        tail = _Tail(partition, await topic.last(partition))
        token = decode_entry(marker.value or b"").token
        await topic.append(tail, [marker], lambda: tail.token == token)
        tail.fenced = False  # a marker before ours is the owner that we succeed
        self._tails[journal] = tail

    async def commit(self, commits: Mapping[JournalKey, Commit], done: Callable[[JournalKey, Outcome], None]) -> None:
        async def one(journal: JournalKey, commit: Commit, tail: _Tail) -> None:
            try:
                outcome: Outcome = await self._commit(journal, commit, tail)
            except Exception as error:
                outcome = error
            done(journal, outcome)

        # The tails as of now: a journal that is claimed anew meanwhile gets another.
        await asyncio.gather(*[one(journal, commit, self._tails[journal]) for journal, commit in commits.items()])

    async def _commit(self, journal: JournalKey, commit: Commit, tail: _Tail) -> Written:
        data = commit.records[-1].value or b""
        number = decode_entry(data).number
        tail.first = None
        await self._topic(journal[0]).append(tail, commit.records, lambda: tail.fenced or tail.fold.number >= number)
        if tail.fenced:
            lost = f"journal {journal[0]!r} partition {journal[1]} has a newer owner"
            raise Fenced(lost, frozenset([journal]))
        return Written(tail.first or 0, tail.position or 0, data)

    def forget(self, journal: JournalKey) -> None:
        self._tails.pop(journal, None)

    async def close(self) -> None:
        for topic in self._topics.values():
            await topic.close()
        self._topics.clear()


class _Tail:
    """The end of one journal as its owner reads it back."""

    def __init__(self, partition: int, position: Position | None) -> None:
        self.partition = partition
        self.position = position
        self.first: Position | None = None  # of the records of the commit under way
        self.fold = Fold()
        self.token = b""
        self.fenced = False

    def feed(self, position: Position, data: bytes | None) -> None:
        self.position = position
        number = self.fold.number
        entry = self.fold.feed(data)
        if self.first is None and self.fold.number != number:
            self.first = position
        if isinstance(entry, Marker):
            self.fenced = bool(self.token)
            self.token = entry.token


class _Waiter(msgspec.Struct, eq=False):
    tail: _Tail
    arrived: Callable[[], bool]
    done: asyncio.Future[None]


class _Topic:
    """One topic of journals: a log to append to, and a reader of those partitions in which somebody waits.

    A read that fails is tried again on a log opened anew, for as long as those who wait have patience: reading changes
    nothing. An append that fails is never tried again: its task starts over.
    """

    def __init__(self, name: str, open_log: OpenLog, clock: Clock) -> None:
        self._name, self._clock = name, clock
        self._appender, self._read_log = _Reopened(name, open_log), _Reopened(name, open_log)
        self._waiters: list[_Waiter] = []
        self._reader: asyncio.Task[None] | None = None
        self._reading: asyncio.Task[Mapping[int, Batch]] | None = None
        self._after: Mapping[int, Position | None] = {}  # what is being read
        self._trouble: BrokerError | None = None

    async def last(self, partition: int) -> Position | None:
        async with self._appender as log:
            return (await log.bounds(partition)).last

    async def append(self, tail: _Tail, records: Sequence[Message], arrived: Callable[[], bool]) -> None:
        """Return once both the broker has taken them and they were read back.

        Raises `AmbiguousCommit` if they are not seen within `PATIENCE` seconds of the broker's word, `Gap`, or what
        appending or reading raised.
        """
        waiter = self._expect(tail, arrived)
        try:
            async with self._appender as log:
                await log.append({tail.partition: records}, positions=False)
            async with self._clock.timeout(PATIENCE):
                await waiter.done
        except TimeoutError:
            why = f": {self._trouble}" if self._trouble else ""
            raise AmbiguousCommit(
                f"an append to {self._name!r} partition {tail.partition} was not seen there within {PATIENCE:g} s{why}"
            ) from self._trouble
        finally:
            self._forget(waiter)

    def _expect(self, tail: _Tail, arrived: Callable[[], bool]) -> _Waiter:
        waiter = _Waiter(tail, arrived, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        if self._reader is None:
            self._reader = asyncio.get_running_loop().create_task(self._read(), name=f"thalweg read-back {self._name}")
        elif self._reading is not None and tail.partition not in self._after:
            self._reading.cancel()  # harmless: reads are positional
        return waiter

    def _forget(self, waiter: _Waiter) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)
        if not waiter.done.cancel() and not waiter.done.cancelled():
            waiter.done.exception()  # it has been seen, or the append's own comes first
        if not self._waiters and self._reading is not None:
            self._reading.cancel()

    async def _read(self) -> None:
        backoff = BACKOFF
        try:
            while self._waiters:
                try:
                    async with self._read_log as log:
                        batches = await self._next(log)
                except BrokerError as error:
                    if not (isinstance(error, Gap) and self._cut_off(error)):
                        self._trouble = error
                        await self._clock.sleep(backoff)
                        backoff = min(2 * backoff, LONGEST_BACKOFF)
                else:
                    backoff, self._trouble = BACKOFF, None
                    self._feed(batches)
        except Exception as error:
            self._end(list(self._waiters), error)
        finally:
            self._reader = None

    def _cut_off(self, gap: Gap) -> bool:
        """Only a newer owner truncates past what this one has seen of its journal: those who wait there end."""
        lost = [waiter for waiter in self._waiters if waiter.tail.partition == gap.partition]
        self._end(lost, gap)
        return bool(lost)

    async def _next(self, log: Log) -> Mapping[int, Batch]:
        """What follows in the partitions that are waited for; nothing if it becomes another set of them."""
        after: dict[int, Position | None] = {}
        for waiter in self._waiters:
            position, partition = waiter.tail.position, waiter.tail.partition
            known = after.get(partition, position)
            after[partition] = None if position is None or known is None else min(position, known)
        self._after = after
        self._reading = asyncio.get_running_loop().create_task(log.read(after, READ_RECORDS, READ_BYTES, WAIT))
        try:
            return await self._reading
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                self._reading.cancel()
                raise
            return {}
        finally:
            self._reading = None

    def _feed(self, batches: Mapping[int, Batch]) -> None:
        for waiter in list(self._waiters):
            batch = batches.get(waiter.tail.partition)
            if batch is not None:
                try:
                    self._feed_one(waiter, batch)
                except Exception as error:  # another app's journal, or damage
                    self._end([waiter], error)

    def _feed_one(self, waiter: _Waiter, batch: Batch) -> None:
        tail = waiter.tail
        for position, record in zip(batch.positions, batch.records, strict=True):
            if tail.position is not None and position <= tail.position:
                continue
            tail.feed(position, record.value)
            if waiter.arrived():
                self._end([waiter])
                return

    def _end(self, waiters: list[_Waiter], error: Exception | None = None) -> None:
        for waiter in waiters:
            self._waiters.remove(waiter)
            if waiter.done.done():
                continue
            if error is None:
                waiter.done.set_result(None)
            else:
                waiter.done.set_exception(error)

    async def close(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        self._end(list(self._waiters), BrokerError(f"{self._name!r}: the worker has closed its journals"))
        await self._appender.close()
        await self._read_log.close()


class _Reopened:
    """A log that is opened at its first use, and anew after one that failed: once nobody uses it any more."""

    def __init__(self, name: str, open_log: OpenLog) -> None:
        self._name, self._open_log = name, open_log
        self._opening = asyncio.Lock()
        self._log: Log | None = None
        self._users = 0
        self._failed = False

    async def __aenter__(self) -> Log:
        async with self._opening:
            if self._log is None:
                self._log = await self._open_log(self._name)
            self._users += 1
            return self._log

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        self._users -= 1
        self._failed = self._failed or (kind is not None and issubclass(kind, BrokerError))
        if self._failed and not self._users:
            await self.close()

    async def close(self) -> None:
        log, self._log, self._failed = self._log, None, False
        if log is not None:
            with contextlib.suppress(BrokerError):
                await log.close()
