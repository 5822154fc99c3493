"""A topic as one consumer group sees it: each partition belongs to one member at a time, by a lock."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import Any

import msgspec
from thalweg.capabilities import Log
from thalweg.errors import BrokerError, Gap, MissingCapability, StaleDelivery
from thalweg.finishing import finish
from thalweg.message import Delivery, Message, Position, QueueMessage
from thalweg.partitioner import murmur2_partitioner

from .cell import Cell
from .connection import Connection
from .locks import Lock
from .names import Names
from .share import Share

__all__ = ["GroupChannel", "Means"]

_COUNT, _BYTES = 1000, 16 << 20  # one read stops here
_ROUND = 1.0  # seconds that one read waits
_SOON = 2.0  # seconds that even a `get` without patience waits to learn which partitions are its own


class Means(msgspec.Struct, frozen=True):
    """What a channel takes from its transport. lease: seconds, of its locks and its membership."""

    connection: Connection
    names: Names
    try_lock: Callable[[str, float], Awaitable[Lock | None]]
    peers: Callable[[str, str, float], AsyncGenerator[frozenset[str], None]]
    lease: float


class _Loan(msgspec.Struct, eq=False):
    """The handle of a delivery."""

    channel: GroupChannel
    share: Share
    position: Position
    done: bool = False


class GroupChannel:
    """Joins its group with the first `get`: whoever only puts is no member."""

    def __init__(self, means: Means, log: Log, topic: str, partitions: int, group: str) -> None:
        self._means = means
        self._log = log
        self._topic = topic
        self._partitions = partitions
        self._group = group
        self._me = secrets.token_hex(8)
        self._turn = 0
        self._wanted: frozenset[int] | None = None  # None: not known yet
        self._shares: dict[int, Share] = {}
        self._changed = asyncio.Event()  # of what is wanted or owned
        self._fetched: deque[Delivery] = deque()
        self._demand = 0
        self._asking: set[asyncio.Future[None]] = set()
        self._rounds = 0
        self._looking: asyncio.Future[None] | None = None
        self._problem: BrokerError | None = None
        self._services: list[asyncio.Task[None]] = []
        self._fetching: asyncio.Task[None] | None = None
        self._background: set[asyncio.Task[Any]] = set()
        self._closed = False
        self._left: asyncio.Task[None] | None = None

    @property
    def closed(self) -> bool:
        return self._closed

    async def put(self, messages: Sequence[Message]) -> None:
        """By key, as everywhere; those without one in turns."""
        self._check_open()
        parts: dict[int, list[Message]] = {}
        for message in messages:
            if isinstance(message, QueueMessage) and (message.priority or message.delay or message.expires is not None):
                raise MissingCapability(
                    f"{self._topic!r} is a topic: priority, delay and expires need a queue (TopicSpec(queue=True))"
                )
            if message.key is None:
                self._turn += 1
                number = self._turn % self._partitions
            else:
                number = murmur2_partitioner(message.key, self._partitions)
            parts.setdefault(number, []).append(message)
        if parts:
            await self._log.append(parts, positions=False)

    # --- reading ---------------------------------------------------------------------------------------------

    async def get(self, limit: int, timeout: float) -> Sequence[Delivery]:
        self._check_open()
        loop = asyncio.get_running_loop()
        start, deadline, rounds = loop.time(), loop.time() + timeout, self._rounds
        if not self._services:
            self._services = [loop.create_task(self._follow_members()), loop.create_task(self._own())]
            for service in self._services:
                service.add_done_callback(self._service_done)
        found = self._take(limit)
        self._demand += limit
        try:
            while not found and not self._closed and limit > 0:
                if self._fetching is None:
                    self._fetching = loop.create_task(self._fetch())
                left = deadline - loop.time()
                if left <= 0 and (self._rounds > rounds or loop.time() > start + _SOON):
                    break
                woken: asyncio.Future[None] = loop.create_future()
                self._asking.add(woken)
                try:
                    await asyncio.wait([woken], timeout=max(left, 0.02))
                finally:
                    self._asking.discard(woken)
                found = self._take(limit)
                if not found and self._problem is not None:
                    problem, self._problem = self._problem, None
                    raise problem
        finally:
            self._demand -= limit
            if not self._demand:
                self._changed.set()  # a read that nobody waits for ends
        return found

    def _take(self, limit: int) -> list[Delivery]:
        taken: list[Delivery] = []
        while self._fetched and len(taken) < limit:
            delivery = self._fetched.popleft()
            loan = delivery.handle
            assert isinstance(loan, _Loan)
            if self._stands(loan):
                loan.share.lent.add(loan.position)
                taken.append(delivery)
        return taken

    async def _fetch(self) -> None:
        """As long as somebody asks."""
        patience = 0.0
        try:
            while self._demand and not self._closed:
                shares = {n: share for n, share in self._shares.items() if self._usable(share)}
                if shares:
                    await self._read(shares, patience)
                elif self._wanted is not None and not self._wanted:
                    self._rounds += 1  # it has none, and may well say so
                patience = _ROUND
                self._wake()
                if not shares:
                    await self._changed.wait()
                self._changed.clear()
        except BrokerError as error:
            self._problem = error
        finally:
            self._fetching = None
            self._wake()

    async def _read(self, shares: dict[int, Share], patience: float) -> None:
        loop = asyncio.get_running_loop()
        after = {number: share.next for number, share in shares.items()}
        reading = loop.create_task(self._log.read(after, min(self._demand, _COUNT), _BYTES, patience))
        changed = loop.create_task(self._changed.wait())
        try:
            await asyncio.wait([reading, changed], return_when=asyncio.FIRST_COMPLETED)
        finally:
            reading.cancel()
            changed.cancel()
            await asyncio.wait([reading, changed])
        if reading.cancelled():
            return
        try:
            batches = reading.result()
        except Gap as gap:
            shares[gap.partition].skip_gap()
            return
        before = {n: shares[n].next for n in batches}
        news = [(shares[n], batch, shares[n].take(batch)) for n, batch in batches.items() if self._usable(shares[n])]
        try:
            await asyncio.gather(*(share.save() for share, _, found in news if found))
        except BaseException:
            for share, batch, found in news:
                share.untake(batch, found, before[share.number])
            raise
        for share, batch, found in news:
            for index, attempt in found:
                loan = _Loan(self, share, batch.positions[index])
                self._fetched.append(Delivery(batch.records[index], attempt, loan))
        self._rounds += 1

    def _usable(self, share: Share) -> bool:
        wanted = self._wanted is not None and share.number in self._wanted
        return wanted and share.stands and self._shares.get(share.number) is share

    # --- owning ----------------------------------------------------------------------------------------------

    async def _follow_members(self) -> None:
        name = f"group {self._group} of {self._topic}"
        while not self._closed:
            with contextlib.suppress(BrokerError):
                async with aclosing(self._means.peers(name, self._me, self._means.lease)) as members:
                    async for present in members:
                        order = sorted(present | {self._me})
                        mine, count = order.index(self._me), len(order)
                        self._wanted = frozenset(n for n in range(self._partitions) if n % count == mine)
                        self._changed.set()
                        self._look()
            await asyncio.sleep(min(1.0, self._means.lease / 4))

    async def _own(self) -> None:
        """Take what is wanted as soon as others have let it go; let go what others want, once nothing of it is lent."""
        while not self._closed:
            wanted = self._wanted or frozenset()
            for number, share in list(self._shares.items()):
                if not share.stands or (number not in wanted and not share.lent):
                    await self._drop(share)
            missing = [number for number in wanted if number not in self._shares]
            for number in missing:
                with contextlib.suppress(BrokerError):
                    await self._claim(number)
            pause = 0.05 if missing else min(1.0, self._means.lease / 3)
            self._looking = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._looking], timeout=pause)

    def _look(self) -> None:
        if self._looking is not None and not self._looking.done():
            self._looking.set_result(None)

    async def _claim(self, number: int) -> None:
        names, topic = self._means.names, self._topic
        lock = await self._means.try_lock(f"group {self._group} of {topic} {number}", self._means.lease)
        if lock is None:
            return
        cell = Cell(
            self._means.connection,
            names.topic(topic, number, "group", self._group),
            f"the positions of group {self._group!r} in {topic!r}",
        )
        share = Share(number, lock, cell)
        try:
            await share.open()
        except BaseException:
            with contextlib.suppress(BrokerError):  # which would hide why, a cancellation perhaps
                await finish(share.close(), self._background)
            raise
        self._shares[number] = share
        self._changed.set()

    async def _drop(self, share: Share) -> None:
        if self._shares.get(share.number) is share:
            del self._shares[share.number]
        with contextlib.suppress(BrokerError):
            await finish(share.close(), self._background)

    # --- settling --------------------------------------------------------------------------------------------

    async def commit(self, deliveries: Sequence[Delivery]) -> None:
        loans = [loan for loan in self._loans_of(deliveries) if not loan.done]
        standing = [loan for loan in loans if self._stands(loan)]
        parts: dict[Share, list[_Loan]] = {}
        for loan in standing:
            parts.setdefault(loan.share, []).append(loan)
        for share, part in parts.items():
            share.finish(loan.position for loan in part)
        if parts:
            await asyncio.gather(*(share.save() for share in parts))
        for loan in standing:
            loan.done = True
        self._look()
        if len(standing) < len(loans):
            raise StaleDelivery(
                f"{len(loans) - len(standing)} of {len(loans)} deliveries of {self._topic!r} had gone back to the "
                "group, as their partition was lost to another member; the others are committed"
            )

    def _stands(self, loan: _Loan) -> bool:
        return loan.share.stands and self._shares.get(loan.share.number) is loan.share

    def _loans_of(self, deliveries: Iterable[Delivery]) -> list[_Loan]:
        self._check_open()
        loans: dict[_Loan, None] = {}
        for delivery in deliveries:
            loan = delivery.handle
            if not isinstance(loan, _Loan) or loan.channel is not self:
                raise BrokerError(f"this delivery was not lent by this channel of {self._topic!r}")
            loans[loan] = None
        return list(loans)

    # --- the rest --------------------------------------------------------------------------------------------

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._left = asyncio.get_running_loop().create_task(self._leave())
        self._wake()
        assert self._left is not None
        await asyncio.shield(self._left)

    async def _leave(self) -> None:
        services = [*self._services, *([self._fetching] if self._fetching is not None else [])]
        for service in services:
            service.cancel()
        if services:
            await asyncio.wait(services)
        if self._background:
            await asyncio.wait(self._background)
        await asyncio.gather(*(self._drop(share) for share in list(self._shares.values())))
        await self._log.close()
        self._fetched.clear()  # Python's garbage collection does not see circles through deliveries

    def _service_done(self, service: asyncio.Task[None]) -> None:
        """It ends by itself only if something is wrong with this program."""
        if not service.cancelled() and (error := service.exception()) is not None:
            self._problem = BrokerError(f"the membership of group {self._group!r} in {self._topic!r} ended: {error!r}")
            self._wake()

    def _wake(self) -> None:
        for woken in self._asking:
            if not woken.done():
                woken.set_result(None)

    def _check_open(self) -> None:
        if self._closed:
            raise BrokerError(f"this channel of {self._topic!r} is closed; open another by transport.channel()")
