"""What a living process holds and keeps by renewing it: locks, and its place in a group of peers.

A lease is the newest message of a subject of its own: who writes it must name the sequence of the one before
(compare-and-set), and it counts until the server's clock says that it is older than what it asks for. An empty message
is a lease that was given back.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator
from typing import Any, TypeVar

import msgspec
from thalweg.clock import boot_clock
from thalweg.errors import BrokerError
from thalweg.finishing import finish
from thalweg.keeper import Keeper

from .connection import ApiError, Connection
from .floors import WRONG_SEQUENCE, StreamState, last_message
from .records import header_value, name_of, stamp_of, token
from .renewal import Lease, Note, Renewal, read_note, write_note
from .streams import Streams
from .wire import Wire, WireLost, pub

__all__ = ["Lease", "Leases"]

T = TypeVar("T")

_FORGOTTEN = 7 * 86400  # seconds after which the server drops a lease that nobody renews


class Leases:
    """All leases of one transport."""

    def __init__(self, connection: Connection, streams: Streams, stuck: float) -> None:
        self._connection = connection
        self._streams = streams
        self._prefix = streams.main
        self._stream = f"{streams.main}+leases"
        self._made = False
        self._keeper = Keeper("nats keeper", Renewal(connection.endpoint, self._stream), stuck)
        self._held: dict[Lease, None] = {}
        self._background: set[asyncio.Task[Any]] = set()
        self._closed = False

    async def try_lock(self, name: str, seconds: float) -> Lease | None:
        return await finish(self._try_lock(name, seconds), self._background, self.let_go)

    async def _try_lock(self, name: str, seconds: float) -> Lease | None:
        await self._prepare()
        subject = f"{self._prefix}.lease.lock.{token(name)}"
        found = await last_message(self._connection, self._stream, subject)
        if found is not None and found.data and await self._moment() < read_note(found.data).ends(stamp_of(found.time)):
            return None
        return await self._hold(subject, seconds, found.seq if found is not None else 0)

    async def _hold(self, subject: str, seconds: float, after: int) -> Lease | None:
        """Take it, unless somebody else was faster."""
        note, asked = Note(seconds, secrets.token_hex(16)), boot_clock()
        try:
            number = await write_note(self._connection, subject, note, after)
        except ApiError as error:
            if error.code in WRONG_SEQUENCE:
                return None
            raise
        lease = Lease(self, subject, note, number, asked)
        if not lease.lost.is_set():
            self._held[lease] = None
            self._keeper.keep(lease)
        return lease

    # --- peers -----------------------------------------------------------------------------------------------

    async def peers(self, group: str, me: str, seconds: float) -> AsyncGenerator[frozenset[str], None]:
        place: Lease | None = None
        seen: frozenset[str] | None = None
        wire: Wire | None = None
        number = b""
        rung = asyncio.Event()
        try:
            while True:
                if wire is not (current := await self._connection.wire()):
                    wire, number = current, current.subscribe(self._bell(group), lambda *_: rung.set())
                if place is None or place.lost.is_set():
                    place = await self.join(group, me, seconds)
                    continue
                rung.clear()
                present, pause = await self.members(group, seconds)
                if present != seen:
                    seen = present
                    yield present
                else:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(pause):
                            await rung.wait()
        finally:
            if wire is not None:
                wire.unsubscribe(number)
            await self.let_go(place)

    async def join(self, group: str, me: str, seconds: float) -> Lease | None:
        """A place among the members of a group."""
        return await finish(self._join(group, me, seconds), self._background, self.let_go)

    async def _join(self, group: str, me: str, seconds: float) -> Lease | None:
        await self._prepare()
        place = await self._hold(f"{self._base(group)}{token(me)}~{secrets.token_hex(8)}", seconds, 0)
        await self._ring(self._bell(group))
        return place

    async def members(self, group: str, seconds: float) -> tuple[frozenset[str], float]:
        """Who is there, and after how many seconds to look again."""
        base = self._base(group)
        found = await self._connection.collect(f"DIRECT.GET.{self._stream}", {"multi_last": [f"{base}*"]})
        now, present, pause = await self._moment(), set[str](), min(0.5, seconds / 4)
        for header, payload in found:
            stored = stamp_of((header_value(header, b"Nats-Time-Stamp") or b"").decode())
            left = read_note(payload).ends(stored) - now
            if left > 0:
                member = (header_value(header, b"Nats-Subject") or b"").decode().removeprefix(base)
                present.add(name_of(member.rpartition("~")[0]))
                pause = min(pause, left / 1e9 + 0.002)
        return frozenset(present), pause

    def _base(self, group: str) -> str:
        return f"{self._prefix}.lease.peer.{token(group)}."

    def _bell(self, group: str) -> bytes:
        return f"{self._prefix}.bell.{token(group)}".encode()

    async def _ring(self, bell: bytes) -> None:
        with contextlib.suppress(BrokerError, WireLost):  # they look by themselves, later
            (await self._connection.wire()).send(pub(bell, b"", b""))

    # --- giving back -----------------------------------------------------------------------------------------

    async def release(self, lease: Lease) -> None:
        """Give it back; done even if the caller is cancelled."""
        if lease in self._held:
            lease.end()
            await finish(self._give_back(lease), self._background)

    async def _give_back(self, lease: Lease) -> None:
        await self._keeper.dropped(lease)  # or a renewal that is still under way would make it ours again
        if ".lease.peer." in lease.subject:
            await self._connection.api(f"STREAM.PURGE.{self._stream}", msgspec.Raw, {"filter": lease.subject})
            await self._ring(f"{self._prefix}.bell.{lease.subject.split('.')[3]}".encode())
            return
        try:
            await write_note(self._connection, lease.subject, None, lease.last)
        except ApiError as error:
            if error.code not in WRONG_SEQUENCE:
                raise

    def forget(self, lease: Lease) -> None:
        """It is lost: stop renewing it."""
        self._held.pop(lease, None)
        self._keeper.drop(lease)

    async def let_go(self, lease: Lease | None) -> None:
        if lease is not None:
            with contextlib.suppress(BrokerError):
                await self.release(lease)

    async def close(self) -> None:
        self._closed = True
        while self._background:  # what is just being taken
            await asyncio.wait(self._background)
        await asyncio.gather(*(self.let_go(lease) for lease in list(self._held)))  # what cannot be released runs out
        await self._keeper.close()

    # --- the server ------------------------------------------------------------------------------------------

    async def _prepare(self) -> None:
        """Of each subject its stream keeps the newest message; sequences, hence the numbers of locks, only rise."""
        if self._closed:  # a member that watches others would come back, once it has been given back
            raise BrokerError("this transport is closed; open another")
        if not self._made:
            config: dict[str, object] = {
                "name": self._stream,
                "subjects": [f"{self._prefix}.lease.>"],
                "max_msgs_per_subject": 1,
                "max_age": _FORGOTTEN * 10**9,
                "allow_direct": True,
                "num_replicas": self._streams.replicas,
            }
            await self._streams.make(config)
            self._made = True

    async def _moment(self) -> int:
        """Nanoseconds since the epoch, by the clock of the server that stores the leases."""
        return stamp_of((await self._connection.api(f"STREAM.INFO.{self._stream}", StreamState)).ts)
