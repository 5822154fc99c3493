"""A task's lock is given back before its last commit."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from unittest.mock import patch

from thalweg.runtime.holding import Holding
from thalweg.runtime.task import TaskKey

RULE = "7"

give_up = Holding.give_up


async def lock_first(
    self: Holding, key: TaskKey, in_good_order: bool = True, release: Callable[[], Awaitable[None]] | None = None
) -> None:
    if release is not None:
        await release()
    await give_up(self, key, in_good_order)


def planted() -> AbstractContextManager[object]:
    return patch.object(Holding, "give_up", lock_first)
