"""The cursors of a log: one that stands where a read wants to go on is used again, another is opened."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from thalweg.errors import BrokerError

from .cursor import Cursor
from .streams import Block, Start, Streams

__all__ = ["Missing", "Shelf", "peek"]

_SPARE = 4  # cursors of a stream that nobody waits at
_IDLE = 30.0  # seconds after which one that is not used is closed
_PATIENCE = 1.0  # seconds after which an offset that a stream does not reach is believed to be beyond its end


class Missing(BrokerError):
    """Records after the offset may be gone. first: the first kept, None if there is none."""

    def __init__(self, first: int | None) -> None:
        super().__init__("records are gone")
        self.first = first


class Shelf:
    """changed: called whenever any cursor has news."""

    def __init__(self, streams: Streams) -> None:
        self.changed: Callable[[], None] = lambda: None
        self._streams = streams
        self._cursors: dict[str, list[Cursor]] = {}
        self._tidied = 0.0
        self._closing: set[asyncio.Task[Any]] = set()

    def _news(self) -> None:
        self.changed()

    def ready(self, stream: str, after: int | None) -> Cursor | None:
        """A cursor that has records after this offset, or waits for them; one that follows the end, if it can be: that
        one is kept in any case.
        """
        found: Cursor | None = None
        for cursor in self._cursors.get(stream, ()):
            usable = cursor.checked and cursor.lost_by is None and cursor.covers(after)
            if usable and (found is None or cursor.tail):
                found = cursor
        if found is not None:
            found.used = time.monotonic()
        return found

    async def at(self, stream: str, after: int | None) -> Cursor:
        """Opens one. Raises `Missing`, `NoStream` or another `BrokerError`."""
        cursor = next((c for c in self._cursors.get(stream, ()) if c.lost_by is None and c.covers(after)), None)
        if cursor is None:
            cursor = self.add(Cursor(self._streams, stream, "first" if after is None else after, self._news, False))
        cursor.users += 1
        try:
            await cursor.open()
            if after is not None:
                await self._check(cursor, after)
            cursor.checked = True
        finally:
            cursor.users -= 1
        return cursor

    def add(self, cursor: Cursor) -> Cursor:
        cursor.used = time.monotonic()
        self._cursors.setdefault(cursor.stream, []).append(cursor)
        self._tidy(cursor.stream)
        return cursor

    async def _check(self, cursor: Cursor, after: int) -> None:
        """It was attached at the last record known: does the stream still have what follows?"""
        if cursor.first is not None:
            if cursor.first > after + 1:
                raise Missing(cursor.first)
            if not cursor.covers(after):  # what came lies before it
                raise Missing(await self._first(cursor.stream))
            return
        deadline = time.monotonic() + _PATIENCE
        while cursor.first is None:
            last = await peek(self._streams, cursor.stream, "last")
            if last and last[-1].first + last[-1].count > after:
                return  # it was a replica that lags behind
            if time.monotonic() > deadline:
                self.drop(cursor)
                raise Missing(await self._first(cursor.stream))
            await asyncio.sleep(_PATIENCE / 10)

    async def _first(self, stream: str) -> int | None:
        found = await peek(self._streams, stream, "first")
        return found[0].first if found else None

    def drop(self, cursor: Cursor) -> None:
        cursors = self._cursors.get(cursor.stream, [])
        if cursor in cursors:
            cursors.remove(cursor)
        task = asyncio.get_running_loop().create_task(cursor.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _tidy(self, stream: str) -> None:
        for cursor in [c for c in self._cursors.get(stream, ()) if c.lost_by is not None]:
            self.drop(cursor)
        spare = [c for c in self._cursors.get(stream, ()) if not c.users and not c.tail]
        spare.sort(key=lambda cursor: cursor.used)
        for cursor in spare[:-_SPARE]:
            self.drop(cursor)
        now = time.monotonic()
        if now - self._tidied > _IDLE / 2:
            self._tidied = now
            for cursors in list(self._cursors.values()):
                for cursor in list(cursors):
                    if not cursor.users and now - cursor.used > _IDLE:
                        self.drop(cursor)

    async def close(self) -> None:
        for cursors in list(self._cursors.values()):
            for cursor in list(cursors):
                self.drop(cursor)
        while self._closing:
            await asyncio.wait(self._closing)


class _Gathered:
    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.lost_by: BrokerError | None = None

    def feed(self, block: Block) -> None:
        self.blocks.append(block)

    def lost(self, error: BrokerError) -> None:
        self.lost_by = error


async def peek(streams: Streams, stream: str, start: Start) -> list[Block]:
    """What comes first from there, now; empty if nothing does."""
    gathered = _Gathered()
    attachment = await streams.attach(stream, start, gathered)
    try:
        await attachment.barrier()
    finally:
        await attachment.close()
    if gathered.lost_by is not None and not gathered.blocks:
        raise gathered.lost_by
    return gathered.blocks
