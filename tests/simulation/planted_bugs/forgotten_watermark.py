"""What was received of each producer is not part of the commit: the next owner takes copies for new messages."""

from __future__ import annotations

from contextlib import AbstractContextManager
from unittest.mock import patch

from thalweg.journal.inbox import Inbox

RULE = "4"


def planted() -> AbstractContextManager[object]:
    return patch.object(Inbox, "export", lambda self: {})
