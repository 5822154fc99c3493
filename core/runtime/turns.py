"""Events that use the same tables take turns within a task, lowest timestamp first (design rule 10).

Agents that share a table, directly or through a third, are *members* of one `Turns`; agents that share none are
independent, as sub-topologies are in Kafka Streams. Lanes of one agent with `concurrency > 1` hold the turn together:
each touches only its own key's rows.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

__all__ = ["FOR_EVER", "Taker", "Turns"]

FOR_EVER = 1 << 63


class Taker(Protocol):
    turns: Turns

    def head(self) -> int | None:
        """Timestamp (ms) of the event it could begin at once, but for its turn; None if there is none."""
        ...


class Turns:
    def __init__(self, taker: Taker) -> None:
        self.members: list[Taker] = [taker]
        self._holders: dict[Taker, int] = {}  # how many open events each has; more than one holder only after `join`
        self._waiting: list[tuple[int, int, Taker, asyncio.Future[None]]] = []
        self._count = 0
        self._closed = False

    @property
    def contended(self) -> bool:
        return len(self.members) > 1

    def join(self, other: Turns) -> None:
        """The members of both turn out to share a table: from now on they take turns with each other."""
        self.members += other.members
        self._holders.update(other._holders)
        self._waiting += other._waiting
        for member in other.members:
            member.turns = self

    def held_by_another(self, taker: Taker) -> bool:
        return any(holder is not taker for holder in self._holders)

    def adopt(self, taker: Taker) -> None:
        """An event that is open already has the turn."""
        self._holders[taker] = self._holders.get(taker, 0) + 1

    async def enter(self, taker: Taker, timestamp: int) -> int:
        """Wait for the turn; returns up to which timestamp the taker may go on before it must ask again."""
        if self._closed:
            raise asyncio.CancelledError
        until = self._until(taker)
        if timestamp <= until and not self.held_by_another(taker):
            self.adopt(taker)
            return until
        self._count += 1
        entry = (timestamp, self._count, taker, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        self.next()
        try:
            await entry[3]
        except asyncio.CancelledError:
            if entry in self._waiting:
                self._waiting.remove(entry)
            elif entry[3].done() and not entry[3].cancelled():
                self.leave(taker)  # it had just been given the turn
            raise
        return self._until(taker)

    def leave(self, taker: Taker) -> None:
        events = self._holders.pop(taker) - 1
        if events:
            self._holders[taker] = events
        self.next()

    def close(self) -> None:
        """The task ends: nobody will have a turn any more, and who waits for one is cancelled."""
        self._closed = True
        for *_, woken in self._waiting:
            woken.cancel()

    def next(self) -> None:
        """Give the turn to whoever is first, unless an earlier event is about to ask for it."""
        while self._waiting:
            first = min(self._waiting, key=lambda entry: entry[:2])
            timestamp, _, taker, woken = first
            if self.held_by_another(taker) or timestamp > self._until(taker):
                return
            self._waiting.remove(first)
            if not woken.done():
                self.adopt(taker)
                woken.set_result(None)

    def _until(self, taker: Taker) -> int:
        """The timestamp of the first event of any other member: waiting for its turn, or about to ask for it."""
        until = FOR_EVER
        asking = set()
        for timestamp, _, other, _ in self._waiting:
            if other is not taker:
                asking.add(other)
                until = min(until, timestamp)
        for other in self.members:
            if other is not taker and other not in asking and (head := other.head()) is not None:
                until = min(until, head)
        return until
