"""How a worker's commits reach the broker: by the broker's own fencing, or by reading back what was appended.

Both take the commits of many tasks in one call, and answer for each task by itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Protocol

import msgspec
from thalweg.capabilities import Claim, Commit, Fencing, Log
from thalweg.errors import AmbiguousCommit, BrokerError, Fenced
from thalweg.message import Message, Position

from .records import Fold, Marker, decode_entry

__all__ = ["FencedWriter", "JournalKey", "JournalWriter", "ReadBackWriter", "Written"]

JournalKey = tuple[str, int]
"""The topic and partition of a journal."""


class Written(msgspec.Struct, frozen=True):
    """Where the first and the last record of a commit lie, and the last one's bytes (for the checksum)."""

    first: Position
    position: Position
    data: bytes


class JournalWriter(Protocol):
    @property
    def atomic_outputs(self) -> bool:
        """Whether outputs given to `commit` are part of it; if not they must go through an outbox."""
        ...

    async def claim(self, journal: JournalKey, marker: Message) -> None:
        """Become the owner. Raises BrokerError; a failure leaves nothing owned."""
        ...

    async def commit(self, commits: Mapping[JournalKey, Commit]) -> Mapping[JournalKey, Written | BrokerError]:
        """Write all; for each journal where it lies, or why the task must be closed. Raises nothing else."""
        ...

    def forget(self, journal: JournalKey) -> None:
        """This worker is no longer the owner."""
        ...


class FencedWriter:
    """Capability.FENCING: one atomic call for all tasks and all outputs, or as few as `most` messages a call allow.

    A commit above it by itself is written in steps: journal records do not count before their last one is there (chunks
    of an entry), or may stand alone (parts of a snapshot), so only the last step must hold all the outputs.
    """

    atomic_outputs = True

    def __init__(self, fencing: Fencing, most: int | None = None) -> None:
        """`most`: `Limits.commit_messages`. No commit may have `most` outputs or more."""
        self._fencing = fencing
        self._most = most
        self._claims: dict[JournalKey, Claim] = {}

    async def claim(self, journal: JournalKey, marker: Message) -> None:
        self._claims[journal] = await self._fencing.claim(journal[0], journal[1], marker)

    async def commit(self, commits: Mapping[JournalKey, Commit]) -> Mapping[JournalKey, Written | BrokerError]:
        results: dict[JournalKey, Written | BrokerError] = {}
        claims = {journal: self._claims[journal] for journal in commits}  # one claimed anew meanwhile gets another
        for call in [commits] if self._most is None else _calls(commits, self._most):
            await self._call(call, claims, results)
        return results

    async def _call(
        self,
        commits: Mapping[JournalKey, Commit],
        claims: Mapping[JournalKey, Claim],
        results: dict[JournalKey, Written | BrokerError],
    ) -> None:
        """Write these, except those of which an earlier step has failed."""
        left = {j: commit for j, commit in commits.items() if not isinstance(results.get(j), BrokerError)}
        while left:
            try:
                positions = await self._fencing.commit({claims[journal]: commit for journal, commit in left.items()})
            except Fenced as error:
                lost = {journal for journal in left if journal in error.partitions} or set(left)
                results.update(dict.fromkeys(lost, error))
                for journal in lost:  # nothing was written at all: the others' commits go again, unchanged
                    del left[journal]
            except BrokerError as error:
                results.update(dict.fromkeys(left, error))
                break
            else:
                for journal, commit in left.items():
                    where, before = positions[claims[journal]], results.get(journal)
                    first = before.first if isinstance(before, Written) else where[0]
                    results[journal] = Written(first, where[-1], commit.records[-1].value or b"")
                break

    def forget(self, journal: JournalKey) -> None:
        self._claims.pop(journal, None)


def _calls(commits: Mapping[JournalKey, Commit], most: int) -> Iterator[Mapping[JournalKey, Commit]]:
    """The same commits in calls of at most `most` messages each, in their order."""
    call: dict[JournalKey, Commit] = {}
    size = 0
    for journal, commit in commits.items():
        outputs = sum(map(len, commit.outputs.values()))
        if size + len(commit.records) + outputs > most:
            yield call
            call, size = {}, 0
        ahead = max(0, len(commit.records) + outputs - most)
        for start in range(0, ahead, most):
            yield {journal: Commit(commit.records[start : min(start + most, ahead)])}
        call[journal] = Commit(commit.records[ahead:], commit.outputs) if ahead else commit
        size += len(commit.records) - ahead + outputs
    yield call


class ReadBackWriter:
    """For every other log: append, then count as committed only what is read back as it should be (design rule 1)."""

    atomic_outputs = False

    def __init__(self, open_log: Callable[[str], Awaitable[Log]], timeout: float = 30.0) -> None:
        self._open_log = open_log
        self._timeout = timeout
        self._logs: dict[str, Log] = {}
        self._tails: dict[JournalKey, _Tail] = {}

    async def _log(self, topic: str) -> Log:
        if topic not in self._logs:
            self._logs[topic] = await self._open_log(topic)
        return self._logs[topic]

    async def claim(self, journal: JournalKey, marker: Message) -> None:
        log = await self._log(journal[0])
        tail = _Tail(journal, (await log.bounds(journal[1])).last)
        await log.append({journal[1]: [marker]}, positions=False)
        token = decode_entry(marker.value or b"").token
        await self._read_back({journal: tail}, lambda tail: tail.token == token)
        tail.fenced = False  # a marker before ours is the owner that we succeed
        self._tails[journal] = tail

    async def commit(self, commits: Mapping[JournalKey, Commit]) -> Mapping[JournalKey, Written | BrokerError]:
        results: dict[JournalKey, Written | BrokerError] = {}
        by_topic: dict[str, dict[JournalKey, _Tail]] = {}
        for journal in commits:  # the tails as of now: one that is claimed anew meanwhile gets another
            by_topic.setdefault(journal[0], {})[journal] = self._tails[journal]
        for topic, tails in by_topic.items():
            try:
                for tail in tails.values():
                    tail.first = None
                records = {j[1]: commits[j].records for j in tails}
                await (await self._log(topic)).append(records, positions=False)
                wanted = {j: decode_entry(commits[j].records[-1].value or b"").number for j in tails}
                await self._read_back(
                    tails,
                    lambda tail: tail.fenced or tail.fold.number >= wanted[tail.journal],  # noqa: B023 - called here
                )
            except BrokerError as error:
                results.update(dict.fromkeys(tails, error))
                continue
            for journal, tail in tails.items():
                if tail.fenced:
                    lost = f"journal {journal[0]!r} partition {journal[1]} has a newer owner"
                    results[journal] = Fenced(lost, frozenset([journal]))
                else:
                    data = commits[journal].records[-1].value or b""
                    results[journal] = Written(tail.first or 0, tail.position or 0, data)
        return results

    async def _read_back(self, tails: Mapping[JournalKey, _Tail], done: Callable[[_Tail], bool]) -> None:
        waiting = {journal[1]: tail for journal, tail in tails.items() if not done(tail)}
        while waiting:
            log = await self._log(next(iter(tails))[0])
            batches = await log.read({p: tail.position for p, tail in waiting.items()}, 1000, 1 << 24, self._timeout)
            if not batches:
                raise AmbiguousCommit(f"an append was not seen in the log within {self._timeout:g} s")
            for partition, batch in batches.items():
                tail = waiting[partition]
                for position, record in zip(batch.positions, batch.records, strict=True):
                    tail.feed(position, record.value)
                    if done(tail):
                        del waiting[partition]
                        break

    def forget(self, journal: JournalKey) -> None:
        self._tails.pop(journal, None)


class _Tail:
    """The end of one journal as it is read back."""

    def __init__(self, journal: JournalKey, position: Position | None) -> None:
        self.journal = journal
        self.position = position
        self.first: Position | None = None  # of the records of the commit under way
        self.fold = Fold()
        self.token = b""
        self.fenced = False

    def feed(self, position: Position, data: bytes | None) -> None:
        self.position = position
        number = self.fold.number
        entry = self.fold.feed(data)
        if self.first is None and self.fold.number != number:
            self.first = position
        if isinstance(entry, Marker):
            self.fenced = bool(self.token)
            self.token = entry.token
