"""The lanes of one agent: which of them wait for work, and which has events of a key in hand, so that more go there."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from .lane import Lane
from .open_event import Host
from .tickets import Ticket

__all__ = ["Lanes"]


class Lanes(list[Lane]):
    def __init__(self, host: Host, count: int) -> None:
        super().__init__(Lane(host, number) for number in range(count))
        self._clock = host.clock
        self._woken: dict[Lane, asyncio.Future[None]] = {}  # when there is work for one that waits
        self._pausing = 0
        self._at_rest: asyncio.Future[None] | None = None
        self._of_key: dict[bytes, tuple[Lane, int]] = {}  # who has it, and how many events of it

    # --- waiting for work ------------------------------------------------------------------------------------

    def lie_down(self, lane: Lane) -> None:
        """It waits from now on: for `woken`."""
        self._woken[lane] = asyncio.get_running_loop().create_future()
        self._rests()

    async def woken(self, lane: Lane, until: float | None) -> None:
        """Return when there is work for this lane, or it is `until` (seconds since the epoch)."""
        woken = self._woken[lane]
        timer = None if until is None else self._clock.call_later(until - self._clock.now(), lambda: self._wake(lane))
        try:
            await woken
            lane.suspended()
        finally:
            self._woken.pop(lane, None)
            if timer is not None:
                timer.cancel()

    def wake(self, count: int = 1) -> None:
        """There is work for `count` lanes."""
        for lane in list(self._woken)[:count]:
            self._wake(lane)

    def _wake(self, lane: Lane) -> None:
        woken = self._woken.pop(lane, None)
        if woken is not None and not woken.done():
            woken.set_result(None)

    def waits(self, lane: Lane) -> bool:
        return lane in self._woken

    @property
    def all_wait(self) -> bool:
        return len(self._woken) == len(self)

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """A lane whose agent is broken waits, and has no event open."""
        self._pausing += 1
        self._rests()
        try:
            yield
        finally:
            self._pausing -= 1

    @property
    def some_pause(self) -> bool:
        return self._pausing > 0

    async def rested(self) -> None:
        """Return when no event is open."""
        while len(self._woken) + self._pausing < len(self):
            self._at_rest = asyncio.get_running_loop().create_future()
            await self._at_rest

    def _rests(self) -> None:
        if self._at_rest is not None and not self._at_rest.done():
            self._at_rest.set_result(None)

    # --- one key, one lane -----------------------------------------------------------------------------------

    def hand(self, lane: Lane, ticket: Ticket) -> bool:
        """Whether this lane is to run it; else it waits in the line of the one that has events of its key in hand."""
        key = ticket.record.key
        if key is None or len(self) == 1:
            return True
        owner, count = self._of_key.get(key, (lane, 0))
        self._of_key[key] = (owner, count + 1)
        if owner is lane:
            return True
        owner.queue.append(ticket)
        self._wake(owner)
        return False

    def through(self, lane: Lane, ticket: Ticket) -> None:
        """The lane has no more to do with a ticket that was handed to it."""
        key = ticket.record.key
        owner, count = self._of_key.get(key, (None, 0)) if key is not None else (None, 0)
        if key is None or owner is not lane:
            return
        if count > 1:
            self._of_key[key] = (lane, count - 1)
        else:
            del self._of_key[key]
