"""A worker claims what the plan gives it, though the lock is another's still."""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

from thalweg.capabilities import Held
from thalweg.runtime.ownership import Ownership
from thalweg.runtime.task import TaskKey

RULE = "7"

take = Ownership._take


class NoLock:
    number = 0

    def __init__(self) -> None:
        self.lost = asyncio.Event()

    async def release(self) -> None:
        self.lost.set()


async def whatever_the_lock(self: Ownership, key: TaskKey) -> None:
    transport: Any = self._transport
    try_lock = transport.try_lock

    async def refused(name: str, lease: float) -> Held:
        return await try_lock(name, lease) or NoLock()

    with patch.object(transport, "try_lock", refused):
        await take(self, key)


def planted() -> AbstractContextManager[object]:
    return patch.object(Ownership, "_take", whatever_the_lock)
