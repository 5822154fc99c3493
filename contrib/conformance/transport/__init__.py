"""The properties of transports."""

from . import (
    cancelling,
    commits,
    crashes,
    fencing,
    grouped,
    groups,
    honesty,
    locks,
    logs,
    messages,
    order,
    peers,
    queues,
    topics,
)
from .honesty import refuses

__all__ = ["MODULES", "refuses"]

MODULES = (
    honesty,
    topics,
    messages,
    order,
    commits,
    cancelling,
    groups,
    crashes,
    logs,
    fencing,
    locks,
    peers,
    grouped,
    queues,
)
"""In the order in which a certificate lists them."""
