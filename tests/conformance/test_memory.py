"""The memory broker, as it is and as lesser brokers are."""

from __future__ import annotations

from thalweg.clock import Clock
from thalweg.contrib.conformance import InProcessRig, Target, transport
from thalweg.transports.memory import MemoryBroker, MemoryTransport
from thalweg.url import Url


class Gappy(MemoryTransport):
    """Positions that are not dense."""

    @classmethod
    def from_url(cls, url: Url) -> Gappy:
        return cls(options=MemoryTransport.from_url(url).options)

    def private(self, clock: Clock) -> MemoryTransport:
        return MemoryTransport(MemoryBroker(clock=clock, position_step=7), self.options)


def target(url: str, *profiles: str) -> Target:
    return transport(url, lambda: InProcessRig(url), profiles=profiles)


OPTIONS = "lease=30&message_bytes=10000"
LESSER = "&".join(f"{name}=false" for name in ("log", "locks", "peers", "fencing", "work_queue", "priority", "delay"))

memory = target(f"memory://?{OPTIONS}")
gaps = target(f"{__name__}:Gappy://?{OPTIONS}", "Ordered", "Replay", "Fenced")
grouped = target(f"memory://?grouped=true&{OPTIONS}", "Grouped")
small_commits = target(f"memory://?commit_messages=100&{OPTIONS}", "Fenced")
without_fencing = target(f"memory://?fencing=false&{OPTIONS}", "Fenced")
bare_channels = target(f"memory://?{LESSER}&expiry=false&{OPTIONS}")
