"""How a worker's commits reach the broker: by the broker's own fencing, or by reading back (`readback.py`).

Both take the commits of many tasks in one call, and answer for each task by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import msgspec
from thalweg.capabilities import Claim, Commit, Fencing
from thalweg.errors import BrokerError, Fenced
from thalweg.message import Message, Position

__all__ = ["FencedWriter", "JournalKey", "JournalWriter", "Outcome", "Written"]

JournalKey = tuple[str, int]
"""The topic and partition of a journal."""


class Written(msgspec.Struct, frozen=True):
    """Where the first and the last record of a commit lie, and the last one's bytes (for the checksum)."""

    first: Position
    position: Position
    data: bytes


Outcome = Written | Exception


class JournalWriter(Protocol):
    @property
    def atomic_outputs(self) -> bool:
        """Whether outputs given to `commit` are part of it; if not they must go through an outbox."""
        ...

    async def claim(self, journal: JournalKey, marker: Message) -> None:
        """Become the owner. Raises BrokerError; a failure leaves nothing owned."""
        ...

    async def commit(self, commits: Mapping[JournalKey, Commit], done: Callable[[JournalKey, Outcome], None]) -> None:
        """Write all, and tell of each journal, as soon as it is known, where it lies or why the task must be closed.

        What it raises is the outcome of those not told of.
        """
        ...

    def forget(self, journal: JournalKey) -> None:
        """This worker is no longer the owner."""
        ...

    async def close(self) -> None:
        """Free everything."""
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
        self._turn = asyncio.Lock()

    async def claim(self, journal: JournalKey, marker: Message) -> None:
        self._claims[journal] = await self._fencing.claim(journal[0], journal[1], marker)

    async def commit(self, commits: Mapping[JournalKey, Commit], done: Callable[[JournalKey, Outcome], None]) -> None:
        results: dict[JournalKey, Written | BrokerError] = {}
        claims = {journal: self._claims[journal] for journal in commits}  # one claimed anew meanwhile gets another
        async with self._turn:
            for call in [commits] if self._most is None else _calls(commits, self._most):
                await self._call(call, claims, results)
        for journal, result in results.items():
            done(journal, result)

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

    async def close(self) -> None:
        self._claims.clear()


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
        call[journal] = Commit(commit.records[ahead:], commit.outputs, commit.release) if ahead else commit
        size += len(commit.records) - ahead + outputs
    yield call
