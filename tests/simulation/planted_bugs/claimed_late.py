"""An owner takes over with the state as of before its claim: what was still committed meanwhile is missed."""

from __future__ import annotations

from contextlib import AbstractContextManager
from unittest.mock import patch

from thalweg.runtime.replay import Replay

RULE = "8"

to_marker = Replay.to_marker


async def without_rows(self: Replay, token: bytes) -> None:
    while self.fold.marker is None or self.fold.marker.token != token:
        await self._step(10.0, token)
    self._pending.clear()
    self._seen = None


def planted() -> AbstractContextManager[object]:
    return patch.object(Replay, "to_marker", without_rows)
