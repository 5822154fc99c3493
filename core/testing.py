"""Tests of programs: the real runtime on `memory://`, under a clock that only the test moves.

    async with app.test() as t:
        await topic.send(value, key="k")
        await t.settle()
        assert table["k"] == 1

No mocks and no sleeps: `settle` returns when only the clock could make anything happen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, runtime_checkable

from .channel import Transport
from .clock import Clock, VirtualClock
from .errors import ConfigurationError
from .event import Event
from .journal.inbox import Inbox
from .message import Position, Record
from .plan import TopicPlan
from .registry import load_stores, load_transport
from .runtime.escaped import Escaped
from .runtime.worker import Worker
from .starting import worker_running
from .topic import Topic

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from .app import App

__all__ = ["AppTest"]

K = TypeVar("K")
V = TypeVar("V")

START = datetime(2020, 1, 1, tzinfo=UTC)
POLL = 0.001
"""Seconds between looks, while something outside our sight (a thread, a socket) may still act."""


@runtime_checkable
class _Private(Transport, Protocol):
    """What the memory driver can do for tests."""

    def private(self, clock: Clock) -> _Private:
        """A connection to a broker of its own, ruled by `clock`."""
        ...

    def again(self) -> _Private:
        """Another connection to the same broker."""
        ...

    def records(self, topic: str) -> Iterable[tuple[int, Position, Record]]:
        """What lies in a topic: partition, position, record."""
        ...


class AppTest:
    """Made by `app.test()`."""

    def __init__(
        self, app: App, *, start: datetime | float | None, errors: Literal["raise", "policy"], broker: str
    ) -> None:
        if errors not in ("raise", "policy"):
            raise ConfigurationError(f"errors={errors!r}; expected 'raise' or 'policy'")
        begin = START if start is None else start
        self.app = app
        self.clock = VirtualClock(begin.timestamp() if isinstance(begin, datetime) else begin)
        self._raise = errors == "raise"
        self._failures: list[BaseException] = []
        driver = load_transport(broker)
        if not isinstance(driver, _Private):
            raise ConfigurationError(f"broker={broker!r}: tests run on memory://, with options if you like")
        self._broker = driver.private(self.clock)
        self._running: AbstractAsyncContextManager[Worker] | None = None
        self._worker: Worker | None = None
        self._real_clock = app.clock

    async def __aenter__(self) -> AppTest:
        self.app.clock = self.clock
        try:
            await self._start()
        except BaseException:
            self.app.clock = self._real_clock
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                await self.settle()
            elif self._worker is not None:
                # Draining could wait for ever, for an event that the failed test left open: the clock stands still.
                await self._worker.stop_by_kill()
        finally:
            await self._stop()
            self.app.clock = self._real_clock
        if kind is None:
            self._raise_failures()

    async def _start(self) -> None:
        self._running = worker_running(
            self.app,
            transport=self._broker.again(),
            stores=load_stores("memory://"),
            failures=self._failed if self._raise else None,
            mirror_urls=False,
        )
        self._worker = await self._running.__aenter__()

    async def _stop(self) -> None:
        """Stop the worker. What it drains may wait for the clock, so time passes while it does."""
        running, self._running = self._running, None
        if running is None:
            return
        stopping = asyncio.ensure_future(running.__aexit__(None, None, None))
        try:
            while not stopping.done():
                await asyncio.wait({stopping}, timeout=POLL)
                if not stopping.done():
                    await self._quiet()
                due = self.clock.next()
                if not stopping.done() and due is not None:
                    self.clock.move(due)
        finally:
            stopping.cancel()
        await stopping

    def _failed(self, name: str, error: BaseException) -> None:
        self._failures.append(error)

    def _raise_failures(self) -> None:
        if self._worker is not None and self._worker.failed.done():
            self._worker.failed.result()
        if self._failures:
            first = self._failures[0]
            self._failures.clear()
            raise (first.__cause__ or first) if isinstance(first, Escaped) else first

    # --- moving on -------------------------------------------------------------------------------------------

    async def settle(self) -> None:
        """Return when everything is idle, so that only the clock could make anything happen.

        An agent's exception since the last call is raised here (unless `errors="policy"`).
        """
        await self._quiet()
        self._raise_failures()

    async def _quiet(self) -> None:
        loop = asyncio.get_running_loop()
        ready = getattr(loop, "_ready", None)
        while True:
            # Two turns of the loop with nothing to run: between them it has looked at its sockets and threads.
            calm = 0
            for _ in range(1000):
                await asyncio.sleep(0)
                calm = calm + 1 if ready is not None and not ready else 0
                if calm == 2:
                    break
            if self.app.thread_calls or self._outside_work(loop):
                await asyncio.sleep(POLL)
                continue
            if calm == 2:
                return

    def _outside_work(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether a real timer or a socket may still finish an event that is open."""
        lanes = (
            [] if self._worker is None else [lane for task in self._worker.tasks.values() for lane in task.all_lanes()]
        )
        if not any(lane.open and lane.task and not self.clock.is_awaited_by(lane.task) for lane in lanes):
            return False
        timers = [handle for handle in getattr(loop, "_scheduled", ()) if not handle.cancelled()]
        selector = getattr(loop, "_selector", None)
        sockets = len(selector.get_map()) - 1 if selector is not None else 0  # one is the loop's own
        return bool(timers) or sockets > 0

    async def advance(self, seconds: float) -> None:
        """Let so much time pass: timers, crontabs, retries and time-outs happen in their order."""
        if seconds < 0:
            raise ConfigurationError(f"advance({seconds}): time does not go back")
        until = self.clock.now() + seconds
        await self._quiet()
        while (due := self.clock.next()) is not None and due <= until:
            self.clock.move(due)
            await self._quiet()
        self.clock.move(until)
        await self.settle()

    async def crash(self) -> None:
        """Kill the worker where it stands, its store included, and start another one on the same broker."""
        assert self._worker is not None
        assert self._running is not None
        await self._worker.stop_by_kill()
        await self._stop()
        await self._start()

    # --- looking -----------------------------------------------------------------------------------------------

    def sent(self, topic: Topic[K, V]) -> list[Event[V, K]]:
        """Everything that lies in a topic, by partition, oldest first, as an agent would see it: each message once."""
        plan = topic._plan
        inboxes = [Inbox(plan.name, partition) for partition in range(plan.partitions)]
        return [
            Event(plan, seen.record, partition, seen.position, _decoded(plan, seen.record), None)
            for partition, position, record in self._broker.records(plan.name)
            for seen in inboxes[partition].receive(position, record)
        ]

    def now(self) -> float:
        """Seconds since the epoch, by the virtual clock."""
        return self.clock.now()


def _decoded(plan: TopicPlan, record: Record) -> Any:
    return None if record.value is None else plan.decode(record.value)
