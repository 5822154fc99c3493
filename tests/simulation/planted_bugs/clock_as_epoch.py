"""The epoch of a new owner is its clock's time, though the clock may be behind that of the owner before."""

from __future__ import annotations

from contextlib import AbstractContextManager
from unittest.mock import patch

from thalweg.journal.records import Fold

RULE = "4"


def planted() -> AbstractContextManager[object]:
    nothing = property(lambda self: 0, lambda self, epoch: None)
    return patch.object(Fold, "epoch", nothing, create=True)
