"""RabbitMQ, on the server of RABBITMQ_URL, under a prefix of its own."""

from __future__ import annotations

import asyncio
import atexit
import os
import secrets
import shutil
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from brokers.rabbit_server import RabbitServer
from missing import missing
from rabbitmq_leftovers import delete_all
from thalweg.contrib.conformance import Rig, Unavailable, transport
from thalweg.errors import BrokerError

SERVER = os.environ.get("RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672")
PREFIX = f"test-{secrets.token_hex(6)}."


@cache
def own_server() -> RabbitServer:
    folder = tempfile.mkdtemp(prefix="thalweg-rabbitmq-")
    server = RabbitServer(Path(folder))
    server.start()
    atexit.register(lambda: (server.close(), shutil.rmtree(folder, ignore_errors=True)))
    return server


class RabbitRig(Rig):
    lease = 0.8

    def __init__(self, options: str = "") -> None:
        own = f"prefix={PREFIX}&message_bytes=10000&lease={self.lease}{options}"
        super().__init__(f"{SERVER}{'&' if '?' in SERVER else '?'}{own}")

    async def prepare(self) -> None:
        try:
            await (await self.open()).close()
        except BrokerError as error:
            missing("rabbitmq", str(error))

    async def own_broker(self) -> None:
        if lacking := RabbitServer.lacking():
            raise Unavailable(lacking)
        self._server = await asyncio.to_thread(own_server)
        self.url = f"{self._server.url}&{self.url.partition('?')[2]}"

    async def stop_broker(self) -> None:
        """First the application, then the process: see RabbitServer.settle."""
        await asyncio.to_thread(self._server.control, "stop_app")
        await asyncio.to_thread(self._server.kill)

    async def start_broker(self) -> None:
        await asyncio.to_thread(self._server.start)

    def through(self, host: str, port: int) -> str:
        """Over AMQP: the proxy is not before the port of the stream plug-in."""
        url = super().through(host, port)
        return url if "streams=" in url else f"{url}&streams=amqp"

    async def clean(self, names: Sequence[str]) -> None:
        await delete_all(self.url, names)


rabbitmq = transport("amqp://", RabbitRig)
over_amqp = transport("amqp://?streams=amqp", lambda: RabbitRig("&streams=amqp"))
