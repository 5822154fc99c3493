"""A journal is cut off behind the beginning of its newest snapshot, instead of before it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from unittest.mock import patch

from thalweg.message import Position
from thalweg.runtime.task import Task

RULE = "5"

truncate = Task._truncate


async def too_far(self: Task, before: Position) -> None:
    await truncate(self, before + 1)


def planted() -> AbstractContextManager[object]:
    return patch.object(Task, "_truncate", too_far)
