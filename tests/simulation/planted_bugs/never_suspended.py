"""An agent that need not wait for its input never lets anything else run."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from unittest.mock import patch

from thalweg.runtime.lane import Lane

RULE = "16"


async def on_and_on(self: Lane) -> None:
    """As if there were no others."""


def planted() -> AbstractContextManager[object]:
    patches = ExitStack()
    for name in ("_breathe", "_breathe_if_due"):
        patches.enter_context(patch.object(Lane, name, on_and_on))
    return patches
