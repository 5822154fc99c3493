"""One run of one property: names of its own, transports that are closed in the end, ways to wait for what must come.

Brokers deliver when they see fit: a `get` that comes back empty proves nothing. What must come is awaited until the
rig's patience ends; what must not come is proved by a sentinel that was sent after it and overtook it.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import msgspec
from thalweg.capabilities import Fencing, Grouped, Locks, Log, Logs, Peers, WorkQueue
from thalweg.channel import Channel, TopicInfo, TopicSpec, Transport
from thalweg.errors import BrokerError, ThalwegError
from thalweg.message import Batch, Delivery, Message, Position, Record

from .link import Link
from .properties import Mode, Unavailable
from .rig import Rig

__all__ = ["LONG", "Trial", "fences", "groups", "locks", "logs", "numbered", "peers", "values", "work_queue"]

T = TypeVar("T")

MOST = 64 << 20

LONG = 1_000_000
"""Bytes or records: more than any property writes."""


class Trial:
    """size: how often to do what is worth doing more often in longer modes. dice: seeded."""

    def __init__(self, rig: Rig, mode: Mode = Mode.QUICK, seed: int | str = 0) -> None:
        self.rig, self.mode, self.dice = rig, mode, random.Random(seed)
        self.size = 1 if mode is Mode.QUICK else 5
        self._suffix = secrets.token_hex(5)
        self._open: list[Transport] = []
        self._links: list[Link] = []
        self._tasks: list[asyncio.Task[Any]] = []
        self._names: dict[str, None] = {}

    # --- opening -------------------------------------------------------------------------------------------

    def name(self, name: str) -> str:
        """A name that nothing else on the broker has."""
        unique = f"{name}-{self._suffix}"
        self._names[unique] = None
        return unique

    async def open(self) -> Transport:
        return self._kept(await self.rig.open())

    async def open_elsewhere(self) -> Transport:
        """One that the rig can crash and hang."""
        return self._kept(await self.rig.open_elsewhere())

    async def open_impatient(self, stuck: float) -> Transport:
        """The same; its event loop counts as stuck after so many seconds without a sign of life."""
        return self._kept(await self.rig.open_impatient(stuck))

    async def open_linked(self) -> tuple[Transport, Link]:
        """One whose network can be spoiled."""
        transport, link = await self.rig.open_linked()
        self._links.append(link)
        return self._kept(transport), link

    def _kept(self, transport: Transport) -> Transport:
        self._open.append(transport)
        return transport

    async def declare(self, transport: Transport, *specs: TopicSpec) -> Sequence[TopicInfo]:
        """Each under its name in this trial; the answer names them as they are on the broker."""
        named = [self.spec(spec) for spec in specs]
        return await transport.declare(named)

    def spec(self, spec: TopicSpec) -> TopicSpec:
        return msgspec.structs.replace(spec, name=self.name(spec.name))

    async def log(self, partitions: int = 1, name: str = "t") -> tuple[Transport, Log]:
        transport = await self.open()
        await self.declare(transport, TopicSpec(name, partitions=partitions))
        return transport, await self.reader(transport, name)

    async def reader(self, transport: Transport, name: str = "t") -> Log:
        """Another view of a log of this trial."""
        return await logs(transport).log(self.name(name))

    async def channel(self, topic: TopicSpec, group: str = "g", transport: Transport | None = None) -> Channel:
        """A member of the group, on a transport of its own unless one is given."""
        transport = transport or await self.open()
        await self.declare(transport, topic)
        return await transport.channel(self.name(topic.name), self.name(group))

    async def producer(self, topic: TopicSpec, transport: Transport | None = None) -> Channel:
        """A channel to put by, of a group of its own. The group `g` exists from now on: it will get all of a queue."""
        transport = transport or await self.open()
        await (await self.channel(topic, transport=transport)).close()
        return await self.channel(topic, "producers", transport)

    async def members(self, count: int, topic: TopicSpec, group: str = "g") -> list[Channel]:
        """So many members that all have been given work: the group has settled, and nothing is left to deliver.

        Fewer on a log of fewer partitions.
        """
        transports = [await self.open() for _ in range(count)]
        (info,) = await self.declare(transports[0], topic)
        if not topic.queue:
            transports = transports[: max(2, info.partitions)]
        return await self.settled([await self.channel(topic, group, transport) for transport in transports])

    async def settled(self, channels: list[Channel]) -> list[Channel]:
        """Until each of them has been given something and all of it is committed."""
        idle, sent, done = set(range(len(channels))), 0, set[bytes | None]()

        async def work(number: int) -> None:
            while idle or len(done) < sent:
                try:
                    deliveries = await channels[number].get(2, 0.1)
                    await channels[number].commit(deliveries)
                except BrokerError:  # a group that is settling, on a busy machine
                    await self.step()
                    continue
                done.update(values(deliveries))
                if deliveries:
                    idle.discard(number)
                await asyncio.sleep(0)

        async with self.patience("every member of the group to be given work"), asyncio.TaskGroup() as group:
            workers = [group.create_task(work(number)) for number in range(len(channels))]
            while not all(worker.done() for worker in workers):
                if idle and sent - len(done) < 4 * len(channels):
                    batch = [Message(b"warm %d" % (sent + n), secrets.token_bytes(4)) for n in range(len(channels))]
                    await channels[0].put(batch)
                    sent += len(batch)
                await self.step()
        return channels

    async def step(self) -> None:
        """Let a little time pass, of whichever kind rules this rig."""
        await self.rig.pass_time(self.rig.step)

    # --- waiting -------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def patience(self, what: str) -> AsyncIterator[None]:
        limit = asyncio.timeout(self.rig.patience)
        try:
            async with limit:
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise AssertionError(f"waited {self.rig.patience:g} s in vain for {what}") from None

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task that has begun, and does not outlive the trial."""
        task = asyncio.create_task(work)
        self._tasks.append(task)
        return task

    async def soon(self, task: Awaitable[T], what: str) -> T:
        async with self.patience(what):
            return await task
        raise NotImplementedError  # for type checkers, who think that patience swallows

    async def in_time(self, task: asyncio.Task[T], seconds: float) -> T:
        """Let so much time pass, but no more than the task needs; then wait for it."""
        for _ in range(20):
            if not task.done():
                await self.rig.pass_time(seconds / 20)
        return await self.soon(task, f"what must happen within {seconds:g} s")

    async def stop(self, task: asyncio.Task[Any]) -> None:
        """Cancel it and wait for its end."""
        task.cancel()
        await asyncio.wait([task])

    async def receive(self, channel: Channel, count: int, limit: int | None = None) -> list[Delivery]:
        """Exactly `count` deliveries, or failure. limit: of one `get`."""
        got: list[Delivery] = []
        async with self.patience(f"{count} deliveries"):
            while len(got) < count:
                asked = min(count - len(got), limit or count)
                some = await channel.get(asked, 1.0)
                assert len(some) <= asked, f"asked for {asked} deliveries, got {len(some)}"
                got += some
        return got

    async def receive_until(self, channel: Channel, last: bytes) -> list[Delivery]:
        """What comes up to the message of this value, without it; that one is committed."""
        got: list[Delivery] = []
        async with self.patience(f"the message {last!r}"):
            while True:
                got += await channel.get(100, 1.0)
                await asyncio.sleep(0)
                found = [delivery for delivery in got if delivery.record.value == last]
                if found:
                    await channel.commit(found)
                    return [delivery for delivery in got if delivery.record.value != last]

    async def rest(self, channel: Channel, key: bytes | None = b"k") -> list[Delivery]:
        """All there is of a key (hence of its partition) for this member, by a sentinel sent after it."""
        sentinel = b"sentinel-" + secrets.token_bytes(4)
        await channel.put([Message(sentinel, key)])
        return await self.receive_until(channel, sentinel)

    # --- reading logs --------------------------------------------------------------------------------------

    async def read(self, log: Log, partition: int = 0, after: Position | None = None) -> list[bytes | None]:
        """The values of all records there are after a position."""
        return values((await self.positioned(log, partition, after))[0])

    async def records(self, log: Log, partition: int = 0) -> list[Record]:
        return (await self.positioned(log, partition))[0]

    async def positioned(
        self, log: Log, partition: int = 0, after: Position | None = None
    ) -> tuple[list[Record], list[Position]]:
        """All records after a position, and where they lie: up to the end that `bounds` states, in as many reads."""
        records: list[Record] = []
        positions: list[Position] = []
        end = (await log.bounds(partition)).last
        async with self.patience(f"the records of partition {partition} up to {end}"):
            while True:
                at = positions[-1] if positions else after
                caught_up = end is None or (at is not None and at >= end)
                batch = (await log.read({partition: at}, LONG, LONG, 0 if caught_up else 1.0)).get(partition)
                await asyncio.sleep(0)  # a driver that never waits must not keep time-outs from ending this
                if batch is not None:
                    assert at is None or batch.positions[0] > at, f"read after {at} begins with {batch.positions[0]}"
                    records += batch.records
                    positions += batch.positions
                elif caught_up:
                    break
        return records, positions

    async def some(self, log: Log, partitions: Iterable[int] = (0,), max_bytes: int = LONG) -> Mapping[int, Batch]:
        """One read, from the beginning, that is not empty."""
        async with self.patience("a read that is not empty"):
            while not (found := await log.read(dict.fromkeys(partitions), LONG, max_bytes, 1.0)):
                pass
            return found
        raise NotImplementedError  # for type checkers

    # --- the end -------------------------------------------------------------------------------------------

    def message_bytes(self, transport: Transport) -> int:
        limit = transport.limits.message_bytes
        if limit is None:
            raise Unavailable("this transport states no limit of message size")
        if limit > MOST:
            raise Unavailable(f"a limit of {limit} bytes is too large to try; lower it (message_bytes= in the URL?)")
        return limit

    async def close(self) -> None:
        """Close all, whatever state it is in."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for link in self._links:
            link.heal()
        for transport in self._open:
            with suppress(ThalwegError):
                await transport.close()
        for link in self._links:
            await link.close()
        try:
            await self.rig.clean(list(self._names))
        finally:
            await self.rig.close()


def values(found: Iterable[Record | Delivery]) -> list[bytes | None]:
    return [item.record.value if isinstance(item, Delivery) else item.value for item in found]


def numbered(*numbers: int, key: bytes | None = b"k") -> list[Message]:
    return [Message(b"%d" % number, key) for number in numbers]


def logs(transport: object) -> Logs:
    assert isinstance(transport, Logs)
    return transport


def fences(transport: object) -> Fencing:
    assert isinstance(transport, Fencing)
    return transport


def locks(transport: object) -> Locks:
    assert isinstance(transport, Locks)
    return transport


def peers(transport: object) -> Peers:
    assert isinstance(transport, Peers)
    return transport


def groups(transport: object) -> Grouped:
    assert isinstance(transport, Grouped)
    return transport


def work_queue(channel: object) -> WorkQueue:
    assert isinstance(channel, WorkQueue)
    return channel
