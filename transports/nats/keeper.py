"""A lease, and the thread that keeps it.

It has a loop and a connection of its own, so that a busy event loop loses nothing. A process that is stopped does: its
leases run out on the server, and by the boot clock here. So does one whose event loop is stuck for more than a minute:
it would hold for ever what it does not use.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec
from thalweg.clock import boot_clock
from thalweg.errors import AmbiguousCommit, BrokerError
from thalweg.lease import Lease as TimedLease

from .connection import ApiError, Connection, Endpoint
from .floors import WRONG_SEQUENCE, last_message
from .publish import raw

__all__ = ["Keeper", "Lease", "Note", "read_note", "write_note"]

_STUCK = 60.0  # seconds without a sign of life from the event loop


class Note(msgspec.Struct):
    """What a lease's message says. seconds: how long it is good for. who: never the same twice."""

    seconds: float
    who: str

    def ends(self, stored: int) -> int:
        """Nanoseconds since the epoch, by the server's clock."""
        return stored + round(self.seconds * 1e9)


read_note = msgspec.json.Decoder(Note).decode


class Owner(Protocol):
    """Who gives leases back and forgets them."""

    async def release(self, lease: Lease) -> None: ...
    def forget(self, lease: Lease) -> None: ...


class Lease(TimedLease):
    """A lock, or a place among peers, as `Held` of the contract.

    number: the sequence by which it was taken. last: that of its last renewal.
    expires: boot clock, never later than on the server.
    """

    def __init__(self, owner: Owner, subject: str, note: Note, number: int, since: float) -> None:
        self.subject = subject
        self.note = note
        self.number = self.last = number
        self._owner = owner
        super().__init__(since + note.seconds)
        self.watch()

    async def release(self) -> None:
        await self._owner.release(self)

    def _ended(self) -> None:
        self._owner.forget(self)


class Keeper:
    """The thread. It renews every third of the shortest lease."""

    def __init__(self, endpoint: Endpoint, stream: str) -> None:
        self._endpoint = endpoint
        self._stream = stream
        self._held: dict[Lease, None] = {}
        self._watched = asyncio.get_running_loop()
        self._beat = boot_clock()
        self._stop, self._changed = asyncio.Event(), asyncio.Event()
        self._renewing = asyncio.Lock()
        self._telling: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="nats keeper", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Whoever holds something must have released it before, or it runs out."""
        self._call(self._stop.set)
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join)

    def keep(self, lease: Lease) -> None:
        def keep() -> None:
            self._held[lease] = None
            self._changed.set()

        self._call(keep)

    def drop(self, lease: Lease) -> asyncio.Future[None]:
        """Done once no renewal of it is under way any more."""
        gone: asyncio.Future[None] = self._watched.create_future()

        def finished() -> None:
            if not gone.done():
                gone.set_result(None)

        def drop() -> None:
            self._held.pop(lease, None)
            telling = self._loop.create_task(self._tell(finished))
            self._telling.add(telling)
            telling.add_done_callback(self._telling.discard)

        try:
            self._loop.call_soon_threadsafe(drop)
        except RuntimeError:  # the thread has ended
            finished()
        return gone

    def _call(self, function: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the thread has ended
            self._loop.call_soon_threadsafe(function)

    # --- in the thread ---------------------------------------------------------------------------------------

    async def _tell(self, finished: Callable[[], None]) -> None:
        async with self._renewing:
            with contextlib.suppress(RuntimeError):
                self._watched.call_soon_threadsafe(finished)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._renew_until_stopped())
        finally:
            self._loop.run_until_complete(_end_tasks(self._loop))
            self._loop.close()

    async def _renew_until_stopped(self) -> None:
        connection = Connection(self._endpoint)
        stopped = self._loop.create_task(self._stop.wait())
        try:
            while not stopped.done():
                self._changed.clear()
                pause = min((lease.note.seconds / 3 for lease in self._held), default=None)
                changed = self._loop.create_task(self._changed.wait())
                await asyncio.wait([stopped, changed], timeout=pause, return_when=asyncio.FIRST_COMPLETED)
                if changed.done() and not stopped.done():
                    continue
                changed.cancel()
                renewing = self._loop.create_task(self._renew_all(connection))
                await asyncio.wait([stopped, renewing], return_when=asyncio.FIRST_COMPLETED)
                renewing.cancel()
                await asyncio.wait([renewing])
        finally:
            stopped.cancel()
            await connection.close()

    async def _renew_all(self, connection: Connection) -> None:
        with contextlib.suppress(RuntimeError):
            self._watched.call_soon_threadsafe(self._alive)
        leases = list(self._held)
        if boot_clock() - self._beat > _STUCK + max((lease.note.seconds for lease in leases), default=0.0):
            return
        shortest = min((lease.note.seconds for lease in leases), default=1.0)
        async with self._renewing:
            with contextlib.suppress(BrokerError, TimeoutError):  # it ends in time, and its holder knows
                async with asyncio.timeout(shortest):
                    await connection.wire()
                    await asyncio.gather(*(self._renew(connection, lease) for lease in leases))

    async def _renew(self, connection: Connection, lease: Lease) -> None:
        asked = boot_clock()
        try:
            lease.last = await write_note(connection, lease.subject, lease.note, lease.last)
        except AmbiguousCommit:
            return  # the next renewal tells
        except ApiError as error:
            if error.code not in WRONG_SEQUENCE:
                return
            found = await last_message(connection, self._stream, lease.subject)
            if found is not None and found.data and read_note(found.data).who == lease.note.who:
                lease.last = found.seq  # a renewal whose answer was lost: it counts from the next on
            else:
                self._held.pop(lease, None)
                lease.end_soon()
            return
        except BrokerError:
            return
        lease.expires = max(lease.expires, asked + lease.note.seconds) if lease.expires else 0.0

    def _alive(self) -> None:
        self._beat = boot_clock()


async def write_note(connection: Connection, subject: str, note: Note | None, after: int) -> int:
    line = b"Nats-Expected-Last-Subject-Sequence: %d\r\n" % after
    return await raw(connection, subject.encode(), b"" if note is None else msgspec.json.encode(note), line)


async def _end_tasks(loop: asyncio.AbstractEventLoop) -> None:
    tasks: Sequence[asyncio.Task[Any]] = [
        task for task in asyncio.all_tasks(loop) if task is not asyncio.current_task()
    ]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
