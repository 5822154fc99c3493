"""Standbys: stores kept warm by following the journals of tasks that other workers run, to take over at once.

A standby reads, and does nothing else: it claims nothing, and what it knows is what the journal's rules say is
committed. When its worker becomes the owner, the task goes on with the standby's store and replays only the tail.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection

from thalweg.capabilities import FOLLOWING, Log
from thalweg.errors import BrokerError, ConfigurationError, Gap, StoreError, StoreFull
from thalweg.store import Store

from .complaints import Complaints
from .replay import READ_BYTES, READ_RECORDS, Replay
from .settings import Settings
from .task import TaskKey

__all__ = ["Standbys"]

FIRST_BACKOFF, LONGEST_BACKOFF = 0.1, 10.0


class Standbys:
    """Of all groups of a worker. open_store is asked for the store of a task that is to be followed."""

    def __init__(
        self,
        journal_topic: Callable[[str], str],
        open_log: Callable[[str], Awaitable[Log]],
        open_store: Callable[[str, int], Store],
        settings: Settings,
        complaints: Complaints,
    ) -> None:
        self._journal_topic, self._open_log, self._open_store = journal_topic, open_log, open_store
        self._settings, self._complaints = settings, complaints
        self._followers: dict[str, _Follower] = {}

    @property
    def keys(self) -> frozenset[TaskKey]:
        """The tasks that are followed now."""
        return frozenset((group, index) for group, one in self._followers.items() for index in one.replays)

    def follow(self, keys: Collection[TaskKey]) -> None:
        """Follow these, and no others: the stores of those that are left out are closed."""
        for group in {group for group, _ in keys} - self._followers.keys():
            self._followers[group] = _Follower(self, group)
        for group, follower in self._followers.items():
            follower.follow({index for other, index in keys if other == group})

    def take(self, key: TaskKey) -> Store | None:
        """The store of a task that this worker is to run from now on, if it was followed: the caller's to close."""
        follower = self._followers.get(key[0])
        return None if follower is None else follower.take(key[1])

    def store(self, group: str, index: int) -> Store | None:
        """Of a task that is followed, to look into."""
        follower = self._followers.get(group)
        replay = None if follower is None else follower.replays.get(index)
        return None if replay is None else replay.store

    async def close(self) -> None:
        await asyncio.gather(*(follower.close() for follower in self._followers.values()))
        self._followers.clear()


class _Follower:
    """Of one group: one reader for all its journals."""

    def __init__(self, standbys: Standbys, group: str) -> None:
        self.replays: dict[int, Replay] = {}
        self._wanted: set[int] = set()
        self._unchecked: set[Replay] = set()
        self._of, self._group = standbys, group
        self._changed = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._running = loop.create_task(self._run(), name=f"thalweg standbys of group {group}")

    def follow(self, wanted: Collection[int]) -> None:
        self._wanted = set(wanted)
        for index in self.replays.keys() - self._wanted:
            self.replays.pop(index).store.close()
        self._changed.set()

    def take(self, index: int) -> Store | None:
        self._wanted.discard(index)
        replay = self.replays.pop(index, None)
        self._changed.set()
        return None if replay is None else replay.store

    async def close(self) -> None:
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)
        self.follow(())

    async def _run(self) -> None:
        topic, clock, complaints = self._of._journal_topic(self._group), self._of._settings.clock, self._of._complaints
        backoff, journal = FIRST_BACKOFF, None
        try:
            while True:
                self._changed.clear()
                if not self._wanted:
                    await self._changed.wait()
                    continue
                try:
                    if journal is None:
                        journal = await self._of._open_log(topic)
                    await self._read(journal)
                    backoff = FIRST_BACKOFF
                    continue
                except Gap as gap:  # behind the truncation: the snapshot that it was made for is there
                    replay = self.replays.get(gap.partition)
                    if replay is not None:
                        replay.start_over()
                        continue
                except (BrokerError, StoreError, ConfigurationError) as error:
                    complaints.warn("standby", "standbys of group %s go on in %.1f s: %s", self._group, backoff, error)
                await clock.sleep(backoff)
                backoff = min(2 * backoff, LONGEST_BACKOFF)
        finally:
            if journal is not None:
                await journal.close()

    async def _read(self, journal: Log) -> None:
        for index in self._wanted - self.replays.keys():
            store = self._of._open_store(self._group, index)
            self.replays[index] = Replay(journal, index, store)
            self._unchecked.add(self.replays[index])
        replays = dict(self.replays)
        for index, replay in replays.items():
            if replay in self._unchecked:
                fits = await replay.fits()
                self._unchecked.discard(replay)
                if not fits and self._has(index, replay):
                    replay.start_over()
        after = {index: replay.after for index, replay in replays.items()}
        loop = asyncio.get_running_loop()
        reading = loop.create_task(journal.read(after, READ_RECORDS, READ_BYTES, FOLLOWING))
        changed = loop.create_task(self._changed.wait())
        try:
            await asyncio.wait([reading, changed], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in (reading, changed):
                one.cancel()  # harmless: reads are positional
            await asyncio.gather(reading, changed, return_exceptions=True)
        if reading.cancelled():
            return
        for index, batch in reading.result().items():
            replay = replays[index]
            if self._has(index, replay):
                try:
                    replay.feed(batch)
                    replay.flush()
                except StoreError as error:
                    self._discard(index, error)
                    raise
                await asyncio.sleep(0)

    def _discard(self, index: int, error: StoreError) -> None:
        """Another one begins where the store stands, or from nothing, if that cannot be trusted."""
        store = self.replays.pop(index).store
        if not isinstance(error, StoreFull):
            with contextlib.suppress(StoreError):
                store.clear()
        store.close()

    def _has(self, index: int, replay: Replay) -> bool:
        """Whether it was not taken, or given up, while we read."""
        return self.replays.get(index) is replay
