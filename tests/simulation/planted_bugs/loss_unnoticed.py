"""A worker does not notice that the lock of its task is lost, and never takes it again."""

from __future__ import annotations

from contextlib import AbstractContextManager
from unittest.mock import patch

from thalweg.capabilities import Held
from thalweg.runtime.ownership import Ownership
from thalweg.runtime.task import TaskKey

RULE = "ownership"


async def ignore(self: Ownership, key: TaskKey, held: Held) -> None:
    """As if it could not be lost."""


def planted() -> AbstractContextManager[object]:
    return patch.object(Ownership, "_watch", ignore)
