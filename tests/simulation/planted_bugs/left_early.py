"""With what is due leaves what would be within the next five seconds."""

from __future__ import annotations

from contextlib import AbstractContextManager
from unittest.mock import patch

from thalweg.runtime.delayed import Delayed

RULE = "13"


def planted() -> AbstractContextManager[object]:
    now = Delayed._now
    return patch.object(Delayed, "_now", lambda self: now(self) + 5000)
