"""What a worker tells while it reads the journals of tasks that it has taken: how far it is, how fast, how long still.

Positions need not be dense, so how far it is, is estimated from them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec
from thalweg.capabilities import Log
from thalweg.clock import Clock
from thalweg.message import Position

__all__ = ["Progress", "Recoveries", "Recovering"]

log = logging.getLogger("thalweg")

SHOWN_EVERY, LOGGED_EVERY = 0.25, 5.0
"""Seconds between two words to whoever watches, and to the log."""


MANY = 1000
"""Keys in the first read, from which on it may take a while."""


class Recovering(msgspec.Struct, frozen=True):
    """Of a worker's tasks together. share: from 0 to 1. keys: read so far. rate: keys a second. left: seconds."""

    tasks: int
    share: float
    keys: int
    rate: float
    left: float

    def __str__(self) -> str:
        tasks = "1 task" if self.tasks == 1 else f"{self.tasks} tasks"
        left = f", {self.left:.0f} s left" if self.share else ""
        return f"{tasks}: {self.share:.0%}, {self.rate:,.0f} keys/s{left}"


class Progress:
    """Of one task. Costs nothing where one read gives all that there is."""

    def __init__(self, of: Recoveries) -> None:
        self._of = of
        self._reads = 0
        self._first: Position = 0
        self._last: Position | None = None
        self._at: Position = 0
        self.keys = 0

    async def read(self, journal: Log, partition: int, after: Position | None, at: Position, keys: int) -> None:
        """The journal has been read from behind `after` (None: from its beginning) up to `at`; so many keys in all."""
        self._reads += 1
        if self._last is None and (self._reads > 1 or keys >= MANY):
            bounds = await journal.bounds(partition)
            self._first = after if after is not None else bounds.first or 0
            self._last = bounds.last
        self._at, self.keys = at, keys
        self._of.look()

    @property
    def share(self) -> float:
        if self._last is None:
            return 0.0
        return 1.0 if self._last <= self._first else min(1.0, (self._at - self._first) / (self._last - self._first))

    def end(self) -> None:
        self._of.end(self)


class Recoveries:
    """Of a worker. watch: told now and then how it goes, and None at the end; to be set by whoever shows it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._open: list[Progress] = []
        self._tasks = self._done_keys = 0
        self._began = self._shown = self._logged = 0.0
        self.watch: list[Callable[[Recovering | None], None]] = []

    def begin(self) -> Progress:
        if not self._open:
            self._tasks = self._done_keys = 0
            self._began = self._shown = self._logged = self._clock.now()
        self._tasks += 1
        progress = Progress(self)
        self._open.append(progress)
        return progress

    def end(self, progress: Progress) -> None:
        self._open.remove(progress)
        self._done_keys += progress.keys
        if self._open:
            return
        took = self._clock.now() - self._began
        if took >= 1:
            log.info(
                "recovered %d tasks: %s keys in %.1f s (%s keys/s)",
                *(self._tasks, f"{self._done_keys:,}", took, f"{self._done_keys / took:,.0f}"),
            )
        if self._shown > self._began:
            for tell in self.watch:
                tell(None)

    def look(self) -> None:
        now = self._clock.now()
        if now - self._shown < SHOWN_EVERY:
            return
        self._shown = now
        recovering = self.now()
        for tell in self.watch:
            tell(recovering)
        if now - self._logged >= LOGGED_EVERY:
            self._logged = now
            log.info("recovering %s", recovering)

    def now(self) -> Recovering:
        took = max(1e-6, self._clock.now() - self._began)
        keys = self._done_keys + sum(one.keys for one in self._open)
        done = self._tasks - len(self._open)
        share = (done + sum(one.share for one in self._open)) / max(1, self._tasks)
        left = took * (1 - share) / share if share else 0.0
        return Recovering(len(self._open), share, keys, keys / took, left)
