"""Streams cannot be cut at the front, so a log that is truncated is a chain of streams: its generations.

Generation 0 of a partition has the plain name. A generation ends with a *seal*, a message that names the stream of the
next. The first seal in a stream is its end, for everyone: records behind it do not count, whoever wrote them, and
whoever wrote them finds the seal before them when he reads his own record back, and appends it to the next generation.
So the order of the stream decides, and nobody who sleeps through a change can do harm:

- A stream's name is never used twice (it has a random part), and a stream is made before the seal that names it, by
  the one who writes the seal. So nobody brings a deleted generation back to life by declaring it again.
- Of several seals the first counts. What the others name was never part of the log; it is deleted.

The *root* stream of a topic tells where things are. It decides nothing but where the log begins, is never truncated,
and is opened passively. Its entries: a stream that is about to be made (`Candidate`; written before any seal can name
it, so who knows the root up to now and finds no candidate knows that there is no seal); what a seal said (`Rolled`);
where the log begins (`First`, which only grows); up to where streams have been deleted (`Gone`).
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping

import msgspec
from thalweg.errors import AmbiguousCommit, BrokerError
from thalweg.message import Message, Position

from .streams import Attachment, Block, Streams

__all__ = ["SEAL", "Candidate", "First", "Generations", "Gone", "Rolled", "Root", "join", "seal", "sealed", "split"]

GENERATION_SHIFT = 40
"""A position is `generation << 40 | offset`."""

SEAL = "thalweg-seal"


def join(generation: int, offset: int) -> Position:
    return generation << GENERATION_SHIFT | offset


def split(position: Position) -> tuple[int, int]:
    return position >> GENERATION_SHIFT, position & (1 << GENERATION_SHIFT) - 1


def seal(next_stream: str) -> Message:
    return Message(next_stream.encode(), None, ((SEAL, b"1"),))


def sealed(record: Message) -> str | None:
    """The name of the next generation's stream, if this is a seal."""
    if record.headers and record.headers[0][0] == SEAL:
        return (record.value or b"").decode()
    return None


class Candidate(msgspec.Struct, tag=True, frozen=True):
    partition: int
    generation: int
    stream: str


class Rolled(msgspec.Struct, tag=True, frozen=True):
    """The seal of `generation` lies at `offset` and names `stream`."""

    partition: int
    generation: int
    offset: int
    stream: str


class First(msgspec.Struct, tag=True, frozen=True):
    partition: int
    position: Position


class Gone(msgspec.Struct, tag=True, frozen=True):
    """All streams of the generations below this one are deleted."""

    partition: int
    generation: int


class Mark(msgspec.Struct, tag=True, frozen=True):
    """Says nothing; who reads it has read what is before it."""


class _Entry(msgspec.Struct, frozen=True):
    token: str
    what: Candidate | Rolled | First | Gone | Mark


class Generations:
    """What is known of one partition's."""

    def __init__(self, stream: str) -> None:
        self.streams: dict[int, str] = {0: stream}
        self.seals: dict[int, int] = {}
        """Offsets of the seals by generation."""
        self.candidates: dict[int, list[str]] = {}
        self.first: Position = 0
        self.gone = 0

    @property
    def newest(self) -> int:
        return max(self.streams)

    def learn(self, entry: Candidate | Rolled | First | Gone) -> None:
        if isinstance(entry, Candidate):
            self.candidates.setdefault(entry.generation, []).append(entry.stream)
        elif isinstance(entry, Rolled):
            self.seals.setdefault(entry.generation, entry.offset)
            self.streams.setdefault(entry.generation + 1, entry.stream)
        elif isinstance(entry, First):
            self.first = max(self.first, entry.position)
        else:
            self.gone = max(self.gone, entry.generation)
            self._forget()

    def _forget(self) -> None:
        """The last seal is kept, as it tells that nothing lay between it and where the log begins."""
        for number in [number for number in self.seals if number < self.gone - 1]:
            del self.seals[number]
        for number in [number for number in self.streams if number < self.gone]:
            del self.streams[number]
        for number in [number for number in self.candidates if number < self.gone]:
            del self.candidates[number]

    @property
    def everything(self) -> set[str]:
        """All streams that there may be."""
        return {*self.streams.values(), *(name for names in self.candidates.values() for name in names)}

    def may_be_sealed(self, generation: int) -> bool:
        return generation + 1 in self.candidates

    def garbage(self, below: int) -> list[str]:
        """Streams of generations below this one that are not deleted yet, and those that lost against them."""
        found = [self.streams[number] for number in range(self.gone, below) if number in self.streams]
        for generation, names in self.candidates.items():
            if self.gone <= generation <= min(below, self.newest):
                found += [name for name in names if name != self.streams.get(generation)]
        return found


class Root:
    """Follows the root stream of a topic. partitions: what is known of each, kept up to date from there."""

    def __init__(self, streams: Streams, stream: str, partitions: Mapping[int, Generations], timeout: float) -> None:
        self.partitions = partitions
        self.known = False
        """Whether what lay there at some time has been read."""
        self._streams, self._stream, self._timeout = streams, stream, timeout
        self._attachment: Attachment | None = None
        self._attaching = asyncio.Lock()
        self._next = 0
        self._owed: list[Block] = []
        self._waiting: dict[str, asyncio.Future[None]] = {}

    async def refresh(self) -> None:
        """All that was written before is known."""
        async with self._attaching:
            await self._read_on()

    async def begin(self) -> None:
        """Who comes new would else read from where the first stream begins, and not from where the log does."""
        if not self.known:
            async with self._attaching:
                if not self.known:
                    await self._read_on()

    async def _read_on(self) -> None:
        if self._attachment is None:
            self._owed.clear()
            self._attachment = await self._streams.attach(self._stream, self._next or "first", self)
            self._settle()
        attachment = self._attachment
        while await attachment.barrier() and self._attachment is attachment:
            pass
        self.known = self.known or self._attachment is attachment

    async def write(self, what: Candidate | Rolled | First | Gone | Mark) -> None:
        """Returns when it and all before it has been read. Raises `BrokerError`; then it may be there or not."""
        token = secrets.token_hex(8)
        seen = self._waiting[token] = asyncio.get_running_loop().create_future()
        message = Message(msgspec.json.encode(_Entry(token, what)))
        try:
            if self._attachment is None:
                await self.refresh()
            await self._streams.publish(self._stream, [message])
            async with asyncio.timeout(self._timeout):
                await seen
        except TimeoutError:
            await self._detach("it has fallen silent")  # whoever comes next attaches anew
            raise AmbiguousCommit(
                f"{self._stream!r} did not show within {self._timeout:g} s what was written"
            ) from None
        finally:
            self._waiting.pop(token, None)

    async def sync(self) -> None:
        """As `refresh`, but by a mark in the stream: rigorous wherever it is read."""
        await self.write(Mark())

    async def close(self) -> None:
        await self._detach("the log was closed")

    async def _detach(self, why: str) -> None:
        attachment, self._attachment = self._attachment, None
        self.lost(BrokerError(why))
        if attachment is not None:
            await attachment.close()

    def feed(self, block: Block) -> None:
        for offset, record in enumerate(block.records, block.first):
            if offset < self._next:
                continue
            self._next = offset + 1
            try:
                entry = msgspec.json.decode(record.value or b"", type=_Entry)
            except msgspec.DecodeError:  # of a later version
                continue
            if not isinstance(entry.what, Mark) and entry.what.partition in self.partitions:
                self.partitions[entry.what.partition].learn(entry.what)
            waiting = self._waiting.get(entry.token)
            if waiting is not None and not waiting.done():
                waiting.set_result(None)
        self._owed.append(block)
        self._settle()

    def _settle(self) -> None:
        while self._owed and self._attachment is not None:
            self._attachment.taken(self._owed.pop())

    def lost(self, error: BrokerError) -> None:
        self._attachment = None
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(AmbiguousCommit(f"{error}: it may have been written or not"))
                waiting.exception()
