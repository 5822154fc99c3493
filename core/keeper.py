"""For drivers: a thread that renews what a living process holds, whatever its event loop is doing meanwhile.

It has an event loop and a connection of its own. A process that is stopped renews nothing: its leases run out on the
broker, and by the boot clock here. So do those of a process whose event loop is stuck (see `pulse.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Generic, Protocol, TypeVar

from .clock import boot_clock
from .errors import BrokerError
from .lease import Lease
from .pulse import STUCK, Pulse

__all__ = ["Keeper", "Renewer"]

L = TypeVar("L", bound=Lease)
L_contra = TypeVar("L_contra", bound=Lease, contravariant=True)
T = TypeVar("T")


class Renewer(Protocol[L_contra]):
    """What a driver brings. All is called in the thread."""

    async def renew(self, leases: Sequence[L_contra]) -> None:
        """Call `renewed` of each that is, and `end_soon` of each that turns out to be another's.

        What raises `BrokerError`, or leaves some as they are, is tried again soon, until they end. May be cancelled.
        """
        ...

    def drop(self) -> None:
        """It took too long: connect anew next time. One that swallows everything must not cost the leases."""
        ...

    async def close(self) -> None: ...


class Keeper(Generic[L]):
    """The thread starts when first needed. name: of the thread. stuck: see `Pulse`. Made in the main event loop."""

    def __init__(self, name: str, renewer: Renewer[L], stuck: float = STUCK) -> None:
        self.pulse = Pulse(stuck)
        self._main = asyncio.get_running_loop()
        self._name, self._renewer = name, renewer
        self._held: dict[L, None] = {}
        self._again = 0.0
        self._stop, self._changed, self._renewing = asyncio.Event(), asyncio.Event(), asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def keep(self, lease: L) -> None:
        """Renew it from now on, until it is dropped or ends."""

        def keep() -> None:
            self._held[lease] = None
            self._changed.set()

        self._started().call_soon_threadsafe(keep)

    def drop(self, lease: L) -> None:
        """Renew it no more. From any thread."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the thread has ended
                self._loop.call_soon_threadsafe(self._held.pop, lease, None)

    async def dropped(self, lease: L) -> None:
        """`drop`; returns once no renewal of it is under way any more."""
        await self.run(self._dropped(lease))

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do it in the thread. Cancelled, it is cancelled there. Raises `BrokerError` once the keeper is closed."""
        try:
            running = asyncio.run_coroutine_threadsafe(work, self._started())
        except RuntimeError:
            work.close()
            raise BrokerError("the transport was closed") from None
        return await asyncio.wrap_future(running)

    def tell_main(self, function: Callable[[], object]) -> None:
        """From the thread: call it in the main event loop."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody asks
            self._main.call_soon_threadsafe(function)

    async def close(self) -> None:
        """Whoever holds something must have given it back before, or it runs out."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._started().call_soon_threadsafe(self._stop.set)
            await asyncio.get_running_loop().run_in_executor(None, thread.join)

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._run, args=(self._loop,), name=self._name, daemon=True)
            self._thread.start()
        return self._loop

    # --- in the thread ---------------------------------------------------------------------------------------

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(self._work())

    async def _work(self) -> None:
        stopped, keeping = asyncio.ensure_future(self._stop.wait()), asyncio.ensure_future(self._keep_renewing())
        try:
            await asyncio.wait([stopped, keeping], return_when=asyncio.FIRST_COMPLETED)
            keeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeping
        finally:
            await self._renewer.close()

    async def _keep_renewing(self) -> None:
        while True:
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause()):
                    await self._changed.wait()
                continue
            leases = self._due()
            if leases:
                async with self._renewing:
                    await self._renew(leases)
            # What is still due after this is not asked for in a hot loop.
            self._again = boot_clock() + min((lease.seconds for lease in self._held), default=0.0) / 10

    async def _renew(self, leases: Sequence[L]) -> None:
        try:
            async with asyncio.timeout(min(lease.seconds for lease in leases) / 3):
                await self._renewer.renew(leases)
        except TimeoutError:
            self._renewer.drop()
        except BrokerError:
            pass  # what cannot be renewed ends in time, and its holder knows

    def _pause(self) -> float | None:
        """Seconds until a lease is to be renewed."""
        due = min((lease.due for lease in self._held), default=None)
        return None if due is None else max(0.0, max(due, self._again) - boot_clock())

    def _due(self) -> list[L]:
        """Also those that are due soon, so that in the end most are renewed together."""
        now = boot_clock()
        self._held = {lease: None for lease in self._held if lease.expires > now}
        return [
            lease for lease in self._held if lease.due - lease.seconds / 6 <= now and self.pulse.allows(lease.seconds)
        ]

    async def _dropped(self, lease: L) -> None:
        self._held.pop(lease, None)
        async with self._renewing:
            pass
