"""RabbitMQ, on the server of RABBITMQ_URL, under a prefix of its own."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Sequence

from brokers.rabbit_server import RabbitServer
from rabbitmq_leftovers import delete_all
from server_rig import ServerRig
from thalweg.contrib.conformance import transport

SERVER = os.environ.get("RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672")
PREFIX = f"test-{secrets.token_hex(6)}."


class RabbitRig(ServerRig):
    broker, shared, prefix, kind, ended_by = "rabbitmq", SERVER, PREFIX, RabbitServer, "close"
    lease = 0.8

    def lacking(self) -> str:
        return "they need the package rabbitmq-server" if RabbitServer.lacking() else ""

    async def own_broker(self) -> None:
        options = self.url.partition("?")[2]
        await super().own_broker()
        self.url = f"{self._server.url}&{options}"  # which has options of its own

    async def stop_broker(self) -> None:
        """First the application, then the process: see RabbitServer.settle."""
        await asyncio.to_thread(self._server.control, "stop_app")
        await asyncio.to_thread(self._server.kill)

    def through(self, host: str, port: int) -> str:
        """Over AMQP: the proxy is not before the port of the stream plug-in."""
        url = super().through(host, port)
        return url if "streams=" in url else f"{url}&streams=amqp"

    async def clean(self, names: Sequence[str]) -> None:
        await delete_all(self.url, names)


rabbitmq = transport("amqp://", RabbitRig)
# Queues, locks and members are the same; logs are read another way.
over_amqp = transport("amqp://?streams=amqp", lambda: RabbitRig("&streams=amqp"), profiles=["Ordered", "Replay"])
