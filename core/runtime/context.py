"""What the code that is running now belongs to: the lane that handles an event, a run by the clock, or nothing."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .lane import Lane
    from .scheduled_run import ScheduledRun

__all__ = ["current_lane"]

current_lane: ContextVar[Lane | ScheduledRun | None] = ContextVar("thalweg_lane", default=None)
