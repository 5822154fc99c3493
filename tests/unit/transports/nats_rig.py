"""The NATS server of NATS_URL as a rig, with a prefix of its own for all it writes."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable
from typing import NoReturn

import msgspec
from thalweg.channel import Transport
from thalweg.errors import BrokerError
from thalweg.transports.nats import NatsTransport
from thalweg.transports.nats.connection import Connection
from thalweg.url import Url


class NatsRig:
    lease = 0.6
    message_bytes = 10_000

    def __init__(self, options: str = "") -> None:
        self._prefix = f"test-{secrets.token_hex(6)}"
        server = os.environ.get("NATS_URL", "nats://127.0.0.1:4222")
        given = f"prefix={self._prefix}&message_bytes={self.message_bytes}&lease={self.lease}{options}"
        self._url = Url(f"{server}{'&' if '?' in server else '?'}{given}")
        self._transports: list[NatsTransport] = []

    async def check(self, missing: Callable[[str, str], NoReturn]) -> None:
        try:
            await (await self.open()).close()
        except BrokerError as error:
            missing("nats", str(error))

    async def open(self) -> NatsTransport:
        transport = NatsTransport.from_url(self._url)
        self._transports.append(transport)
        await transport.open()
        return transport

    async def crash(self, transport: Transport) -> None:
        """Nothing more is renewed or given back, and its connections are gone."""
        assert isinstance(transport, NatsTransport)
        transport._leases.end_all()
        await transport._connection.close()

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def close(self) -> None:
        for transport in self._transports:
            await transport.close()
        if self._transports:
            await delete_streams(self._transports[0], self._prefix)


class _Names(msgspec.Struct):
    streams: list[str] | None = None


async def delete_streams(transport: NatsTransport, prefix: str) -> None:
    """Whatever the transport's server has under this prefix."""
    connection = Connection(transport._endpoint)
    try:
        names = (await connection.api("STREAM.NAMES", _Names)).streams or []
        await connection.apis(
            [(f"STREAM.DELETE.{name}", None) for name in names if name.startswith(prefix)], msgspec.Raw
        )
    finally:
        await connection.close()
