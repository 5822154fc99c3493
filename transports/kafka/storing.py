"""Many calls that want something stored share a request, and one follows the other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Set

from thalweg.errors import BrokerError

__all__ = ["Storing"]

_GOODBYE = 5.0
"""Seconds that what is under way may take when the channel closes."""


class Storing:
    """write: stores what is true of these partitions at the moment. written: called after each attempt."""

    def __init__(
        self, name: str, write: Callable[[Iterable[int]], Awaitable[None]], written: Callable[[], object]
    ) -> None:
        self._name, self._write, self._written = name, write, written
        self._next: set[int] = set()
        self._now: set[int] = set()
        self._stored: asyncio.Future[None] | None = None
        self._running: asyncio.Task[None] | None = None

    @property
    def busy(self) -> Set[int]:
        """Partitions of which something is being stored, or will be."""
        return self._next | self._now

    def store(self, numbers: Iterable[int]) -> asyncio.Future[None]:
        """Done when what is true of these partitions now is stored."""
        loop = asyncio.get_running_loop()
        self._next.update(numbers)
        if self._stored is None:
            self._stored = loop.create_future()
            self._stored.add_done_callback(asyncio.Future.exception)  # whoever waited may be gone
        if self._running is None or self._running.done():
            self._running = loop.create_task(self._run(), name=self._name)
        return self._stored

    async def close(self) -> None:
        if self._running is not None:
            await asyncio.wait([self._running], timeout=_GOODBYE)
            self._running.cancel()

    async def _run(self) -> None:
        while self._stored is not None:
            stored, self._stored = self._stored, None
            self._now, self._next = self._next, set()
            try:
                await self._write(self._now)
            except BrokerError as error:
                stored.set_exception(error)
            except BaseException:
                stored.set_exception(BrokerError("the channel is closed"))
                raise
            else:
                stored.set_result(None)
            finally:
                self._now = set()
            self._written()
