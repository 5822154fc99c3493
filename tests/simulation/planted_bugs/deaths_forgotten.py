"""That an event killed its process is not known to the next owner, which handles it as any other."""

from __future__ import annotations

from contextlib import AbstractContextManager
from unittest.mock import patch

from thalweg.runtime.suspicion import Suspicion

RULE = "12"


def planted() -> AbstractContextManager[object]:
    return patch.object(Suspicion, "restore", lambda self, row, died: None)
