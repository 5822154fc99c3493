"""Run an app until it is told to stop: SIGINT or SIGTERM drains, a second one stops at once."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

from .starting import worker_running

if TYPE_CHECKING:
    from .app import App
    from .runtime.recovery import Recovering
    from .runtime.worker import Worker

__all__ = ["serve"]

log = logging.getLogger("thalweg")

SIGNALS = (signal.SIGINT, signal.SIGTERM)


async def serve(
    app: App,
    started: Callable[[Worker], None] | None = None,
    recovering: Callable[[Recovering | None], None] | None = None,
) -> None:
    """Return after a clean stop; raise what the worker could not go on from.

    started: called once it runs. recovering: told how far it is with reading journals, before it runs and later.
    """
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[None] = loop.create_future()
    me = asyncio.current_task()
    assert me is not None
    starting = True

    def told(number: signal.Signals) -> None:
        if stop.done():
            log.warning("%s again: stopping at once", number.name)
            me.cancel()
            return
        stop.set_result(None)
        if starting:  # it may be waiting for another worker, and has nothing to drain yet
            log.info("%s: stopping before the start was complete", number.name)
            me.cancel()
        else:
            log.info("%s: draining (once more to stop at once)", number.name)

    handled = []
    for number in SIGNALS:
        try:
            loop.add_signal_handler(number, told, number)
            handled.append(number)
        except (NotImplementedError, RuntimeError, ValueError):
            pass  # not the main thread, or no signals here: whoever embeds the app stops it
    try:
        async with worker_running(app, recovering=recovering) as worker:
            starting = False
            if started is not None:
                started(worker)
            both: list[asyncio.Future[None]] = [stop, worker.failed]
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if worker.failed.done():
                worker.failed.result()
    except asyncio.CancelledError:
        if not (starting and stop.done() and me.uncancel() == 0):
            raise
    finally:
        for number in handled:
            loop.remove_signal_handler(number)
