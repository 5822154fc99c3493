"""For drivers: a thread with an event loop of its own. What runs there goes on while the main one is blocked."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from .errors import BrokerError

__all__ = ["Aside"]

T = TypeVar("T")


class Aside:
    """Made in the main event loop; the thread starts when first needed. It does not live on in a forked process."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._main = asyncio.get_running_loop()
        self._loop = asyncio.new_event_loop()
        self._thread: threading.Thread | None = None

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do it in the thread. Cancelled, it is cancelled there. Raises `BrokerError` if the thread has ended."""
        try:
            running = asyncio.run_coroutine_threadsafe(work, self._started())
        except BrokerError:
            work.close()
            raise
        return await asyncio.wrap_future(running)

    def do(self, function: Callable[..., object], *arguments: object) -> None:
        """Call it in the thread, soon."""
        self._started().call_soon_threadsafe(function, *arguments)

    def tell_main(self, function: Callable[[], object]) -> None:
        """From the thread: call it in the main event loop."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody asks
            self._main.call_soon_threadsafe(function)

    @property
    def started(self) -> bool:
        return self._thread is not None

    @property
    def is_orphan(self) -> bool:
        """Whether the main event loop was closed, and nothing of all this with it."""
        return self._main.is_closed()

    async def close(self) -> None:
        """Whatever runs in the thread should have ended before."""
        if self._thread is None:
            self._loop.close()
        elif self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            await asyncio.get_running_loop().run_in_executor(None, self._thread.join)

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._thread is None and not self._loop.is_closed():
            self._thread = threading.Thread(target=self._turn, name=self._name, daemon=True)
            self._thread.start()
        if self._thread is None or not self._thread.is_alive():
            raise BrokerError("this process was forked, or the transport closed: open a transport of its own")
        return self._loop

    def _turn(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            tasks = asyncio.all_tasks(self._loop)
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        finally:
            self._loop.close()
