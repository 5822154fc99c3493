"""How logs are made and opened: the way to the streams, chosen once, and what a log consists of."""

from __future__ import annotations

from typing import Literal

import msgspec
from thalweg.errors import BrokerError

from .amqp_streams import AmqpStreams
from .connection import Connection, Endpoint
from .generations import Generations, Root
from .log import Parts, RabbitLog
from .names import Names
from .native import NativeStreams
from .partition import Partition
from .registry import Topic
from .rolling import RollingPartition
from .shelf import Shelf
from .streams import Streams
from .topology import create_stream, delete_queue, stream_of

__all__ = ["LogSettings", "Logs"]


class LogSettings(msgspec.Struct, frozen=True):
    """way: to the streams. port: of the stream plug-in. roll_bytes: see `RollingPartition`."""

    way: Literal["auto", "amqp", "native"]
    port: int
    message_bytes: int
    roll_bytes: int


class Logs:
    """Of one transport. `open` it first."""

    def __init__(
        self, endpoint: Endpoint, names: Names, reading: Connection, writing: Connection, settings: LogSettings
    ) -> None:
        self.warnings: list[str] = []
        self._endpoint, self._names, self._writing, self._settings = endpoint, names, writing, settings
        self._amqp = AmqpStreams(reading, writing)
        self._native: NativeStreams | None = None
        self._open: list[RabbitLog] = []
        self._truncated: dict[str, Parts] = {}

    @property
    def way(self) -> Streams:
        return self._native or self._amqp

    async def open(self) -> None:
        """Raises `BrokerError` if the stream plug-in does not answer and nothing else is allowed."""
        if self._settings.way == "amqp":
            return
        native = NativeStreams(self._endpoint, self._settings.port, self._amqp)
        try:
            await native.open()
        except BrokerError as error:
            await native.close()
            if self._settings.way == "native":
                raise
            self.warnings.append(
                f"streams go over AMQP, a tenth as fast: {error}. Enable it (rabbitmq-plugins enable rabbitmq_stream), "
                "name its port by ?stream_port=, or choose AMQP by ?streams=amqp"
            )
            return
        self._native = native

    def log(self, topic: Topic) -> RabbitLog:
        parts = self._truncated.get(topic.name) if topic.truncated else None
        if parts is None or not parts.logs:
            parts = self._chains(topic) if topic.truncated else self._streams(topic)
        log = RabbitLog(topic.name, parts, self._settings.message_bytes)
        self._open = [known for known in self._open if not known.closed] + [log]
        return log

    def _streams(self, topic: Topic) -> Parts:
        """A stream for each partition."""
        shelf, timeout = Shelf(self.way), self._endpoint.timeout
        partitions = [
            Partition(self.way, shelf, topic.name, number, generations, timeout)
            for number, generations in self._generations(topic).items()
        ]
        return Parts(partitions, shelf, None)

    def _chains(self, topic: Topic) -> Parts:
        """A chain of streams for each. Who writes a journal also reads it back, and truncates it: by the same parts, so
        that each record comes from the server once, and it is known how much has been written.
        """
        names, shelf, timeout = self._names, Shelf(self.way), self._endpoint.timeout
        generations = self._generations(topic)
        root = Root(self._amqp, names.topic(topic.name, "root"), generations, timeout)

        def name(number: int, generation: int, random: str) -> str:
            return names.topic(topic.name, number, generation, random)

        async def make(stream: str) -> None:
            await create_stream(self._writing, stream, topic)

        async def delete(stream: str) -> None:
            await delete_queue(self._writing, stream)

        partitions = [
            RollingPartition(
                *(self.way, shelf, topic.name, number, generations[number], timeout),
                *(root, name, make, delete, self._settings.roll_bytes),
            )
            for number in generations
        ]
        parts = self._truncated[topic.name] = Parts(partitions, shelf, root)
        return parts

    def _generations(self, topic: Topic) -> dict[int, Generations]:
        return {number: Generations(stream_of(self._names, topic, number)) for number in range(topic.partitions)}

    async def close(self) -> None:
        for log in self._open:
            await log.close()
        self._open.clear()
        self._truncated.clear()
        if self._native is not None:
            await self._native.close()
        await self._amqp.close()
