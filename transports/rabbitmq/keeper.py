"""A thread with an event loop and a connection of its own: what a living process holds survives a busy main loop.

It keeps locks and memberships. A process that is stopped does not, so they end; nor does one whose main loop is stuck
for more than a minute: it would hold for ever what it does not use.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import msgspec
from thalweg.clock import boot_clock

from .connection import Connection, Endpoint

__all__ = ["Keeper"]

T = TypeVar("T")

_STUCK = 60.0  # seconds without a sign of life from the main loop
_HEARTBEAT = 600  # seconds: what is kept has shorter leases of its own, and must not end before them


class Keeper:
    def __init__(self, endpoint: Endpoint) -> None:
        self._main = asyncio.get_running_loop()
        self._beat = boot_clock()
        self._loop = asyncio.new_event_loop()
        self.connection: Connection
        endpoint = msgspec.structs.replace(endpoint, heartbeat=_HEARTBEAT)
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(endpoint, started), name="rabbitmq keeper", daemon=True)
        self._thread.start()
        started.wait()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do it in the thread. Cancelled, it is cancelled there."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def tell_main(self, function: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody asks
            self._main.call_soon_threadsafe(function)

    async def close(self) -> None:
        """What it keeps must have been given back before, or it ends with the connection."""
        await self.run(self.connection.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join)

    # --- in the thread ---------------------------------------------------------------------------------------

    @property
    def main_is_stuck(self) -> bool:
        """Call it now and then; it asks for the next sign of life."""
        self.tell_main(self._alive)
        return boot_clock() - self._beat > _STUCK

    def _alive(self) -> None:
        self._beat = boot_clock()

    def _run(self, endpoint: Endpoint, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self.connection = Connection(endpoint, "locks and members")
        started.set()
        try:
            self._loop.run_forever()
            tasks = asyncio.all_tasks(self._loop)
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        finally:
            self._loop.close()
