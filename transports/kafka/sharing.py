"""What the members of a group tell each other, and how the one that leads shares the tasks out.

Each says what it holds, and how all was shared out when it last heard. The leader answers each with its share and the
plan. What the plan moves is nobody's until its old holder says that it holds it no more: so no task has two owners on
its way, and what stays is not touched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import msgspec
from thalweg.assignment import assign

__all__ = ["Plan", "Shares", "Verdict", "Word", "share_out"]


class Plan(msgspec.Struct, array_like=True, frozen=True):
    """Who is to own what, as agreed in a generation of the group. owners: for each task an index in `names`, or -1."""

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


Shares: TypeAlias = Mapping[str, frozenset[int]]

Owners: TypeAlias = Callable[[str, int, Sequence[str], Sequence[str | None]], Sequence[str | None]]
"""Of a group's n tasks, among members with these names, as they were owned before."""


def sticky(group: str, n: int, names: Sequence[str], previous: Sequence[str | None]) -> Sequence[str | None]:
    held = {name: {task for task, owner in enumerate(previous) if owner == name} for name in names}
    shares = assign(group, n, assign(group, n, held))
    return [next((name for name, share in shares.items() if task in share), None) for task in range(n)]


def share_out(
    group: str, n: int, generation: int, words: Mapping[str, Word], owners: Owners = sticky
) -> tuple[Shares, Verdict]:
    """The share of each member, by its id, and what all of them are told."""
    names = _names(words)
    ids = {name: member for member, name in names.items()}
    plan = max((word.plan for word in words.values()), key=lambda plan: plan.generation, default=Plan())
    holders: dict[int, set[str]] = {}
    for member, word in words.items():
        for task in word.claimed:
            holders.setdefault(task, set()).add(names[member])
    working = sorted(name for member, name in names.items() if not words[member].resting)
    previous = [_previous(plan.owner(task), holders.get(task, ()), working) for task in range(n)]
    wanted = owners(group, n, working, previous) if working else [None] * n

    shares: dict[str, set[int]] = {member: set() for member in words}
    more = False
    for task, owner in enumerate(wanted):
        held_by = holders.get(task)
        if owner is not None and (not held_by or owner in held_by):
            shares[ids[owner]].add(task)
        more = more or bool(held_by and held_by != {owner})
    places = {name: index for index, name in enumerate(working)}
    plan = Plan(generation, working, [-1 if owner is None else places[owner] for owner in wanted])
    return {member: frozenset(share) for member, share in shares.items()}, Verdict(more, plan)


def _names(words: Mapping[str, Word]) -> Mapping[str, str]:
    """By member id. One whose name another has, too (it came back before the group has missed it), is told apart."""
    count = Counter(word.name for word in words.values())
    return {
        member: word.name if word.name and count[word.name] == 1 else f"{word.name}/{member}"
        for member, word in words.items()
    }


def _previous(planned: str | None, holders: Sequence[str] | set[str], working: Sequence[str]) -> str | None:
    """Whom it was meant for, if that one is still there; else who holds it."""
    if planned in working:
        return planned
    return min((name for name in holders if name in working), default=None)
