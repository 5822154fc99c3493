"""What a driver's locks and memberships have in common: they are held until a time by this machine's own clock.

For drivers, ours and others': a subclass says who gives it back (`release`) and what its end means to its owner
(`_ended`). A thread renews it, see `keeper.py`.
"""

from __future__ import annotations

import asyncio
import contextlib

from .clock import boot_clock

__all__ = ["Lease"]


class Lease:
    """All of `Held` but `number` and `release`.

    seconds: how long it is good for, when taken and whenever renewed. expires: boot clock in seconds, never later than
    on the broker. Nothing is watched before `watch` was called in the event loop, which an `__init__` does last.
    """

    def __init__(self, seconds: float, expires: float) -> None:
        self.seconds = seconds
        self.expires = expires
        self._lost = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def lost(self) -> asyncio.Event:
        """Set once it ended. Asking looks at the clock: a process that was stopped sees it at once."""
        if boot_clock() >= self.expires:
            self.end()
        return self._lost

    @property
    def due(self) -> float:
        """When to renew it, by the boot clock: once a third of it is over."""
        return self.expires - self.seconds * 2 / 3

    def renewed(self, asked: float) -> None:
        """It is good for `seconds` from when that was asked, by the boot clock. From any thread."""
        if self.expires:
            self.expires = max(self.expires, asked + self.seconds)

    def end(self) -> None:
        """From now on it counts as lost. Called in the event loop."""
        self.expires = 0.0  # for the thread that renews
        if self._timer is not None:
            self._timer.cancel()
        if not self._lost.is_set():
            self._lost.set()
            self._ended()

    def end_soon(self) -> None:
        """`end`, from another thread."""
        self.expires = 0.0
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody asks
            self._loop.call_soon_threadsafe(self.end)

    def watch(self) -> None:
        """End it by itself when its time is over."""
        remaining = self.expires - boot_clock()
        if remaining > 0:
            self._timer = self._loop.call_later(remaining, self.watch)
        else:
            self.end()

    def _ended(self) -> None:
        """It has just ended: its owner forgets it."""
