"""The plan that came last is followed, though its coordinator is none any more."""

from __future__ import annotations

from contextlib import AbstractContextManager
from unittest.mock import patch

from thalweg.message import Record
from thalweg.runtime.roster import Roster

RULE = "ownership"

hear = Roster._hear


def whoever_speaks(self: Roster, record: Record) -> bool:
    before, self.plan = self.plan, None
    news = hear(self, record)
    self.plan = self.plan or before
    return news


def planted() -> AbstractContextManager[object]:
    return patch.object(Roster, "_hear", whoever_speaks)
