"""For drivers: a call to the broker goes on to its end though whoever asked was cancelled.

A client that is cancelled in the midst of an answer is often no good any more, and what it asked for (a lock, a place
in a group) would be held by nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from .errors import AmbiguousCommit

__all__ = ["cancelled_from_outside", "finish", "ignore_failure"]

T = TypeVar("T")


async def finish(
    work: Coroutine[Any, Any, T],
    background: set[asyncio.Task[Any]],
    undo: Callable[[T], Coroutine[Any, Any, None]] | None = None,
) -> T:
    """Do it to the end; if the caller is cancelled meanwhile, undo it then.

    `background` holds what is under way: wait for it, or cancel it, when closing. Raises what `work` raises, and
    `AmbiguousCommit` if it was cancelled there.
    """
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)
    background.add(task)
    task.add_done_callback(background.discard)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if task.cancelled() and not cancelled_from_outside():
            raise AmbiguousCommit(
                "the transport was closed before the server had answered; whether it was done is unknown"
            ) from None
        task.add_done_callback(ignore_failure)
        if undo is not None:
            later = loop.create_task(_after(task, undo))
            background.add(later)
            later.add_done_callback(background.discard)
        raise


def cancelled_from_outside() -> bool:
    """Whether a CancelledError means the current task, and not just what it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def ignore_failure(done: asyncio.Future[Any]) -> None:
    """A callback: nobody asks for this one's outcome, and asyncio need not complain of it."""
    if not done.cancelled():
        done.exception()


async def _after(task: asyncio.Task[T], undo: Callable[[T], Coroutine[Any, Any, None]]) -> None:
    await asyncio.wait([task])
    if not task.cancelled() and task.exception() is None:
        await undo(task.result())
