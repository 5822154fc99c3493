"""What the members of a group tell each other, and how the one that leads shares the tasks out.

Each says what it holds, and how all was shared out when it last heard. The leader answers each with its share and the
plan. What the plan moves is nobody's until its old holder says that it holds it no more: so no task has two owners on
its way, and what stays is not touched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import msgspec
from thalweg.assignment import Assignment, Assignor, Member, checked, shares, sticky
from thalweg.capabilities import Part

__all__ = ["Door", "Plan", "Verdict", "Word", "newcomers", "share_out"]


class Plan(msgspec.Struct, array_like=True, frozen=True):
    """Who is to own what, as agreed in a generation of the group.

    names: of all who had a part in it. owners, standbys: for each task indices in `names`; an owner may be -1, nobody.
    """

    generation: int = -1
    names: Sequence[str] = ()
    owners: Sequence[int] = ()
    standbys: Sequence[Sequence[int]] = ()

    @classmethod
    def of(cls, generation: int, names: Sequence[str], assignment: Assignment) -> Plan:
        places = {name: index for index, name in enumerate(names)}
        owners = [-1 if owner is None else places[owner] for owner in assignment.owners]
        return cls(generation, names, owners, [[places[name] for name in some] for some in assignment.standbys])

    @property
    def assignment(self) -> Assignment:
        names = self.names
        owners = [names[index] if index >= 0 else None for index in self.owners]
        return Assignment(owners, [[names[index] for index in some] for some in self.standbys])

    def part_of(self, name: str) -> Part | None:
        if name not in self.names:
            return None
        place = self.names.index(name)
        return Part(
            frozenset(task for task, owner in enumerate(self.owners) if owner == place),
            frozenset(task for task, some in enumerate(self.standbys) if place in some),
        )


class Word(msgspec.Struct, array_like=True, frozen=True):
    """What a member says of itself: how many tasks it knows of, what it may be working on, whether it wants none now.

    name: what plans call it. plan: the last that it has heard.
    """

    n: int
    claimed: frozenset[int]
    resting: bool = False
    name: str = ""
    zone: str = ""
    plan: Plan = Plan()


class Verdict(msgspec.Struct, array_like=True, frozen=True):
    """What a member is told beside its share. more: some task is still to be given up, and the group agrees anew."""

    more: bool
    plan: Plan


class Door:
    """Newcomers come in together, so that many who start at once move tasks once: when none has come for `calm`
    seconds, or the first has waited for ten times that."""

    def __init__(self, calm: float) -> None:
        self._calm = calm
        self._came: dict[str, float] = {}

    def wait(self, waiting: Collection[str], now: float) -> float:
        """Seconds until those who wait are let in; 0: now."""
        self._came = {name: self._came.get(name, now) for name in waiting}
        times = self._came.values()
        return max(0.0, min(max(times) + self._calm, min(times) + 10 * self._calm) - now) if times else 0.0


def newcomers(words: Mapping[str, Word]) -> frozenset[str]:
    """Names of those without a part in the last plan, as long as someone is there who has one, and works."""
    named = _by_name(words)
    insiders = _last(words).names
    if not any(name in insiders and not word.resting for name, word in named.items()):
        return frozenset()
    return frozenset(name for name, word in named.items() if name not in insiders and not word.claimed)


def share_out(
    group: str,
    n: int,
    generation: int,
    words: Mapping[str, Word],
    outside: Collection[str] = (),
    assignor: Assignor = sticky,
    standbys: int = 0,
) -> tuple[Mapping[str, frozenset[int]], Verdict]:
    """The share of each member, by its id, and what all of them are told. outside: those who get nothing yet."""
    named = _by_name(words)
    held = {name: word.claimed for name, word in named.items()}
    inside = sorted(name for name in named if name not in outside)
    working = [Member(name, named[name].zone) for name in inside if not named[name].resting]
    if working:
        previous = _previous(_last(words).assignment, n, held, {member.name for member in working})
        wanted = checked(assignor, group, n, working, previous, standbys)
    else:
        wanted = Assignment([None] * n)
    given = shares(wanted, held)
    more = any(not claimed <= given[name] for name, claimed in held.items())
    ids = dict(zip(named, words, strict=True))
    return {ids[name]: share for name, share in given.items()}, Verdict(more, Plan.of(generation, inside, wanted))


def _last(words: Mapping[str, Word]) -> Plan:
    return max((word.plan for word in words.values()), key=lambda plan: plan.generation, default=Plan())


def _by_name(words: Mapping[str, Word]) -> dict[str, Word]:
    """In the same order. One whose name another has, too (it came back before it was missed), is told apart."""
    count = Counter(word.name for word in words.values())
    return {
        word.name if word.name and count[word.name] == 1 else f"{word.name}/{member}": word
        for member, word in words.items()
    }


def _previous(last: Assignment, n: int, held: Mapping[str, Collection[int]], working: Collection[str]) -> Assignment:
    """Each task's owner is whom it was meant for, if that one is still there; else who holds it."""
    holders = {task: name for name in sorted(held, reverse=True) if name in working for task in held[name]}
    planned = [*last.owners[:n], *[None] * (n - len(last.owners))]
    owners = [owner if owner in working else holders.get(task) for task, owner in enumerate(planned)]
    return Assignment(owners, last.standbys[:n])
