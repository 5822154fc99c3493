"""Runs timers, crontabs and background functions; those with `on_leader` only where the leader task is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from thalweg.journal.rows import decode, encode
from thalweg.schedule import Background, Crontab, Timer

from .task import TaskKey
from .worker import Worker

__all__ = ["Clockwork"]

log = logging.getLogger("thalweg")

LONGEST_BACKOFF = 60.0


class Clockwork:
    """Each function runs in a task of its own; an error is logged, and the next run is not affected.

    The leader is the owner of one task that has no input: leadership moves as all ownership does.
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
        self._everywhere: list[asyncio.Task[None]] = []
        self._leading: list[asyncio.Task[None]] = []
        worker.on_task(leader_task, self._lead, self._follow)

    @property
    def leads(self) -> bool:
        return self._worker.serving(*self._leader_task) is not None

    async def start(self) -> None:
        self._everywhere = self._launch(on_leader=False)

    async def stop(self) -> None:
        await _cancel(self._everywhere)

    def _lead(self) -> None:
        self._leading = self._launch(on_leader=True)

    async def _follow(self) -> None:
        """Leadership is gone: everything that belongs to it is cancelled before the task closes."""
        await _cancel(self._leading)

    def _launch(self, on_leader: bool) -> list[asyncio.Task[None]]:
        jobs: list[tuple[str, Awaitable[None]]] = []
        jobs += [(timer.name, self._tick(timer)) for timer in self._timers if timer.on_leader == on_leader]
        jobs += [
            (crontab.name, self._cron_on_leader(crontab) if on_leader else self._cron(crontab))
            for crontab in self._crontabs
            if crontab.on_leader == on_leader
        ]
        jobs += [(part.name, self._background(part)) for part in self._backgrounds if part.on_leader == on_leader]
        loop = asyncio.get_running_loop()
        return [loop.create_task(job, name=f"thalweg {name}") for name, job in jobs]  # type: ignore[arg-type]

    async def _tick(self, timer: Timer) -> None:
        """At multiples of the interval since the start: a slow run delays the next, and is not caught up with."""
        due = self._clock.now() + timer.interval
        while True:
            await self._clock.sleep(due - self._clock.now())
            await self._run(timer.name, timer.function)
            due += timer.interval * max(1, -(-(self._clock.now() - due) // timer.interval))

    async def _cron(self, crontab: Crontab) -> None:
        due = crontab.after(self._clock.now())
        while True:
            await self._clock.sleep(due - self._clock.now())
            await self._run(crontab.name, crontab.function)
            due = crontab.after(max(due, self._clock.now()))

    async def _cron_on_leader(self, crontab: Crontab) -> None:
        """The last tick run is a row of the leader task's journal, so that an heir knows what was missed.

        The tick is committed after the run: a leader that dies in the middle leaves it to its heir (at least once);
        one whose journal has been claimed by an heir cannot commit, and stops.
        """
        task = self._worker.tasks[self._leader_task]
        row = b"c" + crontab.name.encode()
        raw = task.read_row(row)
        last = self._clock.now() if raw is None else decode(raw, type=float)
        if raw is None:
            await task.write_row(row, encode(last))
        due = crontab.after(last)
        while True:
            now = self._clock.now()
            if due <= now:
                latest = due
                while (following := crontab.after(latest)) <= now:
                    latest = following
                late = latest < now - 60 or latest > due
                due = latest
                if not late or crontab.misfire == "run_once":
                    await self._run(crontab.name, crontab.function)
                await task.write_row(row, encode(due))
                due = crontab.after(due)
            else:
                await self._clock.sleep(due - now)

    async def _background(self, part: Background) -> None:
        """Runs once; an error starts it again, with growing pauses."""
        pause = 0.5
        while True:
            if await self._run(part.name, part.function):
                return
            await self._clock.sleep(pause)
            pause = min(pause * 2, LONGEST_BACKOFF)

    async def _run(self, name: str, function: Callable[[], Awaitable[None]]) -> bool:
        try:
            await function()
        except (Exception, asyncio.CancelledError) as error:
            current = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and (current is None or current.cancelling()):
                raise
            log.error("%s raised", name, exc_info=error)
            if self._worker.settings.failures is not None:
                self._worker.settings.failures(name, error)
                return True
            return False
        return True


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    tasks.clear()
