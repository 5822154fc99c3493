"""A lease as NATS has it, the note that is its message, and how many are renewed at once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Protocol

import msgspec
from thalweg.clock import boot_clock
from thalweg.errors import BrokerError
from thalweg.lease import Lease as TimedLease

from .connection import ApiError, Connection, Endpoint
from .floors import WRONG_SEQUENCE, last_message
from .publish import raw

__all__ = ["Lease", "Note", "Renewal", "read_note", "write_note"]


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
        super().__init__(note.seconds, since + note.seconds)
        self.watch()

    async def release(self) -> None:
        await self._owner.release(self)

    def _ended(self) -> None:
        self._owner.forget(self)


class Renewal:
    """Writes the notes of many leases before it waits for the answers."""

    def __init__(self, endpoint: Endpoint, stream: str) -> None:
        self._connection = Connection(endpoint)
        self._stream = stream
        self.drop, self.close = self._connection.drop, self._connection.close

    async def renew(self, leases: Sequence[Lease]) -> None:
        await self._connection.wire()
        async with asyncio.TaskGroup() as group:
            for lease in leases:
                group.create_task(self._renew(lease))

    async def _renew(self, lease: Lease) -> None:
        asked = boot_clock()
        try:
            lease.last = await write_note(self._connection, lease.subject, lease.note, lease.last)
            lease.renewed(asked)
        except ApiError as error:
            if error.code in WRONG_SEQUENCE:
                with contextlib.suppress(BrokerError):
                    await self._look(lease)
        except BrokerError:
            pass  # the next renewal tells

    async def _look(self, lease: Lease) -> None:
        """Whose it is: another's, or still ours, by a renewal whose answer was lost."""
        found = await last_message(self._connection, self._stream, lease.subject)
        if found is not None and found.data and read_note(found.data).who == lease.note.who:
            lease.last = found.seq
        else:
            lease.end_soon()


async def write_note(connection: Connection, subject: str, note: Note | None, after: int) -> int:
    line = b"Nats-Expected-Last-Subject-Sequence: %d\r\n" % after
    return await raw(connection, subject.encode(), b"" if note is None else msgspec.json.encode(note), line)
