"""With each new plan a worker gives up all that it has, and takes what the plan gives it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from unittest.mock import patch

from thalweg.runtime.ownership import Ownership
from thalweg.runtime.roster import Plan
from thalweg.runtime.task import TaskKey

wanted = Ownership._wanted


def planted() -> AbstractContextManager[object]:
    seen: dict[int, tuple[Ownership, Plan | None]] = {}  # by the identity of an ownership, kept with it

    def anew(self: Ownership) -> set[TaskKey] | None:
        if self._plan is None or (id(self) in seen and seen[id(self)][1] is self._plan):
            return wanted(self)
        seen[id(self)] = (self, self._plan)
        self._changed.set()
        return set()

    return patch.object(Ownership, "_wanted", anew)
