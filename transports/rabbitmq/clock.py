"""Leases are measured by a clock that goes on while the machine sleeps or the process is stopped."""

from __future__ import annotations

import time

__all__ = ["boot_clock"]

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # macOS: CLOCK_MONOTONIC counts sleep as well


def boot_clock() -> float:
    """Seconds since the machine started, sleep included."""
    return time.clock_gettime(_CLOCK)
