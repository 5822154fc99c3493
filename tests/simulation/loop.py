"""An event loop without a clock or a socket: time is virtual, and chance says which process runs next.

Every callback belongs to the process in whose context it was made. Within one process callbacks run in their order, as
in an event loop of its own; which process has its next step is drawn from a seed. A process that is paused keeps its
callbacks, one that has crashed never runs again.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context, ContextVar, copy_context
from itertools import count
from typing import Any

__all__ = ["Process", "SimulatedLoop", "TooManySteps"]

STEP = 20e-6
"""Seconds of virtual time that one step takes, so that time passes for whoever works without waiting."""

LAST_STEPS = 400
"""How many steps are remembered for whoever asks how it came to a failure."""


STARVED = 0.15
"""Seconds that one step may keep its process from doing anything else (design rule 16: about 0.01)."""


class TooManySteps(Exception):
    """Something turns in a circle without time passing to speak of."""


class Process:
    """One process of the simulation: a worker, a client, or the world around them."""

    def __init__(self, number: int, name: str) -> None:
        self.number, self.name = number, name
        self.paused = self.dead = False
        self.ready: deque[asyncio.Handle] = deque()

    def __repr__(self) -> str:
        return self.name


_process: ContextVar[Process] = ContextVar("process")


class SimulatedLoop(asyncio.BaseEventLoop):
    """seed: of the schedule. most_steps: until `TooManySteps`. keep: the names of the last steps are kept: slow."""

    def __init__(self, seed: str, most_steps: int, keep: bool = False) -> None:
        super().__init__()
        self._random = random.Random(seed).random
        self._now = 0.0
        self._most_steps, self._keep = most_steps, keep
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self.numbers = count()
        self._processes: list[Process] = []
        self._runnable: list[Process] = []
        self._buried: list[object] = []
        """What crashed processes were doing: kept, for what is freed would run to clean up behind it."""
        self.world = self.process("world")
        self.steps = 0
        self.longest = 0.0
        """Seconds that the longest step took."""
        self.fingerprint = 0
        """Of all steps until now: two runs with the same one took the same course."""
        self.last: deque[tuple[float, str, str]] = deque(maxlen=LAST_STEPS)
        self.set_task_factory(_numbered_task)

    # --- processes -------------------------------------------------------------------------------------------

    def process(self, name: str) -> Process:
        process = Process(len(self._processes), name)
        self._processes.append(process)
        return process

    def run_in(self, process: Process, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start a task of this process; all that it starts is the process's too."""
        return self.create_task(coroutine, context=self.context_of(process), name=process.name)

    @staticmethod
    def context_of(process: Process) -> Context:
        context = copy_context()
        context.run(_process.set, process)
        return context

    def pause(self, process: Process) -> None:
        """Nothing of it runs until `resume`."""
        process.paused = True
        if process in self._runnable:
            self._runnable.remove(process)

    def resume(self, process: Process) -> None:
        process.paused = False
        if process.ready and not process.dead:
            self._runnable.append(process)

    def crash(self, process: Process) -> None:
        """Nothing of it ever runs again, not even what cleans up behind it."""
        process.dead = True
        self._buried.extend(process.ready)
        self._buried.extend(task for task in asyncio.all_tasks(self) if self.process_of(task) is process)
        process.ready.clear()
        if process in self._runnable:
            self._runnable.remove(process)

    def process_of(self, task: object) -> Process:
        return getattr(task, "process", self.world)

    def bury(self) -> Sequence[object]:
        """Whoever ends the simulation keeps this for ever."""
        return self._buried

    # --- what asyncio asks of a loop -------------------------------------------------------------------------

    def time(self) -> float:
        return self._now

    def compute(self, seconds: float) -> None:
        """Whoever runs now does so for this long, and all the others wait."""
        self._now += seconds

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._enqueue(handle)
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]  # there are no threads

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self.numbers), handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is dropped when its time comes."""

    def _enqueue(self, handle: asyncio.Handle) -> None:
        process = handle._context.get(_process, self.world)  # type: ignore[attr-defined]
        if process.dead:
            self._buried.append(handle)
            return
        if not process.ready and not process.paused:
            self._runnable.append(process)
        process.ready.append(handle)

    def _run_once(self) -> None:
        """HOT PATH: all steps until the loop is to stop."""
        runnable, timers = self._runnable, self._timers
        while not self._stopping:  # type: ignore[attr-defined]
            while timers and (timers[0][0] <= self._now or not runnable):
                when, _, handle = heapq.heappop(timers)
                if not handle.cancelled():
                    self._now = max(self._now, when)
                    self._enqueue(handle)
            if not runnable:
                raise TooManySteps("nothing can ever run again")
            self._step(runnable)

    def _step(self, runnable: list[Process]) -> None:
        index = int(self._random() * len(runnable)) if len(runnable) > 1 else 0
        process = runnable[index]
        handle = process.ready.popleft()
        if not process.ready:
            del runnable[index]
        if handle.cancelled():
            return
        self.steps += 1
        self._now += STEP
        self.fingerprint = hash((self.fingerprint, process.number, self._now))
        if self._keep:
            self.last.append((self._now, process.name, _name_of(handle)))
        begin = self._now
        handle._run()
        if self._now - begin > self.longest:
            self.longest = self._now - begin
        if self.steps > self._most_steps:
            raise TooManySteps(f"{self.steps} steps")


class _NumberedTask(asyncio.Task[Any]):
    """Sets of tasks are iterated in the same order in each run, for their hashes are not addresses."""

    number: int
    process: Process

    def __new__(cls, coroutine: Any, *, loop: SimulatedLoop, context: Context | None) -> _NumberedTask:
        task = super().__new__(cls)
        task.number = next(loop.numbers)
        task.process = _process.get(loop.world) if context is None else context.get(_process, loop.world)
        return task

    def __hash__(self) -> int:
        return self.number


def _numbered_task(loop: Any, coroutine: Any, context: Context | None = None) -> Any:
    return _NumberedTask(coroutine, loop=loop, context=context)


def _name_of(handle: asyncio.Handle) -> str:
    callback = handle._callback  # type: ignore[attr-defined]
    owner = getattr(callback, "__self__", None)
    if isinstance(owner, asyncio.Task):
        frame = owner.get_stack(limit=1)
        where = f" at {frame[0].f_code.co_qualname}:{frame[0].f_lineno}" if frame else ""
        return f"{owner.get_name()}{where}"
    return getattr(callback, "__qualname__", repr(callback))
