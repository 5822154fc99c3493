"""One topic-partition as an agent reads it: what was fetched, handed out and finished."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
from thalweg import headers as names
from thalweg.capabilities import Log
from thalweg.errors import Gap
from thalweg.event import order_time
from thalweg.journal.inbox import Accepted, Inbox
from thalweg.journal.origin import HEADER
from thalweg.journal.records import checksum
from thalweg.journal.rows import Reached, ahead_key, below, decode, encode, reached_key, watermark_key
from thalweg.message import Batch, Position, Record
from thalweg.plan import SourcePlan, TopicPlan
from thalweg.signing import Signer
from thalweg.store import Store

from .placement import PlacementCheck
from .remembered import RememberedIds
from .watermark import Range, Segment, Watermark

if TYPE_CHECKING:
    from .agent_task import AgentTask

__all__ = ["Fetched", "TopicInput", "history_changed"]


class Fetched(msgspec.Struct, gc=False):
    """Records that wait to be handed out.

    inbox: they came through it, so it is told as they finish. ours: some record carries a header of Thalweg's, which
    the fast path does not look at.
    """

    records: Sequence[Record]
    positions: Sequence[Position]
    inbox: Inbox | None
    ours: bool


class TopicInput:
    """`checksum` in `Reached` is 0 where the record at the position is not known (an inbox holds the position back)."""

    def __init__(self, agent: AgentTask, source: SourcePlan, partition: int) -> None:
        self.agent = agent
        self.name = f"{agent.plan.name}/{source.topic.name}"
        self.topic: TopicPlan = source.topic
        self.ops = source.ops
        self.partition = partition
        self.buffer: deque[Fetched] = deque()
        self.fetched: Position | None = None
        self.caught_up = False  # the last read gave less than it could have
        self.watermark = Watermark()
        self.committed = Reached(None, 0)
        self._last: Position | None = None  # of the records received
        self._placement = PlacementCheck(source.topic, partition)
        self._signer = agent.task.settings.signer
        self._inbox = Inbox(source.topic.name, partition)
        self._ahead: list[Range] = []  # finished beyond `committed`, as the journal knows it
        self._ids: RememberedIds | None = None
        self._skip: list[Range] = []  # of these, what the last owner had finished: it will be read again

    def restore(self, reached: Reached, store: Store) -> None:
        """Begin where the journal says."""
        self.committed = reached
        self._last = self.watermark.position = reached.position
        self.fetched = reached.position if reached.passed is None else reached.passed
        start = watermark_key(self.name, b"")
        rows = {
            key[len(start) :]: decode(value, type=tuple[int, int]) for key, value in store.scan(start, below(start))
        }
        self._inbox = Inbox(self.topic.name, self.partition, reached.position, rows)
        self._ids = RememberedIds(self.name, self.agent.task.settings.remember_ids, store)
        raw = store.get(ahead_key(self.name))
        self._ahead = self._skip = [] if raw is None else decode(raw, type=list[Range])

    @property
    def has_finished(self) -> bool:
        """Whether some of what will be read has been finished by an owner before."""
        return bool(self._skip)

    def was_finished(self, position: Position) -> bool:
        """Whether an owner before this one finished the record, behind one that was still open when it ended."""
        place = bisect_right(self._skip, position, key=_first) - 1
        return place >= 0 and position <= self._skip[place][1]

    def is_copy(self, record: Record, position: Position) -> bool:
        """Whether another record had the id that its sender gave it."""
        return self._ids is not None and self._ids.is_copy(record, position, round(self.agent.clock.now() * 1000))

    def head(self) -> int | None:
        """Timestamp (ms) of the next record."""
        return order_time(self.topic, self.buffer[0].records[0]) if self.buffer else None

    @property
    def wants_more(self) -> bool:
        return len(self.buffer) < 2

    def receive(self, batch: Batch) -> Sequence[Accepted]:
        """Take in what was fetched; returns what cannot be handled as it is (refused, or with a broken origin).

        Raises `TopicMismatch` if the first of all were placed by another partitioner.
        """
        if self._signer is not None:
            batch = self._believed(batch, self._signer)
        if not self._placement.done:
            self._placement.look(batch)
        self.fetched = self._last = batch.positions[-1]
        ours = outboxed = False
        for record in batch.records:
            if record.headers:
                for name, _ in record.headers:
                    if name.startswith(names.PREFIX):
                        ours = True
                        outboxed = outboxed or name == HEADER
        if not outboxed and self._inbox.may_bypass(batch.positions[0]):
            self._inbox.passed(batch.positions[-1])
            self.buffer.append(Fetched(batch.records, batch.positions, None, ours))
            return ()
        accepted = [
            one
            for position, record in zip(batch.positions, batch.records, strict=True)
            for one in self._inbox.receive(position, record)
        ]
        if accepted:
            records, positions = [one.record for one in accepted], [one.position for one in accepted]
            self.buffer.append(Fetched(records, positions, self._inbox, True))
        return [one for one in accepted if one.refused or one.warning]

    def _believed(self, batch: Batch, signer: Signer) -> Batch:
        records = [signer.believed(self.topic.name, self.partition, record) for record in batch.records]
        for position, record, believed in zip(batch.positions, batch.records, records, strict=True):
            if believed is not record:
                self.agent.task.worker.complaints.warn(
                    f"signature: {self.topic.name}",
                    "topic %r partition %d: the record at position %d has headers of Thalweg's that are not signed "
                    "with the secret of this app; they count for nothing",
                    *(self.topic.name, self.partition, position),
                )
        return Batch(records, batch.positions)

    def pass_to(self, position: Position) -> None:
        """No record lies behind what was received, up to this position."""
        if self._last is not None and self.fetched is not None and position > self.fetched:
            self.fetched = position
            self.agent.task.has_work = True

    def take(self, count: int | None = None) -> tuple[Fetched, Segment]:
        """Hand out the next records, at most `count`."""
        fetched = self.buffer.popleft()
        if count is not None and count < len(fetched.records):
            rest = Fetched(fetched.records[count:], fetched.positions[count:], fetched.inbox, fetched.ours)
            self.buffer.appendleft(rest)
            fetched = Fetched(fetched.records[:count], fetched.positions[:count], fetched.inbox, fetched.ours)
        return fetched, self.watermark.hand_out(fetched.records, fetched.positions, fetched.inbox)

    def collect(self, rows: dict[bytes, bytes | None]) -> bool:
        """Add to a commit's rows how far this input is finished; whether that is farther than before."""
        if self._ids is not None:
            self._ids.collect(rows)
        moved = self.watermark.advance()
        reached = -1 if self.watermark.position is None else self.watermark.position
        self._skip = [one for one in self._skip if one[1] > reached]
        ahead = _merged([*self.watermark.ahead(), *self._skip])
        news = ahead != self._ahead
        if news:
            self._ahead = ahead
            rows[ahead_key(self.name)] = encode(ahead) if ahead else None
        passed = self.fetched if self.fetched != self._last == self.watermark.position else None
        if not moved:
            if passed is not None and passed != self.committed.passed:
                self.committed = Reached(self.committed.position, self.committed.checksum, passed)
                rows[reached_key(self.name)] = encode(self.committed)
            return news
        self.committed = Reached(self.watermark.position, self.watermark.checksum, passed)
        rows[reached_key(self.name)] = encode(self.committed)
        for journal, id_ in self._inbox.export().items():
            rows[watermark_key(self.name, journal)] = None if id_ is None else encode(id_)
        return True


def _first(one: Range) -> Position:
    return one[0]


def _merged(ranges: list[Range]) -> list[Range]:
    """In order; those that overlap made one."""
    merged: list[Range] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged


async def history_changed(topic: Log, partition: int, reached: Reached) -> bool:
    """Whether the record at the stored position is not the one that was read there (design rule 3).

    It may be gone (retention, compaction): whether anything after it is gone too, reading on will tell.
    """
    if reached.position is None:
        return False
    last = (await topic.bounds(partition)).last
    if last is not None and last < reached.position:
        return True
    if not reached.checksum:
        return False
    try:
        batch = (await topic.read({partition: reached.position - 1}, 1, 1, 0)).get(partition)
    except Gap:
        return False
    if batch is None or batch.positions[0] != reached.position:
        return False
    return checksum(batch.records[0].value) != reached.checksum
