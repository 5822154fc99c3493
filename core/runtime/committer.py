"""When tasks commit: as soon as one is idle, at the latest `commit_interval` after its first event; all in one call."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from thalweg.clock import Clock, Timer
from thalweg.errors import EncodeError
from thalweg.journal.snapshot import Room
from thalweg.journal.writer import JournalKey, JournalWriter, Outcome, Written

if TYPE_CHECKING:
    from .task import Cut, Task

__all__ = ["Committer"]

log = logging.getLogger("thalweg")


OPEN_EVENT = 0.01
"""Seconds, at least, until a task is looked at again that had nothing to commit because its events are still open."""

PATIENCE = 1.0
"""Seconds that tasks wait for one another: what takes longer goes on by itself, and the others commit without it."""


def _urgency(item: tuple[JournalKey, Task]) -> float:
    return item[1].urgency


class Committer:
    """One commit is under way at a time; what finishes meanwhile goes with the next."""

    def __init__(self, writer: JournalWriter, clock: Clock, interval: float) -> None:
        self._writer, self._clock, self._interval = writer, clock, interval
        self.tasks: dict[JournalKey, Task] = {}
        self._timer: Timer | None = None
        self._due = asyncio.Event()
        self._flushing: list[asyncio.Future[None]] = []
        self._lock = asyncio.Lock()
        self._slow: set[asyncio.Task[Any]] = set()
        self.commits = 0
        self.room = Room(clock)

    def arm(self, at_least: float = 0.0) -> None:
        if self._timer is None:
            self._timer = self._clock.call_later(max(self._interval, at_least), self.soon)

    def soon(self) -> None:
        self._due.set()

    async def flush(self) -> None:
        """Return when all tasks were asked for what they have to commit. Whether it has been, `Task.landed` tells."""
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
        """Commit what there is now, but for what takes longer than `PATIENCE`."""
        async with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            flushing, self._flushing = self._flushing, []
            try:
                cuts = self._cuts()
                if cuts:
                    await self._write(cuts)
            finally:
                for done in flushing:
                    if not done.done():
                        done.set_result(None)

    async def finish(self, task: Task) -> None:
        """Return when all that the task has finished is committed, or has failed."""
        await task.landed()
        await self.commit()
        await task.landed()

    async def release(self, task: Task) -> None:
        """The last record of a task: its owner left in good order."""
        await task.landed()
        if self.tasks.get(task.journal) is task:
            await self._commit({task.journal: task.release()})

    async def stop(self) -> None:
        for writing in self._slow:
            writing.cancel()
        await asyncio.gather(*self._slow, return_exceptions=True)

    def _cuts(self) -> dict[JournalKey, Cut]:
        cuts: dict[JournalKey, Cut] = {}
        self.room.next()
        for journal, task in sorted(self.tasks.items(), key=_urgency, reverse=True):
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

    async def _write(self, cuts: dict[JournalKey, Cut]) -> None:
        ahead = {journal: cut for journal, cut in cuts.items() if cut.ahead}
        if ahead:
            await self._send_ahead(ahead, cuts)
        if self._writer.atomic_outputs:
            await self._commit(cuts)  # one call, in which nobody can be left behind
        else:
            await self._patiently(self._commit(cuts))

    async def _send_ahead(self, ahead: dict[JournalKey, Cut], cuts: dict[JournalKey, Cut]) -> None:
        """At least once: outputs that cannot join the commit go before it. Those that take long hold up their own."""
        late: set[JournalKey] = set()

        async def send(task: Task, journal: JournalKey, cut: Cut) -> None:
            try:
                for (topic, partition), messages in cut.ahead.items():
                    await task.worker.send_now(topic, {partition: messages})
            except Exception as error:
                cuts.pop(journal, None)
                if self._current(task, cut, journal):
                    task.refused(cut, error)
                    task.land()
                    task.failed(error)
            else:
                if journal in late:
                    await self._commit({journal: cut})

        sending = {journal: self._begin(send(self.tasks[journal], journal, cut)) for journal, cut in ahead.items()}
        await self._wait_for(list(sending.values()))
        for journal, one in sending.items():
            if not one.done():
                late.add(journal)
                del cuts[journal]

    async def _commit(self, cuts: dict[JournalKey, Cut]) -> None:
        tasks = {journal: self.tasks.get(journal) for journal in cuts}
        left = {journal: cut for journal, cut in cuts.items() if self._current(tasks[journal], cut, journal)}
        if not left:
            return
        self.commits += 1

        def done(journal: JournalKey, outcome: Outcome) -> None:
            task = tasks[journal]
            assert task is not None  # or it were not current
            self._take(task, left.pop(journal), journal, outcome)

        try:
            await self._writer.commit({journal: cut.commit for journal, cut in left.items()}, done)
        except Exception as error:  # nobody knows what was written: the journals will tell
            for journal in list(left):
                done(journal, error)

    def _take(self, task: Task, cut: Cut, journal: JournalKey, outcome: Outcome) -> None:
        try:
            if self._current(task, cut, journal):
                if isinstance(outcome, Exception):
                    raise outcome
                task.committed(cut, outcome)
            elif isinstance(outcome, Written):
                task.worker.answer(cut.answers)
        except Exception as error:
            task.refused(cut, error)
            task.land()
            task.failed(error)

    def _current(self, task: Task | None, cut: Cut, journal: JournalKey) -> bool:
        """Whether the cut's task is still what it was then: it may be closed, or have started over, meanwhile."""
        return task is not None and self.tasks.get(journal) is task and task.made(cut)

    # --- what takes long ---------------------------------------------------------------------------------------

    async def _patiently(self, writing: Coroutine[Any, Any, None]) -> None:
        await self._wait_for([self._begin(writing)])

    def _begin(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Whoever waits may be cancelled, or lose patience; this goes on."""
        task = asyncio.get_running_loop().create_task(coroutine, name="thalweg commit")
        self._slow.add(task)
        task.add_done_callback(self._slow.discard)
        return task

    async def _wait_for(self, tasks: list[asyncio.Task[None]]) -> None:
        try:
            async with self._clock.timeout(PATIENCE):
                await asyncio.wait(tasks)
        except TimeoutError:
            pass
