"""What lies between a worker and the memory broker: delays, failures, and answers that never come.

A write is a request that travels: once sent, it may arrive though its sender has crashed, or given up on it long ago.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from math import inf
from typing import Any, TypeVar

import msgspec
from thalweg.capabilities import Bounds, Claim, Commit, Held, Log
from thalweg.errors import AccessDenied, AmbiguousCommit, BrokerError
from thalweg.message import Batch, Message, Position
from thalweg.transports.memory import MemoryBroker, MemoryOptions, MemoryTransport
from thalweg.transports.memory.locks import MemoryLock
from thalweg.transports.memory.session import Waiters, wake

from .loop import Process, SimulatedLoop

__all__ = ["Link", "Network", "Weather"]

T = TypeVar("T")

LATE = 8.0
"""Seconds, at most, until a write that its sender has given up arrives."""


class Weather(msgspec.Struct):
    """How calls fare. failing: the share of calls that fail. slow: seconds that a call takes at most, on each way."""

    failing: float = 0.0
    slow: float = 0.0


class Network:
    """The broker and the ways to it. `weather` is everybody's; a link may have a worse one of its own."""

    def __init__(self, loop: SimulatedLoop, broker: MemoryBroker, options: MemoryOptions, seed: str) -> None:
        self.loop, self.broker, self.options = loop, broker, options
        self.chance = random.Random(seed)
        self.weather = Weather()
        self.denied: set[str] = set()
        """Topics that nobody may write to now, but clients."""
        self.written: Callable[[Iterable[str]], None] = lambda topics: None
        """Called after each write, with the logs that it may have changed."""
        self._server = MemoryTransport(broker, options)  # what carries out a request that has arrived
        self._context = loop.context_of(loop.world)

    async def open(self) -> None:
        await self._server.open()

    def link(self, process: Process) -> Link:
        return Link(self, process)

    def later(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call back, whatever has become of whoever asks."""
        self.loop.call_later(seconds, callback, context=self._context)

    @property
    def server(self) -> MemoryTransport:
        return self._server


class _Reply:
    """What a request that was sent comes to."""

    def __init__(self) -> None:
        self.done = False
        self.result: Any = None
        self.error: Exception | None = None
        self.waiters: Waiters = {}

    def arrive(self, effect: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        try:
            self.result = _at_once(effect())
        except BrokerError as error:
            self.error = error

    def return_(self) -> None:
        self.done = True
        wake(self.waiters)


class Link(MemoryTransport):
    """One process's connection to the broker."""

    def __init__(self, network: Network, process: Process) -> None:
        super().__init__(network.broker, network.options)
        self.network, self.process = network, process
        self.weather = Weather()
        self._busy_until: dict[str, float] = {}
        self._locks: set[str] = set()
        """Those that it has taken, and not given back: it may have lost them."""
        self.misbehaved: Callable[[str], None] = lambda what: None

    # --- faults ----------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """The process stands still: the broker hears nothing of it, and what it holds ends with its leases."""
        assert self.session is not None
        self.session.silence("stands still", for_ever=False)

    def _fails(self) -> bool:
        chance = self.network.chance.random
        return any(w.failing and chance() < w.failing for w in (self.weather, self.network.weather))

    def _delay(self) -> float:
        slow = max(self.weather.slow, self.network.weather.slow)
        chance = self.network.chance.random
        return slow * chance() ** 4 if slow else 0.002 * chance() if chance() < 0.3 else 0.0

    def _look_at_locks(self, journals: Iterable[tuple[str, int]]) -> None:
        """Only who has taken the lock of a task writes to its journal, and not after having given it back (rule 7)."""
        for topic, partition in journals:
            lock = f"{topic.replace('-journal-', '-task-')}-{partition}"
            if "-journal-" in topic and self.network.options.locks and lock not in self._locks:
                self.misbehaved(f"{self.process} writes to {topic}/{partition} without having its lock")

    async def write(
        self,
        topic: str,
        effect: Callable[[], Coroutine[Any, Any, T]],
        others: Iterable[str] = (),
        journals: Iterable[tuple[str, int]] = (),
        in_part: Callable[[], Coroutine[Any, Any, T]] | None = None,
    ) -> T:
        """Send a request and wait for its answer. Raises `BrokerError`, `AmbiguousCommit`, or what the broker says."""
        topics = {topic, *others}
        session, network = self._up(), self.network
        self._look_at_locks(journals)
        if network.denied & topics:
            raise AccessDenied(f"no right to write to {network.denied & topics}")
        fails, there, back = self._fails(), self._delay(), self._delay()
        if not (fails or there or back):
            result = await effect()
            network.written(topics)
            return result
        reply = _Reply()
        fates = ["refused", "lost", "unanswered", "late", *(["holed"] if in_part is not None else [])]
        fate = network.chance.choice(fates) if fails else ""
        if fate == "holed" and in_part is not None:
            effect = in_part
        if fate == "refused":
            await asyncio.sleep(there)
            raise BrokerError(f"refused: a write to {topic!r}")
        if fate == "late":
            there += LATE * network.chance.random()
        if fate != "lost":
            now = network.loop.time()
            due = max(now + there, self._busy_until.get(topic, 0.0)) if fate != "late" else now + there
            if fate != "late":
                self._busy_until[topic] = due  # what one connection carries arrives in order
            network.later(due - now, lambda: self._arrive(topics, reply, effect, None if fate else back))
        if fate:
            await asyncio.sleep(0.0 if fate == "late" else there + back)
            raise AmbiguousCommit(f"{fate}: a write to {topic!r}")
        try:
            while not reply.done:
                await session.wait((reply.waiters,), inf)
        except BrokerError as error:
            raise AmbiguousCommit(f"cut off: a write to {topic!r}") from error
        if reply.error is not None:
            raise reply.error
        return reply.result  # type: ignore[no-any-return]

    def _arrive(
        self, topics: Iterable[str], reply: _Reply, effect: Callable[[], Coroutine[Any, Any, Any]], back: float | None
    ) -> None:
        reply.arrive(effect)
        self.network.written(topics)
        if back is not None:
            self.network.later(back, reply.return_)

    async def look(self, what: str, call: Callable[[], Coroutine[Any, Any, T]], unanswered: bool = False) -> T:
        """Ask something. unanswered: it may fail after its effect too."""
        self._up()
        if delay := self._delay():
            await asyncio.sleep(delay)
        if self._fails():
            raise BrokerError(f"failed: {what}")
        result = await call()
        if delay := self._delay():
            await asyncio.sleep(delay)
        self._up()
        if unanswered and self._fails():
            raise AmbiguousCommit(f"unanswered: {what}")
        return result

    # --- the transport ---------------------------------------------------------------------------------------

    async def log(self, topic: str) -> Log:
        return await self.look("opening a log", lambda: self._log(topic))

    async def _log(self, topic: str) -> Log:
        return LinkedLog(self, topic, await super().log(topic), await self.network.server.log(topic))

    async def claim(self, topic: str, partition: int, marker: Message) -> Claim:
        return await self.write(
            topic, lambda: self.network.server.claim(topic, partition, marker), (), [(topic, partition)]
        )

    async def commit(self, commits: Mapping[Claim, Commit]) -> Mapping[Claim, Sequence[Position]]:
        commits = dict(commits)
        journals = [(claim.topic, claim.partition) for claim in commits]
        topics = [topic for topic, _ in journals]
        outputs = [topic for commit in commits.values() for topic, _ in commit.outputs]
        return await self.write(topics[0], lambda: self.network.server.commit(commits), topics + outputs, journals)

    async def try_lock(self, name: str, lease: float) -> Held | None:
        """A lock whose answer was lost is nobody's, and ends with its lease."""
        got: list[Held] = []

        async def ask() -> Held | None:
            held = await super(Link, self).try_lock(name, lease)
            if held is not None:
                got.append(held)
                self._locks.add(name)
                held.release = partial(self._release, name, held.release)  # type: ignore[method-assign]
            return held

        try:
            return await self.look(f"lock {name!r}", ask, unanswered=True)
        except BaseException:
            for held in got:
                assert isinstance(held, MemoryLock)
                self.network.later(lease, held.expire)
            raise

    async def _release(self, name: str, release: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._locks.discard(name)
        await release()


class LinkedLog:
    def __init__(self, link: Link, topic: str, own: Log, server: Log) -> None:
        self._link, self._topic, self._own, self._server = link, topic, own, server

    async def append(
        self, records: Mapping[int, Sequence[Message]], positions: bool = True
    ) -> Mapping[int, Sequence[Position]]:
        copies = {partition: list(messages) for partition, messages in records.items()}
        journals = [(self._topic, partition) for partition in copies]
        holed = {partition: self._with_a_hole(messages) for partition, messages in copies.items()}
        return await self._link.write(
            self._topic,
            lambda: self._server.append(copies),
            (),
            journals,
            None if holed == copies else lambda: self._server.append(holed),
        )

    def _with_a_hole(self, messages: Sequence[Message]) -> Sequence[Message]:
        """One of them does not arrive, and those after it do: so it may go with appends that are pipelined."""
        if len(messages) < 2:
            return messages
        lost = self._link.network.chance.randrange(len(messages) - 1)
        return [message for index, message in enumerate(messages) if index != lost]

    async def read(
        self, after: Mapping[int, Position | None], limit: int, max_bytes: int, timeout: float
    ) -> Mapping[int, Batch]:
        return await self._link.look("a read", lambda: self._own.read(after, limit, max_bytes, timeout))

    async def bounds(self, partition: int) -> Bounds:
        return await self._link.look("bounds", lambda: self._own.bounds(partition))

    async def find(self, partition: int, timestamp: int) -> Position | None:
        return await self._link.look("find", lambda: self._own.find(partition, timestamp))

    async def truncate(self, partition: int, before: Position) -> None:
        await self._link.write(self._topic, lambda: self._server.truncate(partition, before))

    async def close(self) -> None:
        await self._own.close()


def _at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that does not wait for anything, as no call to the memory broker does that writes."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    raise AssertionError("it waits")
