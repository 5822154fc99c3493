"""Handlers: plain functions, called once a message."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any

from .runtime.context import current_lane
from .stream import Stream

if TYPE_CHECKING:
    from .app import App

__all__ = ["handler_body"]


def handler_body(
    app: App, function: Callable[[Any], Any], timeout: float | None
) -> Callable[[Stream[Any]], AsyncIterator[Any]]:
    """The agent that calls `function` for each value; its results are the answers.

    timeout: seconds; then the call is cancelled and the event has failed with TimeoutError. A `def` function runs in
    a thread, without tables or sends (its thread goes on after a time-out: Python cannot stop it).
    """
    call = function if inspect.iscoroutinefunction(function) else _in_thread(app, function)

    if timeout is None:

        async def handle(stream: Stream[Any]) -> AsyncIterator[Any]:
            async for value in stream:
                yield await call(value)

    else:

        async def handle(stream: Stream[Any]) -> AsyncIterator[Any]:
            async for value in stream:
                try:
                    async with app.clock.timeout(timeout):
                        result = await call(value)
                except TimeoutError:
                    raise TimeoutError(f"handler {function.__name__}: no result within timeout={timeout:g} s") from None
                yield result

    return handle


def _in_thread(app: App, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    async def call(value: Any) -> Any:
        context = contextvars.copy_context()
        context.run(current_lane.set, None)  # tables are the event loop's: a thread gets OutsideEvent, not a race
        loop = asyncio.get_running_loop()
        executor: Executor | None = app.threads

        def run() -> Any:
            try:
                return context.run(function, value)
            except (StopIteration, GeneratorExit) as error:  # to coroutines they say something: the event stayed open
                raise RuntimeError(f"handler {function.__name__} raised {error!r}") from error

        with app.thread_running():
            return await loop.run_in_executor(executor, run)

    return call
