"""The properties of transports."""

from . import cancelling, commits, crashes, fencing, groups, honesty, locks, logs, messages, order, peers, queues, topics
from .honesty import refuses

MODULES = (
    honesty, topics, messages, order, commits, cancelling, groups, crashes, logs, fencing, locks, peers, queues,
)  # fmt: skip

__all__ = ["MODULES", "refuses"]
