"""The properties of transports."""

from __future__ import annotations

from collections.abc import Sequence

from . import (
    cancelling,
    chaos,
    commits,
    crashes,
    faults,
    fencing,
    flow,
    grouped,
    groups,
    honesty,
    lifecycle,
    locks,
    logs,
    messages,
    order,
    peers,
    queues,
    rebalancing,
    restarts,
    topics,
)
from .honesty import refuses

__all__ = ["MODULES", "refuses"]

MODULES: Sequence[object] = (
    honesty,
    topics,
    messages,
    order,
    commits,
    cancelling,
    flow,
    groups,
    rebalancing,
    lifecycle,
    crashes,
    faults,
    restarts,
    chaos,
    logs,
    fencing,
    locks,
    peers,
    grouped,
    queues,
)
"""In the order in which a certificate lists them."""
