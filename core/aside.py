"""For drivers: a thread with an event loop of its own. What runs there goes on while the main one is blocked."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

from .errors import BrokerError
from .finishing import cancelled_from_outside

__all__ = ["Aside"]

T = TypeVar("T")


class Aside:
    """Made in the main event loop; the thread starts when first needed. It does not live on in a forked process."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._main = asyncio.get_running_loop()
        self._loop = asyncio.new_event_loop()
        self._thread: threading.Thread | None = None
        self._over = False
        self._lock = threading.Lock()  # held while something is given to the thread, and while that comes to an end

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do it in the thread. Cancelled, it is cancelled there. Raises `BrokerError` if the thread has ended."""
        try:
            with self._taking() as loop:
                running = asyncio.run_coroutine_threadsafe(work, loop)
        except BrokerError:
            work.close()
            raise
        try:
            return await asyncio.wrap_future(running)
        except asyncio.CancelledError:
            if self._over and not cancelled_from_outside():
                raise _ended() from None
            raise

    def do(self, function: Callable[..., object], *arguments: object) -> None:
        """Call it in the thread, soon. Raises `BrokerError` if the thread has ended."""
        with self._taking() as loop:
            loop.call_soon_threadsafe(function, *arguments)

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
        """From now on it takes nothing. Whatever runs in the thread should have ended before, or is cancelled."""
        with self._lock:
            turning, self._over = not self._over, True
        if self._thread is None:
            self._loop.close()
        elif self._thread.is_alive():
            if turning:
                self._loop.call_soon_threadsafe(self._loop.stop)
            await asyncio.get_running_loop().run_in_executor(None, self._thread.join)

    @contextlib.contextmanager
    def _taking(self) -> Iterator[asyncio.AbstractEventLoop]:
        """The loop; what is given to it meanwhile is begun, or cancelled, before it ends."""
        with self._lock:
            if self._thread is None and not self._over:
                self._thread = threading.Thread(target=self._turn, name=self._name, daemon=True)
                self._thread.start()
            if self._thread is None or self._over or not self._thread.is_alive():
                raise _ended()
            yield self._loop

    def _turn(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            with self._lock:
                self._over = True
            self._loop.run_until_complete(_cancel_others())
            self._loop.close()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def _ended() -> BrokerError:
    return BrokerError("this process was forked, or the transport closed: open a transport of its own")
