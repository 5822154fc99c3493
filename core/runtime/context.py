"""What the code that is running now belongs to: the lane that handles an event, if any."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .lane import Lane

__all__ = ["current_lane"]

current_lane: ContextVar[Lane | None] = ContextVar("thalweg_lane", default=None)
