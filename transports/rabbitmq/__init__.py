"""`amqp://user:password@host:port/vhost`, and `amqps://` with TLS: RabbitMQ 3.10 or newer as a broker."""

from __future__ import annotations

from .transport import RabbitOptions, RabbitTransport

__all__ = ["RabbitOptions", "RabbitTransport"]
