"""Which member of a group gets which task: as evenly as can be, moving as few as can be, and never to two at once."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping

__all__ = ["assign"]


def assign(
    group: str, n: int, held: Mapping[str, Collection[int]], resting: Collection[str] = ()
) -> dict[str, frozenset[int]]:
    """The tasks 0 to n-1 for each member, given the tasks that each holds now. Those who rest get none.

    Each gets n // members, some one more: those that hold most, so that least moves. Of what it holds a member keeps
    as much as that; the rest it has to give up, and until it has done so, the rest is nobody's. What nobody holds goes
    to those who have too few. Equals are put in an order that differs from group to group, or the first of them would
    get the only task of every small group. Whoever computes it, gets the same.
    """
    members = sorted(
        held.keys() - set(resting),
        key=lambda name: (-len(held[name]), hashlib.sha256(f"{group}/{name}".encode()).digest()),
    )
    least, more = divmod(n, len(members)) if members else (0, 0)
    rooms = {name: least + (rank < more) for rank, name in enumerate(members)}
    given: dict[str, set[int]] = {name: set() for name in resting}
    taken: set[int] = set()
    for name in members:
        given[name] = set(sorted({task for task in held[name] if 0 <= task < n} - taken)[: rooms[name]])
        taken |= given[name]
    free = sorted(set(range(n)).difference(*held.values()), reverse=True)
    for name in members:
        while free and len(given[name]) < rooms[name]:
            given[name].add(free.pop())
    return {name: frozenset(tasks) for name, tasks in given.items()}
