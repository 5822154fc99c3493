"""Who is there: members of a group tell each other, through an exchange, into a queue that each has for itself.

A newcomer says hello, and the others answer. It knows how many answers to wait for, since each member also is a
consumer of the group's own queue, in which there never is anything, and RabbitMQ counts its consumers.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator
from typing import Any, Literal

import msgspec
from aiormq.abc import AbstractChannel, DeliveredMessage
from thalweg.clock import boot_clock
from thalweg.errors import BrokerError
from thalweg.finishing import finish
from thalweg.keeper import Keeper

from .connection import Connection
from .exclusive import ExclusiveQueue
from .names import Names
from .topology import ensure_exchange, ensure_queue
from .wire import Properties

__all__ = ["Peers"]

_DAY = 86_400_000  # milliseconds after which a group's queue that no member uses is gone
_PATIENCE = 1.0  # seconds that a newcomer waits for answers at most
_LONGEST_PAUSE = 2.0


class _News(msgspec.Struct, omit_defaults=True):
    """token: of one membership, as a name may come back before its forerunner is forgotten."""

    kind: Literal["hello", "here", "bye"]
    me: str
    token: str


class Peers:
    """connection: to be used in the keeper's thread."""

    def __init__(self, keeper: Keeper[ExclusiveQueue], connection: Connection, names: Names) -> None:
        self._keeper = keeper
        self._connection = connection
        self._names = names
        self._open: set[_Membership] = set()
        self._background: set[asyncio.Task[Any]] = set()

    async def peers(self, group: str, me: str, lease: float) -> AsyncGenerator[frozenset[str], None]:
        membership = _Membership(self._keeper, self._connection, self._names, group, me, lease)
        self._open.add(membership)
        seen: frozenset[str] | None = None
        try:
            await membership.start()
            while True:
                await membership.changed.wait()
                membership.changed.clear()
                if membership.problem is not None and seen is None:
                    raise membership.problem
                if membership.closed:
                    return
                present = membership.present
                if present is not None and present != seen:
                    seen = present
                    yield present
        finally:
            self._open.discard(membership)
            await finish(membership.leave(), self._background)

    async def close(self) -> None:
        """Leave all groups; the iterators end."""
        await asyncio.gather(*(membership.leave() for membership in list(self._open)))
        if self._background:
            await asyncio.wait(self._background)


class _Membership:
    """Methods that begin with `_keep` run in the keeper's thread."""

    def __init__(
        self,
        keeper: Keeper[ExclusiveQueue],
        connection: Connection,
        names: Names,
        group: str,
        me: str,
        lease: float,
    ) -> None:
        self.changed = asyncio.Event()
        self.closed = False
        self.present: frozenset[str] | None = None
        self.problem: BrokerError | None = None
        self._keeper = keeper
        self._connection = connection
        self._exchange = names.own("members")
        self._group = names.own("members", group)
        self._me = me
        self._lease = lease
        self._heard: dict[str, tuple[str, float]] = {}  # by token: name, and when, by the boot clock
        self._token = ""
        self._joined = False
        self._channel: AbstractChannel | None = None
        self._task: asyncio.Task[None] | None = None
        self._arrival = asyncio.Event()

    async def start(self) -> None:
        await self._keeper.aside.run(self._keep_started())

    async def leave(self) -> None:
        self.closed = True
        self.changed.set()
        with contextlib.suppress(TimeoutError, BrokerError):  # then the others notice by its silence
            async with asyncio.timeout(self._lease):
                await self._keeper.aside.run(self._keep_left())

    # --- in the keeper's thread ------------------------------------------------------------------------------

    async def _keep_started(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._keep_staying())

    async def _keep_left(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        channel, self._channel = self._channel, None
        if channel is not None and not channel.is_closed:
            with contextlib.suppress(Exception):
                await self._keep_telling(channel, "bye")
                await channel.close()

    async def _keep_staying(self) -> None:
        pause = 0.1
        while True:
            try:
                await self._keep_joined()
                pause = 0.1
                await self._keep_beating()
            except BrokerError as error:
                self.problem = error
                self._keeper.aside.tell_main(self.changed.set)
            await asyncio.sleep(pause)
            pause = min(_LONGEST_PAUSE, pause * 2, self._lease / 3)

    async def _keep_joined(self) -> None:
        """Be known to all, and know all."""
        connection, ask = self._connection, self._connection.ask
        await ensure_exchange(connection, self._exchange, "direct")
        await ensure_queue(connection, self._group, {"x-queue-type": "classic", "x-expires": _DAY})
        channel = await connection.channel()
        self._heard, self._token, self._joined = {}, secrets.token_hex(8), False
        inbox = (await ask(channel.queue_declare(exclusive=True, auto_delete=True))).queue
        assert inbox is not None
        await ask(channel.queue_bind(inbox, self._exchange, self._group))
        self._channel = channel
        await ask(channel.basic_consume(inbox, self._keep_hearing, no_ack=True))
        await ask(channel.basic_consume(self._group, self._keep_hearing, no_ack=True))
        count = (await ask(channel.queue_declare(self._group, passive=True))).consumer_count or 0
        await self._keep_telling(channel, "hello")
        end = boot_clock() + min(_PATIENCE, self._lease / 2)
        while len(self._heard) < count and (left := end - boot_clock()) > 0:
            self._arrival.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._arrival.wait()
        self.problem, self._joined = None, True

    async def _keep_beating(self) -> None:
        """Until the connection is lost. Others are forgotten when they are silent for a lease."""
        channel, lease = self._channel, self._lease
        assert channel is not None
        beat = boot_clock()
        while not channel.is_closed:
            now = boot_clock()
            if now >= beat:
                if now - beat > lease / 2:  # it was this process that did not listen
                    self._heard = {token: (name, now) for token, (name, _) in self._heard.items()}
                if self._keeper.pulse.allows(lease):
                    await self._keep_telling(channel, "here")
                beat = now + lease / 3
            self._heard[self._token] = (self._me, now)
            self._heard = {token: known for token, known in self._heard.items() if known[1] + lease > now}
            self._keep_publishing()
            silence = min(heard for _, heard in self._heard.values()) + lease
            await asyncio.sleep(max(0.001, min(beat, silence + 0.002) - boot_clock()))

    async def _keep_telling(self, channel: AbstractChannel, kind: Literal["hello", "here", "bye"]) -> None:
        body = msgspec.json.encode(_News(kind, self._me, self._token))
        publishing = channel.basic_publish(
            body, exchange=self._exchange, routing_key=self._group, properties=Properties(delivery_mode=1)
        )
        await self._connection.ask(publishing)

    async def _keep_hearing(self, message: DeliveredMessage) -> None:
        try:
            news = msgspec.json.decode(message.body, type=_News)
        except msgspec.DecodeError:
            return
        if news.kind == "bye":
            self._heard.pop(news.token, None)
        else:
            self._heard[news.token] = (news.me, boot_clock())
            if news.kind == "hello" and news.token != self._token and message.channel is self._channel:
                with contextlib.suppress(BrokerError):
                    await self._keep_telling(message.channel, "here")
        self._arrival.set()
        self._keep_publishing()

    def _keep_publishing(self) -> None:
        present = frozenset(name for name, _ in self._heard.values())
        if self._joined and present != self.present:
            self.present = present
            self._keeper.aside.tell_main(self.changed.set)
