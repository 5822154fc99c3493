"""What must always hold, looked at while it happens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from thalweg.exclusion import HeldLock
from thalweg.journal.inbox import Inbox
from thalweg.journal.origin import Origin, destination_of, origin_of
from thalweg.journal.records import Fold
from thalweg.journal.writer import JournalKey
from thalweg.message import Position, Record
from thalweg.runtime.ownership import Ownership
from thalweg.runtime.task import Cut, Task, TaskKey
from thalweg.runtime.worker import Worker

from .later import Later
from .plans import Plans

if TYPE_CHECKING:
    from .cluster import Cluster, Member

__all__ = ["Audit"]

ENOUGH = 5
"""So many violations of one seed are noted."""


class Audit:
    """Reads every journal as it grows, and asks the workers what they take for theirs."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.violations: list[str] = []
        self.moves: list[tuple[float, str, str, TaskKey]] = []
        """When which worker opened or closed which task."""
        self.commits = 0
        self._last_number = -1
        self._journals: dict[JournalKey, _Journal] = {}
        self._plans = Plans(self.violated)
        self._timed: dict[int, Position] = {}  # up to where delayed messages were looked at

    @property
    def _later(self) -> Later | None:
        return self._cluster.client.later

    def violated(self, what: str) -> None:
        if len(self.violations) < ENOUGH:
            self.violations.append(f"{self._cluster.loop.time():.3f} {what}")
        self._cluster.note(f"VIOLATED: {what}")

    # --- journals --------------------------------------------------------------------------------------------

    def written(self, topics: Iterable[str]) -> None:
        """Something was written to these logs."""
        for topic in topics:
            if "-journal-" in topic:
                self._read_on(topic)
            elif topic.endswith("-workers"):
                self._plans.read_on(self._cluster.broker.log(topic).partitions[0])
            elif self._later is not None and topic == self._later.topic.name and self._later.on_time:
                self._look_at_the_time(topic)

    def _look_at_the_time(self, topic: str) -> None:
        """Nothing leaves before its time."""
        now = self._cluster.clock.now()
        for partition in self._cluster.broker.log(topic).partitions:
            start = partition.index_after(self._timed.get(partition.number))
            for index in range(len(partition.records) if start is None else start, len(partition.records)):
                self._timed[partition.number] = partition.first + index * partition.step
                early = partition.records[index].timestamp / 1000 - now
                if early > 0.001:
                    self.violated(f"a message left {early:.3f} s before its time")

    def _read_on(self, topic: str) -> None:
        for partition in self._cluster.broker.log(topic).partitions:
            journal = self._journals.setdefault((topic, partition.number), _Journal())
            start = partition.index_after(journal.position)
            if start is None:
                continue
            for index in range(start, len(partition.records)):
                journal.position = partition.first + index * partition.step
                journal.feed(partition.records[index].value)
            if journal.stale and self._cluster.network.options.fencing:
                self.violated(
                    f"journal {topic}/{partition.number} took a record of a worker that was no owner any more"
                )
                journal.stale = False

    def believed(self, task: Task, cut: Cut) -> None:
        """A worker takes this for committed: then it must count for whoever reads the journal."""
        self.commits += 1
        journal = self._journals[task.journal]
        if (cut.token, cut.number) not in journal.counted:
            self.violated(f"task {task.key}: a worker believes in a commit that does not count")

    # --- owners ----------------------------------------------------------------------------------------------

    def owners(self) -> dict[TaskKey, list[str]]:
        """Who would serve a read of each task now."""
        cluster = self._cluster
        running = [member for member in cluster.members if member.runs]
        groups = next((m.worker._groups for m in cluster.members if m.worker is not None), {})
        keys = [(group.name, index) for group in groups.values() for index in range(group.partitions)]
        return {
            key: [member.name for member in running if member.worker and member.worker.serving(*key) is not None]
            for key in keys
        }

    def look_at_owners(self) -> None:
        for key, owners in self.owners().items():
            if len(owners) > 1:
                self.violated(f"task {key} is served by {owners} at once")

    def alone(self, member: Member, held: HeldLock) -> None:
        """A worker has the lock that only one can have."""
        for other in self._cluster.members:
            inside = other.program.held
            if other is not member and other.runs and inside is not None and not inside.lost.is_set():
                self.violated(f"{member.name} and {other.name} hold the lock {held.name!r} at once")
        if held.number <= self._last_number:
            self.violated(f"a new holder of the lock {held.name!r} has the number {held.number}, no larger than before")
        self._last_number = held.number

    # --- outputs ---------------------------------------------------------------------------------------------

    def look_at_late_readers(self, topic: str) -> None:
        """Whoever begins in the midst of a topic gets all outputs of which no copy lies before, once and in order."""
        for partition in self._cluster.broker.log(topic).partitions:
            records = list(self._cluster.network.server.records(topic))
            records = [(position, record) for number, position, record in records if number == partition.number]
            for start in range(0, len(records), max(1, len(records) // 4)):
                self._look_at_late_reader(topic, partition.number, records, start)

    def _look_at_late_reader(
        self, topic: str, partition: int, records: Sequence[tuple[Position, Record]], start: int
    ) -> None:
        def origins(some: Sequence[tuple[Position, Record]]) -> list[Origin]:
            found = [origin_of(record.headers, destination_of(topic, partition)) for _, record in some]
            return [origin for origin in found if origin is not None]

        inbox = Inbox(topic, partition, records[start - 1][0] if start else None)
        got = [one for position, record in records[start:] for one in inbox.receive(position, record)]
        before = {(origin.journal, origin.id) for origin in origins(records[:start])}
        owed = {(origin.journal, origin.id) for origin in origins(records[start:])} - before
        ids = [(one.journal, one.id) for one in got if one.journal]
        if len(set(ids)) < len(ids):
            self.violated(f"who reads {topic}/{partition} from record {start} on gets some twice")
        if owed - set(ids):
            self.violated(f"who reads {topic}/{partition} from record {start} on misses {len(owed - set(ids))}")
        for journal in {journal for journal, _ in ids}:
            of_one = [id for other, id in ids if other == journal]
            if of_one != sorted(of_one):
                self.violated(f"who reads {topic}/{partition} from record {start} on gets them in another order")

    def moved(self, worker: Worker, what: str, key: TaskKey) -> None:
        cluster = self._cluster
        name = next((m.name for m in cluster.members if m.program.app is worker.app), "?")
        self.moves.append((cluster.loop.time(), name, what, key))
        cluster.note(f"{name} {what} {key[0]}/{key[1]}")

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Workers tell of what they do."""
        committed, opens, closes = Task.committed, Worker._open_task, Worker._close_task
        planned = Ownership._stand_by_as_planned
        audit = self

        def committed_(task: Task, cut: Cut, written: Any) -> None:
            audit.believed(task, cut)
            committed(task, cut, written)

        async def opens_(worker: Worker, key: TaskKey) -> None:
            audit.moved(worker, "opens", key)
            await opens(worker, key)

        async def closes_(worker: Worker, key: TaskKey, in_good_order: bool) -> None:
            if in_good_order and not worker._stopping and isinstance(worker.ownership, Ownership):
                audit._plans.gives_up(worker, worker.ownership._plan, key)
            audit.moved(worker, "gives up" if in_good_order else "drops", key)
            await closes(worker, key, in_good_order)

        def planned_(ownership: Ownership) -> None:
            audit._plans.follows(ownership._me, ownership._plan)
            planned(ownership)

        with (
            patch.object(Task, "committed", committed_),
            patch.object(Ownership, "_stand_by_as_planned", planned_),
            patch.object(Worker, "_open_task", opens_),
            patch.object(Worker, "_close_task", closes_),
        ):
            yield


class _Journal:
    def __init__(self) -> None:
        self.fold = Fold()
        self.position: int | None = None
        self.counted: set[tuple[bytes, int]] = set()
        """(token, number) of all records that count."""
        self.stale = False

    def feed(self, data: bytes | None) -> None:
        before = (self.fold.marker, self.fold.number)
        self.fold.feed(data)
        marker = self.fold.marker
        if marker is None or (marker, self.fold.number) == before:
            self.stale = True
        else:
            self.counted.add((marker.token, self.fold.number))
