"""Locks where the broker has groups instead (`Grouped`, Kafka): each is a group of one task, whose owner holds it.

The fencing number is where a record lies that each new holder appends to a log: later holders write behind it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from contextlib import aclosing

from thalweg.capabilities import Grouped, Held, Log, Logs
from thalweg.channel import TopicSpec, Transport
from thalweg.clock import Clock
from thalweg.errors import BrokerError
from thalweg.message import Message

from .complaints import Complaints

__all__ = ["GroupLocks"]

log = logging.getLogger("thalweg")

KEPT = 3600.0
"""Seconds for which the log keeps who held what: of use to a reader only, as positions grow in any case."""

PAUSE = 0.5
"""Seconds until a group that was lost, or could not be joined, is joined again."""


class GroupLocks:
    """topic: of the log of holders, created when the first lock is taken."""

    def __init__(self, transport: Transport, prefix: str, topic: str, clock: Clock, lease: float) -> None:
        self._transport, self._prefix, self._topic, self._clock, self._lease = transport, prefix, topic, clock, lease
        self._complaints = Complaints(clock)
        self._opening = asyncio.Lock()
        self._log: Log | None = None
        self._places: set[_Place] = set()
        self._closed = False

    async def take(self, name: str, wait: bool) -> Held | None:
        while True:
            try:
                return await self._take(name, wait)
            except BrokerError as error:
                if not wait or self._closed:
                    raise
                self._complaints.warn("lock", "lock %r cannot be had, and is tried again: %s", name, error)
            await self._clock.sleep(PAUSE)

    async def _take(self, name: str, wait: bool) -> Held | None:
        """Raises BrokerError if the lock was lost in the moment it was taken."""
        assert isinstance(self._transport, Grouped)
        place = _Place(self._transport, self._prefix + name, self._lease)
        self._places.add(place)
        place.left.add_done_callback(lambda _: self._places.discard(place))
        try:
            if not await place.had(wait):
                await place.release()
                return None
            place.number = await self._next_number(name)
            if place.lost.is_set():
                raise BrokerError("its group was lost at once")
        except BaseException:
            place.leave()
            raise
        return place

    async def _next_number(self, name: str) -> int:
        async with self._opening:
            if self._log is None:
                assert isinstance(self._transport, Logs)
                await self._transport.declare([TopicSpec(self._topic, 1, retention=KEPT)])
                self._log = await self._transport.log(self._topic)
        record = Message(b"", name.encode(), timestamp=round(self._clock.now() * 1000))
        return (await self._log.append({0: [record]}))[0][0] + 1

    async def close(self) -> None:
        self._closed = True
        await asyncio.gather(*(place.release() for place in list(self._places)))
        if self._log is not None:
            await self._log.close()


class _Place:
    """A place in the group of one lock, from now until `leave`. As `Held`, once it is had."""

    def __init__(self, groups: Grouped, group: str, lease: float) -> None:
        self._groups, self._group, self._lease = groups, group, lease
        self._me = secrets.token_hex(8)
        self._lost = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._first: asyncio.Future[bool] = loop.create_future()
        self._owned: asyncio.Future[bool] = loop.create_future()
        self.number = 0
        self.left = loop.create_task(self._follow(), name=f"lock {group}")

    @property
    def lost(self) -> asyncio.Event:
        if not self._groups.holds(self._group, self._me):
            self._lost.set()
        return self._lost

    async def had(self, wait: bool) -> bool:
        """Whether it is this place's, at once or (`wait`) in the end. Raises BrokerError."""
        return await (self._owned if wait else self._first)

    async def release(self) -> None:
        """Done even if the caller is cancelled."""
        self.leave()
        await asyncio.wait([self.left])

    def leave(self) -> None:
        self.left.cancel()

    async def _follow(self) -> None:
        error = BrokerError(f"the group of lock {self._group!r} was left")
        try:
            async with aclosing(self._groups.tasks(self._group, 1, self._me, self._lease)) as sets:
                async for owned in sets:
                    if not self._first.done():
                        self._first.set_result(0 in owned)
                    if 0 in owned and not self._owned.done():
                        self._owned.set_result(True)
                    elif self._owned.done() and 0 not in owned:
                        self._lost.set()
        except BrokerError as lost:
            error = lost
        finally:
            self._lost.set()
            for waiting in (self._first, self._owned):
                if not waiting.done():
                    waiting.set_exception(error)
                    waiting.exception()  # retrieved: whoever waits gets it still
