"""What a living process holds and keeps by renewing it: locks, its place in a peer group, its place as a consumer.

The writing thread renews, so that a busy event loop loses nothing. A process that is stopped does: its leases run out
by the boot clock, which goes on while the machine sleeps and is the same in all processes; so does one whose event loop
is stuck. One that died loses them at once: nobody keeps its door open any more (see `doorbell.py`), and nobody does
after a reboot.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, Callable, Mapping
from functools import partial

from thalweg.clock import boot_clock
from thalweg.errors import BrokerError
from thalweg.finishing import ignore_failure
from thalweg.lease import Lease as TimedLease
from thalweg.pulse import Pulse

from .database import Database, Transaction
from .doorbell import LEASES, Doorbell

__all__ = ["Lease", "Leases"]


# A lease that ends later than it could if it were renewed now is of the time before a reboot.
_OVER = "expires <= :now OR expires > :now + seconds"


class Lease(TimedLease):
    """A row of `leases` that is this process's own, as `Held` by the contract. `expires` is what is known committed."""

    def __init__(self, number: int, seconds: float, expires: float, leases: Leases) -> None:
        self.number = number
        self._leases = leases
        super().__init__(seconds, expires)
        self.watch()

    async def release(self) -> None:
        await self._leases.release(self)

    def _ended(self) -> None:
        self._leases.forget(self)


class Leases:
    """All leases of one transport; the keeper of its database."""

    def __init__(self, bell: Doorbell, stuck: float) -> None:
        self._bell = bell
        self._pulse = Pulse(stuck)
        self._again = 0.0
        self._held: dict[int, Lease] = {}
        self._closed = False

    def open(self, database: Database) -> None:
        self._database = database

    async def try_lock(self, name: str, seconds: float) -> Lease | None:
        def work(transaction: Transaction) -> tuple[int, float] | None:
            query = "SELECT 1 FROM leases WHERE kind = 'lock' AND name = ?"
            if transaction.execute(query, (name,)).fetchone():
                self.reap(transaction)
                if transaction.execute(query, (name,)).fetchone():
                    return None
            return self.take(transaction, "lock", name, None, seconds)

        return await self._take(work, seconds)

    async def peers(self, group: str, me: str, seconds: float) -> AsyncGenerator[frozenset[str], None]:
        def join(transaction: Transaction) -> tuple[int, float]:
            return self.take(transaction, "member", group, me, seconds)

        def members(connection: sqlite3.Connection) -> frozenset[str]:
            rows = connection.execute(
                f"SELECT member, door FROM leases WHERE kind = 'member' AND name = :name AND NOT ({_OVER})",
                {"name": group, "now": boot_clock()},
            )
            return frozenset(member.decode() for member, door in rows if self._bell.alive(door.decode()))

        place = await self._take(join, seconds)
        seen: frozenset[str] | None = None
        try:
            while True:
                rung = self._bell.event(LEASES)
                if place is None or place.lost.is_set():
                    place = await self._take(join, seconds)
                present = await self._database.read(members)
                if present != seen:
                    seen = present
                    yield present
                else:
                    await self._bell.wait(rung, None)
        finally:
            if place is not None:
                await place.release()

    async def _take(self, work: Callable[[Transaction], tuple[int, float] | None], seconds: float) -> Lease | None:
        """A lease taken by a job. Cancelled, it is given back as soon as it is known."""
        if self._closed:  # a member that watches others would come back, once it has been given back
            raise BrokerError("this transport is closed; open another")
        taking = self._database.write(work)
        try:
            taken = await asyncio.shield(taking)
        except asyncio.CancelledError:
            taking.add_done_callback(self._give_back)
            raise
        return None if taken is None else self.hold(*taken, seconds)

    def _give_back(self, taking: asyncio.Future[tuple[int, float] | None]) -> None:
        if not taking.cancelled() and taking.exception() is None and (taken := taking.result()) is not None:
            self._drop_soon(taken[0])

    def hold(self, number: int, expires: float, seconds: float) -> Lease:
        """Renew from now on the lease that a job has taken."""
        lease = Lease(number, seconds, expires, self)
        if not lease.lost.is_set():
            self._held[number] = lease
            self._database.nudge()
        return lease

    async def release(self, lease: Lease) -> None:
        """Give it back; done even if the caller is cancelled."""
        if self._held.pop(lease.number, None) is not None:
            dropping = self._database.write(partial(self.drop, number=lease.number))
            lease.end()
            await asyncio.shield(dropping)

    def forget(self, lease: Lease) -> None:
        """It is lost: stop renewing it, and make sure that others see so."""
        if self._held.pop(lease.number, None) is not None:
            self._drop_soon(lease.number)
            self._bell.ring_here((LEASES,))

    def end_all(self) -> None:
        """And take none any more."""
        self._closed = True
        for lease in list(self._held.values()):
            lease.end()

    def _drop_soon(self, number: int) -> None:
        self._database.write(partial(self.drop, number=number)).add_done_callback(ignore_failure)

    # --- in the writing thread -------------------------------------------------------------------------------

    def take(
        self, transaction: Transaction, kind: str, name: str, member: str | None, seconds: float
    ) -> tuple[int, float]:
        """Insert a lease; returns its number and when it expires. The caller makes sure that a lock is free."""
        expires = boot_clock() + seconds
        number = transaction.execute(
            "INSERT INTO leases (kind, name, member, door, seconds, expires) VALUES (?, ?, ?, ?, ?, ?)",
            (kind, name, member, self._bell.name, seconds, expires),
        ).lastrowid
        assert number is not None
        transaction.touched.add(LEASES)
        return number, expires

    def drop(self, transaction: Transaction, number: int) -> None:
        _end(transaction, "id = :id", id=number)

    def drop_all(self, transaction: Transaction) -> None:
        _end(transaction, "door = :door", door=self._bell.name)

    def reap(self, transaction: Transaction) -> bool:
        """End the leases that ran out and those of processes that died; whether there were any."""
        ended = [_end(transaction, "door = :door", door=door) for door in self._dead(transaction)]
        return _end(transaction, _OVER, now=boot_clock()) or any(ended)

    def any_ended(self, connection: sqlite3.Connection) -> bool:
        """Whether `reap` would find something."""
        over = connection.execute(f"SELECT 1 FROM leases WHERE {_OVER} LIMIT 1", {"now": boot_clock()}).fetchone()
        return over is not None or bool(self._dead(connection))

    def _dead(self, connection: sqlite3.Connection | Transaction) -> list[str]:
        doors = [door.decode() for (door,) in connection.execute("SELECT DISTINCT door FROM leases")]
        return [door for door in doors if not self._bell.alive(door)]

    def due(self) -> float | None:
        due = min((lease.due for lease in list(self._held.values())), default=None)
        return None if due is None else max(0.0, max(due, self._again) - boot_clock())

    def keep(self, transaction: Transaction) -> Callable[[], None]:
        """Renew what has not run out yet."""
        now, leases = boot_clock(), list(self._held.values())
        self._again = now + min((lease.seconds for lease in leases), default=0.0) / 10  # should it fail
        kept = dict.fromkeys((lease for lease in leases if self._pulse.allows(lease.seconds)), False)
        for lease in kept:
            update = "UPDATE leases SET expires = ? WHERE id = ? AND expires > ?"
            kept[lease] = transaction.execute(update, (now + lease.seconds, lease.number, now)).rowcount > 0
        return partial(self._kept, kept, now)

    def _kept(self, kept: Mapping[Lease, bool], now: float) -> None:
        for lease, good in kept.items():
            if good:
                lease.renewed(now)
            else:
                lease.end_soon()


def _end(transaction: Transaction, condition: str, **values: object) -> bool:
    """Delete leases; what their consumers had been lent is free again. Whether there were any."""
    ended = transaction.execute(f"DELETE FROM leases WHERE {condition} RETURNING id, kind, name", values).fetchall()
    for number, kind, name in ended:
        transaction.touched.add(LEASES)
        if kind == b"consumer":
            transaction.execute(
                "UPDATE pending SET holder = NULL, until = NULL, ready = 0 WHERE grp = ? AND holder = ?",
                (int(name), number),
            )
            transaction.touched.update(
                topic for (topic,) in transaction.execute("SELECT topic FROM groups WHERE id = ?", (int(name),))
            )
    return bool(ended)
