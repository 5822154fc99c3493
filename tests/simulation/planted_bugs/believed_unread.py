"""Without fencing, a commit counts once the broker has taken it, not once it was read back with its own marker last."""

from __future__ import annotations

from contextlib import AbstractContextManager
from unittest.mock import patch

from thalweg.capabilities import Commit
from thalweg.journal.readback import ReadBackWriter, _Tail
from thalweg.journal.writer import JournalKey, Written

RULE = "1"


async def commit(self: ReadBackWriter, journal: JournalKey, commit: Commit, tail: _Tail) -> Written:
    async with self._topic(journal[0])._appender as log:
        positions = await log.append({journal[1]: commit.records})
    where = positions[journal[1]]
    return Written(where[0], where[-1], commit.records[-1].value or b"")


def planted() -> AbstractContextManager[object]:
    return patch.object(ReadBackWriter, "_commit", commit)
