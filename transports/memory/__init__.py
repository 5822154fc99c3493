"""`memory://`: a broker in this process, and the reference of the transport contract."""

from __future__ import annotations

from .broker import MemoryBroker
from .faults import Faults, Hold, Operation
from .transport import MemoryOptions, MemoryTransport

__all__ = ["Faults", "Hold", "MemoryBroker", "MemoryOptions", "MemoryTransport", "Operation"]
