"""Events that wait for their next attempt are known to their worker alone."""

from __future__ import annotations

from contextlib import AbstractContextManager
from unittest.mock import patch

from thalweg.runtime.parking import Parking

RULE = "13"


def planted() -> AbstractContextManager[object]:
    init = Parking.__init__

    def forgetful(self: Parking, clock: object, write: object, wake: object) -> None:
        init(self, clock, lambda key, value: None, wake)  # type: ignore[arg-type]

    return patch.object(Parking, "__init__", forgetful)
