"""Runs timers, crontabs and background functions; those with `on_leader` only where the leader task is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any

from thalweg.errors import Fenced
from thalweg.journal.rows import decode, encode
from thalweg.schedule import Background, Crontab, Timer

from .context import current_lane
from .escaped import escaped
from .scheduled_run import ScheduledRun
from .task import Task, TaskKey
from .worker import Worker

__all__ = ["Clockwork"]

log = logging.getLogger("thalweg")

LONGEST_BACKOFF = 60.0

LATE = 60.0
"""Seconds after which a tick has been missed, and its crontab's `misfire` decides."""

DOUBT = 0.5
"""Seconds until a leader whose lease is over looks whether it was given more time, before it begins anything."""


class Clockwork:
    """Each function runs in a task of its own; an error is logged, and the next run is not affected.

    The leader is the owner of one task that has no input: leadership moves as all ownership does. The last tick of what
    runs there is a row of that task's journal, so an heir knows what was missed; what the run sent is part of that
    commit. A leader that dies in the middle leaves the tick to its heir: what it did by other means happens twice. One
    whose journal has been claimed by an heir cannot commit, and stops.
    """

    def __init__(
        self,
        worker: Worker,
        timers: Sequence[Timer],
        crontabs: Sequence[Crontab],
        backgrounds: Sequence[Background],
        leader_task: TaskKey,
    ) -> None:
        self._worker, self._clock = worker, worker.settings.clock
        self._timers, self._crontabs, self._backgrounds = timers, crontabs, backgrounds
        self._leader_task = leader_task
        self._everywhere: set[asyncio.Task[None]] = set()
        self._leading: set[asyncio.Task[None]] = set()
        self._running: set[asyncio.Task[Any]] = set()
        """Of those that lead: the ones in the midst of a run."""
        self._retiring = False
        worker.on_task(leader_task, self._lead, self._follow)

    @property
    def leads(self) -> bool:
        return self._worker.serving(*self._leader_task) is not None

    async def start(self) -> None:
        jobs: list[tuple[str, Coroutine[Any, Any, None]]] = []
        jobs += [(timer.name, self._tick(timer)) for timer in self._timers if not timer.on_leader]
        jobs += [(crontab.name, self._cron(crontab)) for crontab in self._crontabs if not crontab.on_leader]
        jobs += [(part.name, self._background(part)) for part in self._backgrounds if not part.on_leader]
        self._everywhere = _launched(jobs)

    async def stop(self) -> None:
        await self._cancel(self._everywhere)

    def _lead(self) -> None:
        self._retiring = False
        task = self._worker.tasks[self._leader_task]
        jobs: list[tuple[str, Coroutine[Any, Any, None]]] = []
        jobs += [(timer.name, self._tick_on_leader(timer, task)) for timer in self._timers if timer.on_leader]
        jobs += [(crontab.name, self._cron_on_leader(crontab, task)) for crontab in self._crontabs if crontab.on_leader]
        jobs += [(part.name, self._background(part)) for part in self._backgrounds if part.on_leader]
        self._leading = _launched(jobs)

    async def _follow(self, in_good_order: bool) -> None:
        """Leadership goes: everything that belongs to it ends before the task closes; runs that have begun may finish,
        if there is time."""
        self._retiring = True
        if in_good_order:
            await self._cancel(self._leading - self._running)
            await self._wait(self._running)
        await self._cancel(self._leading)

    async def _cancel(self, tasks: Iterable[asyncio.Task[None]]) -> None:
        """A function that will not be cancelled is left behind: it must not keep the leadership from others."""
        tasks = list(tasks)
        for task in tasks:
            task.cancel()
        for task in await self._wait(tasks):
            log.warning("%s does not end though it was cancelled, and is left behind", task.get_name())

    async def _wait(self, tasks: Iterable[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
        """For `drain_timeout` at most; those that are not done then."""
        left = set(tasks)
        try:
            async with self._clock.timeout(self._worker.settings.drain_timeout):
                while left := {task for task in left if not task.done()}:
                    await asyncio.wait(left)
        except TimeoutError:
            pass
        return left

    # --- on every worker ---------------------------------------------------------------------------------------

    async def _tick(self, timer: Timer) -> None:
        """At multiples of the interval since the start: a slow run delays the next, and is not caught up with."""
        due = self._clock.now() + timer.interval
        while True:
            await self._clock.sleep(due - self._clock.now())
            await self._run(timer.name, timer.function)
            due = _next_due(due, timer.interval, self._clock.now())

    async def _cron(self, crontab: Crontab) -> None:
        due = crontab.after(self._clock.now())
        while True:
            await self._clock.sleep_until(due)
            await self._run(crontab.name, crontab.function)
            due = crontab.after(max(due, self._clock.now()))

    # --- on the leader -----------------------------------------------------------------------------------------

    async def _tick_on_leader(self, timer: Timer, task: Task) -> None:
        """The rhythm goes on under an heir; what was missed meanwhile is made up for by one run."""
        row = b"i" + timer.name.encode()
        due = min(await self._last(task, row), self._clock.now()) + timer.interval
        while not self._retiring:
            await self._clock.sleep_until(due)
            await self._run_on_leader(timer, task, row, due)
            due = _next_due(due, timer.interval, self._clock.now())

    async def _cron_on_leader(self, crontab: Crontab, task: Task) -> None:
        row = b"c" + crontab.name.encode()
        due = crontab.after(await self._last(task, row))
        while not self._retiring:
            await self._clock.sleep_until(due)
            now = self._clock.now()
            due = crontab.latest(due, now)
            if due >= now - LATE or crontab.misfire == "run_once":
                await self._run_on_leader(crontab, task, row, due)
            else:
                log.warning("%s: a run was missed, and is left out (misfire='skip')", crontab.name)
                await task.write_row(row, encode(due))
            due = crontab.after(due)

    async def _last(self, task: Task, row: bytes) -> float:
        """The last tick; of what never ran, now."""
        raw = task.read_row(row)
        if raw is not None:
            return decode(raw, type=float)
        now = self._clock.now()
        await task.write_row(row, encode(now))
        return now

    async def _run_on_leader(self, part: Timer | Crontab, task: Task, row: bytes, due: float) -> None:
        """One run, and its commit."""
        while not self.leads:  # nothing begins that an heir may have begun
            await self._clock.sleep(DOUBT)
        me = asyncio.current_task()
        assert me is not None
        self._running.add(me)
        run = ScheduledRun(self._worker, part.what, f"{self._worker.app_id}/{part.name}/{due:.3f}")
        current_lane.set(run)
        try:
            succeeded = await self._run(part.name, part.function)
            run.open = False
            await task.write_row(row, encode(due), run.outputs if succeeded else ())
        finally:
            run.open = False
            current_lane.set(None)
            self._running.discard(me)

    # --- both --------------------------------------------------------------------------------------------------

    async def _background(self, part: Background) -> None:
        """Runs once; an error starts it again, with growing pauses."""
        pause = 0.5
        while not await self._run(part.name, part.function):
            if self._worker.settings.failures is not None:
                return
            await self._clock.sleep(pause)
            pause = min(pause * 2, LONGEST_BACKOFF)

    async def _run(self, name: str, function: Callable[[], Awaitable[None]]) -> bool:
        """Whether it went well."""
        try:
            await function()
        except BaseException as caught:
            current = asyncio.current_task()
            if isinstance(caught, asyncio.CancelledError) and (current is None or current.cancelling()):
                raise
            error = escaped(caught)
            log.error("%s raised", name, exc_info=error)
            if self._worker.settings.failures is not None:
                self._worker.settings.failures(name, error)
            return False
        return True


def _launched(jobs: Iterable[tuple[str, Coroutine[Any, Any, None]]]) -> set[asyncio.Task[None]]:
    loop = asyncio.get_running_loop()
    tasks = {loop.create_task(job, name=f"thalweg {name}") for name, job in jobs}
    for task in tasks:
        task.add_done_callback(_ended)
    return tasks


def _ended(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, Fenced):
        log.error("%s ended", task.get_name(), exc_info=error)  # Fenced: the leader task starts over, or is another's


def _next_due(due: float, interval: float, now: float) -> float:
    """The next multiple of the interval that is not past."""
    return due + interval * max(1, -(-(now - due) // interval))
