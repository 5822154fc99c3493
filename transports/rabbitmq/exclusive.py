"""Exclusive queues, which no other connection may declare: what locks are made of. All of it is the keeper's thread's.

Such a queue ends with its connection at once, and, by its `x-expires`, when it was not declared again for so long.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence

import aiormq
import msgspec
import pamqp.frame
from aiormq.abc import AbstractChannel, AbstractConnection, ChannelFrame
from aiormq.exceptions import ChannelLockedResource
from pamqp.commands import Queue
from thalweg.clock import boot_clock
from thalweg.lease import Lease

from .connection import Connection, Endpoint, Refused

__all__ = ["ExclusiveQueue", "ExclusiveQueues"]

_HEARTBEAT = 600  # seconds: what is kept has shorter leases of its own, and must not end before them


class ExclusiveQueue(Lease):
    """Counts from when it is asked for. queue: its name."""

    def __init__(self, queue: str, seconds: float) -> None:
        self.queue = queue
        super().__init__(seconds, boot_clock() + seconds)

    @property
    def arguments(self) -> Mapping[str, int]:
        return {"x-expires": max(1, round(self.seconds * 1000))}


class ExclusiveQueues:
    """On a connection of their own, which members use as well. Renews by one round trip for all."""

    def __init__(self, endpoint: Endpoint) -> None:
        endpoint = msgspec.structs.replace(endpoint, heartbeat=_HEARTBEAT)
        self.connection = Connection(endpoint, "locks and members")
        self.drop, self.close = self.connection.drop, self.connection.close
        self._taken: dict[str, ExclusiveQueue] = {}
        self._channel: AbstractChannel | None = None
        self._watched: AbstractConnection | None = None

    async def take(self, one: ExclusiveQueue) -> bool:
        """False: it is another's, or taken here already (for the server, a connection may declare it twice)."""
        now = boot_clock()
        self._taken = {name: other for name, other in self._taken.items() if other.expires > now}
        if one.queue in self._taken:
            return False
        self._taken[one.queue] = one
        taken = False
        try:
            await self._watch()
            channel = await self.connection.channel()
            taken = await self._declare(one, channel)
            if taken:
                await _close(channel)
        finally:
            if not taken:
                self._forget(one)
        return taken and one.expires > 0

    async def give_back(self, one: ExclusiveQueue) -> None:
        """No renewal of it may be under way."""
        self._forget(one)
        if self.connection.alive:
            channel = await self.connection.channel()
            with contextlib.suppress(Refused):
                await self.connection.ask(channel.queue_delete(one.queue))
            await _close(channel)

    async def renew(self, leases: Sequence[ExclusiveQueue]) -> None:
        if self._channel is None or self._channel.is_closed:
            await self._watch()
            self._channel = await self.connection.channel()
        asked = boot_clock()
        try:
            await self.connection.ask(_declare_all(self._channel, leases), "locking: ")
        except Refused:
            await self._renew_singly(leases)
        else:
            for one in leases:
                one.renewed(asked)

    async def _renew_singly(self, leases: Sequence[ExclusiveQueue]) -> None:
        for one in leases:
            channel = await self.connection.channel()
            if await self._declare(one, channel):
                await _close(channel)
            else:
                self._forget(one)
                one.end_soon()

    async def _declare(self, one: ExclusiveQueue, channel: AbstractChannel) -> bool:
        """Take it, or renew it. False: it is another's, and the channel is closed."""
        asked = boot_clock()
        declare = channel.queue_declare(one.queue, exclusive=True, arguments=dict(one.arguments))
        try:
            await self.connection.ask(declare, "locking: ")
        except Refused as refused:
            if isinstance(refused.reason, ChannelLockedResource):
                return False
            raise
        one.renewed(asked)
        return True

    async def _watch(self) -> None:
        """When the connection is gone, the server has freed everything, and whoever holds something must know."""
        link = await self.connection.link()
        if link is not self._watched:
            self._watched = link
            link.closing.add_done_callback(self._lost)

    def _lost(self, _: asyncio.Future[object]) -> None:
        taken, self._taken = self._taken, {}
        for one in taken.values():
            one.end_soon()

    def _forget(self, one: ExclusiveQueue) -> None:
        if self._taken.get(one.queue) is one:
            del self._taken[one.queue]


async def _declare_all(channel: AbstractChannel, leases: Sequence[ExclusiveQueue]) -> None:
    """All are asked for before the first answer comes, which aiormq does not do. (`nowait` would not renew them.)"""
    assert isinstance(channel, aiormq.Channel)
    declares = [Queue.Declare(queue=one.queue, exclusive=True, arguments=dict(one.arguments)) for one in leases]
    frames = b"".join([pamqp.frame.marshal(declare, channel.number) for declare in declares])

    async def declare() -> None:
        async with channel.lock:
            await channel.write_queue.put(ChannelFrame(frames, False))
            for _ in leases:
                await channel.rpc_frames.get()
                channel.rpc_frames.task_done()

    await channel.create_task(declare())  # fails when the channel is closed


async def _close(channel: AbstractChannel) -> None:
    with contextlib.suppress(Exception):
        await channel.close()
