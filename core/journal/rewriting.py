"""A task's whole state replaced by somebody who is no worker: a reset, or a backup that is restored.

The journal is claimed as an owner would claim it, so that a worker which runs nevertheless is fenced. Then comes a
snapshot that voids all before it (`Begin.anew`), and a release. Until the end a row, `UNFINISHED`, says that the state
is not whole: a worker refuses to open such a task, and whoever rewrites the journal again begins anew.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Mapping, Sequence

from thalweg.capabilities import Commit, Log
from thalweg.clock import Clock
from thalweg.errors import BrokerError, Fenced
from thalweg.message import Message, Position

from .records import Begin, End, Entry, Fold, Marker, Part, Release, Rows, messages
from .replay import records_until_now
from .rows import UNFINISHED, encode
from .writer import JournalKey, JournalWriter, Outcome, Written

__all__ = ["Rewriting"]

WAIT = 10.0
"""Seconds that a log may take to give a record that it has."""


class Rewriting:
    """Of one journal: `claim`, `begin`, any number of `add`, `end`. Nothing is undone before `begin`.

    worked: whether a worker has committed anything since the journal was new, or was last rewritten.
    """

    def __init__(
        self, writer: JournalWriter, log: Log, journal: JournalKey, clock: Clock, message_bytes: int | None
    ) -> None:
        self.journal = journal
        self.worked = False
        self._writer, self._log, self._clock, self._limit = writer, log, clock, message_bytes
        self._fold = Fold()
        self._after: Position | None = None
        self._number = 0
        self._begin: Position | None = None

    async def look(self) -> None:
        """Read what lies there. Raises Gap if it is truncated meanwhile: a worker runs."""
        async for position, record in records_until_now(self._log, self.journal[1]):
            self._take(position, record.value)

    def _take(self, position: Position, data: bytes | None) -> None:
        entry = self._fold.feed(data)
        self._after = position
        if self._fold.fresh:
            self.worked = not (isinstance(entry, Begin) and bool(entry.anew))
        elif isinstance(entry, Rows):
            self.worked = True

    async def claim(self, partitions: int, partitioner: str, name: bytes | None = None, epoch: int = 0) -> None:
        """Fence whoever has it. name: what the journal is to be called from here on; else what it was.

        epoch: at least this. Raises Fenced if another has claimed it at the same time.
        """
        fold, was = self._fold, self._fold.marker
        marker = Marker(
            token=secrets.token_bytes(8),
            number=0,
            epoch=max(fold.epoch + 1, epoch, self._now()),
            journal=name or (was.journal if was else secrets.token_bytes(16)),
            owner=f"{socket.gethostname()}/{os.getpid()}",
            partitions=was.partitions if was else partitions,
            partitioner=was.partitioner if was else partitioner,
        )
        await self._writer.claim(self.journal, Message(encode(marker), timestamp=self._now()))
        while fold.marker is None or fold.marker.token != marker.token:
            batch = (await self._log.read({self.journal[1]: self._after}, 2000, 16 << 20, WAIT)).get(self.journal[1])
            if batch is None:
                raise BrokerError(f"journal {self.journal[0]!r} partition {self.journal[1]}: its claim cannot be read")
            for position, record in zip(batch.positions, batch.records, strict=True):
                self._take(position, record.value)
        if fold.beaten:
            raise Fenced(f"journal {self.journal[0]!r} partition {self.journal[1]} has been claimed by a worker")
        self._marker = marker

    async def begin(self, what: str) -> None:
        """From here on the state is that of `add`, and unfinished. what: is done to it, for who finds it so."""
        self._begin = (await self._commit([Begin(b"", 0, self._marker, what)])).first

    async def add(self, rows: Mapping[bytes, bytes]) -> None:
        """In any order; a few MiB at a time."""
        await self._commit([Part(b"", 0, {**rows})])

    async def end(self) -> None:
        """It is whole. Those who own the journal next may go on from it."""
        assert self._begin is not None
        await self._commit([Part(b"", 0, {UNFINISHED: None}), End(b"", 0, self._begin)])
        await self._commit([Release(b"", 0)], release=True)
        self._writer.forget(self.journal)
        await self._log.truncate(self.journal[1], self._begin)

    async def _commit(self, entries: Sequence[Entry], release: bool = False) -> Written:
        records = list(messages([*entries], self._marker.token, self._number + 1, self._limit, self._now()))
        outcomes: list[Outcome] = []
        await self._writer.commit({self.journal: Commit(records, {}, release)}, lambda _, out: outcomes.append(out))
        (outcome,) = outcomes
        if isinstance(outcome, Exception):
            raise outcome
        self._number += len(records)
        return outcome

    def _now(self) -> int:
        return round(self._clock.now() * 1000)
