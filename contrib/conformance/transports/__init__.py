"""The properties of transports."""

from __future__ import annotations

from collections.abc import Sequence

from . import (
    agreement,
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
    secrecy,
    topics,
)
from .honesty import refuses

__all__ = ["MODULES", "refuses"]

MODULES: Sequence[object] = (
    honesty,
    secrecy,
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
    agreement,
    locks,
    peers,
    grouped,
    queues,
)
"""In the order in which a certificate lists them."""
