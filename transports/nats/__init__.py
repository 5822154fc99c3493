"""`nats://host:port`, and `tls://`: NATS JetStream, 2.11 or newer, as a broker."""

from __future__ import annotations

from .transport import NatsOptions, NatsTransport

__all__ = ["NatsOptions", "NatsTransport"]
