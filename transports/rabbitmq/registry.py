"""What topics and queues there are: AMQP cannot list them, so a stream of the driver's own remembers.

Entries are never taken back, and of several about one thing the first in the stream counts. So two programs that
declare the same topic at once agree, and nobody needs a lock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import msgspec

from .connection import Connection
from .names import Names
from .tail import Tail

__all__ = ["Registry", "Topic"]

_QUIET = 0.05  # seconds without an entry after which the past is taken for read, when nothing depends on it


class Topic(msgspec.Struct, frozen=True):
    """A topic or queue as it was first declared. kind: of the queues that hold it, stream, quorum or classic."""

    name: str
    partitions: int
    queue: bool = False
    kind: str = "stream"
    retention: float | None = None
    options: Mapping[str, str] = {}
    truncated: bool = False


class _Entry(msgspec.Struct, omit_defaults=True):
    """What holds nothing only marks a place."""

    topic: Topic | None = None
    queue: str | None = None
    group: str | None = None


class Registry:
    """All that writes returns when what was written before has been read."""

    def __init__(self, connection: Connection, names: Names) -> None:
        self.topics: dict[str, Topic] = {}
        self.alone = False
        """There are no streams on this server: only what this process declares is known, and all groups are one."""
        self._groups: dict[str, list[str]] = {}
        self._tail = Tail(connection, names.own("topics"), "the list of topics", self._take)

    async def find(self, name: str) -> Topic | None:
        """Rigorous: all that was declared before is known."""
        if name not in self.topics:
            await self.sync()
        return self.topics.get(name)

    async def read(self) -> None:
        """What is there, give or take the very latest."""
        if self.alone:
            return
        await self._tail.attach()
        loop = asyncio.get_running_loop()
        while (wait := self._tail.last + _QUIET - loop.time()) > 0:  # noqa: ASYNC110 - it waits for silence
            await asyncio.sleep(wait)

    async def declare(self, topic: Topic) -> Topic:
        """The topic as it is: as given here, unless another was first."""
        if topic.name not in self.topics:
            await self._write(_Entry(topic=topic))
        return self.topics[topic.name]

    async def groups(self, queue: str, group: str) -> list[str]:
        """The consumer groups of a queue, `group` among them, in the order in which they came."""
        if self.alone:
            return [group]
        if group not in self._groups.get(queue, ()):
            await self._write(_Entry(queue=queue, group=group))
        return self._groups[queue]

    async def sync(self) -> None:
        await self._write(_Entry())

    async def close(self) -> None:
        await self._tail.close()

    async def _write(self, entry: _Entry) -> None:
        body = msgspec.json.encode(entry)
        if self.alone:
            self._take(0, body)
        else:
            await self._tail.append(body)

    def _take(self, _: int, body: bytes) -> None:
        try:
            entry = msgspec.json.decode(body, type=_Entry)
        except msgspec.DecodeError:  # of another program, or of a later version
            return
        if entry.topic is not None:
            self.topics.setdefault(entry.topic.name, entry.topic)
        if entry.queue is not None and entry.group is not None:
            groups = self._groups.setdefault(entry.queue, [])
            if entry.group not in groups:
                groups.append(entry.group)
