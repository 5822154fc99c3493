"""A place in a stream, and the records around it that have arrived: what reads are served from."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence

from thalweg.errors import BrokerError
from thalweg.finishing import ignore_failure
from thalweg.message import Message

from .streams import Attachment, Block, Start, Streams

__all__ = ["Cursor"]

_ROOM = 1 << 20
"""Bytes that may have arrived and not been read before the server is asked to wait (blocks under way come on top)."""

_LATEST = 4 * _ROOM
"""Bytes that one which follows the end keeps for those who have not read them yet."""

_FIXED = 60  # bytes of a record beside its value, about


class Cursor:
    """Attached at `start` by `open`. It keeps what was read lately, so that many tasks at one place share it.

    tail: it follows the end of the stream whether anyone reads or not, and keeps the latest records only.
    changed: called whenever something arrived, or nothing more will.
    """

    def __init__(self, streams: Streams, stream: str, start: Start, changed: Callable[[], None], tail: bool) -> None:
        self.stream = stream
        self.start = start
        self.lost_by: BrokerError | None = None
        self.arrived = 0
        """Blocks so far."""
        self.size = 0
        """Bytes so far."""
        self.first: int | None = None
        """The first offset that ever arrived."""
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done once nothing more will come."""
        self.checked = False
        """Open, and known to continue where it was started."""
        self.users = 0
        self.used = 0.0
        self.watchers: list[Callable[[Block], None]] = []
        """Called for each block that arrives."""
        self._streams, self._changed, self.tail = streams, changed, tail
        self._attachment: Attachment | None = None
        self._blocks: list[Block] = []
        self._firsts: list[int] = []  # of the blocks, to search in
        self._held = 0  # bytes of the blocks
        self._owed: deque[Block] = deque()
        self._served = -1  # the last offset that anyone was given
        self._opening: asyncio.Task[None] | None = None

    # --- its life --------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Attach, and take in what is there. Many may call it; the first does it. Raises `BrokerError`."""
        if self._opening is None:
            self._opening = asyncio.get_running_loop().create_task(self._open())
            self._opening.add_done_callback(ignore_failure)
        await asyncio.shield(self._opening)

    async def _open(self) -> None:
        try:
            self._attachment = await self._streams.attach(self.stream, self.start, self)
            while self._owed:
                self._attachment.taken(self._owed.popleft())
            if self.start != "next":
                await self.catch_up()
        except BrokerError as error:
            self.lost(error)
            raise

    async def catch_up(self) -> None:
        """All that the stream holds now has arrived, or there is no room for more."""
        while self._attachment is not None and self.lost_by is None and not self.full:
            if not await self._attachment.barrier():
                break

    async def close(self) -> None:
        if self._opening is not None:
            await asyncio.wait([self._opening])
        attachment, self._attachment = self._attachment, None
        self.lost(BrokerError(f"reading {self.stream!r} was ended"))
        if attachment is not None:
            await attachment.close()

    # --- what arrives ----------------------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        return self._held > _ROOM and not self.tail

    def feed(self, block: Block) -> None:
        if self.first is None:
            self.first = block.first
        self.arrived += 1
        self.size += block.size
        for watcher in self.watchers:
            watcher(block)
        self._blocks.append(block)
        self._firsts.append(block.first)
        self._held += block.size
        self._owed.append(block)
        self._trim()
        self._changed()

    def lost(self, error: BrokerError) -> None:
        if self.lost_by is None:
            self.lost_by = error
        self._blocks.clear()  # another stream may come under the name
        self._firsts.clear()
        self._held = 0
        if not self.ended.done():
            self.ended.set_result(None)
        self._changed()

    def _trim(self) -> None:
        dropped = 0
        for oldest in self._blocks:
            unread = oldest.first + oldest.count - 1 > self._served
            if self._held <= _ROOM or (unread and (not self.tail or self._held <= _LATEST)):
                break
            self._held -= oldest.size
            dropped += 1
        if dropped:
            del self._blocks[:dropped], self._firsts[:dropped]
        if self._attachment is not None and (self.tail or self._held <= _ROOM):
            while self._owed:
                self._attachment.taken(self._owed.popleft())

    # --- what is read ----------------------------------------------------------------------------------------

    @property
    def next(self) -> int | None:
        """The offset that will come next; None while nothing has come."""
        return self._blocks[-1].first + self._blocks[-1].count if self._blocks else None

    def covers(self, offset: int | None) -> bool:
        """Whether reading can go on after this offset here (None: from the first record kept)."""
        if offset is None:
            return self.start == "first" and (not self._blocks or self._blocks[0].first == self.first)
        if not self._blocks:
            return self.start == offset
        return self._blocks[0].first <= offset + 1 and offset < self._blocks[-1].first + self._blocks[-1].count

    def take(self, after: int | None, limit: int, room: int) -> tuple[int, list[Message], int]:
        """The offset of the first of these records, the records, and how many bytes they are. At least one, if any."""
        found: list[Message] = []
        first = used = 0
        start = 0 if after is None else max(0, bisect_right(self._firsts, after + 1) - 1)
        for number in range(start, len(self._blocks)):
            block = self._blocks[number]
            if after is not None and block.first + block.count <= after + 1:
                continue
            begin = 0 if after is None else max(0, after + 1 - block.first)
            records = block.records
            size = block.size if not begin else sum(len(r.value or b"") + _FIXED for r in records[begin:])
            if used + size > room or len(found) + block.count - begin > limit:
                part, size = _part(records, begin, limit - len(found), room - used, not found)
                if part and not found:
                    first = block.first + begin
                found += part
                used += size
                break
            if not found:
                first = block.first + begin
                found = list(records) if not begin else list(records[begin:])
            else:
                found += records[begin:] if begin else records
            used += size
            if used >= room or len(found) >= limit:
                break
        if found:
            self._served = max(self._served, first + len(found) - 1)
            self._trim()
        return first, found, used


def _part(records: Sequence[Message], begin: int, limit: int, room: int, one: bool) -> tuple[list[Message], int]:
    part: list[Message] = []
    used = 0
    for number in range(begin, len(records)):
        record = records[number]
        size = _FIXED + (record.size if record.headers else len(record.value or b"") + len(record.key or b""))
        if len(part) >= limit or (used + size > room and not (one and not part)):
            break
        part.append(record)
        used += size
    return part, used
