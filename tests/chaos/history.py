"""What happened in one run, as those outside the workers saw it; and the one judge of it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import msgspec

__all__ = ["Claimed", "Failure", "History", "Moment", "Seen", "Stray", "Struck", "Violation"]


class Struck(msgspec.Struct, frozen=True):
    """A fault, its end, or another thing that the run did. pids: of the workers that it hit."""

    at: float
    what: str
    pids: tuple[int, ...] = ()


class Claimed(msgspec.Struct, frozen=True):
    """A journal's marker: from here on the task is this process's. topic: of the journal."""

    at: float
    topic: str
    partition: int
    pid: int
    token: bytes


class Stray(msgspec.Struct, frozen=True):
    """A journal record that counts for nobody, for its writer was no owner any more."""

    at: float
    topic: str
    partition: int
    pid: int


class Seen(msgspec.Struct, frozen=True):
    """A receipt, as the Thalweg program that reads them got it. Twice, if that had to begin anew in between."""

    at: float
    partition: int
    pid: int
    number: int


class Violation(msgspec.Struct, frozen=True):
    """Something that must not be."""

    at: float
    what: str


Moment = Struck | Claimed | Stray | Seen | Violation


class Failure(AssertionError):
    """With the plan, what is wrong, and the history around it."""


class History:
    """Times are seconds since it began.

    recent: how many moments are kept (those of receipts go first): None keeps them all.
    """

    def __init__(self, recent: int | None = None) -> None:
        self.began = time.monotonic()
        self.moments: list[Moment] = []
        self.violations: list[Violation] = []
        self.owners: dict[tuple[str, int], list[Claimed]] = defaultdict(list)
        self._recent = recent

    def now(self) -> float:
        return time.monotonic() - self.began

    def add(self, moment: Moment) -> None:
        self.moments.append(moment)
        if self._recent is not None and len(self.moments) > 2 * self._recent:
            del self.moments[: self._recent]

    def struck(self, what: str, *pids: int) -> float:
        now = self.now()
        self.add(Struck(now, what, pids))
        return now

    def claimed(self, topic: str, partition: int, pid: int, token: bytes) -> None:
        claim = Claimed(self.now(), topic, partition, pid, token)
        self.owners[topic, partition].append(claim)
        self.add(claim)

    def wrong(self, what: str) -> None:
        violation = Violation(self.now(), what)
        self.violations.append(violation)
        self.add(violation)

    def owner(self, topic: str, partition: int) -> int:
        """The process that claimed it last; 0 if none has."""
        claims = self.owners.get((topic, partition))
        return claims[-1].pid if claims else 0

    def since(self, at: float) -> Sequence[Moment]:
        return [moment for moment in self.moments if moment.at >= at]

    def faults(self) -> Iterator[str]:
        return _told([moment for moment in self.moments if isinstance(moment, Struck)])

    def check(self, plan: str) -> None:
        """Raises `Failure` if anything was wrong."""
        if self.violations:
            raise Failure(f"{plan}\n{self.story()}")

    def story(self, around: float = 3.0) -> str:
        """The first violations, and what happened from the last fault on that came before; at least so many seconds."""
        lines = [f"  WRONG: {violation.what}" for violation in self.violations[:10]]
        if len(self.violations) > 10:
            lines.append(f"  … and {len(self.violations) - 10} more")
        at = self.violations[0].at if self.violations else self.now()
        fault = max(
            (moment.at for moment in self.moments if isinstance(moment, Struck) and moment.at <= at), default=at
        )
        near = [moment for moment in self.moments if min(fault, at - around) <= moment.at <= at + around]
        return "\n".join([*lines, "", f"  history around {at:.3f} s:", *(f"    {line}" for line in _told(near))])


def _told(moments: Sequence[Moment]) -> Iterator[str]:
    """A line a moment; the receipts between two others in one line."""
    receipts: list[Seen] = []

    def sum_up() -> Iterator[str]:
        if receipts:
            by_owner: dict[tuple[int, int], list[int]] = defaultdict(list)
            for seen in receipts:
                by_owner[seen.partition, seen.pid].append(seen.number)
            parts = [f"{p} by {pid}: {min(n)}..{max(n)}" for (p, pid), n in sorted(by_owner.items())]
            yield f"{receipts[0].at:8.3f}  {len(receipts)} receipts ({'; '.join(parts)})"
            receipts.clear()

    for moment in moments:
        if isinstance(moment, Seen):
            receipts.append(moment)
            continue
        yield from sum_up()
        match moment:
            case Struck(at, what, pids):
                yield f"{at:8.3f}  ** {what} {' '.join(map(str, pids))}"
            case Claimed(at, topic, partition, pid):
                yield f"{at:8.3f}  {topic}/{partition} claimed by {pid}"
            case Stray(at, topic, partition, pid):
                yield f"{at:8.3f}  {topic}/{partition}: a record of {pid} counts for nobody"
            case Violation(at, what):
                yield f"{at:8.3f}  WRONG: {what}"
    yield from sum_up()


def longest_gap(seen: Mapping[int, Sequence[float]], start: float, stop: float) -> tuple[float, int]:
    """The longest time in seconds without an event of a partition between two moments, and the partition (-1: none)."""
    worst = (0.0, -1)
    for partition, times in seen.items():
        inside = [start, *(at for at in times if start < at < stop), stop]
        worst = max(worst, (max(later - earlier for earlier, later in pairwise(inside)), partition))
    return worst
