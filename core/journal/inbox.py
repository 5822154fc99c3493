"""The consumer's side of exactly-once where outputs do not commit atomically: an inbox an (agent, partition).

An inbox is given the records of one partition in log order, and gives back those to handle, in the order to handle
them. Records without an origin (`origin.py`) pass as they come. Those of a producing journal pass in the order of
their ids, each once:

- its *watermark* is the id up to which all is settled: handled, in the hands of the agent, or known to be before this
  consumer's start. A record at or below it is a copy and is dropped.
- a record whose `prev` is at or below the watermark is next. Another is *parked*: what it must wait for is still to
  come, for a producer sends what it has not seen confirmed again.
- a record's `floor` says that all up to it lies in the log *before* this record. So it has been seen, or lies before
  the start, or the broker has lost it; there is no waiting for it. Parked records up to the floor are released, in
  order, and the watermark is raised to it.

Crashes. `export` gives what to commit: the watermarks as of the events that have *finished*, and `resume`, the
position to read after, which never passes a record that is parked or unfinished. After a restart records are read
again from there, and those at or below a watermark are dropped. Records without an origin have no id; their
*positions* serve: the row under `PLAIN` holds the last one finished. The same makes it harmless to read again from
any earlier position. (Someone who resets a reader's position in order to handle messages twice must drop the rows.)

Bounds. A producer has at most `WINDOW` outputs under way and each says how far it was confirmed, so no honest producer
makes an inbox park more; beyond `MAX_PARKED` records the next is refused. At most `MAX_PRODUCERS` journals are
remembered. Forgetting one must neither lose nor duplicate: the largest forgotten epoch is kept (the row `FORGOTTEN`),
and a record of an unknown journal with an epoch up to that is refused, for it may be a copy of one already handled.
Newer owners have newer epochs, hence pass. What is refused is for the dead letter, with its reason: never silent.

Pure logic, no I/O.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final

import msgspec
from thalweg.errors import DecodeError
from thalweg.message import Position, Record

from .origin import NONE_YET, Origin, OutputId, destination_of, origin_of
from .outbox import WINDOW

__all__ = ["FORGOTTEN", "MAX_PARKED", "MAX_PRODUCERS", "PLAIN", "Accepted", "Inbox"]

MAX_PARKED = 4 * WINDOW
"""Most records parked for one producer."""

MAX_PRODUCERS = 65_536
"""Most producing journals remembered by one inbox."""

PLAIN: Final = b""
"""The row of records without an origin: (0, position of the last one finished)."""

FORGOTTEN: Final = b"forgotten"
"""The row with (the largest epoch of any forgotten producer, 0)."""


class Accepted(msgspec.Struct, frozen=True, gc=False):
    """A record to handle, or to dead-letter if it is `refused`; either way it must be finished.

    warning: what is wrong with its origin, because of which it is handled as if it had none. refused: why nobody can
    tell whether it was handled before.
    """

    position: Position
    record: Record
    journal: bytes = PLAIN
    id: OutputId = NONE_YET
    warning: str | None = None
    refused: str | None = None


class _Producer:
    """One journal's outputs as this inbox knows them."""

    __slots__ = ("parked", "seen", "watermark")

    def __init__(self, watermark: OutputId) -> None:
        self.watermark = watermark
        self.parked: dict[OutputId, tuple[OutputId, Accepted]] = {}  # by id: prev and the record
        self.seen: Position = -1  # position of its latest record


class Inbox:
    """Decides for each record of one topic's partition whether it is handled now, later or not at all."""

    def __init__(
        self,
        topic: str,
        partition: int,
        start: Position | None = None,
        rows: Mapping[bytes, OutputId] | None = None,
        max_producers: int = MAX_PRODUCERS,
    ) -> None:
        """`start`: the position that is read after (None: the beginning). `rows`: all that was ever exported."""
        rows = dict(rows or {})
        self._destination = destination_of(topic, partition)
        self._plain = rows.pop(PLAIN, (0, -1))[1]
        self._forgotten = rows.pop(FORGOTTEN, NONE_YET)[0]
        self._producers = {journal: _Producer(watermark) for journal, watermark in rows.items()}
        self._max_producers = max_producers
        self._read = start
        self._held: dict[Position, Position | None] = {}  # parked or unfinished, in log order: the position before it
        self._unfinished: deque[Accepted] = deque()
        self._changed: dict[bytes, OutputId | None] = {}

    # --- reading ---

    def receive(self, position: Position, record: Record) -> list[Accepted]:
        """The next record of the partition: what is to be handled now, in this order. Often just this record."""
        if self._read is not None and position <= self._read:
            raise ValueError(f"position {position} does not come after {self._read}")
        before, self._read = self._read, position
        origin, warning = None, None
        if record.headers:
            try:
                origin = origin_of(record.headers, self._destination)
            except DecodeError as error:
                warning = str(error)
        if origin is None:
            if position <= self._plain:
                return []
            return self._accept(before, Accepted(position, record, warning=warning))
        producer = self._producer_of(origin)
        if isinstance(producer, str):
            return self._accept(before, Accepted(position, record, refused=producer))
        producer.seen = position
        return self._admit(producer, origin, before, Accepted(position, record, origin.journal, origin.id))

    def may_bypass(self, first: Position) -> bool:
        """Whether records without an origin, from position `first` on, may go by (see `passed`)."""
        return not self._held and first > self._plain

    def passed(self, position: Position) -> None:
        """Records up to here bypassed the inbox, for none has an origin. Only while nothing is held.

        A partition without origins costs nothing that way; whoever does so tracks what of it is unfinished himself.
        """
        if self._held:
            raise ValueError(f"{len(self._held)} records are parked or unfinished: none may bypass the inbox")
        self._read = position

    def _admit(self, producer: _Producer, origin: Origin, before: Position | None, record: Accepted) -> list[Accepted]:
        ready = self._settle(producer, origin.floor)
        if origin.id <= producer.watermark or origin.id in producer.parked:
            return ready
        if origin.prev <= producer.watermark:
            producer.watermark = origin.id
            ready += self._accept(before, record)
            return ready + self._release(producer) if producer.parked else ready
        if len(producer.parked) >= MAX_PARKED:
            refused = f"more than {MAX_PARKED} outputs of its producer wait for an earlier one"
            return ready + self._accept(before, Accepted(record.position, record.record, refused=refused))
        producer.parked[origin.id] = (origin.prev, record)
        self._held[record.position] = before
        return ready

    def _settle(self, producer: _Producer, floor: OutputId) -> list[Accepted]:
        """All up to `floor` lies before this record in the log: what of it is parked need not wait any longer."""
        if floor <= producer.watermark:
            return []
        ready = [producer.parked.pop(id)[1] for id in sorted(producer.parked) if id <= floor]
        self._unfinished += ready
        producer.watermark = floor
        return ready + self._release(producer)

    def _release(self, producer: _Producer) -> list[Accepted]:
        """The parked records whose turn has come, now that the watermark is where it is."""
        ready = []
        for id in sorted(producer.parked):
            prev, record = producer.parked[id]
            if prev <= producer.watermark < id:
                del producer.parked[id]
                ready.append(record)
                producer.watermark = id
        orphans = [id for id in producer.parked if id <= producer.watermark]  # the journal has lost their commits
        for id in orphans:
            del self._held[producer.parked.pop(id)[1].position]
        self._unfinished += ready
        return ready

    def _accept(self, before: Position | None, record: Accepted) -> list[Accepted]:
        self._held[record.position] = before
        self._unfinished.append(record)
        return [record]

    # --- committing ---

    def finished(self, count: int) -> None:
        """The first `count` accepted records that were unfinished are finished: `export` and `resume` include them."""
        if not 0 <= count <= len(self._unfinished):
            raise ValueError(f"{count} records finished, but {len(self._unfinished)} were unfinished")
        for _ in range(count):
            record = self._unfinished.popleft()
            del self._held[record.position]
            if record.journal:
                self._changed[record.journal] = record.id
            else:
                self._plain = record.position
                self._changed[PLAIN] = (0, record.position)

    @property
    def resume(self) -> Position | None:
        """The position to read after on a restart (None: the beginning): all records up to it are done with."""
        return next(iter(self._held.values())) if self._held else self._read

    @property
    def oldest_parked(self) -> Position | None:
        """The position of the oldest parked record, None if none is: for metrics."""
        return min(
            (record.position for producer in self._producers.values() for _, record in producer.parked.values()),
            default=None,
        )

    def export(self) -> dict[bytes, OutputId | None]:
        """The rows that changed since the last call (None: delete it); to be committed together with `resume`."""
        changed, self._changed = self._changed, {}
        resume = self.resume
        if PLAIN in changed and resume is not None and self._plain <= resume:
            del changed[PLAIN]  # no such record will be read again
        return changed

    # --- producers ---

    def _producer_of(self, origin: Origin) -> _Producer | str:
        """The producer of the record, or why its record is refused."""
        known = self._producers.get(origin.journal)
        if known is not None:
            return known
        if origin.id[0] <= self._forgotten:
            return f"its producer may be one of those forgotten (their epochs: up to {self._forgotten})"
        if len(self._producers) >= self._max_producers and not self._forget():
            return f"{self._max_producers} other producers have outputs under way"
        return self._producers.setdefault(origin.journal, _Producer(NONE_YET))

    def _forget(self) -> bool:
        """Forget a tenth of the producers, those silent for longest, but none whose records a restart would read."""
        resume = self.resume
        if resume is None:
            return False
        idle = [journal for journal, producer in self._producers.items() if producer.seen <= resume]
        idle.sort(key=lambda journal: self._producers[journal].seen)
        for journal in idle[: max(1, len(self._producers) // 10)]:
            self._forgotten = max(self._forgotten, self._producers.pop(journal).watermark[0])
            self._changed[journal] = None
            self._changed[FORGOTTEN] = (self._forgotten, 0)
        return bool(idle)
