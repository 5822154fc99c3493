"""A topic read as a table (KTable): an internal agent keeps the last value of each key.

With `replicated=True` every worker reads all partitions into memory instead (GlobalKTable): no journal, the topic
itself is the log it is rebuilt from.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from .capabilities import FOLLOWING, Log
from .codec import checker_for
from .errors import BrokerError, Gap, OutsideEvent
from .event import Event
from .message import Position
from .runtime.complaints import Complaints
from .runtime.tables import TablePlan
from .stream import Stream
from .table import Reading, Table
from .text import shortened

if TYPE_CHECKING:
    from .app import App
    from .topic import Topic

__all__ = ["Replica", "add_topic_table"]

K = TypeVar("K")
V = TypeVar("V")
log = logging.getLogger("thalweg")


def add_topic_table(app: App, topic: Topic[K, V], name: str, replicated: bool) -> Table[K, V]:
    if replicated:
        return Replica(app, topic, name)
    table = app.declare_table_of(topic, name)

    async def follow(stream: Stream[Event[V, K]]) -> None:
        async for event in stream:
            if event.key is None:
                continue  # belongs to no row
            if event.record.value is None:
                table._remove(event.key)
            else:
                table._put(event.key, event.value)

    app.add_internal_agent(follow, topic.stream().events(), f"table-{name}")
    return table


class Replica(Table[K, V]):
    """All partitions of a topic, on every worker and client, in memory. Complete as of its start once the app runs."""

    def __init__(self, app: App, topic: Topic[K, V], name: str) -> None:
        plan, key = app.replica_plan(topic, name)
        super().__init__(app, plan, key, checker_for(Any), read_only=True)
        self._topic = topic._plan
        self._rows: dict[K, V] = {}
        app.replicas.append(self)

    async def follow(self, reader: Log, ready: asyncio.Future[None]) -> None:
        """Read from the first record, for ever; `ready` is set once all that lay there at first has been read."""
        complaints = Complaints(self._app.clock)
        try:
            while True:
                try:
                    await self._follow(reader, ready, complaints)
                except Gap as gap:  # it may have missed deletions: what it has serves until all is read again
                    complaints.warn("gap", "table %s: it is read again from the beginning: %s", self.name, gap)
                    await self._app.clock.sleep(1)
        finally:
            await reader.close()

    async def _follow(self, reader: Log, ready: asyncio.Future[None], complaints: Complaints) -> None:
        partitions = range(self._topic.partitions)
        ends: dict[int, Position | None] | None = None
        after: dict[int, Position | None] = dict.fromkeys(partitions)
        rows: dict[K, V] = {}
        while True:
            try:
                if ends is None:
                    ends = {partition: (await reader.bounds(partition)).last for partition in partitions}
                if self._rows is not rows and all(end is None or _reached(after[p], end) for p, end in ends.items()):
                    self._rows = rows
                    if not ready.done():
                        ready.set_result(None)
                batches = await reader.read(after, 2000, 16 << 20, FOLLOWING)
            except Gap:
                raise
            except BrokerError as error:
                complaints.warn("reading", "table %s: reading failed, again in 1 s: %s", self.name, error)
                await self._app.clock.sleep(1)
                continue
            for partition, batch in batches.items():
                for position, record in zip(batch.positions, batch.records, strict=True):
                    self._take(rows, record.key, record.value, f"{partition}/{position}")
                after[partition] = batch.positions[-1]

    def _take(self, rows: dict[K, V], raw_key: bytes | None, raw: bytes | None, place: str) -> None:
        if raw_key is None:
            return
        try:
            key = self._topic.key.decode(raw_key)
            if raw is None:
                rows.pop(key, None)
            else:
                rows[key] = self._topic.value.decode(raw)
        except Exception as error:
            log.error(
                "table %s: the record at %s/%s (key %s) is passed over, and the row stays as it was: %s",
                *(self.name, self.topic_name, place, shortened(repr(raw_key)), error),
            )

    @property
    def topic_name(self) -> str:
        return self._topic.name

    @property
    def partitions(self) -> int:
        return self._topic.partitions

    @property
    def plan(self) -> TablePlan:
        """How its keys and values lie in the topic."""
        return self._plan

    def clear(self) -> None:
        self._rows = {}

    def __getitem__(self, key: K) -> V:
        return self._rows[key]

    def __contains__(self, key: K) -> bool:
        return key in self._rows

    def get(self, key: K, default: Any = None) -> Any:
        return self._rows.get(key, default)

    def items(self) -> Iterator[tuple[K, V]]:
        return iter(list(self._rows.items()))

    @overload
    async def ask(self, key: K, *, timeout: float = 10.0, stale_ok: Literal[False] = False) -> V | None: ...
    @overload
    async def ask(self, key: K, *, timeout: float = 10.0, stale_ok: Literal[True]) -> Reading[V]: ...
    async def ask(self, key: K, *, timeout: float = 10.0, stale_ok: bool = False) -> V | Reading[V] | None:
        value = self._rows.get(key)
        return Reading(value, True) if stale_ok else value

    def __setitem__(self, key: K, value: V) -> None:
        raise OutsideEvent(
            f"table {self.name!r} mirrors topic {self._topic.name!r} and is read-only; send to the topic"
        )

    def __delitem__(self, key: K) -> None:
        raise OutsideEvent(
            f"table {self.name!r} mirrors topic {self._topic.name!r} and is read-only; send None to the topic"
        )


def _reached(position: Position | None, end: Position) -> bool:
    return position is not None and position >= end
