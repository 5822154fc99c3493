"""What rigs of brokers behind a network share: a server for all, under a prefix, and one of their own to stop."""

from __future__ import annotations

import asyncio
import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from missing import missing
from thalweg.contrib.conformance import Rig, Unavailable
from thalweg.errors import BrokerError


@cache
def own_server(kind: Any, ended_by: str) -> Any:
    """One a process; it ends with the process."""
    folder = tempfile.mkdtemp(prefix="thalweg-server-")
    server = kind(Path(folder))
    server.start()
    atexit.register(lambda: (getattr(server, ended_by)(), shutil.rmtree(folder, ignore_errors=True)))
    return server


class ServerRig(Rig):
    """broker: its name. shared: the URL of the server for all. prefix: of this run. kind: a class of own servers."""

    broker: str
    shared: str
    prefix: str
    kind: Any
    ended_by = "kill"
    lease = 0.6

    def __init__(self, options: str = "") -> None:
        own = f"prefix={self.prefix}&message_bytes=10000&lease={self.lease}{options}"
        super().__init__(f"{self.shared}{'&' if '?' in self.shared else '?'}{own}")

    def lacking(self) -> str:
        """What this machine lacks for a server of the tests' own; empty if nothing."""
        raise NotImplementedError

    async def prepare(self) -> None:
        try:
            await (await self.open()).close()
        except BrokerError as error:
            missing(self.broker, str(error))

    async def own_broker(self) -> None:
        if lacking := self.lacking():
            raise Unavailable(f"properties that stop the server start one of their own: {lacking}")
        self._server = await asyncio.to_thread(own_server, self.kind, self.ended_by)
        self.url = self.url.replace(self.shared, self._server.url)

    async def stop_broker(self) -> None:
        await asyncio.to_thread(self._server.kill)

    async def start_broker(self) -> None:
        await asyncio.to_thread(self._server.start)
