"""What was truncated, and up to where. The server forgets: what is purged leaves no trace that tells of a subject.

Before records are dropped, the position of the last of them is written to the partition's floor subject. Everybody
listens there, so that a reader that is overtaken by a truncation knows it before it could skip anything.
"""

from __future__ import annotations

import asyncio

import msgspec
from thalweg.message import Position

from .connection import ApiError, Connection
from .publish import raw
from .wire import Wire

__all__ = ["Floors", "StoredMessage", "StreamState", "last_message"]

NOT_FOUND = 10037
WRONG_SEQUENCE = (10071, 10164)


class _State(msgspec.Struct):
    first_seq: int = 0
    last_seq: int = 0
    subjects: dict[str, int] | None = None


class StreamState(msgspec.Struct):
    """Answer to STREAM.INFO, as far as it is of use."""

    ts: str
    state: _State
    total: int = 0
    offset: int = 0
    limit: int = 0


class _Stored(msgspec.Struct):
    subject: str
    seq: int
    time: str
    data: bytes = b""
    hdrs: bytes = b""


class StoredMessage(msgspec.Struct):
    """Answer to STREAM.MSG.GET."""

    message: _Stored


async def last_message(connection: Connection, stream: str, subject: str) -> _Stored | None:
    """The newest message of a subject, as the stream's leader has it."""
    try:
        found = await connection.api(f"STREAM.MSG.GET.{stream}", StoredMessage, {"last_by_subj": subject})
    except ApiError as error:
        if error.code == NOT_FOUND:
            return None
        raise
    return found.message


class Floors:
    """The position of the last record that was dropped, by partition (the name of its floor subject)."""

    def __init__(self, connection: Connection, stream: str, prefix: str) -> None:
        self._connection = connection
        self._stream = stream
        self._prefix = f"{prefix}.floor."
        self._known: dict[str, Position] = {}
        self._loaded: set[str] = set()
        self._loading = asyncio.Lock()
        self._wire: Wire | None = None

    def subject(self, topic: str, partition: int) -> str:
        return f"{self._prefix}{topic}.{partition}"

    def at(self, topic: str, partition: int) -> Position:
        """0: nothing was ever dropped. Valid after `load`, as long as the connection lasts."""
        return self._known.get(self.subject(topic, partition), 0)

    async def load(self, topic: str) -> StreamState | None:
        """Know the floors of a topic, from now on for good. Returns the stream's state if it had to ask."""
        async with self._loading:
            wire = await self._connection.wire()
            if wire is not self._wire:
                self._loaded.clear()
                wire.subscribe(f"{self._prefix}>".encode(), self._heard)
                await self._connection.reached(wire)
                self._wire = wire
            if topic in self._loaded:
                return None
            request = {"subjects_filter": f"{self._prefix}{topic}.*"}
            found = await self._connection.api(f"STREAM.INFO.{self._stream}", StreamState, request)
            subjects = list(found.state.subjects or ())
            gets = [(f"STREAM.MSG.GET.{self._stream}", {"last_by_subj": subject}) for subject in subjects]
            for answer in await self._connection.apis(gets, StoredMessage):
                if not isinstance(answer, ApiError):
                    self._raise(answer.message.subject, int(answer.message.data))
            self._loaded.add(topic)
            return found

    async def raise_to(self, topic: str, partition: int, position: Position) -> None:
        """Everything up to `position` is about to be dropped."""
        subject = self.subject(topic, partition)
        while True:
            old = await last_message(self._connection, self._stream, subject)
            if old is not None and int(old.data) >= position:
                return
            expected = b"Nats-Rollup: sub\r\nNats-Expected-Last-Subject-Sequence: %d\r\n" % (old.seq if old else 0)
            try:
                await raw(self._connection, subject.encode(), b"%d" % position, expected)
            except ApiError as error:
                if error.code not in WRONG_SEQUENCE:
                    raise
            else:
                self._raise(subject, position)
                return

    def _heard(self, subject: bytes, reply: bytes, header: bytes, payload: bytes) -> None:
        if payload.isdigit():
            self._raise(subject.decode(), int(payload))

    def _raise(self, subject: str, position: Position) -> None:
        self._known[subject] = max(position, self._known.get(subject, 0))
