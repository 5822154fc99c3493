"""What a `nats://` URL may say, and what of the server's settings is worth a warning."""

from __future__ import annotations

from typing import Annotated

import msgspec
from thalweg.errors import ConfigurationError
from thalweg.pulse import STUCK, Stuck
from thalweg.tls import tls_context
from thalweg.url import Url

from .connection import Endpoint
from .streams import StreamConfig

__all__ = ["NatsOptions", "endpoint_of", "warnings_of"]


class NatsOptions(msgspec.Struct, frozen=True):
    """Query options of the URL.

    prefix: begins every subject and stream, so that several programs can share an account.
    timeout: seconds to connect, and to wait for an answer.
    message_bytes: largest message (key, value and headers); what the server's max_payload has room for if not given.
    lease: seconds after which a consumer that hangs loses its deliveries (of a queue: each delivery, unless extended).
    stuck: seconds without a sign of life from the event loop, after which it loses all that it holds.
    replicas: how many servers of a cluster keep each stream that is created.
    domain: the JetStream domain. inbox: begins the subjects of answers, for users who may not subscribe to _INBOX.>.
    credentials: a file as `nsc` writes it. nkey: a file with the seed of a user's key.
    tls_ca, tls_cert, tls_key: files, for tls://. tls_verify=false accepts any certificate. tls_hostname: the name that
    the certificate must have. tls_first: the server expects TLS at once (handshake_first).
    fencing: false does without atomic batches, as servers before 2.12 do.
    """

    prefix: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")] = "thalweg"
    timeout: Annotated[float, msgspec.Meta(ge=0.1, le=3600)] = 10.0
    message_bytes: Annotated[int, msgspec.Meta(ge=1, le=64 << 20)] | None = None
    lease: Annotated[float, msgspec.Meta(ge=0.01, le=86400)] = 30.0
    stuck: Stuck = STUCK
    replicas: Annotated[int, msgspec.Meta(ge=1, le=5)] = 1
    domain: Annotated[str, msgspec.Meta(pattern=r"^[^\s.*>]+$")] | None = None
    inbox: Annotated[str, msgspec.Meta(pattern=r"^[^\s*>]+$")] = "_INBOX"
    credentials: str | None = None
    nkey: str | None = None
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_verify: bool = True
    tls_hostname: str | None = None
    tls_first: bool = False
    fencing: bool = True


def endpoint_of(url: Url, options: NatsOptions) -> Endpoint:
    if url.path.strip("/"):
        raise ConfigurationError(f"{url}: a {url.scheme}:// URL has no path; ?prefix= names a part of the account")
    context = tls_context(url, "tls", options)
    if context is None and options.tls_first:
        raise ConfigurationError(f"{url}: TLS options need the scheme tls://")
    return Endpoint(
        url,
        url.addresses(4222),
        context,
        options.tls_first,
        options.tls_hostname,
        options.timeout,
        options.inbox,
        f"$JS.{options.domain}.API." if options.domain else "$JS.API.",
        options.credentials,
        options.nkey,
    )


def warnings_of(
    config: StreamConfig | None, options: NatsOptions, version: tuple[int, ...], fencing: bool
) -> list[str]:
    found: list[str] = []
    if not fencing and options.fencing:
        reason = "the server is older than 2.12" if version < (2, 12) else "its stream does not allow them"
        found.append(
            f"no atomic batches ({reason}): outputs follow their commit instead of being part of it, and appends go "
            "one message at a time"
        )
    if config is not None and config.storage != "file":
        found.append(
            f"storage={config.storage}: a restart of the server loses everything; recreate the stream on files"
        )
    replicas = config.num_replicas if config is not None else options.replicas
    if replicas == 1:
        found.append(
            "replicas=1: one server keeps everything. By default it syncs its files every two minutes (sync_interval), "
            "so a crash of its machine takes back what it acknowledged since; clients cannot see that setting. Set "
            "jetstream { sync_interval: always }, or use a cluster and ?replicas=3"
        )
    if config is not None:
        limits = [
            name
            for name, value in (("max_age", config.max_age), ("max_msgs_per_subject", config.max_msgs_per_subject))
            if value > 0
        ]
        if config.discard == "old":
            limits += [n for n, v in (("max_bytes", config.max_bytes), ("max_msgs", config.max_msgs)) if v > 0]
        if limits:
            found.append(
                f"the stream {config.name} has {', '.join(limits)}: the server will drop journals and tokens; "
                "take the limits away (discard=new with max_bytes is safe)"
            )
    return found
