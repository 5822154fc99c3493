"""What waits in one task: messages that leave when they are due, kept as rows of its journal (`delays.py` sends them).

Taking in a record and letting a message leave are parts of commits, as all that a task does: a crash repeats and loses
nothing. Rows lie in the order of time, so that what is due is found without a look at the rest, however much waits.

Before anything leaves, all that lay in the topic when it was due has been read. So what was cancelled, or replaced, in
time never leaves: in time by the clock of this worker, and by the moment at which the broker had the cancelling.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from itertools import islice
from typing import TYPE_CHECKING

import msgspec
from thalweg.clock import Timer
from thalweg.errors import BrokerError
from thalweg.event import Event
from thalweg.journal.rows import Waiting, decode, encode, waiting_key, waiting_until_key
from thalweg.message import Message, Position
from thalweg.plan import AgentPlan, Destination, SourcePlan, TopicPlan
from thalweg.policy import Skip
from thalweg.store import Store

from .agent_task import AgentTask
from .lane import EVENTS, Lane

if TYPE_CHECKING:
    from .task import Task

__all__ = ["Delayed", "delays_agent"]

log = logging.getLogger("thalweg")

MOST = 1000
"""How many messages leave with one commit: what is left goes with the next."""
LOOK_EVERY = 60.0
"""Seconds after which the clock is looked at again, which may have been set."""
TRUNCATE_EVERY = 5000
"""Records taken in, after which those that the journal has are dropped from the topic."""
PATIENCE = 5.0
"""Seconds to wait for what lies in the topic, until its end is asked for again."""
FIRST_BACKOFF, LONGEST_BACKOFF = 0.1, 5.0


def delays_agent(topic: TopicPlan) -> AgentPlan:
    """Reads the topic of delays, in each of its tasks."""

    async def take_in(lane: Lane) -> None:
        host = lane.host
        assert isinstance(host, AgentTask)
        assert host.task.delayed is not None
        take = host.task.delayed.take
        async for event in lane.stream((EVENTS,), None, ()):
            take(event)  # at once in the next commit: nothing is awaited between this and the event's end

    return AgentPlan(topic.name, [SourcePlan(topic)], take_in, Skip())


class Delayed:
    """Of one task. Times are milliseconds since the epoch."""

    def __init__(self, task: Task, agent: AgentTask, store: Store) -> None:
        self.agent = agent
        self._task, self._store, self._clock = task, store, task.settings.clock
        (self._input,) = agent.inputs
        self._news: dict[bytes, Waiting | None] = {}
        self._ready = 0  # what was due by then may leave, as far as it is taken in
        self._next: int | None = None  # the first due time
        self._stale = True  # `_next` has to be found anew
        self._taken = 0  # records since the last truncation
        self._begun = self._stopped = False
        self._alarm: Timer | None = None
        self._moved = asyncio.Event()
        self._reading_on: asyncio.Task[None] | None = None
        self._truncating: asyncio.Task[None] | None = None
        most = task.worker.commit_messages
        self._most = MOST if most is None else max(1, min(MOST, most // 4))

    def begin(self) -> None:
        """Read the topic: it is there."""
        if not self._begun:
            self._begun = True
            self._task.worker.fetch(self.agent, self._input)

    async def stop(self) -> None:
        self._stopped = True
        if self._alarm is not None:
            self._alarm.cancel()
        work = [task for task in (self._reading_on, self._truncating) if task is not None]
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)

    # --- taking in -----------------------------------------------------------------------------------------------

    def take(self, event: Event[bytes | None, bytes]) -> None:
        record = event.record
        self._taken += 1
        if record.key is None:
            self._refuse(event.position, "it has no key")
            return
        waiting = None
        if record.value is not None:
            try:
                waiting = decode(record.value, type=Waiting)
            except msgspec.DecodeError as error:
                self._refuse(event.position, str(error))
                return
            if waiting.due > self._ready and (self._next is None or waiting.due < self._next):
                self._next = waiting.due
                self._arm()
        self._news[record.key] = waiting

    def _refuse(self, position: Position, why: str) -> None:
        log.error("%s/%d: the record at %d is passed over: %s", self._input.name, self._input.partition, position, why)

    # --- leaving -------------------------------------------------------------------------------------------------

    def collect(self, rows: dict[bytes, bytes | None], outputs: defaultdict[Destination, list[Message]]) -> None:
        """Add to a commit what was taken in, and what leaves.

        Called while no commit is in flight, so the store is what the last one left.
        """
        if not self._news and (self._task.outputs_wait or self._next is None or self._next > self._ready):
            return
        self._stale = True
        most = 0 if self._task.outputs_wait else self._most
        leaving = [waiting for name, waiting in self._take_due(rows, most) if name not in self._news]
        for name, waiting in self._news.items():
            self._drop(name, rows)
            if waiting is not None and waiting.due <= self._ready and len(leaving) < most:
                leaving.append(waiting)
            elif waiting is not None:
                rows[waiting_key(name)] = encode(waiting)
                rows[waiting_until_key(waiting.due, name)] = b""
        self._news = {}
        leaving.sort(key=_due)
        for waiting in leaving:
            outputs[(waiting.topic, waiting.partition)].append(waiting.message)

    def _take_due(self, rows: dict[bytes, bytes | None], most: int) -> list[tuple[bytes, Waiting]]:
        found: list[tuple[bytes, Waiting]] = []
        past = self._store.scan(_FIRST, waiting_until_key(self._ready + 1, b""))
        for index, _ in islice(past, most):
            name = index[9:]
            raw = self._store.get(waiting_key(name))
            rows[index] = rows[waiting_key(name)] = None
            if raw is not None:
                found.append((name, decode(raw, type=Waiting)))
        return found

    def _drop(self, name: bytes, rows: dict[bytes, bytes | None]) -> None:
        """What waited under this name does not leave."""
        raw = self._store.get(waiting_key(name))
        if raw is not None:
            rows[waiting_key(name)] = rows[waiting_until_key(decode(raw, type=Waiting).due, name)] = None

    def look(self) -> None:
        """After a commit: see to it that what is due next leaves. While no commit is in flight."""
        if self._stale:
            self._stale = False
            first = next(iter(self._store.scan(_FIRST, _END)), None)
            self._next = None if first is None else int.from_bytes(first[0][1:9], "big")
        if self._next is None or self._next > self._ready:
            self._arm()
        elif not self._task.outputs_wait:  # else there is a commit when they have left
            self._go_on()
        if self._taken >= TRUNCATE_EVERY and self._truncating is None:
            self._taken = 0
            self._truncating = asyncio.get_running_loop().create_task(self._truncate(), name="thalweg truncate")

    def _go_on(self) -> None:
        self._task.busy()
        self._task.worker.committer.soon()

    def _arm(self) -> None:
        """Wake up when something is due. Nothing to do while that is being seen to: the commit after it looks again."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if self._next is not None and self._reading_on is None and not self._stopped:
            delay = self._next / 1000 - self._clock.now()
            if delay > 0:
                self._alarm = self._clock.call_later(min(delay, LOOK_EVERY), self._ring)
            else:
                self._ring()

    def _ring(self) -> None:
        self._alarm = None
        if self._next is None or self._next > self._now():
            self._arm()
            return
        self._reading_on = asyncio.get_running_loop().create_task(self._read_on(), name="thalweg delays")
        self._reading_on.add_done_callback(self._read)

    async def _read_on(self) -> None:
        """Return when all is taken in that lies in the topic now, as something is due."""
        now, backoff = self._now(), FIRST_BACKOFF
        while True:
            try:
                reader = await self._task.worker.log(self._input.topic.name)
                last = (await reader.bounds(self._input.partition)).last
                async with self._clock.timeout(PATIENCE):
                    while not self._has_read(last):
                        self._moved.clear()
                        await self._moved.wait()
                break
            except TimeoutError:
                continue
            except BrokerError as error:
                self._task.worker.complaints.warn(
                    "delays", "delayed messages of %s wait, again in %.1f s: %s", self.agent.plan.name, backoff, error
                )
                await self._clock.sleep(backoff)
                backoff = min(2 * backoff, LONGEST_BACKOFF)
        self._ready = now

    def _read(self, done: asyncio.Task[None]) -> None:
        self._reading_on = None
        if done.cancelled():
            return
        error = done.exception()
        if error is None:
            self._go_on()
        else:
            self._task.failed(error)

    def _has_read(self, last: Position | None) -> bool:
        if last is None:
            return True
        fetched, agent = self._input.fetched, self.agent
        if fetched is None or fetched < last or self._input.buffer:
            return False
        return agent.lanes.all_wait and not agent.parking

    def moved(self) -> None:
        """The agent has read on."""
        self._moved.set()

    async def _truncate(self) -> None:
        """What lies in the topic and is in the journal too: nobody reads it again."""
        before = self._input.committed.position
        try:
            if before is not None:
                reader = await self._task.worker.log(self._input.topic.name)
                await reader.truncate(self._input.partition, before)
        except BrokerError as error:
            log.warning("topic %r was not truncated, and will be later: %s", self._input.topic.name, error)
        finally:
            self._truncating = None

    def _now(self) -> int:
        return round(self._clock.now() * 1000)


_FIRST, _END = waiting_until_key(0, b"")[:1], b"y"


def _due(waiting: Waiting) -> int:
    return waiting.due
