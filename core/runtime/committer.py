"""When tasks commit: as soon as one is idle, at the latest `commit_interval` after its first event; all in one call."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from thalweg.clock import Clock, Timer
from thalweg.errors import EncodeError
from thalweg.journal.writer import JournalKey, JournalWriter, Written

if TYPE_CHECKING:
    from .task import Cut, Task

__all__ = ["Committer"]

log = logging.getLogger("thalweg")


OPEN_EVENT = 0.01
"""Seconds, at least, until a task is looked at again that had nothing to commit because its events are still open."""


class Committer:
    """One commit is under way at a time; what finishes meanwhile goes with the next."""

    def __init__(self, writer: JournalWriter, clock: Clock, interval: float) -> None:
        self._writer, self._clock, self._interval = writer, clock, interval
        self.tasks: dict[JournalKey, Task] = {}
        self._timer: Timer | None = None
        self._due = asyncio.Event()
        self._flushing: list[asyncio.Future[None]] = []
        self._lock = asyncio.Lock()
        self.commits = 0

    def arm(self, at_least: float = 0.0) -> None:
        if self._timer is None:
            self._timer = self._clock.call_later(max(self._interval, at_least), self.soon)

    def soon(self) -> None:
        self._due.set()

    async def flush(self) -> None:
        done = asyncio.get_running_loop().create_future()
        self._flushing.append(done)
        self.soon()
        await done

    async def run(self) -> None:
        while True:
            await self._due.wait()
            self._due.clear()
            await self.commit()

    async def commit(self) -> None:
        """Commit what there is now."""
        async with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            flushing, self._flushing = self._flushing, []
            try:
                cuts = self._cuts()
                if cuts:
                    await self.write(cuts)
            finally:
                for done in flushing:
                    if not done.done():
                        done.set_result(None)

    async def release(self, task: Task) -> None:
        """The last record of a task: its owner left in good order."""
        async with self._lock:
            await self.write({task.journal: task.release()})

    async def _send_ahead(self, cuts: dict[JournalKey, Cut]) -> None:
        """At least once: outputs that cannot join the commit go before it."""
        for journal, cut in list(cuts.items()):
            task = self.tasks.get(journal)
            try:
                for (topic, partition), messages in cut.ahead.items():
                    assert task is not None
                    await task.worker.send_now(topic, {partition: messages})
            except Exception as error:
                del cuts[journal]
                if task is not None:
                    task.failed(error)

    def _cuts(self) -> dict[JournalKey, Cut]:
        cuts: dict[JournalKey, Cut] = {}
        for journal, task in list(self.tasks.items()):
            try:
                cut = task.cut()
            except EncodeError as error:
                task.checking = True
                task.failed(error)
            except Exception as error:
                task.failed(error)
            else:
                if cut is not None:
                    cuts[journal] = cut
                elif task.has_work:
                    self.arm(OPEN_EVENT)
        return cuts

    async def write(self, cuts: dict[JournalKey, Cut]) -> None:
        self.commits += 1
        tasks = {journal: self.tasks.get(journal) for journal in cuts}
        await self._send_ahead(cuts)
        for journal, cut in list(cuts.items()):
            if not self._current(tasks[journal], cut, journal):
                del cuts[journal]
        if not cuts:
            return
        results: Mapping[JournalKey, Written | Exception]
        try:
            results = await self._writer.commit({journal: cut.commit for journal, cut in cuts.items()})
        except Exception as error:  # nobody knows what was written: the journals will tell
            results = dict.fromkeys(cuts, error)
        for journal, result in results.items():
            task, cut = tasks[journal], cuts[journal]
            assert task is not None  # or it were not current
            try:
                if self._current(task, cut, journal):
                    if isinstance(result, Exception):
                        raise result
                    task.committed(cut, result)
                elif isinstance(result, Written):
                    task.worker.answer(cut.answers)
            except Exception as error:
                task.failed(error)

    def _current(self, task: Task | None, cut: Cut, journal: JournalKey) -> bool:
        """Whether the cut's task is still what it was then: it may be closed, or have started over, meanwhile."""
        return task is not None and self.tasks.get(journal) is task and task.made(cut)
