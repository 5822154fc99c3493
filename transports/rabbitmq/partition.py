"""One partition of a topic as a log: reads, its ends, and plain appends. `rolling.py` adds what truncation takes."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from thalweg.capabilities import Bounds
from thalweg.errors import AmbiguousCommit, BrokerError, Gap
from thalweg.finishing import ignore_failure
from thalweg.message import Batch, Message, Position

from .connection import HELD_UP
from .cursor import Cursor
from .generations import SEAL, Generations, Rolled, join, sealed, split
from .shelf import Missing, Shelf, peek
from .streams import Block, NoStream, Since, Start, Streams

__all__ = ["Expected", "Partition", "new_ids"]

T = TypeVar("T")

_AHEAD = 3_600_000
"""Milliseconds by which a record's time may lie after the time at which it was written, for `find`."""

_PAGE = 5000


def new_ids(count: int) -> list[str]:
    token = secrets.token_hex(5)
    return [f"{token}{number:x}" for number in range(count)]


class Expected:
    """Messages of ours that are waited for: where each lies once it has been seen, before any seal."""

    def __init__(self, ids: Sequence[str]) -> None:
        self.offsets: list[int] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ids = ids

    def see(self, block: Block) -> None:
        if self.done.done():
            return
        ids, offsets = self._ids, self.offsets
        for offset, id in enumerate(block.ids, block.first):
            if id == ids[len(offsets)]:  # one writer's messages keep their order
                offsets.append(offset)
                if len(offsets) == len(ids):
                    self.done.set_result(None)
                    return
            elif id is not None and id.startswith(SEAL):
                self.done.set_result(None)
                return


class Partition:
    """generations: kept up to date by whoever knows more; of a log that is not truncated there is one, for ever."""

    truncated = False

    def __init__(
        self, streams: Streams, shelf: Shelf, topic: str, number: int, generations: Generations, timeout: float
    ) -> None:
        self.generations = generations
        self._streams, self._shelf = streams, shelf
        self._topic, self._number = topic, number
        self._timeout = timeout
        self._seen: Position = -1  # the highest position that is known
        self._tails: dict[str, Cursor] = {}
        self._tailing = asyncio.Lock()

    # --- reading ---------------------------------------------------------------------------------------------

    def ready(self, after: Position | None) -> Cursor | None:
        """What `take` would take from, if that does not have to be opened first."""
        if after is not None and self._dropped(after):
            return None
        generation, offset = self._place(after)
        stream = self.generations.streams.get(generation)
        return None if stream is None else self._shelf.ready(stream, offset)

    async def prepare(self, after: Position | None) -> Cursor:
        """So that `ready` is. Raises `Gap` or another `BrokerError`."""
        while True:
            if after is not None and self._dropped(after):
                raise self._gap(after, self.generations.first)
            generation, offset = self._place(after)
            stream = self.generations.streams.get(generation)
            if stream is None:
                await self._locate(generation, after)
                continue
            try:
                return await self._shelf.at(stream, offset)
            except Missing as missing:
                first = None if missing.first is None else join(generation, missing.first)
                raise self._gap(after if after is not None else -1, first) from None
            except NoStream:
                known = (self.generations.first, self.generations.newest)
                await self._refresh()
                if (self.generations.first, self.generations.newest) == known:
                    raise

    def take(self, after: Position | None, limit: int, room: int) -> tuple[Batch | None, int]:
        """Records that have arrived, and their bytes. (None, 0): prepare, and try again; (None, -1): nothing yet."""
        generation, offset = self._place(after)
        cursor = self.ready(after)
        if cursor is None:
            return None, 0
        first, records, size = cursor.take(offset, limit, room)
        for number, record in enumerate(records):
            if record.headers and sealed(record) is not None:
                self._watch_record(generation, first + number, record)
                records = records[:number]
                if not number:
                    return None, 0
                break
        if not records:
            return None, -1
        start = join(generation, first)
        positions = range(start, start + len(records))
        self._seen = max(self._seen, positions[-1])
        return Batch(records, positions), size

    def _place(self, after: Position | None) -> tuple[int, int | None]:
        """In which generation reading goes on, and after which offset."""
        generations = self.generations
        if after is None or after < generations.first:
            after = generations.first - 1 if generations.first else None
        if after is None:
            generation, offset = 0, None
        elif after < 0 or (after + 1) & ((1 << 40) - 1) == 0:  # just before the first of a generation
            generation, offset = split(after + 1)[0], None
        else:
            generation, offset = split(after)
        while (end := generations.seals.get(generation)) is not None and (offset or 0) + (offset is not None) >= end:
            generation, offset = generation + 1, None
        return generation, offset

    def _dropped(self, after: Position) -> bool:
        """Whether records after this position have been truncated."""
        first = self.generations.first
        if after + 1 >= first:
            return False
        generation, offset = split(after)
        end = self.generations.seals.get(generation)
        return not (end is not None and offset + 1 >= end and first == join(generation + 1, 0))

    def _gap(self, after: Position, first: Position | None) -> Gap:
        return Gap(self._topic, self._number, after, first)

    async def _locate(self, generation: int, after: Position | None) -> None:
        """Learn the stream of a generation: the root may lag behind what seals say."""
        await self._refresh()
        newest = self.generations.newest
        if generation not in self.generations.streams and (after is None or not await self._follow(newest)):
            raise self._gap(after or 0, self.generations.first)

    async def _follow(self, generation: int) -> bool:
        """Look whether a generation is sealed, though nobody has told the root. It reads the whole of it."""
        if not self.generations.may_be_sealed(generation):
            return False
        cursor = Cursor(self._streams, self._stream(generation), "first", lambda: None, tail=True)
        cursor.watchers.append(lambda block: self._watch(generation, block))
        try:
            await cursor.open()
        finally:
            await cursor.close()
        return generation in self.generations.seals

    def _watch(self, generation: int, block: Block) -> None:
        """Notice a seal, which is known by its id."""
        if not self.truncated:
            return
        for number, id in enumerate(block.ids):
            if generation in self.generations.seals:
                return
            if id is not None and id.startswith(SEAL):
                self._watch_record(generation, block.first + number, block.records[number])
        self._seen = max(self._seen, join(generation, block.first + block.count - 1))

    def _watch_record(self, generation: int, offset: int, record: Message) -> None:
        following = sealed(record)
        if following is not None:
            self.generations.learn(Rolled(self._number, generation, offset, following))

    async def _refresh(self) -> None:
        """Learn what others have done to the generations."""

    # --- its ends --------------------------------------------------------------------------------------------

    async def bounds(self) -> Bounds:
        return await self._whatever_moves(self._bounds)

    async def find(self, timestamp: int) -> Position | None:
        """Reads from where records of that time can begin. A record's time may lie an hour after it was written."""
        return await self._whatever_moves(lambda: self._find(timestamp))

    async def _whatever_moves(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Again, if a stream was truncated while it was looked at."""
        while True:
            known = self.generations.first, self.generations.newest
            try:
                return await ask()
            except NoStream:
                await self._refresh()
                if (self.generations.first, self.generations.newest) == known:
                    raise

    def _stream(self, generation: int) -> str:
        stream = self.generations.streams.get(generation)
        if stream is None:
            raise NoStream(f"generation {generation} of topic {self._topic!r} partition {self._number} is truncated")
        return stream

    async def _bounds(self) -> Bounds:
        await self._refresh()
        last = await self._last()
        if last is None or last < self.generations.first:
            return Bounds(None, None)
        generation, offset = self._place(None)
        blocks = await peek(self._streams, self._stream(generation), "first")
        first = join(generation, max(blocks[0].first if blocks else 0, 0 if offset is None else offset + 1))
        return Bounds(min(first, last), last)

    async def _last(self) -> Position | None:
        """Of the last record that counts."""
        generations = self.generations
        while True:
            newest, end = generations.newest, 0
            if await self._follow(newest):
                continue
            for block in await peek(self._streams, self._stream(newest), "last"):
                self._watch(newest, block)
                end = block.first + block.count
            if newest not in generations.seals:
                break
        while not end and newest:
            newest -= 1
            end = generations.seals.get(newest, 0)
        return join(newest, end - 1) if end else None

    async def _find(self, timestamp: int) -> Position | None:
        bounds = await self._bounds()
        if bounds.first is None or bounds.last is None:
            return None
        before, after, arrived = None, None, asyncio.Event()
        generation, offset = self._place(None)
        while True:
            start: Start = "first" if offset is None else offset
            if not self.truncated and timestamp > _AHEAD:
                start = Since(timestamp - _AHEAD)
            cursor = Cursor(self._streams, self._stream(generation), start, arrived.set, tail=False)
            try:
                await cursor.open()
                while generation not in self.generations.seals:
                    arrived.clear()
                    first, records, _ = cursor.take(offset, _PAGE, _PAGE * 1000)
                    for number, record in enumerate(records, first):
                        after = join(generation, number)
                        if sealed(record) is not None:
                            self._watch_record(generation, number, record)
                            break
                        if record.timestamp >= timestamp:
                            previous = before if before is not None or number == 0 else after - 1
                            return previous if previous is None or previous >= bounds.first else None
                        if after >= bounds.last:
                            return bounds.last
                        before, offset = after, number
                    if not records:
                        if cursor.lost_by is not None:
                            raise cursor.lost_by
                        await arrived.wait()
            finally:
                await cursor.close()
            generation, offset = generation + 1, None

    # --- writing ---------------------------------------------------------------------------------------------

    async def append(self, messages: Sequence[Message], positions: bool) -> Sequence[Position]:
        """Raises `AmbiguousCommit` or `BrokerError` (nothing was written)."""
        stream = self.generations.streams[0]
        if not positions:
            await self._streams.publish(stream, messages)
            return []
        return await self._write_and_see(stream, await self._tail(stream), messages)

    async def truncate(self, before: Position) -> None:
        """Keeps all: a stream cannot be cut at the front."""

    async def _tail(self, stream: str) -> Cursor:
        """A cursor that sees all that is appended from now on."""
        async with self._tailing:
            tail = self._tails.get(stream)
            if tail is None or tail.lost_by is not None:
                tail = self._shelf.add(Cursor(self._streams, stream, "next", self._shelf.changed, tail=True))
                await tail.open()
                tail.checked = True
                self._tails[stream] = tail
            return tail

    async def _write_and_see(self, stream: str, tail: Cursor, messages: Sequence[Message]) -> list[int]:
        """Offsets of those that were written before any seal: of all, unless there is one."""
        ids = new_ids(len(messages))
        expected, timeout = Expected(ids), self._timeout
        tail.watchers.append(expected.see)
        tail.users += 1
        writing = asyncio.get_running_loop().create_task(self._streams.publish(stream, messages, ids))
        try:
            waiting = {expected.done, tail.ended, writing}
            await asyncio.wait(waiting, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if writing.done() and not expected.done.done():
                await writing
                await asyncio.wait(waiting - {writing}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            tail.users -= 1
            tail.used = time.monotonic()
            tail.watchers.remove(expected.see)
            writing.add_done_callback(ignore_failure)
        if not expected.done.done():
            why = tail.lost_by or BrokerError(f"it did not show within {timeout:g} s (?timeout=): {HELD_UP}")
            tail.lost(why)  # perhaps it has fallen silent: whoever comes next attaches another
            self._shelf.drop(tail)
            raise AmbiguousCommit(f"an append to stream {stream!r} was not read back: {why}")
        return expected.offsets
