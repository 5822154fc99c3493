"""For drivers: connecting is one attempt at a time, shared by all who wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

__all__ = ["SharedAttempt"]

T = TypeVar("T")


class SharedAttempt(Generic[T]):
    """Cancelling one who waits disturbs neither the attempt nor the others.

    attempt: what is tried. made: called with its result in the moment it is there, before anybody who waits goes on.
    """

    def __init__(self, attempt: Callable[[], Coroutine[Any, Any, T]], made: Callable[[T], None]) -> None:
        self._attempt, self._made = attempt, made
        self._running: asyncio.Task[T] | None = None

    async def result(self) -> T | None:
        """Of the attempt under way, or of a new one; None if it was ended by `cancel`. Raises what it raised."""
        if self._running is None:
            self._running = asyncio.get_running_loop().create_task(self._attempt())
            self._running.add_done_callback(self._ended)
        running = self._running
        await asyncio.wait([running])
        return None if running.cancelled() else running.result()

    async def cancel(self) -> None:
        """Returns once no attempt is under way any more."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])

    def _ended(self, task: asyncio.Task[T]) -> None:
        self._running = None
        if not task.cancelled() and task.exception() is None:
            self._made(task.result())
