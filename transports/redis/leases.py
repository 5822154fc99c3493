"""What a living process holds and keeps by renewing it: locks, its place in a peer group, its place as a consumer."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, TypeVar

from thalweg.clock import boot_clock
from thalweg.errors import BrokerError
from thalweg.finishing import finish
from thalweg.keeper import Keeper
from thalweg.lease import Lease as TimedLease

from . import scripts
from .connection import Connection, Endpoint
from .waker import Waker
from .wire import pack

__all__ = ["Lease", "Leases"]

T = TypeVar("T")


class Lease(TimedLease):
    """A lock, or a place in a set, as `Held` by the contract. `expires`: boot clock, never later than on the server."""

    def __init__(
        self, leases: Leases, key: bytes, token: bytes, seconds: float, expires: float, number: int, bell: bytes | None
    ) -> None:
        self.key = key
        self.token = token
        self.bell = bell
        self.number = number
        self._leases = leases
        super().__init__(seconds, expires)
        self.watch()

    async def release(self) -> None:
        await self._leases.release(self)

    def _ended(self) -> None:
        self._leases.forget(self)


class Renewal:
    """Renews many leases by one script."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._connection = Connection(endpoint)
        self.drop, self.close = self._connection.drop, self._connection.close

    async def renew(self, leases: Sequence[Lease]) -> None:
        arguments = [part for lease in leases for part in (lease.token, _milliseconds(lease.seconds))]
        asked = boot_clock()
        kept = await self._connection.run(scripts.RENEW, [lease.key for lease in leases], *arguments)
        for lease, good in zip(leases, kept, strict=True):
            if good:
                lease.renewed(asked)
            else:
                lease.end_soon()


class Leases:
    """All leases of one transport."""

    def __init__(self, connection: Connection, waker: Waker, names: Callable[[str, str], bytes], stuck: float) -> None:
        self._keeper = Keeper("redis keeper", Renewal(connection.endpoint), stuck)
        self._connection = connection
        self._waker = waker
        self._names = names
        self._held: dict[Lease, None] = {}
        self._background: set[asyncio.Task[Any]] = set()
        self._closed = False

    async def try_lock(self, name: str, seconds: float) -> Lease | None:
        return await finish(self._try_lock(name, seconds), self._background, self._let_go)

    async def _try_lock(self, name: str, seconds: float) -> Lease | None:
        key, token, asked = self._names("lock", name), secrets.token_hex(16).encode(), boot_clock()
        number = await self._connection.write(
            scripts.LOCK, [key, self._names("lock-number", name)], token, _milliseconds(seconds)
        )
        return self.hold(key, token, seconds, asked, number) if number else None

    async def peers(self, group: str, me: str, seconds: float) -> AsyncGenerator[frozenset[str], None]:
        key, bell = self._names("members", group), self._names("members-bell", group)
        token = f"{me}\0{secrets.token_hex(8)}".encode()
        place = await finish(self._enter(key, bell, token, seconds), self._background, self._let_go)
        seen: frozenset[str] | None = None
        try:
            while True:
                if place is None or place.lost.is_set():
                    place = await finish(self._enter(key, bell, token, seconds), self._background, self._let_go)
                rung, next_end, *members = await self._connection.run(scripts.MEMBERS, [key, bell])
                present = frozenset(member.partition(b"\0")[0].decode() for member in members)
                if present != seen:
                    seen = present
                    yield present
                else:
                    pause = min(0.5, seconds / 4) if next_end < 0 else min(0.5, seconds / 4, next_end / 1000 + 0.002)
                    await self._waker.watch({bell: pack(rung)}).wait(pause)
        finally:
            if place is not None:
                await self._let_go(place)

    async def _enter(self, key: bytes, bell: bytes, token: bytes, seconds: float) -> Lease | None:
        if self._closed:  # a member that watches others would come back, once it has been given back
            raise BrokerError("this transport is closed; open another")
        asked = boot_clock()
        await self._connection.write(scripts.ENTER, [key, bell], token, _milliseconds(seconds))
        return self.hold(key, token, seconds, asked, bell=bell)

    def hold(
        self, key: bytes, token: bytes, seconds: float, since: float, number: int = 0, bell: bytes | None = None
    ) -> Lease:
        """Renew from now on what was taken at `since` (boot clock)."""
        lease = Lease(self, key, token, seconds, since + seconds, number, bell)
        if not lease.lost.is_set():
            self._held[lease] = None
            self._keeper.keep(lease)
        return lease

    async def release(self, lease: Lease) -> None:
        """Give it back; done even if the caller is cancelled."""
        if lease in self._held:
            lease.end()
            await finish(self._give_back(lease), self._background)

    def forget(self, lease: Lease) -> None:
        """It is lost: stop renewing it."""
        self._held.pop(lease, None)
        self._keeper.drop(lease)

    async def close(self) -> None:
        self._closed = True
        while self._background:  # what is just being taken
            await asyncio.wait(self._background)
        await asyncio.gather(*(self._let_go(lease) for lease in list(self._held)))  # what cannot be released runs out
        await self._keeper.close()

    async def _give_back(self, lease: Lease) -> None:
        if lease.bell is None:
            await self._connection.write(scripts.UNLOCK, [lease.key], lease.token)
        else:
            await self._connection.write(scripts.LEAVE, [lease.key, lease.bell], lease.token)

    async def _let_go(self, lease: Lease | None) -> None:
        if lease is not None:
            with contextlib.suppress(BrokerError):
                await self.release(lease)


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))
