"""What is due leaves though the topic of delays, where its cancelling may lie, was not read to its end."""

from __future__ import annotations

from contextlib import AbstractContextManager
from unittest.mock import patch

from thalweg.runtime.delayed import Delayed

RULE = "13"


def planted() -> AbstractContextManager[object]:
    async def at_once(self: Delayed) -> None:
        self._ready = self._now()

    return patch.object(Delayed, "_read_on", at_once)
