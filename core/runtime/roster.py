"""The roster: one small log in which the workers of an app say that they are there, and what each runs or is to run.

All that anybody needs to know of it was written within the last minute, for each writer repeats its word every twenty
seconds. So a reader begins a minute back and follows from there; nothing in it is ever needed to be safe, for safety is
the journal's.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import struct
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

import msgspec
from thalweg.capabilities import FOLLOWING, Log
from thalweg.clock import Clock
from thalweg.errors import BrokerError, Gap
from thalweg.message import Message, Position, Record

from .complaints import Complaints
from .recovery import Recovering

__all__ = ["BEAT", "SUFFIX", "Delaying", "Gone", "Here", "Plan", "Roster", "Size", "Word", "as_messages"]

log = logging.getLogger("thalweg")

SUFFIX = "-workers"
"""What follows the app's id in the name of the topic."""

BEAT = 20.0
"""Seconds after which each writer repeats its word."""
BACK = 3
"""Beats: how far back a reader begins, and after how many without a word of it a worker counts as gone."""

FIRST_BACKOFF, LONGEST_BACKOFF = 0.1, 2.0


Size: TypeAlias = tuple[int, int]
"""Of a group: how many tasks, and how many standbys of each."""


class Here(msgspec.Struct, frozen=True, tag_field="says", tag="here"):
    """A worker's own word: who it is, and what it runs.

    me: of this run of this process, and of no other. worker_id: of all its runs, if it was given one.
    said: larger with each word of this worker: an older one that comes late counts for nothing.
    since: when it started, in milliseconds since the epoch.
    reply: the address in the app's reply topic where it hears questions; "" while it hears none.
    groups: those that its program has. owns, standbys: task numbers by group.
    leaving: it gives up all that it has, and will be gone.
    recovering: how far it is with reading the journals of tasks that it took.
    """

    me: str
    worker_id: str | None = None
    zone: str = ""
    host: str = ""
    pid: int = 0
    said: int = 0
    since: int = 0
    reply: str = ""
    groups: Mapping[str, Size] = {}
    owns: Mapping[str, tuple[int, ...]] = {}
    standbys: Mapping[str, tuple[int, ...]] = {}
    leaving: bool = False
    recovering: Recovering | None = None

    @property
    def name(self) -> str:
        """What plans call it: a worker that comes back under its `worker_id` is the same one to them."""
        return self.worker_id or self.me


class Gone(msgspec.Struct, frozen=True, tag_field="says", tag="gone"):
    """The last word of a worker that stopped in good order."""

    me: str


class Plan(msgspec.Struct, frozen=True, tag_field="says", tag="plan"):
    """The coordinator's word: who is to run what. One of a lower (number, version) than before counts for nothing.

    number: of the coordinator's lock, larger for each new holder. version: of its plans, larger for each that differs.
    owners: by group, for each task the name of its owner, or None. standbys: likewise, the names of its standbys.
    members: the names of all that were planned for.
    """

    me: str
    number: int
    version: int
    owners: Mapping[str, tuple[str | None, ...]]
    standbys: Mapping[str, tuple[tuple[str, ...], ...]] = {}
    members: tuple[str, ...] = ()

    @property
    def age(self) -> tuple[int, int]:
        return self.number, self.version


class Delaying(msgspec.Struct, frozen=True, tag_field="says", tag="delaying"):
    """Somebody is about to delay messages, for the first time: their topic is there (`delays.py`)."""

    me: str


Word: TypeAlias = Here | Gone | Plan | Delaying

_decoder = msgspec.json.Decoder(Word)


def as_messages(word: Word, clock: Clock, limit: int | None) -> list[Message]:
    """A word as JSON; in pieces, if it is above the broker's limit of bytes a message: see `_Pieces`."""
    key, now, data = word.me.encode(), round(clock.now() * 1000), msgspec.json.encode(word)
    whole = Message(data, key, timestamp=now)
    if limit is None or whole.size <= limit:
        return [whole]
    step = limit - (whole.size - len(data)) - _HEAD.size
    if step < 1:
        return [whole]  # which the broker refuses, naming its limit
    id, starts = secrets.token_bytes(8), range(0, len(data), step)
    return [
        Message(_HEAD.pack(0, id, index, len(starts)) + data[start : start + step], key, timestamp=now)
        for index, start in enumerate(starts)
    ]


_HEAD = struct.Struct(">B8sHH")
"""Of a piece: a zero, where a whole word begins with a brace; the word's id; which piece, and of how many."""


class _Pieces:
    """Puts words together again, of each worker the last that it began."""

    def __init__(self) -> None:
        self._begun: dict[bytes | None, tuple[bytes, list[bytes]]] = {}

    def take(self, record: Record) -> bytes | None:
        """A whole word, if this record is one or completes one."""
        data = record.value or b""
        if data[:1] != b"\0" or len(data) < _HEAD.size:
            return data
        _, id, index, count = _HEAD.unpack_from(data)
        if index == 0:
            self._begun[record.key] = id, []
        begun = self._begun.get(record.key)
        if begun is None or begun[0] != id or index != len(begun[1]):
            return None
        begun[1].append(data[_HEAD.size :])
        if len(begun[1]) < count:
            return None
        del self._begun[record.key]
        return b"".join(begun[1])


class Roster:
    """Follows the log.

    workers: the last word of each worker that is there, by its `me`, in the order of these words. heard: when it was
    said, by the worker's own clock, in seconds since the epoch. plan: the one in force, if there is one.
    delaying: whether messages are known to be delayed, so that somebody must see to them.
    ready: set once the past has been read. limit: the largest message that the broker takes, in bytes.
    """

    def __init__(
        self, app_id: str, open_log: Callable[[str], Awaitable[Log]], clock: Clock, limit: int | None = None
    ) -> None:
        self.topic, self.limit = app_id + SUFFIX, limit
        self._pieces = _Pieces()
        self.workers: dict[str, Here] = {}
        self.heard: dict[str, float] = {}
        self.plan: Plan | None = None
        self.delaying = False
        self.ready = asyncio.Event()
        self.complaints = Complaints(clock)
        """Shared by all that read and write the roster: where one fails, the others do."""
        self._open_log, self._clock = open_log, clock
        self._changed = asyncio.Event()
        self._position: Position | None = None
        self._read_on = asyncio.Event()
        self._silent: dict[str, int] = {}  # beats of ours since the last word of each worker
        self._gone: dict[str, int] = {}  # and since each said that it goes
        self._following: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Return when the past has been read. Twice is harmless."""
        if not self._following:
            loop = asyncio.get_running_loop()
            self._following = [
                loop.create_task(self._follow(), name="thalweg roster"),
                loop.create_task(self._forget(), name="thalweg roster's beat"),
            ]
        await self.ready.wait()

    async def change(self) -> None:
        """Wait for the next change. None is missed between a look at what is there and this call, if nothing is
        awaited in between."""
        await self._changed.wait()

    async def catch_up(self) -> None:
        """Return when all has been read that lies there now. Raises BrokerError."""
        reader = await self._open_log(self.topic)
        try:
            end = (await reader.bounds(0)).last
        finally:
            await reader.close()
        while end is not None and (self._position is None or self._position < end):
            await self._read_on.wait()

    def cancel(self) -> None:
        """Follow no longer."""
        for task in self._following:
            task.cancel()

    async def close(self) -> None:
        self.cancel()
        await asyncio.gather(*self._following, return_exceptions=True)
        self._following.clear()

    def named(self, name: str) -> Here | None:
        """The worker that plans call so; the newest, where there are two."""
        found = [here for here in self.workers.values() if here.name == name]
        return max(found, key=lambda here: (here.since, here.me), default=None)

    def owner(self, group: str, index: int) -> Here | None:
        """Who says that it runs the task; the one who said so last, where there are two, whatever their clocks say."""
        return next((here for here in reversed(self.workers.values()) if index in here.owns.get(group, ())), None)

    def standbys(self, group: str, index: int) -> list[Here]:
        """Who says that it stands by for the task."""
        return [here for here in self.workers.values() if index in here.standbys.get(group, ())]

    def running(self, group: str, index: int) -> set[str]:
        """The `me` of the task's owner, if there is one."""
        owner = self.owner(group, index)
        return set() if owner is None else {owner.me}

    def running_or_standing_by(self, group: str, index: int) -> set[str]:
        return self.running(group, index).union(here.me for here in self.standbys(group, index))

    # --- reading -------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        backoff, reader, position, lost = FIRST_BACKOFF, None, None, True
        try:
            while True:
                try:
                    if reader is None:
                        reader = await self._open_log(self.topic)
                    if lost:
                        position, lost = await self._past(reader), False
                        self._reach(position)
                        self.ready.set()
                    position = await self._read(reader, position, FOLLOWING)
                    backoff = FIRST_BACKOFF
                except Gap:  # we were away for longer than the log goes back
                    lost = True
                except BrokerError as error:
                    self.complaints.warn("roster", "reading the roster failed, again in %.1f s: %s", backoff, error)
                    await self._clock.sleep(backoff)
                    backoff = min(2 * backoff, LONGEST_BACKOFF)
        finally:
            if reader is not None:
                await reader.close()

    async def _past(self, reader: Log) -> Position | None:
        """Read from a minute back to what is the end now."""
        position = await reader.find(0, round((self._clock.now() - BACK * BEAT) * 1000))
        end = (await reader.bounds(0)).last
        while end is not None and (position is None or position < end):
            before, position = position, await self._read(reader, position, 1.0)
            if position == before:  # the broker takes its time, or what lay there is gone
                end = (await reader.bounds(0)).last
        return position

    async def _read(self, reader: Log, position: Position | None, wait: float) -> Position | None:
        batches = await reader.read({0: position}, 1000, 1 << 22, wait)
        batch = batches.get(0)
        if batch is None or not batch.records:
            return position
        news = [self._hear(record) for record in batch.records]
        if any(news):
            self._tell()
        self._reach(batch.positions[-1])
        return batch.positions[-1]

    def _reach(self, position: Position | None) -> None:
        self._position = position
        self._read_on.set()
        self._read_on = asyncio.Event()

    def _hear(self, record: Record) -> bool:
        """Whether it tells anything new."""
        data = self._pieces.take(record)
        if data is None:
            return False
        try:
            word = _decoder.decode(data)
        except msgspec.DecodeError as error:  # of a later release, say
            self.complaints.warn("word", "a record of the roster was passed over: %s", error)
            return False
        if isinstance(word, Plan):
            if self.plan is not None and word.age <= self.plan.age:
                return False
            self.plan = word
            return True
        if isinstance(word, Delaying):
            known, self.delaying = self.delaying, True
            return not known
        if isinstance(word, Gone):
            self._gone[word.me] = 0
            return self._drop(word.me)
        before = self.workers.get(word.me)
        if word.me in self._gone or (before is not None and word.said <= before.said):
            return False
        self._silent[word.me] = 0
        self.workers.pop(word.me, None)
        self.workers[word.me] = word  # as the last
        self.heard[word.me] = record.timestamp / 1000
        return before is None or msgspec.structs.replace(word, said=before.said) != before

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    # --- forgetting ----------------------------------------------------------------------------------------------

    async def _forget(self) -> None:
        """Silence is counted in beats of our own, so that neither a clock that jumps nor a process that was stopped
        for a while makes all others seem gone."""
        while True:
            await self._clock.sleep(BEAT)
            silent = [me for me in self._silent if self._one_more(self._silent, me)]
            for me in [me for me in self._gone if self._one_more(self._gone, me)]:
                del self._gone[me]
            if [me for me in silent if self._drop(me)]:
                self._tell()

    @staticmethod
    def _one_more(beats: dict[str, int], me: str) -> bool:
        beats[me] += 1
        return beats[me] > BACK

    def _drop(self, me: str) -> bool:
        self._silent.pop(me, None)
        self.heard.pop(me, None)
        return self.workers.pop(me, None) is not None
