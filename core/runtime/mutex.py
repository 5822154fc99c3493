"""Mutual exclusion for programs: locks by name, one holder at a time across all workers and clients of an app.

Taken by the broker's own `Locks`; where it has groups instead (Kafka), by groups of one task a name (`group_lock.py`).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from thalweg.capabilities import Grouped, Held, Locks, Logs
from thalweg.channel import Capability, Transport
from thalweg.clock import Clock
from thalweg.errors import BrokerError, ConfigurationError, MissingCapability, NotRunning

from .complaints import Complaints
from .group_lock import GroupLocks

__all__ = ["Mutexes", "check_locks"]

log = logging.getLogger("thalweg")

FIRST_PAUSE, LONGEST_PAUSE = 0.02, 0.5
"""Seconds until a lock that is another's is tried again, the first time and at most."""

LOCK_URLS = "memory://, sqlite:///file, redis://host, nats://host, kafka://host, amqp://host"


class Takes(Protocol):
    """How a lock is taken."""

    async def take(self, name: str, wait: bool) -> Held | None:
        """None, without `wait`, if another has it. Raises BrokerError; with `wait` only what waiting will not mend."""
        ...

    async def close(self) -> None:
        """Whoever waits gets BrokerError."""
        ...


class Mutexes:
    """The locks of one running app. Tasks of one process queue up here, so that one of them asks the broker."""

    def __init__(self, transport: Transport, app_id: str, clock: Clock, lease: float) -> None:
        self._transport, self._app_id, self._clock, self._lease = transport, app_id, clock, lease
        self._turns: dict[str, _Turn] = {}
        self._takes: Takes | None = None
        self._closed = False

    async def acquire(self, name: str, timeout: float | None) -> Held:
        """Hold the lock; `release` it. timeout: seconds; None waits for ever, 0 or less tries once.

        Raises TimeoutError when it was not to be had in time, MissingCapability, NotRunning when the app stops.
        """
        takes = self._how(name)
        turn = self._turns.setdefault(name, _Turn())
        if turn.holder is asyncio.current_task():
            raise ConfigurationError(
                f"lock {name!r}: the task that holds it asks for it again, and would wait for ever"
            )
        turn.users += 1
        try:
            if timeout is not None and timeout <= 0:
                return await self._try_once(takes, name, turn, timeout)
            return await self._in_time(takes, name, turn, timeout)
        except BaseException:
            self._leave(name, turn)
            raise

    async def release(self, name: str, held: Held) -> None:
        """Give it back; whoever waits here is next. If the broker does not answer, it ends with its lease."""
        turn = self._turns[name]
        turn.holder = None
        try:
            await held.release()
        except BrokerError as error:
            log.warning("lock %r was not released, and ends with its lease: %s", name, error)
        finally:
            turn.queue.release()
            self._leave(name, turn)

    async def close(self) -> None:
        """Who waits gets NotRunning; what is held is lost when the transport closes."""
        self._closed = True
        if self._takes is not None:
            await self._takes.close()

    async def _try_once(self, takes: Takes, name: str, turn: _Turn, timeout: float) -> Held:
        held = None
        if not turn.queue.locked():
            await turn.queue.acquire()
            held = await self._take(takes, name, turn, wait=False)
        if held is None:
            raise TimeoutError(f"lock {name!r}: another holds it (timeout={timeout:g})")
        return held

    async def _in_time(self, takes: Takes, name: str, turn: _Turn, timeout: float | None) -> Held:
        try:
            async with self._clock.timeout(timeout):
                await turn.queue.acquire()
                held = await self._take(takes, name, turn, wait=True)
                assert held is not None
                return held
        except TimeoutError:
            raise TimeoutError(f"lock {name!r} was not to be had within timeout={timeout:g} s") from None

    async def _take(self, takes: Takes, name: str, turn: _Turn, wait: bool) -> Held | None:
        held = None
        try:
            self._check_open(name)
            held = await takes.take(name, wait)
            while held is not None and held.lost.is_set():  # already: its answer was long on the way
                lost, held = held, None
                with suppress(BrokerError):
                    await lost.release()
                held = await takes.take(name, wait) if wait else None
        except BrokerError:
            self._check_open(name)
            raise
        finally:
            if held is None:
                turn.queue.release()
        turn.holder = asyncio.current_task()
        return held

    def _check_open(self, name: str) -> None:
        if self._closed:
            raise NotRunning(f"lock {name!r}: app {self._app_id!r} has stopped")

    def _leave(self, name: str, turn: _Turn) -> None:
        turn.users -= 1
        if not turn.users and self._turns.get(name) is turn:
            del self._turns[name]

    def _how(self, name: str) -> Takes:
        self._check_open(name)
        if self._takes is None:
            check_locks(self._transport, f"lock {name!r}")
            prefix = f"{self._app_id}-lock-"
            if Capability.LOCKS in self._transport.capabilities and isinstance(self._transport, Locks):
                self._takes = _Polling(self._transport, prefix, self._clock, self._lease, lambda: self._closed)
            else:
                assert isinstance(self._transport, Grouped)
                self._takes = GroupLocks(self._transport, prefix, f"{self._app_id}-locks", self._clock, self._lease)
        return self._takes


class _Turn:
    """Of one lock, in this process."""

    def __init__(self) -> None:
        self.queue = asyncio.Lock()
        self.holder: asyncio.Task[object] | None = None
        self.users = 0


class _Polling:
    """A lock of another worker is tried again and again, ever less often; so is a broker that does not answer."""

    def __init__(self, locks: Locks, prefix: str, clock: Clock, lease: float, closed: Callable[[], bool]) -> None:
        self._locks, self._prefix, self._clock, self._lease, self._closed = locks, prefix, clock, lease, closed
        self._complaints = Complaints(clock)

    async def take(self, name: str, wait: bool) -> Held | None:
        pause = FIRST_PAUSE
        while True:
            try:
                held = await self._locks.try_lock(self._prefix + name, self._lease)
            except BrokerError as error:
                if not wait or self._closed():
                    raise
                self._complaints.warn("lock", "lock %r cannot be had, and is tried again: %s", name, error)
                held = None
            if held is not None or not wait:
                return held
            await self._clock.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, LONGEST_PAUSE)

    async def close(self) -> None:
        """The transport, once closed, ends all waiting."""


def check_locks(transport: Transport, feature: str) -> None:
    """Raise MissingCapability where the transport has neither locks nor what can stand for them."""
    has = transport.capabilities
    if Capability.LOCKS in has and isinstance(transport, Locks):
        return
    if {Capability.GROUPED, Capability.LOG} <= has and isinstance(transport, Grouped) and isinstance(transport, Logs):
        return
    raise MissingCapability(
        f"{feature} needs a transport with the capability 'locks' (or 'grouped' and 'log'), which "
        f"{transport.description} does not offer. Brokers that do: {LOCK_URLS}"
    )
