"""What was cancelled in time leaves all the same."""

from __future__ import annotations

from contextlib import AbstractContextManager
from unittest.mock import patch

from thalweg.event import Event
from thalweg.runtime.delayed import Delayed

RULE = "13"


def planted() -> AbstractContextManager[object]:
    take = Delayed.take

    def only_new_ones(self: Delayed, event: Event[bytes | None, bytes]) -> None:
        if event.record.value is not None:
            take(self, event)

    return patch.object(Delayed, "take", only_new_ones)
