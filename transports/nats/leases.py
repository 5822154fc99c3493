"""What a living process holds and keeps by renewing it: locks, and its place in a group of peers.

A lease is the newest message of a subject of its own: who writes it must name the sequence of the one before
(compare-and-set), and it counts until the server's clock says that it is older than what it asks for. An empty message
is a lease that was given back.

A thread with a loop and a connection of its own renews, so that a busy event loop loses nothing. A process that is
stopped does: its leases run out on the server, and by the boot clock here. So does one whose event loop is stuck for
more than a minute: it would hold for ever what it does not use.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from typing import Any, TypeVar

import msgspec
from thalweg.clock import boot_clock
from thalweg.errors import AmbiguousCommit, BrokerError

from .connection import ApiError, Connection, Endpoint
from .floors import WRONG_SEQUENCE, StreamState, last_message
from .publish import raw
from .records import header_value, name_of, stamp_of, token
from .wire import Wire, WireLost, pub

__all__ = ["Lease", "Leases"]

T = TypeVar("T")

_STUCK = 60.0  # seconds without a sign of life from the event loop
_FORGOTTEN = 7 * 86400  # seconds after which the server drops a lease that nobody renews


class _Note(msgspec.Struct):
    """What a lease's message says. seconds: how long it is good for. who: never the same twice."""

    seconds: float
    who: str

    def ends(self, stored: int) -> int:
        """Nanoseconds since the epoch, by the server's clock."""
        return stored + round(self.seconds * 1e9)


_read_note = msgspec.json.Decoder(_Note).decode


class Lease:
    """A lock, or a place among peers, as `Held` of the contract.

    number: the sequence by which it was taken. last: that of its last renewal.
    expires: boot clock, never later than on the server.
    """

    def __init__(self, leases: Leases, subject: str, note: _Note, number: int, since: float) -> None:
        self.subject = subject
        self.note = note
        self.number = self.last = number
        self.expires = since + note.seconds
        self._leases = leases
        self._lost = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._watch()

    @property
    def lost(self) -> asyncio.Event:
        if boot_clock() >= self.expires:
            self.end()
        return self._lost

    async def release(self) -> None:
        await self._leases.release(self)

    def end(self) -> None:
        """From now on it counts as lost. Called in the event loop."""
        if self._timer is not None:
            self._timer.cancel()
        if not self._lost.is_set():
            self._lost.set()
            self._leases.forget(self)

    def end_soon(self) -> None:
        """`end`, from another thread."""
        self.expires = 0.0
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody asks
            self._loop.call_soon_threadsafe(self.end)

    def _watch(self) -> None:
        remaining = self.expires - boot_clock()
        if remaining > 0:
            self._timer = self._loop.call_later(remaining, self._watch)
        else:
            self.end()


class _Keeper:
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
            lease.last = await _write(connection, lease.subject, lease.note, lease.last)
        except AmbiguousCommit:
            return  # the next renewal tells
        except ApiError as error:
            if error.code not in WRONG_SEQUENCE:
                return
            found = await last_message(connection, self._stream, lease.subject)
            if found is not None and found.data and _read_note(found.data).who == lease.note.who:
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


class Leases:
    """All leases of one transport. `make`: creates the stream where they lie, if there is none."""

    def __init__(self, connection: Connection, prefix: str, make: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._connection = connection
        self._prefix = prefix
        self._stream = stream_of(prefix)
        self._make = make
        self._made = False
        self._keeper: _Keeper | None = None
        self._held: dict[Lease, None] = {}
        self._background: set[asyncio.Task[Any]] = set()

    async def try_lock(self, name: str, seconds: float) -> Lease | None:
        return await self.finish(self._try_lock(name, seconds), self.let_go)

    async def _try_lock(self, name: str, seconds: float) -> Lease | None:
        await self._prepare()
        subject = f"{self._prefix}.lease.lock.{token(name)}"
        found = await last_message(self._connection, self._stream, subject)
        if (
            found is not None
            and found.data
            and await self._moment() < _read_note(found.data).ends(stamp_of(found.time))
        ):
            return None
        return await self._hold(subject, seconds, found.seq if found is not None else 0)

    async def _hold(self, subject: str, seconds: float, after: int) -> Lease | None:
        """Take it, unless somebody else was faster."""
        note, asked = _Note(seconds, secrets.token_hex(16)), boot_clock()
        try:
            number = await _write(self._connection, subject, note, after)
        except ApiError as error:
            if error.code in WRONG_SEQUENCE:
                return None
            raise
        lease = Lease(self, subject, note, number, asked)
        if not lease.lost.is_set():
            if self._keeper is None:
                self._keeper = _Keeper(self._connection.endpoint, self._stream)
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
        return await self.finish(self._join(group, me, seconds), self.let_go)

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
            left = _read_note(payload).ends(stored) - now
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
            gone = self._keeper.drop(lease) if self._keeper is not None else None
            lease.end()
            await self.finish(self._give_back(lease, gone))

    async def _give_back(self, lease: Lease, gone: asyncio.Future[None] | None) -> None:
        if gone is not None:
            await gone  # or a renewal that is still under way would make it ours again
        if ".lease.peer." in lease.subject:
            await self._connection.api(f"STREAM.PURGE.{self._stream}", msgspec.Raw, {"filter": lease.subject})
            await self._ring(f"{self._prefix}.bell.{lease.subject.split('.')[3]}".encode())
            return
        try:
            await _write(self._connection, lease.subject, None, lease.last)
        except ApiError as error:
            if error.code not in WRONG_SEQUENCE:
                raise

    def forget(self, lease: Lease) -> None:
        """It is lost: stop renewing it."""
        self._held.pop(lease, None)
        if self._keeper is not None:
            self._keeper.drop(lease)

    async def let_go(self, lease: Lease | None) -> None:
        if lease is not None:
            with contextlib.suppress(BrokerError):
                await self.release(lease)

    async def close(self) -> None:
        await asyncio.gather(*(self.let_go(lease) for lease in list(self._held)))  # what cannot be released runs out
        if self._background:
            await asyncio.wait(self._background)
        if self._keeper is not None:
            await self._keeper.close()

    def end_all(self) -> None:
        for lease in list(self._held):
            lease.end()

    # --- the server ------------------------------------------------------------------------------------------

    async def _prepare(self) -> None:
        if not self._made:
            await self._make()
            self._made = True

    async def _moment(self) -> int:
        """Nanoseconds since the epoch, by the clock of the server that stores the leases."""
        return stamp_of((await self._connection.api(f"STREAM.INFO.{self._stream}", StreamState)).ts)

    async def finish(
        self, work: Coroutine[Any, Any, T], undo: Callable[[T], Coroutine[Any, Any, None]] | None = None
    ) -> T:
        """Do it to the end; if the caller is cancelled meanwhile, undo it then."""
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_ignore_failure)
            if undo is not None:
                later = asyncio.get_running_loop().create_task(_after(task, undo))
                self._background.add(later)
                later.add_done_callback(self._background.discard)
            raise


def stream_of(prefix: str) -> str:
    return f"{prefix}+leases"


def stream_config(prefix: str, replicas: int) -> dict[str, object]:
    """Of each subject the newest message; sequences, hence the numbers of locks, only rise."""
    return {
        "name": stream_of(prefix),
        "subjects": [f"{prefix}.lease.>"],
        "max_msgs_per_subject": 1,
        "max_age": _FORGOTTEN * 10**9,
        "allow_direct": True,
        "num_replicas": replicas,
    }


async def _write(connection: Connection, subject: str, note: _Note | None, after: int) -> int:
    line = b"Nats-Expected-Last-Subject-Sequence: %d\r\n" % after
    return await raw(connection, subject.encode(), b"" if note is None else msgspec.json.encode(note), line)


async def _after(task: asyncio.Task[T], undo: Callable[[T], Coroutine[Any, Any, None]]) -> None:
    await asyncio.wait([task])
    if not task.cancelled() and task.exception() is None:
        await undo(task.result())


def _ignore_failure(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()


async def _end_tasks(loop: asyncio.AbstractEventLoop) -> None:
    tasks: Sequence[asyncio.Task[Any]] = [
        task for task in asyncio.all_tasks(loop) if task is not asyncio.current_task()
    ]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
