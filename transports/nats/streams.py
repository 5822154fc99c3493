"""The streams of a prefix: looked up, created, brought up to date."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from thalweg.errors import BrokerError

from .connection import ApiError, Connection

__all__ = ["NO_STREAM", "StreamConfig", "Streams"]

NO_STREAM = 10059
_EXISTS = (10058, 10065)
_KINDS = ("topic", "log", "own", "floor", "group")
"""Of subjects in the main stream: cards of topics, records, tokens of owners, what was dropped, notes of groups."""


class StreamConfig(msgspec.Struct):
    """A stream's, as far as it matters."""

    name: str = ""
    subjects: list[str] = []
    storage: str = "file"
    num_replicas: int = 1
    max_age: int = 0
    max_msgs: int = -1
    max_bytes: int = -1
    max_msgs_per_subject: int = -1
    discard: str = "old"
    allow_atomic: bool = False
    persist_mode: str = ""


class _Stream(msgspec.Struct):
    config: StreamConfig


class Streams:
    """atomic: whether those that are created shall take atomic batches."""

    def __init__(self, connection: Connection, prefix: str, replicas: int) -> None:
        self.main = prefix
        self.replicas = replicas
        self.atomic = False
        self._connection = connection

    async def config(self, name: str) -> StreamConfig | None:
        try:
            return (await self._connection.api(f"STREAM.INFO.{name}", _Stream)).config
        except ApiError as error:
            if error.code == NO_STREAM:
                return None
            raise

    async def allow_batches(self) -> StreamConfig | None:
        """The stream was made by an older server."""
        name = f"STREAM.INFO.{self.main}"
        config = (await self._connection.api(name, dict[str, Any]))["config"]
        try:
            found = await self._connection.api(f"STREAM.UPDATE.{self.main}", _Stream, {**config, "allow_atomic": True})
        except BrokerError:  # no rights
            return await self.config(self.main)
        return found.config

    async def make(self, config: Mapping[str, object]) -> None:
        """Create a stream, unless it exists."""
        name = config["name"]
        assert isinstance(name, str)
        if await self.config(name) is not None:
            return
        try:
            await self._connection.api(f"STREAM.CREATE.{name}", msgspec.Raw, config)
        except ApiError as error:
            if error.code not in _EXISTS or await self.config(name) is None:
                raise

    async def make_main(self) -> None:
        config: dict[str, object] = {
            "name": self.main,
            "subjects": [f"{self.main}.{kind}.>" for kind in _KINDS],
            "allow_direct": True,
            "allow_rollup_hdrs": True,
            "num_replicas": self.replicas,
            "discard": "new",
        }
        if self.atomic:
            config["allow_atomic"] = True
        await self.make(config)
