"""RabbitMQ, on the server of RABBITMQ_URL, under a prefix of its own."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence

from missing import missing
from rabbitmq_leftovers import delete_all
from thalweg.contrib.conformance import Rig, transport
from thalweg.errors import BrokerError

SERVER = os.environ.get("RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672")
PREFIX = f"test-{secrets.token_hex(6)}."


class RabbitRig(Rig):
    lease = 0.6

    def __init__(self, options: str = "") -> None:
        own = f"prefix={PREFIX}&message_bytes=10000&lease={self.lease}&heartbeat=1{options}"
        super().__init__(f"{SERVER}{'&' if '?' in SERVER else '?'}{own}")

    async def prepare(self) -> None:
        try:
            await (await self.open()).close()
        except BrokerError as error:
            missing("rabbitmq", str(error))

    def through(self, host: str, port: int) -> str:
        """Over AMQP: the proxy is not before the port of the stream plug-in."""
        url = super().through(host, port)
        return url if "streams=" in url else f"{url}&streams=amqp"

    async def clean(self, names: Sequence[str]) -> None:
        await delete_all(self.url, names)


rabbitmq = transport("amqp://", RabbitRig)
over_amqp = transport("amqp://?streams=amqp", lambda: RabbitRig("&streams=amqp"))
