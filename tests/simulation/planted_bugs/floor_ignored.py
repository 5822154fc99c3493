"""A reader waits for every output before the one it has, though the sender says that those lie before its start."""

from __future__ import annotations

from contextlib import AbstractContextManager
from unittest.mock import patch

from thalweg.journal.inbox import Inbox

RULE = "4"


def planted() -> AbstractContextManager[object]:
    return patch.object(Inbox, "_settle", lambda self, producer, floor: [])
