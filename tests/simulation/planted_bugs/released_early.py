"""A task's lock is given back before its last commit."""

from __future__ import annotations

from contextlib import AbstractContextManager
from unittest.mock import patch

from thalweg.capabilities import Held
from thalweg.runtime.ownership import Ownership
from thalweg.runtime.task import TaskKey

let_go = Ownership._let_go


async def lock_first(self: Ownership, key: TaskKey, held: Held | None, in_good_order: bool) -> None:
    if held is not None:
        await held.release()
    await let_go(self, key, None, in_good_order)


def planted() -> AbstractContextManager[object]:
    return patch.object(Ownership, "_let_go", lock_first)
