"""Appends of one transport: gathered into batches while others are under way, each written once by its number."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping, Sequence

from thalweg.errors import AmbiguousCommit, BrokerError, MessageTooLarge
from thalweg.finishing import ignore_failure
from thalweg.message import Message, Position

from .connection import Cluster
from .producing import STALE, TOO_LARGE, Place, Producer, Refused, Unknown
from .records import Outgoing, check_size
from .topics import Topic

__all__ = ["Appender"]

_LANE = "append"

_REQUEST_BYTES = 16 << 20
"""Of the batches that go in one request, about: a broker takes 100 MiB."""


class _Call:
    """An append: which positions it awaits."""

    def __init__(self, topic: Topic) -> None:
        self.topic = topic
        self.batches = 0
        self.written = 0
        self.problem: Exception | None = None
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.done.add_done_callback(ignore_failure)  # who was cancelled does not ask
        self.positions: dict[int, list[Sequence[Position]]] = {}


class _Batch:
    """calls: each with the numbers of its first record in the batch and of the one after its last."""

    def __init__(self, place: Place, outgoing: Outgoing, deadline: float) -> None:
        self.place, self.outgoing, self.deadline = place, outgoing, deadline
        self.calls: list[tuple[_Call, int, int]] = []
        self.open = True


class Appender:
    """One request to a broker is under way at a time, with a batch for each partition that waits; what comes meanwhile
    goes with the next."""

    def __init__(self, cluster: Cluster, codec: str, linger: float) -> None:
        self._cluster, self._codec, self._linger = cluster, codec, linger
        self._waiting: dict[Place, deque[_Batch]] = {}
        self._producer: Producer | None = None
        self._beginning = asyncio.Lock()
        self._writing: dict[int | None, asyncio.Task[None]] = {}  # by the broker that leads the partitions
        self._busy: set[Place] = set()
        self._closed = False

    async def append(self, topic: Topic, records: Mapping[int, Sequence[Message]]) -> Mapping[int, Sequence[Position]]:
        """Raises MessageTooLarge (nothing was written), AmbiguousCommit, BrokerError (nothing was written)."""
        if self._closed:
            raise BrokerError(f"Kafka at {self._cluster.endpoint.place}: the transport is not open; call open() first")
        for partition, messages in records.items():
            topic.check(partition)
            check_size(messages, topic)
        call = _Call(topic)
        for partition, messages in records.items():
            call.positions[partition] = []
            if messages:
                self._add(call, partition, messages)
        if call.batches:
            self._start()
            await asyncio.shield(call.done)
        return {
            partition: parts[0] if len(parts) == 1 else [position for part in parts for position in part]
            for partition, parts in call.positions.items()
        }

    def _add(self, call: _Call, partition: int, messages: Sequence[Message]) -> None:
        place = call.topic.kafka, partition
        queue = self._waiting.setdefault(place, deque())
        done, now = 0, round(time.time() * 1000)
        while done < len(messages):
            if not queue or not queue[-1].open:
                deadline = time.monotonic() + self._cluster.endpoint.timeout
                queue.append(_Batch(place, Outgoing(call.topic.batch_bytes, self._codec), deadline))
            batch = queue[-1]
            first = batch.outgoing.count
            done = batch.outgoing.add(messages, done, now)
            if batch.outgoing.count > first:
                batch.calls.append((call, first, batch.outgoing.count))
                call.batches += 1
            if done < len(messages):
                batch.open = False

    def _start(self) -> None:
        """Write what waits, to every broker that is not busy with an earlier request."""
        for place, queue in self._waiting.items():
            if queue and place not in self._busy:
                node = self._cluster.known_leader(*place)
                if node not in self._writing:
                    self._writing[node] = asyncio.get_running_loop().create_task(self._run(node))

    async def _run(self, node: int | None) -> None:
        batches: dict[Place, _Batch] = {}
        try:
            if self._linger and not any(len(queue) > 1 for queue in self._waiting.values()):
                await asyncio.sleep(self._linger)
            batches = self._next(node)
            await self._write(batches)
        except BaseException as error:
            problem = self._cluster.explain("the transport was closed") if self._closed else error
            for place in batches.keys() & self._waiting.keys():
                self._settle(self._waiting.pop(place)[0], AmbiguousCommit(str(problem)))
            raise
        finally:
            self._busy -= batches.keys()
            del self._writing[node]
            if not self._closed:
                self._start()

    def _next(self, node: int | None) -> dict[Place, _Batch]:
        batches: dict[Place, _Batch] = {}
        size = 0
        for place, queue in list(self._waiting.items()):
            if size < _REQUEST_BYTES and place not in self._busy and self._cluster.known_leader(*place) == node:
                batches[place] = batch = queue[0]
                batch.open = False
                size += batch.outgoing.size
                self._waiting[place] = self._waiting.pop(place)  # next time others come first
        self._busy |= batches.keys()
        return batches

    async def _write(self, batches: Mapping[Place, _Batch]) -> None:
        deadline = max((batch.deadline for batch in batches.values()), default=0.0)
        left = dict(batches)
        while left:
            try:
                producer = await self._begin(deadline)
            except BrokerError as error:
                for batch in left.values():
                    self._finish(batch, error)
                return
            outgoing = {place: batch.outgoing for place, batch in left.items()}
            again: dict[Place, _Batch] = {}
            for place, result in (await producer.deliver(outgoing, _LANE, deadline)).items():
                stale = isinstance(result, Refused) and result.code in STALE
                if (stale or isinstance(result, Unknown)) and self._producer is producer:
                    self._producer = None
                if stale and time.monotonic() < deadline:
                    again[place] = left[place]
                else:
                    self._finish(left[place], result)
            left = again

    async def _begin(self, deadline: float) -> Producer:
        async with self._beginning:
            if self._producer is None:
                self._producer = await Producer.begin(self._cluster, deadline)
            return self._producer

    def _finish(self, batch: _Batch, result: Position | Refused | Unknown | BrokerError) -> None:
        queue = self._waiting[batch.place]
        queue.popleft()
        problem = None if isinstance(result, int) else self._explain(batch, result)
        if isinstance(result, int):
            for call, first, last in batch.calls:
                call.positions[batch.place[1]].append(range(result + first, result + last))
        self._settle(batch, problem)
        if problem is not None:  # what follows of the same calls must not stand where a part is missing
            failed = {call for call, _, _ in batch.calls}
            while queue and failed & {call for call, _, _ in queue[0].calls}:
                self._settle(queue.popleft(), problem)
        if not queue:
            del self._waiting[batch.place]

    def _settle(self, batch: _Batch, problem: Exception | None) -> None:
        for call, _, _ in batch.calls:
            call.batches -= 1
            if problem is None:
                call.written += 1
            elif call.problem is None or isinstance(problem, AmbiguousCommit):
                call.problem = problem
            if call.batches or call.done.done():
                continue
            if call.problem is None:
                call.done.set_result(None)
            elif call.written and not isinstance(call.problem, AmbiguousCommit):
                call.done.set_exception(AmbiguousCommit(f"{call.problem} (other records of the call were written)"))
            else:
                call.done.set_exception(call.problem)

    def _explain(self, batch: _Batch, result: Refused | Unknown | BrokerError) -> Exception:
        name = batch.calls[0][0].topic.name
        what = f"writing to topic {name!r} partition {batch.place[1]}: "
        place, timeout = self._cluster.endpoint.place, self._cluster.endpoint.timeout
        if isinstance(result, BrokerError):
            return result
        if isinstance(result, Unknown):
            return AmbiguousCommit(
                f"Kafka at {place}: {what}no answer within {timeout:g} s: nobody knows if it was done"
            )
        if result.code in TOO_LARGE:
            return MessageTooLarge(
                f"{what}the broker takes no batch of {batch.outgoing.size} bytes (max.message.bytes)"
            )
        if result.code == 0:
            return self._cluster.explain(f"{what}it could not be reached within {timeout:g} s")
        return self._cluster.explain(result.code, what)

    async def close(self) -> None:
        """What was not written yet fails."""
        self._closed = True
        tasks = list(self._writing.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        problem = self._cluster.explain("the transport was closed")
        for queue in self._waiting.values():
            for batch in queue:
                self._settle(batch, problem)
        self._waiting.clear()
