"""A journal is cut off behind the beginning of its newest snapshot, instead of before it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from unittest.mock import patch

from thalweg.message import Position
from thalweg.runtime.task import Task

RULE = "5"

cut_off = Task._cut_off


async def too_far(self: Task, before: Position) -> None:
    await cut_off(self, before + 1)


def planted() -> AbstractContextManager[object]:
    return patch.object(Task, "_cut_off", too_far)
