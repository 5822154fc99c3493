"""`memory://`: a broker in this process, and the reference of the transport contract."""

from __future__ import annotations

from .broker import MemoryBroker
from .faults import Faults, Hold, Operation
from .session import Clock, Timer
from .transport import MemoryOptions, MemoryTransport

__all__ = ["Clock", "Faults", "Hold", "MemoryBroker", "MemoryOptions", "MemoryTransport", "Operation", "Timer"]
