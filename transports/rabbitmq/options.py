"""What a URL says: of how the driver works, and of the server that it is to meet."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from thalweg.pulse import STUCK, Stuck
from thalweg.tls import tls_context
from thalweg.url import Url

from .connection import Endpoint

__all__ = ["RabbitOptions", "endpoint_of"]


class RabbitOptions(msgspec.Struct, frozen=True):
    """Query options of the URL.

    prefix: goes before the name of all that is made, so that several programs can share a virtual host.
    timeout: seconds to connect, and to wait for an answer.
    message_bytes: largest message (key, value and headers); the server's own max_message_size counts as well.
    lease: seconds after which a consumer that hangs loses its deliveries (of a queue: each delivery, unless extended).
    stuck: seconds without a sign of life from the event loop, after which it loses all that it holds.
    heartbeat: seconds between signs of life; after two to three of them without one, the server gives a client up. By
    default a third of the lease.
    streams: how logs are read and written: amqp, native (the stream plug-in's own protocol), or auto, the faster one
    that answers. stream_port: of the plug-in (5552; with TLS 5551).
    roll_bytes: how large the stream of a journal may grow before it is replaced by another, so that it can be deleted.
    queues: what queues are made as: quorum (replicated), or classic, which alone have priorities.
    tls_ca, tls_cert, tls_key: files, for amqps://. tls_verify=false accepts any certificate.
    """

    prefix: str = ""
    timeout: Annotated[float, msgspec.Meta(ge=0.1, le=3600)] = 10.0
    message_bytes: Annotated[int, msgspec.Meta(ge=1, le=512 << 20)] = 16 << 20
    lease: Annotated[float, msgspec.Meta(ge=0.1, le=86400)] = 30.0
    stuck: Stuck = STUCK
    heartbeat: Annotated[int, msgspec.Meta(ge=1, le=3600)] | None = None
    streams: Literal["auto", "amqp", "native"] = "auto"
    stream_port: Annotated[int, msgspec.Meta(ge=1, le=65535)] | None = None
    roll_bytes: Annotated[int, msgspec.Meta(ge=1)] = 64 << 20
    queues: Literal["quorum", "classic"] = "quorum"
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_verify: bool = True


def endpoint_of(url: Url, options: RabbitOptions) -> Endpoint:
    context = tls_context(url, "amqps", options)
    vhost = url.path.removeprefix("/") or "/"
    addresses = url.addresses(5671 if context else 5672)
    heartbeat = options.heartbeat or min(60, max(1, int(options.lease / 3)))
    return Endpoint(url, addresses, vhost, context, options.timeout, heartbeat)
