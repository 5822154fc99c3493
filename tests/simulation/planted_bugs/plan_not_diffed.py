"""With each new plan a worker gives up all that it has, and takes what the plan gives it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from unittest.mock import patch

from thalweg.runtime.ownership import Ownership

RULE = "ownership"

stand_by_as_planned = Ownership._stand_by_as_planned


def anew(self: Ownership) -> None:
    stand_by_as_planned(self)
    for key in list(self._holding.opening):
        self._group.create_task(self._give_up(key))


def planted() -> AbstractContextManager[object]:
    return patch.object(Ownership, "_stand_by_as_planned", anew)
