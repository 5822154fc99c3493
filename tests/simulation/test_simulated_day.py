"""A crontab every minute for a day, while leaders die at any moment: no run is missed, and none counts twice."""

from __future__ import annotations

import asyncio
import random
from contextlib import AbstractAsyncContextManager

import pytest
from thalweg import App
from thalweg.clock import VirtualClock
from thalweg.journal.inbox import Inbox
from thalweg.registry import load_stores
from thalweg.runtime.worker import Worker
from thalweg.starting import worker_running
from thalweg.transports.memory import MemoryBroker, MemoryOptions, MemoryTransport

START = 1_577_836_800.0  # 2020-01-01
A_DAY, SIX_HOURS = 24 * 60, 6 * 60  # minutes
WORKERS = 3
LEASE = 10.0
OPTIONS = {
    "locks": MemoryOptions(),
    "locks without fencing": MemoryOptions(fencing=False),
    "groups": MemoryOptions(grouped=True, locks=False, peers=False),
}


class Member:
    """One worker of the app, as in a process of its own."""

    def __init__(self, broker: MemoryBroker, options: MemoryOptions, clock: VirtualClock, seed: random.Random) -> None:
        self.transport = MemoryTransport(broker, options)
        self.app = App("clock", lease=LEASE, partitions=1)
        self.app.clock = clock
        self.began: list[int] = []
        ticks = self.app.topic("ticks", value=int)
        app, began = self.app, self.began

        @app.crontab("* * * * *", on_leader=True)
        async def tick() -> None:
            minute = int((app.now() - START) // 60)
            began.append(minute)
            await app.sleep(seed.choice((0, 0, 1, 5)))
            await ticks.send(minute)

        self._worker: Worker | None = None
        self._running: AbstractAsyncContextManager[Worker] | None = None

    async def start(self) -> None:
        stores = load_stores("memory://")
        self._running = worker_running(self.app, transport=self.transport, stores=stores, mirror_urls=False)
        self._worker = await self._running.__aenter__()

    @property
    def leads(self) -> bool:
        return self._worker is not None and self.app.is_leader

    async def die(self) -> None:
        assert self._worker is not None
        assert self._running is not None
        self.transport.kill()
        await self._worker.stop_by_kill()
        await self._leave()

    async def leave(self) -> None:
        """In good order."""
        await self._leave()

    async def _leave(self) -> None:
        running, self._running, self._worker = self._running, None, None
        if running is not None:
            await running.__aexit__(None, None, None)


class Day:
    """The members, and the clock that moves when nothing else does."""

    def __init__(self, options: MemoryOptions, seed: int) -> None:
        self.random = random.Random(seed)
        self.clock = VirtualClock(START)
        self.broker = MemoryBroker(clock=self.clock)
        self.options = options
        self.members: list[Member] = []
        self.began: list[int] = []
        self.ended = {"death": 0, "leave": 0}

    async def join(self) -> None:
        member = Member(self.broker, self.options, self.clock, self.random)
        await self.while_time_passes(member.start())
        self.members.append(member)

    async def lose(self, member: Member, how: str) -> None:
        self.ended[how] += 1
        self.members.remove(member)
        self.began += member.began
        await self.while_time_passes(member.die() if how == "death" else member.leave())

    async def while_time_passes(self, coroutine: object) -> None:
        task = asyncio.ensure_future(coroutine)  # type: ignore[arg-type]
        await self.quiet()
        while not task.done():
            await self.step()
        task.result()

    async def step(self, until: float = float("inf")) -> None:
        due = self.clock.next()
        self.clock.move(until if due is None else min(due, until))
        await self.quiet()

    async def advance(self, to: float) -> None:
        while self.clock.now() < to:
            await self.step(to)

    async def quiet(self) -> None:
        """Until the loop has nothing to run: memory:// has no sockets and no threads that could bring more."""
        ready = asyncio.get_running_loop()._ready  # type: ignore[attr-defined]
        calm = 0
        while calm < 2:
            await asyncio.sleep(0)
            calm = calm + 1 if not ready else 0

    def sent(self) -> list[int]:
        """As another program reads it."""
        inbox = Inbox("ticks", 0)
        records = MemoryTransport(self.broker, self.options).records("ticks")
        return [
            int(seen.record.value or b"") for _, position, record in records for seen in inbox.receive(position, record)
        ]


@pytest.mark.parametrize(
    ("options", "minutes"), [("locks", A_DAY), ("locks without fencing", SIX_HOURS), ("groups", SIX_HOURS)]
)
async def test_a_crontab_runs_1440_times_a_day_though_leaders_die(options: str, minutes: int) -> None:
    day = Day(OPTIONS[options], seed=7)
    for _ in range(WORKERS):
        await day.join()
    while (moment := day.clock.now() + day.random.uniform(60, 600)) < START + minutes * 60 + 30:
        if day.random.random() < 0.4:
            moment += 60.5 - (moment - START) % 60  # in the midst of a run, which takes up to 5 s
        await day.advance(moment)
        leader = next(member for member in day.members if member.leads)
        await day.lose(leader, day.random.choice(("death", "death", "leave")))
        await day.advance(day.clock.now() + day.random.choice((0, 3, 30)))
        await day.join()
    await day.advance(START + minutes * 60 + 30)
    for member in list(day.members):
        await day.lose(member, "leave")
    assert day.ended["death"] > minutes / 14
    assert day.sent() == list(range(1, minutes + 1))  # in their order, none missing, none twice
    assert sorted(set(day.began)) == day.sent()
    assert len(day.began) > len(day.sent())  # some had begun in a leader that died in them
