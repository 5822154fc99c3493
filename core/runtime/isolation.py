"""Which of a process's events that are noted, for one of them may kill it, run at the same time (design rule 12).

Those in which a process has died before run alone, so that if it dies again nobody doubts in which; the others run side
by side.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Protocol

import msgspec
from thalweg.clock import Clock, Timer

__all__ = ["LONGEST_SUSPICION", "Isolation", "Noted"]

LONGEST_SUSPICION = 10.0
"""Seconds for which one event that is noted keeps others from running beside it."""

ANSWERED = 2.0
"""Seconds, at most, for which those that are to run alone wait for one that waits itself: for them, perhaps."""


class Noted(Protocol):
    """What notes one event at a time. alone: it is to run so.

    known_with: the commit of its task that takes along what it has written down.
    """

    alone: bool
    known_with: int

    def joined(self) -> bool:
        """Another one is about to run: it writes down that it is not the only one, if it is not finished."""
        ...

    def is_known(self, commit: int) -> bool:
        """Whether that commit has been made."""
        ...

    async def committed(self) -> None:
        """Return when what it has written down is committed."""
        ...


class _Stay(msgspec.Struct):
    timer: Timer | None = None
    waits: bool = False  # for what others do
    over: bool = False  # nobody waits for it any more


class Isolation:
    """Of one process."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._inside: dict[Noted, _Stay] = {}
        self._queue: dict[Noted, asyncio.Future[bool]] = {}
        self._alone: Noted | None = None  # the last one let in that was to run so

    def is_free(self, one: Noted) -> bool:
        """Whether it may run at once."""
        return not self._queue and self._may_run(one)

    async def enter(self, one: Noted) -> Collection[Noted] | None:
        """Return when it may run: which others do beside it, or have but just finished. None: it `left` meanwhile."""
        future = self._queue[one] = asyncio.get_running_loop().create_future()
        self._let_in()
        try:
            if not await future:
                return None
        except asyncio.CancelledError:
            self.leave(one)
            raise
        return [other for other in self._inside if other is not one]

    def waits(self, one: Noted) -> None:
        """What it does now cannot kill the process: it waits for what others do."""
        stay = self._inside.get(one)
        if stay is not None and not (stay.waits or stay.over):
            stay.waits = True
            self._lasts(stay, ANSWERED)
            self._let_in()

    def finish(self, one: Noted) -> None:
        """It does not run any more, but that is to be committed before others do: then it leaves."""
        stay = self._inside.get(one)
        if stay is not None:
            stay.over, stay.waits = True, False
            if stay.timer is not None:
                stay.timer.cancel()
            self._let_in()

    def leave(self, one: Noted) -> None:
        stay, future = self._inside.pop(one, None), self._queue.pop(one, None)
        if stay is not None and stay.timer is not None:
            stay.timer.cancel()
        if future is not None and not future.done():
            future.set_result(False)
        self._let_in()

    def _lasts(self, stay: _Stay, seconds: float) -> None:
        def end() -> None:
            stay.over = True
            self._let_in()

        if stay.timer is not None:
            stay.timer.cancel()
        stay.timer = self._clock.call_later(seconds, end)

    def _may_run(self, one: Noted) -> bool:
        if one.alone:
            return all(stay.over for stay in self._inside.values())
        stay = None if self._alone is None else self._inside.get(self._alone)
        return stay is None or stay.waits or stay.over

    def _let_in(self) -> None:
        """In the order in which they came, but for those that one who waits may be waiting for."""
        for one, future in list(self._queue.items()):
            if self._may_run(one):
                del self._queue[one]
                stay = self._inside[one] = _Stay()
                if one.alone:
                    self._alone = one
                self._lasts(stay, LONGEST_SUSPICION)
                future.set_result(True)
            elif not any(stay.waits for stay in self._inside.values()):
                return
