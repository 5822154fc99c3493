"""Fetches one topic for one agent: a single reader for all partitions that this worker owns."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from thalweg.capabilities import FOLLOWING, Log, Passing
from thalweg.errors import BrokerError, Gap
from thalweg.message import Batch, Position

from .complaints import Complaints
from .settings import Settings
from .topic_input import TopicInput

__all__ = ["Source"]

log = logging.getLogger("thalweg")

LONGEST_BACKOFF = 2.0


class Source:
    """Reads ahead by at most two batches a partition; a partition whose agent is slow is left out, alone."""

    def __init__(
        self, topic: str, open_log: Callable[[str], Awaitable[Log]], settings: Settings, complaints: Complaints
    ) -> None:
        self._topic, self._open_log, self._settings = topic, open_log, settings
        self._complaints = complaints
        self._log: Log | None = None
        self._passing: Passing | None = None
        self._inputs: dict[int, TopicInput] = {}
        self._reading: asyncio.Task[Mapping[int, Batch]] | None = None
        self._reading_partitions: frozenset[int] = frozenset()
        self._changed = asyncio.Event()
        self._changes = 0

    def add(self, input_: TopicInput) -> None:
        self._inputs[input_.partition] = input_
        self._reading_partitions -= {input_.partition}  # what is being read there follows another position
        self.more(input_)

    def remove(self, input_: TopicInput) -> None:
        if self._inputs.get(input_.partition) is input_:
            del self._inputs[input_.partition]

    def more(self, input_: TopicInput) -> None:
        """This input has room again."""
        self._changes += 1
        self._changed.set()
        if self._reading is not None and input_.partition not in self._reading_partitions:
            self._reading.cancel()  # harmless: reads are positional

    async def run(self) -> None:
        backoff = 0.1
        try:
            while True:
                try:
                    if self._log is None:
                        self._log = await self._open_log(self._topic)
                        self._passing = self._log if isinstance(self._log, Passing) else None
                    await self._fetch(self._log)
                    backoff = 0.1
                except Gap as error:
                    self._halt(error)
                except BrokerError as error:
                    self._complaints.warn(
                        "reading", "reading %s failed, again in %.1f s: %s", self._topic, backoff, error
                    )
                    await self._settings.clock.sleep(backoff)
                    backoff = min(backoff * 2, LONGEST_BACKOFF)
        finally:
            if self._log is not None:
                await self._log.close()

    async def _fetch(self, reader: Log) -> None:
        wanted = {partition: input_ for partition, input_ in self._inputs.items() if input_.wants_more}
        if not wanted:
            self._changed.clear()
            await self._changed.wait()
            return
        changes = self._changes
        after = {partition: input_.fetched for partition, input_ in wanted.items()}
        limit = self._settings.fetch_records
        max_bytes = max(64 * 1024, self._settings.fetch_bytes // (2 * len(self._inputs)))
        batches = await reader.read(after, limit, max_bytes, 0)
        if not batches:
            passing = self._passing
            for partition, input_ in wanted.items():
                input_.caught_up = True
                position = after[partition]
                if passing is not None and position is not None and input_.fetched == position:
                    input_.pass_to(passing.passed(partition, position))
                input_.agent.task.idle(input_.agent)
            if self._changes != changes:
                return  # while we looked, another partition came to be wanted: do not sleep without it
            self._reading_partitions = frozenset(after)
            self._reading = asyncio.get_running_loop().create_task(_read(reader, after, limit, max_bytes))
            try:
                batches = await self._reading
            except asyncio.CancelledError:
                current = asyncio.current_task()
                if current is not None and current.cancelling():
                    self._reading.cancel()
                    raise
                return
            finally:
                self._reading = None
        for partition, input_ in wanted.items():
            batch = batches.get(partition)
            if self._inputs.get(partition) is not input_:
                continue
            input_.caught_up = batch is None or len(batch.records) < limit
            if batch is not None:
                input_.agent.arrived(input_, batch)
        # Batches that were all full come back at once: let the agents run in between.
        await asyncio.sleep(0)

    def _halt(self, gap: Gap) -> None:
        """What follows the position may be gone: going on would skip it in silence. The other partitions go on."""
        input_ = self._inputs.pop(gap.partition, None)
        if input_ is not None:
            input_.agent.halt(str(gap))


async def _read(reader: Log, after: Mapping[int, Position | None], limit: int, max_bytes: int) -> Mapping[int, Batch]:
    return await reader.read(after, limit, max_bytes, FOLLOWING)
