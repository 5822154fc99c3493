"""A worker serves reads of its tasks without asking whether its lease still holds."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from unittest.mock import patch

from thalweg.runtime.membership import Membership
from thalweg.runtime.ownership import Ownership

RULE = "9"


def planted() -> AbstractContextManager[object]:
    patches = ExitStack()
    for owner in (Ownership, Membership):
        patches.enter_context(patch.object(owner, "holds", lambda self, key: key in self._holding))
    return patches
