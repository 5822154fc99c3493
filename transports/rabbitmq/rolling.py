"""A partition of a log that is truncated: a chain of streams, see `generations.py`."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence

from thalweg.errors import AmbiguousCommit, BrokerError
from thalweg.message import Message, Position

from .cursor import Cursor
from .generations import SEAL, Candidate, First, Generations, Gone, Rolled, Root, join, seal, split
from .partition import Partition
from .shelf import Shelf
from .streams import NoStream, Streams

__all__ = ["RollingPartition"]

_RECORDS = 100_000
"""Records of a generation that are truncated before it is sealed, even if they are small."""

_TRIES = 10


class RollingPartition(Partition):
    """name: of the stream of a generation, given a random part. make, delete: a stream.

    roll_bytes: how large a generation may grow before a truncation seals it.
    """

    truncated = True

    def __init__(
        self,
        streams: Streams,
        shelf: Shelf,
        topic: str,
        number: int,
        generations: Generations,
        timeout: float,
        root: Root,
        name: Callable[[int, int, str], str],
        make: Callable[[str], Awaitable[None]],
        delete: Callable[[str], Awaitable[None]],
        roll_bytes: int,
    ) -> None:
        super().__init__(streams, shelf, topic, number, generations, timeout)
        self._root, self._name, self._make, self._delete = root, name, make, delete
        self._roll_bytes = roll_bytes
        self._ending = asyncio.Lock()
        self._truncating = asyncio.Lock()

    async def _refresh(self) -> None:
        await self._root.refresh()

    def ready(self, after: Position | None) -> Cursor | None:
        return super().ready(after) if self._root.known else None

    async def prepare(self, after: Position | None) -> Cursor:
        await self._root.begin()
        return await super().prepare(after)

    # --- writing ---------------------------------------------------------------------------------------------

    async def append(self, messages: Sequence[Message], positions: bool) -> Sequence[Position]:
        """A record counts once it has been read back before any seal; what has not is appended to what follows."""
        found: list[Position] = []
        try:
            await self._append(list(messages), found)
        except AmbiguousCommit:
            raise
        except BrokerError as error:
            if found:
                raise AmbiguousCommit(f"{error} ({len(found)} of {len(messages)} records were written)") from None
            raise
        return found

    async def _append(self, left: list[Message], found: list[Position]) -> None:
        for _ in range(_TRIES):
            generation, tail = await self._end()
            try:
                offsets = await self._write_and_see(tail.stream, tail, left)
            except NoStream:  # nothing of it was written
                tail.lost(BrokerError(f"stream {tail.stream!r} is gone"))
                newest = self.generations.newest
                await self._root.refresh()
                if self.generations.newest == newest:
                    raise
                continue
            found += (join(generation, offset) for offset in offsets)
            left = left[len(offsets) :]
            if not left:
                return
        raise BrokerError(f"the end of topic {self._topic!r} partition {self._number} moved {_TRIES} times meanwhile")

    async def _end(self) -> tuple[int, Cursor]:
        """The last generation, and a cursor that sees what is appended to it: it was not sealed before that."""
        async with self._ending:
            while True:
                generation = self.generations.newest
                stream = self.generations.streams[generation]
                tail = self._tails.get(stream)
                if tail is not None and tail.lost_by is None and tail.checked:
                    return generation, tail
                try:
                    tail = await self._follower(generation, "next")
                    await self._root.sync()
                    if self.generations.may_be_sealed(generation) and self.generations.newest == generation:
                        self._shelf.drop(tail)
                        tail = await self._follower(generation, "first")
                except NoStream:
                    await self._root.sync()
                    if self.generations.newest == generation:
                        raise
                    continue
                if self.generations.newest == generation:
                    tail.checked = True
                    for name in [name for name, old in self._tails.items() if not old.users]:
                        self._shelf.drop(self._tails.pop(name))
                    self._tails[stream] = tail
                    return generation, tail
                self._shelf.drop(tail)

    async def _follower(self, generation: int, start: str) -> Cursor:
        stream = self.generations.streams[generation]
        tail = Cursor(self._streams, stream, "first" if start == "first" else "next", self._shelf.changed, tail=True)
        tail.watchers.append(lambda block: self._watch(generation, block))
        self._shelf.add(tail)
        await tail.open()
        return tail

    # --- truncating ------------------------------------------------------------------------------------------

    async def truncate(self, before: Position) -> None:
        """Tell where the log begins now, delete generations that lie wholly before, and seal the last if it is large.

        Whoever is cut off in the middle leaves nothing wrong: the next truncation goes on where this one was.
        """
        async with self._truncating:
            generations = self.generations
            if before > self._seen + 1:
                last = (await self.bounds()).last
                before = min(before, generations.first if last is None else last + 1)
            if before > generations.first:
                await self._root.write(First(self._number, before))
            generation, offset = split(generations.first)
            below = min(generation, generations.newest)
            if garbage := generations.garbage(below):
                for stream in garbage:
                    await self._delete(stream)
                await self._root.write(Gone(self._number, below))
            if generation == generations.newest and (offset >= _RECORDS or self._bytes(generation) >= self._roll_bytes):
                await self.roll()

    def _bytes(self, generation: int) -> int:
        """Of what this process has seen written there."""
        tail = self._tails.get(self.generations.streams[generation])
        return 0 if tail is None else tail.size

    async def roll(self) -> None:
        """Seal the last generation; another may be faster."""
        generation, tail = await self._end()
        stream = self._name(self._number, generation + 1, secrets.token_hex(4))
        await self._root.write(Candidate(self._number, generation + 1, stream))
        await self._make(stream)
        try:
            await self._write_seal(generation, tail, stream)
        except NoStream:  # it was truncated meanwhile, by somebody who is further
            await self._delete(stream)
            return
        offset = self.generations.seals.get(generation)
        following = self.generations.streams.get(generation + 1)
        if offset is not None and following is not None:  # else others have truncated both meanwhile
            await self._root.write(Rolled(self._number, generation, offset, following))
        if following != stream:
            await self._delete(stream)

    async def _write_seal(self, generation: int, tail: Cursor, following: str) -> None:
        """Returns when there is one, this or another."""
        found: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def look(_: object) -> None:
            sealed = generation in self.generations.seals or generation < self.generations.newest
            if sealed and not found.done():
                found.set_result(None)

        tail.watchers.append(look)  # after the one that learns
        tail.users += 1
        try:
            await self._streams.publish(tail.stream, [seal(following)], [f"{SEAL}{secrets.token_hex(5)}"])
            look(None)
            await asyncio.wait([found, tail.ended], timeout=self._timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            tail.users -= 1
            tail.watchers.remove(look)
        if not found.done():
            raise BrokerError(f"a seal in stream {tail.stream!r} was not read back: {tail.lost_by or 'time-out'}")
