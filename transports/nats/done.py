"""What a group of a queue has finished, noted beside the server's own books.

A server that is killed forgets the acknowledgements of about its last tenth of a second: it writes its consumers' state
now and then. As long as a queue has one group, nobody notices, for what is acknowledged leaves the stream at once, and
that lasts. With several groups it stays for the others, and would come again. So then each commit is noted first, and
whoever connects anew reads the last notes.
"""

from __future__ import annotations

import msgspec

from .connection import Connection
from .publish import raw
from .records import token
from .streams import Streams
from .wire import Wire

__all__ = ["DoneNotes"]

_KEPT = 1000
"""Notes that are kept of each group and queue: many more than a tenth of a second brings."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[tuple[int, int]]).decode


class DoneNotes:
    """Of one group and queue. `needed`: whether the queue has several groups.

    A message is known by its sequence and the moment it was stored: a server that lost messages uses sequences again.
    """

    def __init__(self, connection: Connection, streams: Streams, queue: str, group: str) -> None:
        prefix = streams.main
        self.needed = False
        self._connection = connection
        self._streams = streams
        self._stream = f"{prefix}+done"
        self._subject = f"{prefix}.done.{token(queue)}.{token(group)}"
        self._bell = f"{prefix}.bell.queue.{token(queue)}".encode()
        self._found: set[tuple[int, int]] = set()
        self._wire: Wire | None = None

    def __contains__(self, message: tuple[int, int]) -> bool:
        return message in self._found

    async def begin(self) -> None:
        """There are several groups: note from now on, and tell those who do not know it."""
        config: dict[str, object] = {
            "name": self._stream,
            "subjects": [f"{self._streams.main}.done.>"],
            "max_msgs_per_subject": _KEPT,
            "allow_direct": True,
            "num_replicas": self._streams.replicas,
        }
        await self._streams.make(config)
        self.needed = True
        wire = await self._connection.wire()
        wire.send(b"PUB %b 0\r\n\r\n" % self._bell)
        await self._connection.reached(wire)

    async def recall(self) -> None:
        """Know what was done under the connections before this one."""
        wire = await self._connection.wire()
        if wire is self._wire:
            return
        wire.subscribe(self._bell, self._rung)
        await self._connection.reached(wire)
        if self.needed:
            request = {"seq": 1, "next_by_subj": self._subject, "batch": _KEPT}
            answers = await self._connection.collect(f"DIRECT.GET.{self._stream}", request)
            self._found = {message for _, note in answers for message in _decode(note)}
        self._wire = wire

    async def note(self, messages: list[tuple[int, int]]) -> None:
        await raw(self._connection, self._subject.encode(), _encode(messages))

    def _rung(self, subject: bytes, reply: bytes, header: bytes, payload: bytes) -> None:
        self.needed = True
