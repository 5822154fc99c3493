"""Trouble that lasts, told once in a while: a broker that is away for an hour fills no log."""

from __future__ import annotations

import logging
from typing import Any

from thalweg.clock import Clock

__all__ = ["Complaints"]

log = logging.getLogger("thalweg")

EVERY = 30.0
"""Seconds in which one kind of trouble is told of once."""


class Complaints:
    """The first warning of a kind goes out at once; those that follow within `EVERY` seconds only count."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._told: dict[str, float] = {}
        self._untold: dict[str, int] = {}

    def warn(self, kind: str, message: str, *args: object, exc_info: Any = None) -> None:
        """`kind`: of the trouble, such as "reading"; `message` and the rest as `Logger.warning` has them."""
        now = self._clock.now()
        last = self._told.get(kind)
        if last is not None and 0 <= now - last < EVERY:
            self._untold[kind] = self._untold.get(kind, 0) + 1
            log.debug(message, *args, exc_info=exc_info)
            return
        self._told[kind] = now
        untold = self._untold.pop(kind, 0)
        if untold:
            message += " (and %d warnings like it since the last one)"
            args = (*args, untold)
        log.warning(message, *args, exc_info=exc_info)
