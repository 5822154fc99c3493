"""What random programs send to leave later, take back, and send twice under one id; and what must come of it."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterable

from thalweg import App, Event, Topic

__all__ = ["Later"]

DELAYS = (0.3, 3.0, 12.0)
"""Seconds that what an event sends waits, by its number."""
IN_TIME = 20.0
"""Seconds of delay that leave time to cancel: the client's connection is good."""
OUTSIDE = 1000
"""Numbers that a client sends begin here."""


class Later:
    """A topic to which the first agent, and the client, send with a delay.

    must: arrive once. may: arrive once or, if they were cancelled in time, not at all. never: cancelled in time.
    """

    def __init__(self, app: App) -> None:
        self.topic: Topic[str, int] = app.topic("later", key=str, value=int)
        self.must: set[int] = set()
        self.may: set[int] = set()
        self.never: set[int] = set()
        self.on_time = True
        """Nobody's clock was set: else what is early, or late to be cancelled, is so by the clocks that count."""

    # --- sending ---------------------------------------------------------------------------------------------

    async def in_event(self, key: str, number: int) -> None:
        """Of an event of the first agent. Some are put off, and some cancelled at once.

        Where these are no part of the commit itself, the second may arrive when the first has left.
        """
        name = f"event {number}"
        await self.topic.send(number, key=key, delay=DELAYS[number % len(DELAYS)], id=name)
        if self._is_put_off(number):
            await self.topic.send(number, key=key, delay=DELAYS[(number + 1) % len(DELAYS)], id=name)
        if number % 5 == 2:
            await self.topic.cancel(name)

    @staticmethod
    def _is_put_off(number: int) -> bool:
        return number % 7 == 4 and number < OUTSIDE

    async def from_outside(self, chance: random.Random, seconds: float) -> None:
        """Of the client: for so long, one after the other."""
        count = chance.choice([2, 4, 8])
        sending = [asyncio.ensure_future(self._one(OUTSIDE + 2 * n, chance.randrange(5))) for n in range(count)]
        for one in sending:
            await asyncio.sleep(chance.random() * seconds / count)
            await one

    async def _one(self, number: int, how: int) -> None:
        send, name = self.topic.send, f"client {number}"
        key = "abcd"[number % 4]
        if how == 0:  # cancelled in time
            self.never.add(number)
            await send(number, key=key, delay=IN_TIME, id=name)
            await asyncio.sleep(1.0)
            await self.topic.cancel(name)
        elif how == 1:  # as it leaves, or just before, or after
            self.may.add(number)
            await send(number, key=key, delay=1.0, id=name)
            await asyncio.sleep(0.5 + (number % 3) / 2)
            await self.topic.cancel(name)
        elif how == 2:  # another takes its place
            self.never.add(number)
            self.must.add(number + 1)
            await send(number, key=key, delay=IN_TIME, id=name)
            await asyncio.sleep(1.0)
            await send(number + 1, key=key, delay=2.0, id=name)
        else:  # two that have no name
            self.must |= {number, number + 1}
            await send(number, key=key, delay=0.2)
            await send(number + 1, key=key, delay=5.0)

    # --- what comes of it ------------------------------------------------------------------------------------

    def differs(self, handled: Iterable[int], sent: Iterable[Event[int, str]]) -> str:
        """handled: the numbers of the events that the first agent handled."""
        counts = Counter(event.value for event in sent)
        handled = set(handled)
        if twice := sorted(number for number, count in counts.items() if count > 1 + self._is_put_off(number)):
            return f"{twice} left more than once"
        cancelled = {number for number in handled if number % 5 == 2}
        must, may = self.must | (handled - cancelled), self.may | cancelled
        if not self.on_time:
            may |= self.never
        if missing := sorted(must - counts.keys()):
            return f"{missing} have not left"
        if wrong := sorted(counts.keys() - must - may):
            return f"{wrong} left, and were cancelled"
        return ""
