"""What the plans of the roster must be like: looked at as they are written, and as workers follow them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

import msgspec
from thalweg.runtime.roster import Plan, Word, _Pieces

if TYPE_CHECKING:
    from thalweg.message import Position
    from thalweg.runtime.task import TaskKey
    from thalweg.runtime.worker import Worker
    from thalweg.transports.memory.partition import Partition

__all__ = ["Plans", "fewest_moves"]

ROOM = 1.1
"""A plan may move so many times the fewest tasks."""

_decode = msgspec.json.Decoder(Word).decode


class Plans:
    def __init__(self, violated: Callable[[str], None]) -> None:
        self._violated = violated
        self._position: Position | None = None
        self._pieces = _Pieces()
        self._in_force: Plan | None = None
        self._followed: dict[str, list[Plan]] = {}
        """By worker: the plan that it follows, and the one before."""

    # --- as they are written -----------------------------------------------------------------------------------

    def read_on(self, roster: Partition) -> None:
        start = roster.index_after(self._position)
        for index in range(len(roster.records) if start is None else start, len(roster.records)):
            self._position = roster.first + index * roster.step
            data = self._pieces.take(roster.records[index])
            word = None if data is None else _decode(data)
            if isinstance(word, Plan):
                self._written(word)

    def _written(self, plan: Plan) -> None:
        before = self._in_force
        if before is not None and plan.age == before.age and plan != before:
            self._violated(f"two plans of the number {plan.age}")
        if before is not None and plan.age <= before.age:
            return  # said again, or of a coordinator that is none any more: nobody follows it
        self._in_force = plan
        if before is not None:
            for group, owners in plan.owners.items():
                self._count_moves(group, before.owners.get(group, ()), owners, plan.members)

    def _count_moves(
        self, group: str, before: Sequence[str | None], after: Sequence[str | None], members: Collection[str]
    ) -> None:
        moves = sum(was is not None and was != now for was, now in zip(before, after, strict=True))
        fewest = fewest_moves(before, members)
        if moves > fewest * ROOM:
            self._violated(f"group {group}: a plan for {sorted(members)} moves {moves} tasks, where {fewest} would do")

    # --- as workers follow them --------------------------------------------------------------------------------

    def follows(self, me: str, plan: Plan | None) -> None:
        if plan is None:
            return
        followed = self._followed.setdefault(me, [])
        if followed and plan.age <= followed[-1].age:
            self._violated(f"a worker follows plan {plan.age} after plan {followed[-1].age}")
        followed[:] = [*followed[-1:], plan]

    def gives_up(self, worker: Worker, plan: Plan | None, key: TaskKey) -> None:
        """A worker closes a task in good order: only because it is to be another's."""
        name = worker.settings.worker_id or worker.me
        plans = self._followed.get(worker.me, [])
        if plan is not None and plans and all(_owner(one, key) == name for one in plans):
            self._violated(f"a worker gives up task {key}, which is to stay with it")


def _owner(plan: Plan, key: TaskKey) -> str | None:
    owners = plan.owners.get(key[0], ())
    return owners[key[1]] if key[1] < len(owners) else None


def fewest_moves(before: Sequence[str | None], members: Collection[str]) -> int:
    """How many tasks that have an owner must get another, so that each member has an even share."""
    had = Counter(owner for owner in before if owner is not None)
    if not members:
        return 0
    least, extra = divmod(len(before), len(members))
    kept = sum(min(had[name], least) for name in members)
    kept += min(extra, sum(had[name] > least for name in members))
    return sum(had.values()) - kept
