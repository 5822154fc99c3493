"""What a worker says of itself in the roster: at the start, at each change, every twenty seconds, and at the end."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

import msgspec
from thalweg.clock import Clock
from thalweg.errors import ThalwegError
from thalweg.message import Message

from .recovery import Recovering
from .roster import BEAT, Gone, Here, Roster, Size, Word, as_messages
from .task import TaskKey

__all__ = ["Presence"]

log = logging.getLogger("thalweg")

TOGETHER = 0.05
"""Seconds, at least, between two words: what changes in between is said in one."""
RECOVERING_EVERY = 2.0
"""Seconds between two words of how a recovery goes."""
LAST_WORD = 1.0
"""Seconds that a worker which stops waits for its last word to be written."""
FIRST_BACKOFF, LONGEST_BACKOFF = 0.1, 2.0

Send = Callable[[str, Mapping[int, Sequence[Message]]], Awaitable[None]]


class Presence:
    """Nothing here is ever waited for by tasks, and a broker that is away costs a warning in a while.

    here: the worker's last word, or what it is about to say.
    """

    def __init__(
        self,
        roster: Roster,
        me: str,
        worker_id: str | None,
        zone: str,
        groups: Mapping[str, Size],
        send: Send,
        clock: Clock,
    ) -> None:
        host, since = socket.gethostname(), round(clock.now() * 1000)
        self.here = Here(me, worker_id, zone, host, os.getpid(), since=since, groups=groups)
        self._roster, self._send, self._clock = roster, send, clock
        self._complaints = roster.complaints
        self._owned: set[TaskKey] = set()
        self._recovering_said = clock.now()
        self._due = asyncio.Event()
        self._due.set()

    def opened(self, task: TaskKey) -> None:
        self._owned.add(task)
        self._due.set()

    def closed(self, task: TaskKey) -> None:
        self._owned.discard(task)
        self._due.set()

    def standing_by(self, tasks: Iterable[TaskKey]) -> None:
        self._say(msgspec.structs.replace(self.here, standbys=_by_group(tasks)))

    def began_after(self, since: int) -> None:
        """This run began later than one that began at `since`, whatever the clocks say."""
        if since >= self.here.since:
            self._say(msgspec.structs.replace(self.here, since=since + 1))

    def hears_at(self, address: str) -> None:
        self._say(msgspec.structs.replace(self.here, reply=address))

    def recovering(self, how: Recovering | None) -> None:
        """Said once in a while: others only look at it."""
        now = self._clock.now()
        if how is None or now - self._recovering_said >= RECOVERING_EVERY:
            self._recovering_said = now
            self._say(msgspec.structs.replace(self.here, recovering=how))

    def leaving(self) -> None:
        self._say(msgspec.structs.replace(self.here, leaving=True))

    def _say(self, here: Here) -> None:
        if here != self.here:
            self.here = here
            self._due.set()

    # --- writing -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        backoff = FIRST_BACKOFF
        while True:
            await self._due.wait()
            await asyncio.sleep(0)  # what else changes in this turn of the loop
            self._due.clear()
            try:
                await self._write(self._here_now())
            except ThalwegError as error:
                self._complaints.warn("roster", "the roster cannot be written, again in %.1f s: %s", backoff, error)
                await self._clock.sleep(backoff)
                backoff = min(2 * backoff, LONGEST_BACKOFF)
                self._due.set()
                continue
            backoff = FIRST_BACKOFF
            beat = self._clock.call_later(BEAT, self._due.set)
            try:
                await self._clock.sleep(TOGETHER)
                await self._due.wait()
            finally:
                beat.cancel()

    def _here_now(self) -> Here:
        self.here = msgspec.structs.replace(self.here, owns=_by_group(self._owned), said=self.here.said + 1)
        return self.here

    async def _write(self, word: Word) -> None:
        await self._send(self._roster.topic, {0: as_messages(word, self._clock, self._roster.limit)})

    async def end(self) -> None:
        """The last word, once `run` has ended. What cannot be written now is not: others see by themselves."""
        try:
            async with self._clock.timeout(LAST_WORD):
                await self._write(Gone(self.here.me))
        except (ThalwegError, TimeoutError) as error:
            log.debug("the last word was not written: %s", error)


def _by_group(tasks: Iterable[TaskKey]) -> Mapping[str, tuple[int, ...]]:
    found: dict[str, list[int]] = {}
    for group, index in sorted(tasks):
        found.setdefault(group, []).append(index)
    return {group: tuple(indexes) for group, indexes in found.items()}
