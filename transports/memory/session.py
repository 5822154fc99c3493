"""A transport as its broker sees it: up, cut off or gone, and how long what it holds is still honoured."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from typing import Protocol

from thalweg.clock import Clock, Timer
from thalweg.errors import BrokerError

__all__ = ["Closable", "Leased", "Session", "Waiters", "wake"]

Waiters = dict["asyncio.Future[bool]", None]  # in order of arrival: runs under a seeded loop replay exactly


class Leased(Protocol):
    """What a session holds at the broker for as long as it is heard of, and `lease` seconds more."""

    @property
    def lease(self) -> float: ...
    def expire(self) -> None:
        """Give it back to the broker. Twice is harmless."""
        ...


class Closable(Protocol):
    async def close(self) -> None: ...


def wake(waiters: Waiters) -> None:
    for waiter in waiters:
        if not waiter.done() and not waiter.get_loop().is_closed():
            waiter.set_result(True)
    waiters.clear()


class Session:
    """From `open` to `close` of one transport.

    While it is up, all it holds is kept alive without any timer; cut off or killed, each thing it holds is given
    back when its lease ends. A session whose event loop was closed under it is gone at once.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.loop = asyncio.get_running_loop()
        self.down: str | None = None  # why calls fail
        self.ended = False
        self._silent_since: float | None = None
        self.channels: dict[Closable, None] = {}  # those not closed yet
        self._waiters: Waiters = {}
        self._leased: dict[Leased, Timer | None] = {}
        self._given_up: list[Leased] = []

    def check(self) -> None:
        if self.down is not None:
            raise BrokerError(self.down)

    def hold(self, leased: Leased) -> None:
        self.loop = asyncio.get_running_loop()
        self._leased[leased] = None

    def drop(self, leased: Leased) -> None:
        timer = self._leased.pop(leased, None)
        if timer is not None:
            timer.cancel()

    def give_up(self, leased: Leased) -> None:
        """Give it back now, or, if the broker cannot be reached, as soon as it can, or when the lease ends."""
        if self.down is None:
            leased.expire()
        else:
            self._given_up.append(leased)

    def outlived(self, lease: float) -> bool:
        """Whether nothing was heard of it for `lease` seconds."""
        if self.loop.is_closed():
            return True
        return self._silent_since is not None and self.clock.now() >= self._silent_since + lease

    def silence(self, reason: str, *, for_ever: bool) -> None:
        """From now on its calls fail, and the broker hears nothing of it."""
        if self.ended:
            return
        self.down, self.ended = reason, for_ever
        if self._silent_since is None:
            self._silent_since = self.clock.now()
            for leased in self._leased:
                self._leased[leased] = self.clock.call_later(leased.lease, leased.expire)
        wake(self._waiters)

    def resume(self) -> None:
        """The broker hears of it again: what it has not lost by now it keeps. Nothing resumes what ended."""
        if self.ended:
            return
        for leased, timer in self._leased.items():
            if timer is not None:
                timer.cancel()
                self._leased[leased] = None
        for leased in self._given_up:
            leased.expire()
        self._given_up.clear()
        self.down = self._silent_since = None

    def end(self, reason: str) -> None:
        """Give back all it holds, now; what was cut off cannot, and waits for its leases to end."""
        if self.down is None:
            for leased in list(self._leased):
                leased.expire()
        self.down, self.ended = reason, True
        wake(self._waiters)

    async def wait(self, places: Iterable[Waiters], timeout: float) -> bool:
        """Wait until one of `places` is woken (True) or `timeout` seconds have passed (False).

        Raises `BrokerError` if the session goes down meanwhile.
        """
        woken: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        for waiters in places:
            waiters[woken] = None
        self._waiters[woken] = None
        timer = None

        def time_out() -> None:
            if not woken.done():
                woken.set_result(False)

        try:
            if timeout < math.inf:
                timer = self.clock.call_later(timeout, time_out)
            in_time = await woken
        finally:
            if timer is not None:
                timer.cancel()
            self._waiters.pop(woken, None)
            for waiters in places:
                waiters.pop(woken, None)
        self.check()
        return in_time
