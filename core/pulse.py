"""Whether an event loop still turns, as a thread beside it sees.

What a process holds on a broker must not be lost because its event loop is busy, or blocked for a while; so threads
renew it. Nor may it be held for ever by a process whose event loop is stuck, and does nothing with it.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Annotated, TypeAlias

import msgspec

from .clock import boot_clock

__all__ = ["STUCK", "Pulse", "Stuck"]

STUCK = 60.0
"""Seconds without a sign of life from the event loop, after which a process counts as hung; a driver's `?stuck=`."""

Stuck: TypeAlias = Annotated[float, msgspec.Meta(gt=0, le=86400)]
"""Of a driver's options."""


class Pulse:
    """Made in the event loop that is watched. stuck: seconds without a sign of life until it has lost all it holds.

    No lease can be told from a hung one before it has been missed once: two leases are the least that counts.
    """

    def __init__(self, stuck: float = STUCK) -> None:
        self._loop = asyncio.get_running_loop()
        self._stuck = stuck
        self._asked = 0.0
        self._answered = True

    def allows(self, lease: float) -> bool:
        """Whether to renew a lease of so many seconds now: it would end before the loop counts as stuck.

        Called by the thread that renews, each time before it does; that also asks the loop for its next sign of life.
        """
        now = boot_clock()
        if self._answered:
            self._asked, self._answered = now, False
            with contextlib.suppress(RuntimeError):  # the loop is closed, so it will not answer
                self._loop.call_soon_threadsafe(self._answer)
        return now + lease <= self._asked + max(self._stuck, 2 * lease)

    def _answer(self) -> None:
        self._answered = True
