"""For drivers: a thread that renews what a living process holds, whatever its event loop is doing meanwhile.

It has a connection of its own there. A process that is stopped renews nothing: its leases run out on the
broker, and by the boot clock here. So do those of a process whose event loop is stuck (see `pulse.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from .aside import Aside
from .clock import boot_clock
from .errors import BrokerError
from .lease import Lease
from .pulse import STUCK, Pulse

__all__ = ["Keeper", "Renewer"]

L = TypeVar("L", bound=Lease)
L_contra = TypeVar("L_contra", bound=Lease, contravariant=True)

log = logging.getLogger("thalweg")


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
    """Made in the main event loop. name: of the thread, which starts when first needed. stuck: see `Pulse`."""

    def __init__(self, name: str, renewer: Renewer[L], stuck: float = STUCK) -> None:
        self.aside, self.pulse = Aside(name), Pulse(stuck)
        self._renewer = renewer
        self._held: dict[L, None] = {}
        self._again = 0.0
        self._changed, self._renewing = asyncio.Event(), asyncio.Lock()
        self._running: asyncio.Task[None] | None = None

    def keep(self, lease: L) -> None:
        """Renew it from now on, until it is dropped or ends."""
        self.aside.do(self._keep, lease)

    def drop(self, lease: L) -> None:
        """Renew it no more."""
        if self.aside.started:
            with contextlib.suppress(BrokerError):  # the thread has ended
                self.aside.do(self._drop, lease)

    async def dropped(self, lease: L) -> None:
        """`drop`; returns once no renewal of it is under way any more."""
        await self.aside.run(self._dropped(lease))

    async def close(self) -> None:
        """Whoever holds something must have given it back before, or it runs out."""
        if self.aside.started:
            await self.aside.run(self._end())
        await self.aside.close()

    # --- in the thread ---------------------------------------------------------------------------------------

    def _keep(self, lease: L) -> None:
        self._held[lease] = None
        self._changed.set()
        if self._running is None:
            self._running = asyncio.get_running_loop().create_task(self._keep_renewing())

    def _drop(self, lease: L) -> None:
        self._held.pop(lease, None)

    async def _dropped(self, lease: L) -> None:
        self._drop(lease)
        async with self._renewing:
            pass

    async def _end(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])
        await self._renewer.close()

    async def _keep_renewing(self) -> None:
        while True:
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause()):
                    await self._changed.wait()
                continue
            if leases := self._due():
                async with self._renewing:
                    await self._renew(leases)
            # What is still due after this is not asked for in a hot loop.
            self._again = boot_clock() + min((lease.seconds for lease in self._held), default=0.0) / 10

    def _pause(self) -> float | None:
        """Seconds until a lease is to be renewed."""
        due = min((lease.due for lease in self._held), default=None)
        return None if due is None else max(0.0, max(due, self._again) - boot_clock())

    def _due(self) -> list[L]:
        """Also those that are due soon, so that in the end most are renewed together."""
        now = boot_clock()
        self._held = {lease: None for lease in self._held if lease.expires > now}
        due = [lease for lease in self._held if lease.due - lease.seconds / 6 <= now]
        return [lease for lease in due if self.pulse.allows(lease.seconds)]

    async def _renew(self, leases: Sequence[L]) -> None:
        try:
            async with asyncio.timeout(min(lease.seconds for lease in leases) / 3):
                await self._renewer.renew(leases)
        except TimeoutError:
            self._renewer.drop()
        except BrokerError:
            pass  # what cannot be renewed ends in time, and its holder knows
        except Exception:
            log.exception("leases were not renewed; they are tried again until they end")
