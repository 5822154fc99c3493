"""NATS, on the server of NATS_URL, under a prefix of its own; once more as servers before 2.12 are."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence

import msgspec
from missing import missing
from thalweg.contrib.conformance import Rig, transport
from thalweg.errors import BrokerError
from thalweg.transports.nats import NatsTransport
from thalweg.transports.nats.connection import Connection
from thalweg.url import Url

SERVER = os.environ.get("NATS_URL", "nats://127.0.0.1:4222")
PREFIX = f"test-{secrets.token_hex(6)}"


class _Names(msgspec.Struct):
    streams: list[str] | None = None


class NatsRig(Rig):
    lease = 0.6

    def __init__(self, options: str = "") -> None:
        own = f"prefix={PREFIX}&message_bytes=10000&lease={self.lease}{options}"
        super().__init__(f"{SERVER}{'&' if '?' in SERVER else '?'}{own}")

    async def prepare(self) -> None:
        try:
            await (await self.open()).close()
        except BrokerError as error:
            missing("nats", str(error))

    async def clean(self, names: Sequence[str]) -> None:
        connection = Connection(NatsTransport.from_url(Url(self.url))._endpoint)
        found = (await connection.api("STREAM.NAMES", _Names)).streams or []
        await connection.apis(
            [(f"STREAM.DELETE.{name}", None) for name in found if name.startswith(PREFIX)], msgspec.Raw
        )
        await connection.close()


nats = transport("nats://", NatsRig)
nats_without_fencing = transport("nats://?fencing=false", lambda: NatsRig("&fencing=false"))
