"""Who runs which task of a group, and who stands by: as evenly as can be, and moving as few tasks as can be.

An assignor is a pure function, so that whoever computes it gets the same: a coordinator, the leader of a Kafka group,
a test. Ours is `sticky`; `App(assignor=)` takes another one.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeAlias

import msgspec

from .dotted import load
from .errors import ConfigurationError

__all__ = ["Assignment", "Assignor", "Member", "assign", "checked", "load_assignor", "shares", "sticky"]

log = logging.getLogger("thalweg")


class Member(msgspec.Struct, frozen=True):
    """A worker that can be given tasks. zone: where it runs; "" if that was not said."""

    name: str
    zone: str = ""


class Assignment(msgspec.Struct, frozen=True):
    """By task: the name of its owner (None: nobody's yet), and the names of its standbys, in the order of promotion.

    standbys may be empty: nobody stands by.
    """

    owners: Sequence[str | None]
    standbys: Sequence[Sequence[str]] = ()

    def standbys_of(self, task: int) -> Sequence[str]:
        return self.standbys[task] if task < len(self.standbys) else ()


Assignor: TypeAlias = Callable[[str, int, Sequence[Member], Assignment, int], Assignment]
"""(group, n, members, previous, standbys) -> Assignment.

Gives each of the tasks 0 to n-1 of the group an owner among the members, of whom there is at least one, and `standbys`
standbys, or as many as there are other members. previous: what was before; it may name workers that are gone.
"""


def load_assignor(assignor: Assignor | str | None) -> Assignor:
    """From what `App(assignor=)` takes: a function, or a dotted path to one; None is `sticky`.

    Raises ConfigurationError.
    """
    found = load(assignor, "assignor") if isinstance(assignor, str) else assignor or sticky
    if not callable(found):
        raise ConfigurationError(
            f"assignor={assignor!r}: expected a function (group, n, members, previous, standbys) -> Assignment"
        )
    return found


def checked(
    assignor: Assignor, group: str, n: int, members: Sequence[Member], previous: Assignment, standbys: int
) -> Assignment:
    """What the assignor says, or, where that cannot be, what `sticky` says, and an error is logged."""
    if assignor is sticky:
        return sticky(group, n, members, previous, standbys)
    try:
        found = assignor(group, n, members, previous, standbys)
        problem = _problem(found, n, {member.name for member in members})
    except Exception as error:
        problem = f"it raised {type(error).__name__}: {error}"
    else:
        if problem is None:
            return found
    log.error("assignor %r, group %s: %s; thalweg.assignment:sticky is used instead", assignor, group, problem)
    return sticky(group, n, members, previous, standbys)


def _problem(found: object, n: int, names: Collection[str]) -> str | None:
    if not isinstance(found, Assignment):
        return f"it gave {type(found).__name__}, not an Assignment"
    if len(found.owners) != n or len(found.standbys) not in (0, n):
        return f"it gave {len(found.owners)} owners and {len(found.standbys)} lists of standbys for {n} tasks"
    for task, owner in enumerate(found.owners):
        if owner not in names:
            return f"task {task} went to {owner!r}, which is no member"
        others = found.standbys_of(task)
        if len({owner, *others}) <= len(others) or not set(others) <= set(names):
            return f"the standbys of task {task} are {list(others)}, its owner is {owner!r}: expected other members"
    return None


def sticky(group: str, n: int, members: Sequence[Member], previous: Assignment, standbys: int) -> Assignment:
    """Each member gets n // members tasks, some one more; of what it had it keeps as much as that.

    What has no owner any more goes to one of its standbys first. Standbys lie apart from the owner and from one
    another, in other zones as far as there are any, and evenly. Equals are put in an order that differs from group to
    group, or the first of them would get the only task of every small group.
    """
    had: dict[str, list[int]] = {member.name: [] for member in members}
    for task, owner in enumerate(previous.owners[:n]):
        if owner in had:
            had[owner].append(task)
    order = sorted(had, key=lambda name: (-len(had[name]), _mixed(group, name)))
    owners = _Owners(n, order)
    for name in order:
        for task in had[name]:
            owners.give(task, name)
    free = [task for task in range(n) if owners.of[task] is None]
    for task in sorted(free, key=lambda task: len(previous.standbys_of(task)) or n):
        for name in previous.standbys_of(task):
            if name in had and owners.give(task, name):
                break
    for task in free:
        if owners.of[task] is None:
            owners.give(task, min(order, key=lambda name: owners.count[name]))
    placed = _standbys(group, members, owners.of, previous, standbys) if standbys and len(had) > 1 else ()
    return Assignment(tuple(owners.of), placed)


class _Owners:
    """Gives tasks away, to nobody more than an even share."""

    def __init__(self, n: int, names: Sequence[str]) -> None:
        self.of: list[str | None] = [None] * n
        self.count = dict.fromkeys(names, 0)
        self._least, self._extra = divmod(n, len(names)) if names else (0, 0)

    def give(self, task: int, name: str) -> bool:
        """Whether it has room for it."""
        count = self.count[name]
        if count > self._least or (count == self._least and not self._extra):
            return False
        self._extra -= count == self._least
        self.count[name] = count + 1
        self.of[task] = name
        return True


def _standbys(
    group: str, members: Sequence[Member], owners: Sequence[str | None], previous: Assignment, wanted: int
) -> Sequence[Sequence[str]]:
    zones = {member.name: member.zone for member in members}
    wanted = min(wanted, len(members) - 1)
    count = dict.fromkeys(zones, 0)
    room = -(-len(owners) * wanted // len(members))
    found: list[tuple[str, ...]] = []
    for task, owner in enumerate(owners):
        was = previous.owners[task] if task < len(previous.owners) else None
        warm = [*previous.standbys_of(task), was]
        chosen: list[str] = []
        for _ in range(wanted):
            taken = {zones[name] for name in (owner, *chosen) if name is not None and zones[name]}
            ranks = {
                (
                    zones[name] in taken,
                    count[name] >= room,
                    warm.index(name) if name in warm else len(warm),
                    count[name],
                    _mixed(f"{group}/{task}", name),
                ): name
                for name in zones
                if name != owner and name not in chosen
            }
            best = ranks[min(ranks)]
            chosen.append(best)
            count[best] += 1
        found.append(tuple(chosen))
    return tuple(found)


def _mixed(group: str, name: str) -> bytes:
    return hashlib.sha256(f"{group}/{name}".encode()).digest()


# --- where members hold what they had until they have given it up ---------------------------------------------------


def shares(assignment: Assignment, held: Mapping[str, Collection[int]]) -> dict[str, frozenset[int]]:
    """What each member may work on now: its tasks, but for those that another still holds."""
    given: dict[str, set[int]] = {name: set() for name in held}
    holders: dict[int, set[str]] = {}
    for name, tasks in held.items():
        for task in tasks:
            holders.setdefault(task, set()).add(name)
    for task, owner in enumerate(assignment.owners):
        if owner is not None and holders.get(task, set()) <= {owner}:
            given.setdefault(owner, set()).add(task)
    return {name: frozenset(tasks) for name, tasks in given.items()}


def assign(
    group: str, n: int, held: Mapping[str, Collection[int]], resting: Collection[str] = ()
) -> dict[str, frozenset[int]]:
    """The tasks 0 to n-1 for each member, given the tasks that each holds now. Those who rest get none.

    What a member has to give up is nobody's until it has done so.
    """
    members = [Member(name) for name in held if name not in resting]
    if not members:
        return {name: frozenset() for name in held}
    owners: list[str | None] = [None] * n
    for name in sorted((member.name for member in members), key=lambda name: (-len(held[name]), _mixed(group, name))):
        for task in held[name]:
            if 0 <= task < n and owners[task] is None:
                owners[task] = name
    return shares(sticky(group, n, members, Assignment(owners), 0), held)
