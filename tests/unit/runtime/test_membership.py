"""Several workers of one app that share tasks by groups (`Grouped`), on one memory broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager

import pytest
from thalweg import App, StaleRead, Stream
from thalweg.capabilities import Role
from thalweg.channel import Capability
from thalweg.clock import VirtualClock
from thalweg.errors import Superseded
from thalweg.journal.records import Marker, Release, decode_entry
from thalweg.registry import load_stores
from thalweg.runtime.worker import Worker
from thalweg.starting import worker_running
from thalweg.transports.memory import MemoryBroker, MemoryOptions, MemoryTransport

PARTITIONS = 6
OPTIONS = MemoryOptions(grouped=True, locks=False, peers=False)


class Member:
    """One worker of the app "bank", as a process would run it."""

    def __init__(self, broker: MemoryBroker, clock: VirtualClock | None = None, standbys: int = 0) -> None:
        self.transport = MemoryTransport(broker, OPTIONS)
        self.app = App("bank", partitions=PARTITIONS, lease=10.0)
        if clock is not None:
            self.app.clock = clock
        self.source = self.app.topic("source", key=str, value=int)
        self.sums = self.app.table("sums", key=str, value=int, default=int, standbys=standbys)
        self.handled: list[int] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.worker: Worker
        sums, handled, gate = self.sums, self.handled, self.gate

        @self.app.agent(self.source)
        async def add(stream: Stream[int]) -> AsyncIterator[int]:
            async for event in stream.events():
                handled.append(event.value)
                await gate.wait()
                sums[event.key] += event.value
                yield sums[event.key]

        @self.app.background(on_leader=True)
        async def lead() -> None:
            await asyncio.get_running_loop().create_future()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Member]:
        async with worker_running(self.app, transport=self.transport, stores=load_stores("memory://")) as self.worker:
            yield self

    @property
    def owned(self) -> set[int]:
        group = str(PARTITIONS)
        return {index for name, index in self.worker.tasks if name == group and self.worker.serving(group, index)}

    @property
    def leads(self) -> bool:
        return self.worker.serving("leader", 0) is not None


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - it depends on several workers
            await asyncio.sleep(0)


def even(*members: Member) -> bool:
    owned = [member.owned for member in members]
    return set().union(*owned) == set(range(PARTITIONS)) and all(
        len(share) == PARTITIONS // len(members) for share in owned
    )


def total(member: Member) -> int:
    return sum(value for _, value in member.sums.items())


async def test_workers_that_come_share_the_tasks_evenly_and_what_stays_is_not_stopped() -> None:
    broker = MemoryBroker()
    async with Member(broker).running() as first:
        assert first.owned == set(range(PARTITIONS))
        tasks = dict(first.worker.tasks)
        async with Member(broker).running() as second, Member(broker).running() as third:
            await until(lambda: even(first, second, third))
            assert sum(member.leads for member in (first, second, third)) == 1
            assert all(first.worker.tasks[key] is tasks[key] for key in first.worker.tasks)
        await until(lambda: even(first))
        assert first.leads


async def test_each_event_is_handled_once_while_workers_come_and_go() -> None:
    broker = MemoryBroker()
    sent = 0
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(Member(broker).running())
        others = [Member(broker), Member(broker)]
        for member in others:
            async with member.running():
                for _ in range(20):
                    await first.source.send(1, key=f"k{sent % 7}")
                    sent += 1
                await until(lambda member=member: even(first, member))  # type: ignore[misc]
        await until(lambda: even(first))
        await until(lambda: sum(len(member.handled) for member in (first, *others)) == sent)
        assert total(first) == sent


async def test_a_task_that_moves_is_nobodys_until_its_owner_has_finished_and_released_it() -> None:
    broker = MemoryBroker()
    async with Member(broker).running() as first:
        first.gate.clear()
        for number in range(PARTITIONS):
            await first.source.send(1, partition=number, key=f"k{number}")
        await until(lambda: len(first.handled) == PARTITIONS)
        second = Member(broker)
        running = second.running()
        starting = asyncio.ensure_future(running.__aenter__())
        group = broker.task_groups[f"bank-{PARTITIONS}"]
        await until(lambda: len(set(group.plan.owners)) == 2)
        await asyncio.wait([starting], timeout=0)
        assert not starting.done(), "it is ready when it has its share"
        first.gate.set()
        await starting
        assert even(first, second)
        assert not second.handled
        await running.__aexit__(None, None, None)
    for partition in range(PARTITIONS):
        entries = [
            decode_entry(record.value)
            for number, _, record in first.transport.records(f"bank-journal-{PARTITIONS}")
            if number == partition and record.value is not None
        ]
        turns = [entry for entry in entries if isinstance(entry, Marker | Release)]
        assert [type(entry) for entry in turns] == [Marker, Release] * (len(turns) // 2)  # no two owners dueled


async def test_a_worker_that_stops_finishes_its_open_events_and_then_hands_over_at_once() -> None:
    broker, clock = MemoryBroker(), VirtualClock(0)  # no lease ends
    async with Member(broker).running() as first:
        stopping = Member(broker, clock)
        async with stopping.running():
            await until(lambda: even(first, stopping))
            stopping.gate.clear()
            partition = min(stopping.owned)
            await first.source.send(5, partition=partition, key="k")
            await until(lambda: stopping.handled == [5])
            asyncio.get_running_loop().call_soon(stopping.gate.set)
        await until(lambda: even(first))
        assert not first.handled
        assert total(first) == 5


async def test_a_worker_that_is_not_heard_of_serves_no_reads_and_comes_back_by_itself() -> None:
    clock = VirtualClock(1_000_000.0)
    broker = MemoryBroker(clock=clock)

    async def advance(seconds: float) -> None:
        end = clock.now() + seconds
        while clock.now() < end:
            clock.move(min(end, clock.next() or end))
            for _ in range(100):
                await asyncio.sleep(0)

    async with Member(broker, clock).running() as first, Member(broker, clock).running() as second:
        await until(lambda: even(first, second))
        await second.source.send(3, partition=min(second.owned), key="k")
        await until(lambda: len(second.handled) == 1)
        second.transport.cut()
        await until(lambda: not second.owned)
        with pytest.raises(StaleRead):
            second.sums["k"]
        await advance(11)
        await until(lambda: even(first))
        assert total(first) == 3
        second.transport.heal()
        await advance(1)
        await until(lambda: even(first, second))


async def test_what_a_member_with_a_worker_id_had_waits_for_its_next_run_for_a_lease() -> None:
    clock = VirtualClock(0)
    broker = MemoryBroker(clock=clock)
    transport = MemoryTransport(broker, OPTIONS)
    await transport.open()
    async with aclosing(transport.tasks("g", 4, "other", 10)) as others:
        assert await anext(others) == {0, 1, 2, 3}
        waiting = asyncio.create_task(anext(others))
        first = transport.tasks("g", 4, "run 1", 10, Role("a"))
        assert await anext(first) == frozenset()
        kept = await waiting
        waiting = asyncio.create_task(anext(others))
        had = await anext(first)
        assert had == {0, 1, 2, 3} - kept
        await first.aclose()
        assert not transport.holds("g", "run 1")
        second = transport.tasks("g", 4, "run 2", 10, Role("a"))
        assert await anext(second) == had
        third = transport.tasks("g", 4, "run 3", 10, Role("a"))
        assert await anext(third) == had
        with pytest.raises(Superseded, match="worker id 'a'"):
            await anext(second)
        assert not waiting.done()
        await third.aclose()
        clock.move(10)
        assert await waiting == {0, 1, 2, 3}
    await transport.close()


async def test_without_groups_locks_and_peers_decide() -> None:
    member = Member(MemoryBroker())
    member.transport = MemoryTransport(member.transport.broker, MemoryOptions())
    assert Capability.GROUPED not in member.transport.capabilities
    async with member.running():
        assert member.owned == set(range(PARTITIONS))


@pytest.mark.parametrize("options", [OPTIONS, MemoryOptions()], ids=["groups", "locks and peers"])
async def test_a_standby_follows_what_another_runs_and_takes_over_with_its_store(options: MemoryOptions) -> None:
    broker = MemoryBroker()

    def stands_by(member: Member) -> set[int]:
        return {index for group, index in member.worker.standbys.keys if group == str(PARTITIONS)}

    first, second = Member(broker, standbys=1), Member(broker, standbys=1)
    first.transport, second.transport = MemoryTransport(broker, options), MemoryTransport(broker, options)
    async with first.running():
        async with second.running():
            await until(lambda: even(first, second))
            await until(lambda: stands_by(first) == second.owned and stands_by(second) == first.owned)
            for number in range(20):
                await first.source.send(1, key=f"k{number}")
            await until(lambda: total(first) + total(second) == 20)
            replays = first.worker.standbys._followers[str(PARTITIONS)].replays
            warm = {index: replays[index].store for index in second.owned}
        await until(lambda: even(first) and not stands_by(first))
        assert {index: first.worker.tasks[str(PARTITIONS), index]._store for index in warm} == warm
        assert total(first) == 20
