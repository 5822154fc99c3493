"""NATS, on the server of NATS_URL, under a prefix of its own; once more as servers before 2.12 are."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence

from brokers.nats_server import delete_streams
from missing import missing
from thalweg.contrib.conformance import Rig, transport
from thalweg.errors import BrokerError

SERVER = os.environ.get("NATS_URL", "nats://127.0.0.1:4222")
PREFIX = f"test-{secrets.token_hex(6)}"


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
        await delete_streams(self.url, PREFIX)


nats = transport("nats://", NatsRig)
nats_without_fencing = transport("nats://?fencing=false", lambda: NatsRig("&fencing=false"))
