"""What the members of a group tell each other, and how the one that leads shares the tasks out.

Each says what it holds, and how all was shared out when it last heard. The leader answers each with its share and the
plan. What the plan moves is nobody's until its old holder says that it holds it no more: so no task has two owners on
its way, and what stays is not touched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeAlias

import msgspec
from thalweg.assignment import assign

__all__ = ["Door", "Plan", "Verdict", "Word", "newcomers", "share_out"]


class Plan(msgspec.Struct, array_like=True, frozen=True):
    """Who is to own what, as agreed in a generation of the group.

    names: of all who had a part in it. owners: for each task an index in `names`, or -1.
    """

    generation: int = -1
    names: Sequence[str] = ()
    owners: Sequence[int] = ()

    def owner(self, task: int) -> str | None:
        index = self.owners[task] if task < len(self.owners) else -1
        return self.names[index] if index >= 0 else None


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


Owners: TypeAlias = Callable[[str, int, Sequence[str], Sequence[str | None]], Sequence[str | None]]
"""Of a group's n tasks, among members with these names, as they were owned before."""


class Door:
    """Newcomers come in together, so that many who start at once move tasks once: when none has come for `calm`
    seconds, or the first has waited for three times that."""

    def __init__(self, calm: float) -> None:
        self._calm = calm
        self._came: dict[str, float] = {}

    def wait(self, waiting: Collection[str], now: float) -> float:
        """Seconds until those who wait are let in; 0: now."""
        self._came = {name: self._came.get(name, now) for name in waiting}
        times = self._came.values()
        return max(0.0, min(max(times) + self._calm, min(times) + 3 * self._calm) - now) if times else 0.0


def sticky(group: str, n: int, names: Sequence[str], previous: Sequence[str | None]) -> Sequence[str | None]:
    held = {name: {task for task, owner in enumerate(previous) if owner == name} for name in names}
    owners: list[str | None] = [None] * n
    for name, share in assign(group, n, assign(group, n, held)).items():
        for task in share:
            owners[task] = name
    return owners


def newcomers(words: Mapping[str, Word]) -> frozenset[str]:
    """Names of those without a part in the last plan, as long as someone is there who has one."""
    names = {name for member, name in _names(words).items() if not words[member].claimed}
    known = {name for member, name in _names(words).items() if not words[member].resting} & set(_last(words).names)
    return frozenset(names - set(_last(words).names)) if known else frozenset()


def share_out(
    group: str,
    n: int,
    generation: int,
    words: Mapping[str, Word],
    outside: Collection[str] = (),
    owners: Owners = sticky,
) -> tuple[Mapping[str, frozenset[int]], Verdict]:
    """The share of each member, by its id, and what all of them are told. outside: those who get nothing yet."""
    names = _names(words)
    ids = {name: member for member, name in names.items()}
    last = _last(words)
    holders: dict[int, set[str]] = {}
    for member, word in words.items():
        for task in word.claimed:
            holders.setdefault(task, set()).add(names[member])
    inside = sorted(ids.keys() - set(outside))
    working = [name for name in inside if not words[ids[name]].resting]
    previous = [_previous(last.owner(task), holders.get(task, ()), working) for task in range(n)]
    wanted = owners(group, n, working, previous) if working else [None] * n

    shares: dict[str, set[int]] = {member: set() for member in words}
    more = False
    for task, owner in enumerate(wanted):
        held_by = holders.get(task)
        if owner is not None and (not held_by or owner in held_by):
            shares[ids[owner]].add(task)
        more = more or bool(held_by and held_by != {owner})
    places = {name: index for index, name in enumerate(inside)}
    plan = Plan(generation, inside, [-1 if owner is None else places[owner] for owner in wanted])
    return {member: frozenset(share) for member, share in shares.items()}, Verdict(more, plan)


def _last(words: Mapping[str, Word]) -> Plan:
    return max((word.plan for word in words.values()), key=lambda plan: plan.generation, default=Plan())


def _names(words: Mapping[str, Word]) -> Mapping[str, str]:
    """By member id. One whose name another has, too (it came back before the group has missed it), is told apart."""
    count = Counter(word.name for word in words.values())
    return {
        member: word.name if word.name and count[word.name] == 1 else f"{word.name}/{member}"
        for member, word in words.items()
    }


def _previous(planned: str | None, holders: Collection[str], working: Collection[str]) -> str | None:
    """Whom it was meant for, if that one is still there; else who holds it."""
    if planned in working:
        return planned
    return min((name for name in holders if name in working), default=None)
