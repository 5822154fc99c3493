"""Time, behind one small interface, so that a test can rule it: `RealClock` in production, `VirtualClock` in tests."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Protocol

__all__ = ["Clock", "RealClock", "Timer", "VirtualClock", "boot_clock", "in_time"]

_BOOT = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # macOS: CLOCK_MONOTONIC counts sleep as well


def boot_clock() -> float:
    """Seconds since the machine started, sleep included: what leases are measured by."""
    return time.clock_gettime(_BOOT)


class Timer(Protocol):
    def cancel(self) -> None: ...


class Clock(Protocol):
    def now(self) -> float:
        """Seconds since the epoch."""
        ...

    def call_later(self, delay: float, callback: Callable[[], object], /) -> Timer:
        """Call back once, `delay` seconds from now, on the running loop."""
        ...

    async def sleep(self, seconds: float, /) -> None: ...

    async def sleep_until(self, moment: float, /) -> None:
        """Until `now()` says so, in seconds since the epoch, though the clock be set or the machine sleep meanwhile."""
        ...

    def timeout(self, seconds: float | None, /) -> AbstractAsyncContextManager[object]:
        """As `asyncio.timeout`: cancels the body after `seconds` and raises `TimeoutError`; None: never."""
        ...


async def in_time(clock: Clock, seconds: float | None, waiting: Awaitable[object]) -> bool:
    """Whether it came to its end within so many seconds (None: however many); else it is cancelled."""
    try:
        async with clock.timeout(seconds):
            await waiting
    except TimeoutError:
        return False
    return True


LOOK_EVERY = 60.0
"""Seconds after which who waits for a time of day looks at the clock again, which may have been set."""


class RealClock:
    """The machine's clock and the running event loop's timers."""

    def now(self) -> float:
        return time.time()

    def call_later(self, delay: float, callback: Callable[[], object], /) -> Timer:
        return asyncio.get_running_loop().call_later(delay, callback)

    async def sleep(self, seconds: float, /) -> None:
        await asyncio.sleep(seconds)

    async def sleep_until(self, moment: float, /) -> None:
        while (left := moment - self.now()) > 0:  # noqa: ASYNC110 - the time is no event of ours
            await asyncio.sleep(min(left, LOOK_EVERY))

    def timeout(self, seconds: float | None, /) -> AbstractAsyncContextManager[object]:
        return asyncio.timeout(seconds)


class _VirtualTimer:
    __slots__ = ("callback", "clock")

    def __init__(self, clock: VirtualClock, callback: Callable[[], object]) -> None:
        self.clock = clock
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        self.callback = None


class VirtualClock:
    """Stands still until it is told to move; timers then fire in order of their time."""

    def __init__(self, start: float) -> None:
        self._now = start
        self._timers: list[tuple[float, int, _VirtualTimer]] = []
        self._count = 0
        self._sleepers: set[asyncio.Future[None]] = set()

    def now(self) -> float:
        return self._now

    def call_later(self, delay: float, callback: Callable[[], object], /) -> Timer:
        timer = _VirtualTimer(self, callback)
        self._count += 1
        heapq.heappush(self._timers, (self._now + max(delay, 0.0), self._count, timer))
        return timer

    def next(self) -> float | None:
        """When the next timer fires, or None."""
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def move(self, to: float) -> None:
        """Set the time, and fire every timer due by then."""
        self._now = max(self._now, to)
        while (when := self.next()) is not None and when <= self._now:
            timer = heapq.heappop(self._timers)[2]
            callback, timer.callback = timer.callback, None
            if callback is not None:
                callback()

    async def sleep(self, seconds: float, /) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def wake() -> None:
            if not woken.done():
                woken.set_result(None)

        timer = self.call_later(seconds, wake)
        self._sleepers.add(woken)
        try:
            await woken
        finally:
            self._sleepers.discard(woken)
            timer.cancel()

    async def sleep_until(self, moment: float, /) -> None:
        await self.sleep(moment - self._now)

    def is_awaited_by(self, task: asyncio.Task[object]) -> bool:
        """Whether the task sleeps by this clock, so that nothing else will wake it (other than its cancellation)."""
        return getattr(task, "_fut_waiter", None) in self._sleepers

    def timeout(self, seconds: float | None, /) -> AbstractAsyncContextManager[object]:
        return _VirtualTimeout(self, seconds)


class _VirtualTimeout:
    """`asyncio.timeout` on a virtual clock, with the same rules of cancel and uncancel."""

    def __init__(self, clock: VirtualClock, seconds: float | None) -> None:
        self._clock, self._seconds = clock, seconds
        self._timer: Timer | None = None
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._expired = False

    async def __aenter__(self) -> object:
        self._task = asyncio.current_task()
        if self._task is None:
            raise RuntimeError("a time-out needs a running asyncio task")
        self._cancelling = self._task.cancelling()
        if self._seconds is not None:
            self._timer = self._clock.call_later(self._seconds, self._expire)
        return self

    def _expire(self) -> None:
        self._expired = True
        if self._task is not None:
            self._task.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self._expired or self._task is None:
            return
        if self._task.uncancel() <= self._cancelling and kind is not None and issubclass(kind, asyncio.CancelledError):
            raise TimeoutError from error
