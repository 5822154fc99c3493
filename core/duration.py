"""Wherever time is given: seconds or `timedelta`, turned into seconds once and checked."""

from __future__ import annotations

import math
from datetime import timedelta

from .errors import ConfigurationError

__all__ = ["seconds"]


def seconds(value: float | timedelta, setting: str) -> float:
    """`value` in seconds, finite and not negative, as a float.

    Raises `ConfigurationError` naming `setting` and the value.
    """
    if isinstance(value, timedelta):
        result = value.total_seconds()
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        result = _to_float(value)
    else:
        raise ConfigurationError(
            f"{setting}={value!r} is a {type(value).__name__}; expected seconds (int or float) or a timedelta"
        )
    if not math.isfinite(result) or result < 0:
        raise ConfigurationError(f"{setting}={value!r} is not a duration; expected seconds, finite and 0 or more")
    return result


def _to_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf
