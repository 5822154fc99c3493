"""Events that use tables take turns within a task, lowest timestamp first (design rule 10).

Lanes of one agent with `concurrency > 1` share its turn: each touches only its own key's rows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

__all__ = ["Taker", "Turns"]


class Taker(Protocol):
    def head(self) -> int | None:
        """Timestamp (ms) of the event it could begin at once, but for its turn; None if there is none."""
        ...


class Turns:
    def __init__(self) -> None:
        self._holder: Taker | None = None
        self._events = 0
        self._waiting: list[tuple[int, int, Taker, asyncio.Future[None]]] = []
        self._count = 0

    def held_by_another(self, taker: Taker) -> bool:
        return self._holder is not None and self._holder is not taker

    def adopt(self, taker: Taker) -> None:
        """An event that is open already takes the turn, which nobody holds."""
        self._holder = taker
        self._events += 1

    async def enter(self, taker: Taker, timestamp: int, others: Sequence[Taker]) -> None:
        if not self._waiting and self._free(taker) and not _earlier(timestamp, taker, others):
            self.adopt(taker)
            return
        self._count += 1
        entry = (timestamp, self._count, taker, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        self.next(others)
        try:
            await entry[3]
        except asyncio.CancelledError:
            if entry in self._waiting:
                self._waiting.remove(entry)
            elif entry[3].done() and not entry[3].cancelled():
                self.leave(others)  # it had just been given the turn
            raise

    def leave(self, others: Sequence[Taker]) -> None:
        self._events -= 1
        if self._events <= 0:
            self._events, self._holder = 0, None
        self.next(others)

    def next(self, others: Sequence[Taker]) -> None:
        """Give the turn to whoever is first, unless an earlier event is about to ask for it."""
        while self._waiting:
            first = min(self._waiting, key=lambda entry: entry[:2])
            timestamp, _, taker, woken = first
            if not self._free(taker) or _earlier(timestamp, taker, [o for o in others if not self._asks(o)]):
                return
            self._waiting.remove(first)
            self.adopt(taker)
            woken.set_result(None)

    def _free(self, taker: Taker) -> bool:
        return self._holder is None or self._holder is taker

    def _asks(self, taker: Taker) -> bool:
        return any(entry[2] is taker for entry in self._waiting)


def _earlier(timestamp: int, taker: Taker, others: Sequence[Taker]) -> bool:
    return any(other is not taker and (head := other.head()) is not None and head < timestamp for other in others)
