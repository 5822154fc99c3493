"""Messages that wait for their time are known to their worker alone."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from unittest.mock import patch

from thalweg.event import Event
from thalweg.journal.rows import Waiting
from thalweg.runtime.delayed import Delayed

RULE = "13"


def planted() -> AbstractContextManager[object]:
    take, take_due = Delayed.take, Delayed._take_due

    def taken(self: Delayed, event: Event[bytes | None, bytes]) -> None:
        self.__dict__.setdefault("own", set()).add(event.record.key)
        take(self, event)

    def own(self: Delayed, rows: dict[bytes, bytes | None]) -> list[tuple[bytes, Waiting]]:
        return [one for one in take_due(self, rows) if one[0] in self.__dict__.get("own", ())]

    stack = ExitStack()
    stack.enter_context(patch.object(Delayed, "take", taken))
    stack.enter_context(patch.object(Delayed, "_take_due", own))
    return stack
