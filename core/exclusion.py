"""`app.lock` and `@app.exclusive`: what only one worker may do at a time."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from .agent import Agent
from .capabilities import Held
from .clock import Clock
from .duration import seconds
from .errors import ConfigurationError, LockLost
from .functions import is_async
from .schedule import Background, Crontab, Timer

if TYPE_CHECKING:
    from .app import App

__all__ = ["HeldLock", "exclusively", "locked"]

P = ParamSpec("P")
R = TypeVar("R")


class HeldLock:
    """What `async with app.lock(name) as held` gives."""

    def __init__(self, name: str, held: Held) -> None:
        self.name = name
        self._held = held

    @property
    def number(self) -> int:
        """The fencing number, larger for each new holder of this name: what others can tell an old holder by."""
        return self._held.number

    @property
    def lost(self) -> asyncio.Event:
        """Set once another may hold the lock. Asking looks at the machine's clock: nobody is wrong after a pause."""
        return self._held.lost

    def __repr__(self) -> str:
        return f"HeldLock({self.name!r}, number={self.number})"


def check_name(name: str) -> None:
    try:
        known = bool(name.encode())
    except (UnicodeEncodeError, AttributeError):
        known = False
    if not known:
        raise ConfigurationError(f"lock {name!r}: expected a name, of any characters that UTF-8 has")


@asynccontextmanager
async def locked(app: App, name: str, timeout: float | timedelta | None) -> AsyncIterator[HeldLock]:
    """`app.lock`."""
    check_name(name)
    patience = None if timeout is None else seconds(timeout, "timeout")
    mutexes = app.running.mutexes
    held = await mutexes.acquire(name, patience)
    try:
        async with _Guard(name, held, app.clock, app.lease / 2):
            yield HeldLock(name, held)
    finally:
        await mutexes.release(name, held)


class _Guard:
    """Cancels its block when the lock is lost, and turns that into LockLost: by the rules of `asyncio.timeout`.

    A process that stood still finds its timers overdue. One of ours is among them, and cancels the block before what
    it waited for can wake it; the event of the loss alone would come a turn of the loop later.
    """

    def __init__(self, name: str, held: Held, clock: Clock, interval: float) -> None:
        self._name, self._held, self._clock, self._interval = name, held, clock, interval
        self._told = False

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task, self._cancelling = task, task.cancelling()
        self._watcher = asyncio.get_running_loop().create_task(self._watch(), name=f"lock {self._name}")
        self._timer = self._clock.call_later(self._interval, self._look)

    def _look(self) -> None:
        if self._held.lost.is_set():
            self._tell()
        else:
            self._timer = self._clock.call_later(self._interval, self._look)

    async def _watch(self) -> None:
        await self._held.lost.wait()
        self._tell()

    def _tell(self) -> None:
        if not self._told:
            self._told = True
            self._task.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._timer.cancel()
        self._watcher.cancel()
        cancelled = kind is not None and issubclass(kind, asyncio.CancelledError)
        if self._told:
            if not cancelled:
                with suppress(asyncio.CancelledError):  # ours, where the block ended before it came
                    await asyncio.sleep(0)
            if self._task.uncancel() > self._cancelling:
                raise asyncio.CancelledError
            if cancelled:
                raise self._lost() from error
        if kind is None and self._held.lost.is_set():
            raise self._lost()

    def _lost(self) -> LockLost:
        return LockLost(
            f"lock {self._name!r} (number {self._held.number}) was lost before its block had ended, and another may "
            "have held it since: this process stood still, or did not reach the broker, for longer than the lease"
        )


def exclusively(
    app: App, name: str, function: Callable[P, Coroutine[Any, Any, R]], wait: bool
) -> Callable[P, Coroutine[Any, Any, R | None]]:
    """`@app.exclusive`."""
    check_name(name)
    _check_bare(app, f"@app.exclusive({name!r})", function)

    @functools.wraps(function)
    async def alone(*args: P.args, **options: P.kwargs) -> R | None:
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(locked(app, name, None if wait else 0.0))
            except TimeoutError:
                return None
            return await function(*args, **options)

    return alone


def _check_bare(app: App, what: str, function: Any) -> None:
    """It wraps a function, not what another decorator has made of one, or has taken note of already."""
    scheduled: list[Timer | Crontab | Background] = [*app.timers, *app.crontabs, *app.backgrounds]
    if isinstance(function, Agent) or any(part.function is function for part in scheduled):
        raise ConfigurationError(f"{what} stands above a decorator that had the function already: put it below")
    if inspect.isasyncgenfunction(function) or not is_async(function):
        raise ConfigurationError(f"{what}: {function!r} is not an async function; write `async def …`, no `yield`")
